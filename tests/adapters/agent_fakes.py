"""A fake API server (list, watch), a fake operator (reports), a provider, and the agent as a process beside them."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from funicular.api.report import LEASE, REPORT_URL, Report

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
ENVOY = Path(sys.executable).parent / "envoy"
LABELS = {"app.kubernetes.io/component": "gateway"}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


async def eventually(fact: Callable[[], Any], what: str = "", seconds: float = 30.0) -> Any:
    """Waits for a fact, not for a time. `fact` may be a coroutine function."""
    async with asyncio.timeout(seconds):
        while True:
            with suppress(AssertionError, aiohttp.ClientError, OSError):
                found = fact()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return found
            await asyncio.sleep(0.02)


class Api:
    """Objects by path, with resourceVersions; `refuse` makes it answer 503."""

    def __init__(self) -> None:
        self.version = 1
        self.objects: dict[str, dict[str, Json]] = {}
        self.events: dict[str, list[tuple[int, str, Json]]] = {}
        self.news = asyncio.Condition()
        self.refuse = False
        self.silent = ""  # paths with this in them are not answered
        self.watchers = 0
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._get)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port or self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    async def put(self, path: str, item: Json) -> None:
        name = f"{item['metadata'].get('namespace', '')}/{item['metadata']['name']}"
        kind = "MODIFIED" if name in self.objects.setdefault(path, {}) else "ADDED"
        async with self.news:
            self.version += 1
            item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
            self.objects[path][name] = item
            self.events.setdefault(path, []).append((self.version, kind, item))
            self.news.notify_all()

    async def remove(self, path: str, name: str) -> None:
        async with self.news:
            self.version += 1
            item = self.objects[path].pop(name)
            item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
            self.events.setdefault(path, []).append((self.version, "DELETED", item))
            self.news.notify_all()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        if self.refuse:
            return web.json_response({"message": "not now"}, status=503)
        path = request.path
        while self.silent and self.silent in path:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        wanted = request.query.get("fieldSelector", "").removeprefix("metadata.name=")

        def matches(item: Json) -> bool:
            return not wanted or item["metadata"]["name"] == wanted

        if "watch" not in request.query:
            items = [item for item in self.objects.get(path, {}).values() if matches(item)]
            body = {"items": items, "metadata": {"resourceVersion": str(self.version)}}
            return web.Response(body=orjson.dumps(body), content_type="application/json")
        answer = web.StreamResponse()
        await answer.prepare(request)
        sent = int(request.query["resourceVersion"])
        self.watchers += 1
        try:
            while not self.refuse:
                async with self.news:
                    fresh = [event for event in self.events.get(path, []) if event[0] > sent and matches(event[2])]
                    if not fresh:
                        with suppress(TimeoutError):
                            async with asyncio.timeout(0.5):
                                await self.news.wait()
                        continue
                for version, kind, item in fresh:
                    sent = version
                    await answer.write(orjson.dumps({"type": kind, "object": item}) + b"\n")
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.watchers -= 1
        return answer

    # --- objects ------------------------------------------------------------------------------------------------------
    async def policy(self, name: str, traffic: Any, *, uid: str = "", namespace: str = "default") -> None:
        meta = {"name": name, "namespace": namespace, "uid": uid or f"uid-{name}"}
        for path in _policy_paths(namespace):
            await self.put(path, {"metadata": meta, "status": {"traffic": traffic}})

    async def no_policy(self, name: str, namespace: str = "default") -> None:
        for path in _policy_paths(namespace):
            await self.remove(path, f"{namespace}/{name}")

    async def secret(self, name: str, namespace: str = "default", **values: str) -> None:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        await self.put(
            f"/api/v1/namespaces/{namespace}/secrets",
            {"metadata": {"name": name, "namespace": namespace}, "data": data},
        )

    async def no_secret(self, name: str, namespace: str = "default") -> None:
        await self.remove(f"/api/v1/namespaces/{namespace}/secrets", f"{namespace}/{name}")

    async def lease(self, url: str, holder: str = "operator-0") -> None:
        meta = {"name": LEASE, "namespace": "default", "annotations": {REPORT_URL: url}}
        await self.put(
            "/apis/coordination.k8s.io/v1/namespaces/default/leases",
            {"metadata": meta, "spec": {"holderIdentity": holder}},
        )


def _policy_paths(namespace: str) -> tuple[str, str]:
    group = "/apis/routing.funicular.dev/v1alpha1"
    return f"{group}/routingpolicies", f"{group}/namespaces/{namespace}/routingpolicies"


class Operator:
    """Takes reports as the leader does: an unknown session is asked for a full one."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.acks: dict[str, Any] = {}
        self.counts: dict[str, Any] = {}
        self.sessions: set[str] = set()
        self.tokens: set[str] = set()
        self.status = 200
        self.news = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/report", self._post)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _post(self, request: web.Request) -> web.Response:
        if self.status != 200:
            return web.json_response({}, status=self.status)
        report = Report.model_validate_json(await request.read())
        self.tokens.add(request.headers.get("authorization", ""))
        self.reports.append(report)
        if report.session not in self.sessions and not report.full:
            return web.json_response({"resync": True})
        self.sessions.add(report.session)
        self.acks = {**({} if report.full else self.acks), **report.acks}
        self.counts |= report.counts
        self.news.set()
        return web.json_response({"resync": False})

    def acked(self, name: str, version: int) -> bool:
        ack = self.acks.get(f"uid-{name}")
        return ack is not None and ack.version == version and ack.error is None

    def error(self, name: str) -> str:
        ack = self.acks.get(f"uid-{name}")
        return (ack.error or "") if ack else ""


