"""A real Envoy for attacks: the integration tests' rig, with limits of its own. Fixtures and files of tests/security call it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from funicular.compile import bootstrap
from funicular.compile.limits import Limits
from tests.integration.envoy_rig import PolicyTraffic, Rig, Upstreamer
from tests.security.wire import Reply, say
from tests.unit.compile.builders import (
    make_classifier,
    make_credentials,
    make_policy,
    make_route,
    make_traffic,
    make_upstream,
)

FRONTIER_KEY, MINI_KEY = "sk-frontier-3f9c1b7a", "sk-mini-8d2e6a40"


class Gateway(Rig):
    def __init__(self, folder: Path, limits: Limits | None = None, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self._limits = limits or Limits()
        self.values = {"first": FRONTIER_KEY, "second": MINI_KEY}

    def prepare(self, *policies: PolicyTraffic) -> None:
        super().prepare(*policies)
        (self.folder / "bootstrap.json").write_text(json.dumps(bootstrap(self.settings, self._limits)))

    @property
    def port(self) -> int:
        return self.settings.gateway_port

    async def raw(self, data: bytes) -> Reply:
        return await say(self.port, data)

    async def is_serving(self) -> bool:
        """Another client, with a connection of its own."""
        answer = await self.chat("bystander", headers={"connection": "close"})
        return answer.status == 200

    async def until_serving(self, within: float = 30.0) -> None:
        """Raises TimeoutError, or AssertionError when Envoy has ended."""
        async with asyncio.timeout(within):
            while True:
                assert self.process is not None
                assert self.process.poll() is None
                with contextlib.suppress(OSError, aiohttp.ClientError):
                    if await self.is_serving():
                        return
                await asyncio.sleep(0.05)

    @property
    def memory(self) -> int:
        """Bytes that Envoy has of the machine."""
        assert self.process is not None
        found: int = psutil.Process(self.process.pid).memory_info().rss
        return found

    async def counter(self, name: str) -> int:
        """One of Envoy's own, which Prometheus gets from the port for metrics."""
        async with self.session.get(f"http://127.0.0.1:{self.settings.stats_port}/metrics") as answer:
            text = await answer.text()
        values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(name)]
        return int(sum(map(float, values)))

    # --- what it serves -----------------------------------------------------------------------------------------------
    async def serve_one(self) -> Upstreamer:
        """One provider behind the endpoint `support-chat`."""
        frontier = await self.upstream("frontier")
        first = make_upstream("frontier", frontier.url, credentials=make_credentials("first"))
        await self.start(make_policy(make_traffic(make_route("aaaa", first))))
        return frontier

    async def serve_two(self, share: int = 10_000, **mini: Any) -> tuple[Upstreamer, Upstreamer]:
        """`mini` answers the treated users, with a key of its own in the same header."""
        frontier, cheap = await self.upstream("frontier"), await self.upstream("mini")
        first = make_upstream("frontier", frontier.url, credentials=make_credentials("first"))
        fields = {"credentials": make_credentials("second"), "timeout": "400ms", **mini}
        second = make_upstream("mini", cheap.url, **fields)
        stable, candidate = make_route("aaaa", first), make_route("bbbb", first, second, single="mini")
        await self.start(make_policy(make_traffic(stable, candidate, share)))
        return frontier, cheap

    async def serve_classified(self, share: int = 10_000) -> tuple[Upstreamer, Upstreamer, Upstreamer]:
        """As serve_two, with a classifier that treated requests are shown to: label `easy` goes to `mini`."""
        frontier, cheap, classifier = [await self.upstream(name) for name in ("frontier", "mini", "classifier")]
        first = make_upstream("frontier", frontier.url, credentials=make_credentials("first"))
        second = make_upstream("mini", cheap.url, credentials=make_credentials("second"))
        asked = make_classifier(f"http://127.0.0.1:{classifier.port}", timeout="1s")
        stable, candidate = make_route("aaaa", first), make_route("bbbb", first, second, classifier=asked)
        await self.start(make_policy(make_traffic(stable, candidate, share)))
        return frontier, cheap, classifier


@contextlib.asynccontextmanager
async def gateway_in(folder: Path, limits: Limits | None = None, **settings: Any) -> AsyncIterator[Gateway]:
    one = Gateway(folder, limits, **settings)
    try:
        yield one
    finally:
        await one.stop()


def written(folder: Path) -> bytes:
    """Every file below it, but for those that are there to hold keys (sds)."""
    found = b""
    for where, _, names in os.walk(folder):
        if Path(where).name == "sds":
            continue
        for name in names:
            found += (Path(where) / name).read_bytes()
    return found
