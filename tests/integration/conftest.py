"""One real cluster for the whole session: starting it costs seconds, a namespace of one's own costs nothing."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator

import pytest

from hack.cluster import Cluster
from tests.integration.stack_fixtures import stack as stack

IMAGES = {
    # Serves its working directory over HTTP; `args` is the port.
    "web": [sys.executable, "-m", "http.server", "--bind", "$(POD_IP)"],
    "python": [sys.executable, "-u"],
}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """API server, controller manager, scheduler, Prometheus and a process node. More images: `cluster.add_images`."""
    with Cluster.start("tests", folder=tmp_path_factory.mktemp("cluster"), images=IMAGES) as running:
        yield running


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of this test; it is deleted afterwards, without waiting for it."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
