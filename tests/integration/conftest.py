"""One real cluster for the whole session: starting it costs seconds, an object in a namespace of its own costs nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hack.cluster import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """API server, controller manager, scheduler and Prometheus."""
    with Cluster.start("tests", folder=tmp_path_factory.mktemp("cluster"), node=False) as running:
        yield running