class Provider:
    """Answers 200 with its name and the key that it was sent."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.keys: list[str] = []
        self.port = 0
        self.status = 200
        self._serving: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = next((int(x.split(":")[1]) for x in head.split("\r\n") if x.startswith("content-length:")), 0)
                await reader.readexactly(length)
                key = next((x.split(": ", 1)[1] for x in head.split("\r\n") if x.startswith("authorization:")), "")
                if key and (not self.keys or self.keys[-1] != key):
                    self.keys.append(key)
                body = self.name.encode()
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (self.status, len(body), body))
                await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self._serving.discard(task)


@dataclass
class World:
    api: Api
    operator: Operator
    frontier: Provider
    mini: Provider
    folder: Path
    gateway_port: int
    agent_port: int
    admin_port: int
    process: asyncio.subprocess.Process | None = None
    environment: dict[str, str] = field(default_factory=dict)
    ip: str = "127.0.0.1"

    def with_real_compiler(self) -> None:
        """On an address of its own: the real configuration has ports that cannot be chosen."""
        self.ip = f"127.{random.randint(64, 127)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
        self.environment |= {"COMPILER": "real", "FUNICULAR_POD_IP": self.ip, "FUNICULAR_ADMIN_HOST": self.ip}

    @property
    def gateway(self) -> str:
        return f"http://{self.ip}:{self.gateway_port}"

    @property
    def agent(self) -> str:
        return f"http://{self.ip}:{self.agent_port}"

    @property
    def admin(self) -> str:
        return f"http://{self.ip}:{self.admin_port}"

    def traffic(
        self, name: str, version: int = 1, *, share: int | None = None, revision: str = "r2", **more: Any
    ) -> Json:
        """Baseline to `frontier`; with a share, the candidate revision to `mini`."""
        secret = more.pop("secret", None)
        credentials = {"credentials": {"secretRef": {"name": secret, "key": "key"}}} if secret else {}
        upstreams = [
            {
                "name": "frontier",
                "url": self.frontier.url,
                "model": "big",
                "price": {"inputPerMillion": 1, "outputPerMillion": 4},
            },
            {"name": "mini", "url": self.mini.url, "model": "small", **credentials},
        ]
        stable = {"revision": "r1", "upstreams": upstreams[:1], "baseline": "frontier"}
        candidate = {"revision": revision, "upstreams": upstreams, "baseline": "frontier", "single": "mini"}
        return {
            "version": version,
            "revision": revision if share is not None else "r1",
            "share": {"desired": share or 0},
            "endpoint": name,
            "selector": LABELS,
            "units": [{"header": "x-user-id"}],
            "stable": stable,
            **({"candidate": candidate} if share is not None else {}),
            **more,
        }

    async def start_agent(self) -> None:
        log = (self.folder / "agent.log").open("ab")
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.adapters.agent_process",
            env={**os.environ, **self.environment},
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        log.close()

    async def kill_agent(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        await self.process.wait()

    def envoy_pid(self) -> int:
        return int((self.folder / "config" / "envoy.pid").read_text())

    async def ready(self) -> None:
        async with aiohttp.ClientSession() as session:

            async def is_ready() -> bool:
                if self.process is None or self.process.returncode is not None:
                    raise RuntimeError((self.folder / "agent.log").read_text())
                async with session.get(self.agent + "/readyz") as answer:
                    return answer.status == 200

            await eventually(is_ready, "the agent is ready")

    async def ask(
        self, session: aiohttp.ClientSession, model: str, user: str = "u", **headers: str
    ) -> tuple[int, str, str]:
        """Status, body, arm."""
        if "COMPILER" in self.environment:
            body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
            url = self.gateway + "/v1/chat/completions"
            async with session.post(url, json=body, headers={"x-user-id": user}) as answer:
                parts = answer.headers.get("x-funicular-id", ";;").split(";")
                return answer.status, await answer.text(), parts[2]
        sent = {"x-model": model, "x-user-id": user, "x-replicate": "7", **headers}
        async with session.get(self.gateway + "/v1/chat/completions", headers=sent) as answer:
            return answer.status, await answer.text(), answer.headers.get("x-arm", "")

    async def acked(self, name: str, version: int) -> None:
        await eventually(lambda: self.operator.acked(name, version), f"{name} {version} acknowledged")


@asynccontextmanager
async def world(folder: Path, *, with_envoy: bool = True) -> AsyncIterator[World]:
    api, operator, frontier, mini = Api(), Operator(), Provider("frontier"), Provider("mini")
    for part in (api, operator, frontier, mini):
        await part.start()
    await api.lease(operator.url)
    (folder / "labels").write_text("\n".join(f'{key}="{value}"' for key, value in LABELS.items()))
    (folder / "token").write_text("a-token")
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{api.port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    (folder / "kubeconfig").write_bytes(orjson.dumps(kubeconfig))
    gateway_port, agent_port, admin_port = free_ports(3)
    made = World(api, operator, frontier, mini, folder, gateway_port, agent_port, admin_port)
    made.environment = {
        "KUBECONFIG": str(folder / "kubeconfig"),
        "FUNICULAR_POD_NAME": "gateway-0",
        "FUNICULAR_POD_UID": str(uuid.uuid4()),
        "FUNICULAR_POD_LABELS_FILE": str(folder / "labels"),
        "FUNICULAR_CONFIG_DIR": str(folder / "config"),
        "FUNICULAR_GATEWAY_PORT": str(gateway_port),
        "FUNICULAR_AGENT_PORT": str(agent_port),
        "FUNICULAR_ADMIN_PORT": str(admin_port),
        "FUNICULAR_TOKEN_FILE": str(folder / "token"),
        "FUNICULAR_ID_KEY_FILE": str(folder / "id-key"),
        "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}",
        **({"FUNICULAR_ENVOY": str(ENVOY)} if with_envoy else {}),
    }
    (folder / "id-key").write_text("0123456789abcdef0123456789abcdef\n")
    try:
        yield made
    finally:
        if made.process and made.process.returncode is None:
            await made.kill_agent()
        with suppress(OSError, ValueError):
            os.kill(made.envoy_pid(), signal.SIGKILL)
        for part in (api, operator, frontier, mini):
            await part.stop()


def run_envoy_sidecar(made: World) -> subprocess.Popen[bytes]:
    """As a sidecar would: reads what the agent wrote first."""
    arguments = ["-c", str(made.folder / "config" / "bootstrap.json"), "--use-dynamic-base-id", "--concurrency", "1"]
    return subprocess.Popen([str(ENVOY), *arguments, "-l", "error"])
