"""A gateway for each test: real Envoy, its limits as they are shipped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.security.gateway import Gateway, gateway_in


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway_in(tmp_path) as one:
        yield one
