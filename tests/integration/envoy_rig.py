"""A real Envoy with the compiler's files, recording upstreams and a settable classifier, for tests/integration/test_envoy_*."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from funicular.api.traffic import Route, Share, Traffic, Upstream
from funicular.compile import (
    ID_KEY,
    LUA_FILES,
    GatewaySettings,
    PolicyTraffic,
    bootstrap,
    policy_clusters,
    policy_route,
    policy_secrets,
    policy_shares,
    route_configuration,
    samples,
    secret,
    share_layer,
)
from funicular.compile.ack import CLUSTERS, PATH, ROUTES, SHARES, versions
from tests.unit.compile.builders import UNITS

ENVOY = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
KEY = 'signing "key" \\ of}the] tests'
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def free_ports(count: int) -> list[int]:
    """Below the range from which the kernel takes ports of connections: those may be taken before Envoy listens."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Upstreamer:
    """Records what it gets; answers a small chat completion unless `handler` says otherwise."""

    name: str
    seen: list[Seen] = field(default_factory=list)
    handler: Handler | None = None
    port: int = 0
    runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self, tls: ssl.SSLContext | None = None) -> Upstreamer:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", self.port, ssl_context=tls)
        await site.start()
        self.port = self.runner.addresses[0][1]
        return self

    async def stop(self) -> None:
        if self.runner:
            await self.runner.cleanup()
            self.runner = None

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {k.lower(): v for k, v in request.headers.items()}
        self.seen.append(Seen(request.method, request.path_qs, headers, body))
        if self.handler:
            return await self.handler(request)
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        return web.json_response({"object": "chat.completion", "from": self.name, "choices": [], "usage": usage})


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def identity(self) -> list[str]:
        return self.headers["x-funicular-id"].split(";")

    @property
    def arm(self) -> str:
        return self.identity[2]

    @property
    def candidate(self) -> str:
        return self.identity[3]


class Rig:
    def __init__(self, folder: Path, **settings: Any) -> None:
        gateway, admin, stats, agent = free_ports(4)
        self.settings = GatewaySettings(
            **{
                "config_dir": str(folder),
                "listen_host": "127.0.0.1",
                "gateway_port": gateway,
                "admin_port": admin,
                "stats_port": stats,
                "agent_port": agent,
                **settings,
            }
        )
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.policies: list[PolicyTraffic] = []
        self.values: dict[str, str] = {}
        self.session = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
        self._turn = 0
        self.upstreams: list[Upstreamer] = []
        self.log = folder / "envoy.log"

    # --- files --------------------------------------------------------------------------------------------------------
    def write(self, kind: str, resources: list[Any], version: str = "") -> str:
        self._turn += 1
        version = version or str(self._turn)
        path = self.folder / f"{kind}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".tmp")
        fresh.write_text(json.dumps({"version_info": version, "resources": resources}))
        fresh.rename(path)
        return version

    def write_secret(self, sds: str, value: str) -> None:
        self.write(f"sds/{sds}", [secret(sds, value)])

    def write_secrets(self) -> None:
        self.write_secret(ID_KEY, KEY)
        for policy in self.policies:
            for use in policy_secrets(policy):
                self.write_secret(use.sds, self.values.get(use.name, f"key-of-{use.name}"))

    def write_all(self) -> dict[str, str]:
        self.write_secrets()
        clusters = {n: c for p in self.policies for n, c in policy_clusters(p, self.settings).items()}
        parts = {p.traffic.endpoint: policy_route(p) for p in self.policies}
        shares = {k: v for p in self.policies for k, v in policy_shares(p).items()}
        return {
            CLUSTERS: self.write("cds/cds", list(clusters.values())),
            ROUTES: self.write("rds/rds", [route_configuration(parts, self.settings)]),
            SHARES: self.write("runtime/runtime", [share_layer(shares)]),
        }

    async def apply(self, *policies: PolicyTraffic) -> None:
        self.policies = list(policies)
        await self.taken(self.write_all())

    async def share(self, points: int) -> None:
        policy = self.policies[0]
        await self.taken({SHARES: self.write("runtime/runtime", [share_layer({policy.share_key: points})])})

    async def taken(self, wanted: dict[str, str]) -> None:
        found: dict[str, str] = {}
        for _ in range(500):
            found = versions(await self.admin(PATH))
            if all(found.get(kind) == version for kind, version in wanted.items()):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"Envoy took {found}, not {wanted}: {self.log.read_text()[-3000:]}")

    # --- the process --------------------------------------------------------------------------------------------------
    def prepare(self, *policies: PolicyTraffic) -> None:
        self.policies = list(policies)
        lua = self.folder / "lua"
        lua.mkdir(parents=True, exist_ok=True)
        for name in LUA_FILES:
            (lua / name).write_text((resources.files("funicular.compile") / "lua" / name).read_text())
        (self.folder / "bootstrap.json").write_text(json.dumps(bootstrap(self.settings)))
        self.write_all()

    async def start(self, *policies: PolicyTraffic) -> Rig:
        assert ENVOY, "the envoy binary of the extra `gateway` is missing"
        self.prepare(*policies)
        arguments = [ENVOY, "-c", str(self.folder / "bootstrap.json"), "--use-dynamic-base-id", "-l", "error"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220
                [*arguments, "--concurrency", "1"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        for _ in range(1000):
            if self.process.poll() is not None:
                raise AssertionError(self.log.read_text()[-4000:])
            with contextlib.suppress(aiohttp.ClientError):
                if await self.admin("/ready") == "LIVE\n" and (await self.get("/healthz")).status == 200:
                    return self
            await asyncio.sleep(0.02)
        raise AssertionError("Envoy did not become ready")

    async def stop(self) -> None:
        await self.session.close()
        if self.process:
            self.process.terminate()
            await asyncio.to_thread(self.process.wait, 10)
        for upstream in self.upstreams:
            await upstream.stop()

    async def upstream(self, name: str, tls: ssl.SSLContext | None = None) -> Upstreamer:
        upstream = await Upstreamer(name).start(tls)
        self.upstreams.append(upstream)
        return upstream

    # --- calls --------------------------------------------------------------------------------------------------------
    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.gateway_port}"

    async def admin(self, path: str, method: str = "GET") -> str:
        url = f"http://127.0.0.1:{self.settings.admin_port}{path}"
        async with self.session.request(method, url) as answer:
            return await answer.text()

    async def call(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        all_headers = {"content-type": "application/json", **(headers or {})}
        async with self.session.request(method, self.url + path, data=body, headers=all_headers) as answer:
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read())

    async def get(self, path: str) -> Answer:
        return await self.call("GET", path)

    async def chat(
        self,
        unit: str | None = None,
        model: str = "support-chat",
        headers: dict[str, str] | None = None,
        **members: Any,
    ) -> Answer:
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "model": model, **members}).encode()
        named = {"x-user-id": unit} if unit is not None else {}
        return await self.call("POST", "/v1/chat/completions", body, {**named, **(headers or {})})

    async def samples(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        await asyncio.sleep(0)
        return samples(await self.admin("/stats/prometheus?usedonly&filter=^funicular"))


def total(found: dict[str, dict[tuple[tuple[str, str], ...], float]], family: str, **labels: str) -> float:
    return sum(v for key, v in found.get(family, {}).items() if labels.items() <= dict(key).items())


@contextlib.asynccontextmanager
async def rig(folder: Path, **settings: Any) -> AsyncIterator[Rig]:
    one = Rig(folder, **settings)
    try:
        yield one
    finally:
        await one.stop()


__all__ = ["UNITS", "Answer", "Rig", "Route", "Share", "Traffic", "Upstream", "Upstreamer", "rig", "total"]
