"""Gateway pods on a real API server: the shipped manifest, real RBAC, tokens that the API server reviews, Envoy as a sidecar."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from string import Template
from typing import Any
from unittest import mock

import aiohttp
import pytest

from funicular.adapters.kube import KubeClient, discover, path_of
from funicular.api.base import API_VERSION, PLURAL
from funicular.api.report import LEASE, REPORT_URL, Report
from funicular.controller.reportserver import ReportServer, Tokens
from hack.cluster import Cluster, Image
from tests.adapters.agent_fakes import ENVOY, Provider, eventually
from tests.builders import spec_body

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
SELECTOR = {"app.kubernetes.io/component": "gateway"}


class Book:
    """Stands where the operator's does: what each pod confirmed, by policy."""

    def __init__(self) -> None:
        self.acks: dict[str, dict[str, Any]] = {}
        self.sessions: set[str] = set()

    def take(self, report: Report) -> bool:
        if report.session not in self.sessions and not report.full:
            return True
        self.sessions.add(report.session)
        known = {} if report.full else self.acks.get(report.pod, {})
        self.acks[report.pod] = {**known, **report.acks}
        return False

    def confirmed(self, uid: str, version: int) -> int:
        found = [acks[uid] for acks in self.acks.values() if uid in acks]
        return sum(ack.version == version and ack.error is None for ack in found)


@pytest.fixture
async def kube(cluster: Cluster) -> AsyncIterator[KubeClient]:
    cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{PLURAL}.routing.funicular.dev")
    place = str(cluster.kubeconfig)
    with (
        mock.patch.dict(os.environ, {"KUBECONFIG": place}),
        mock.patch("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", place),
    ):
        access = discover()
    async with KubeClient(access) as client:
        yield client


@pytest.fixture
async def book(kube: KubeClient, namespace: str) -> AsyncIterator[Book]:
    """The operator's own report server, tokens and all, leading by a Lease in the test's namespace."""
    made, server = Book(), ReportServer(host="127.0.0.1", port=0)
    await server.start()
    server.lead(made, Tokens(kube, time.time))
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": LEASE, "annotations": {REPORT_URL: f"http://127.0.0.1:{server.port}"}},
        "spec": {"holderIdentity": "the-test"},
    }
    await kube.create(path_of("coordination.k8s.io/v1", "leases", namespace), lease)
    yield made
    await server.stop()


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider("frontier")
    await made.start()
    yield made
    await made.stop()


def traffic(name: str, provider: Provider, version: int, share: int | None = None) -> Json:
    credentials = {"secretRef": {"name": "keys", "key": "api-key"}}
    upstream = {"name": "frontier", "url": provider.url, "model": "big", "credentials": credentials}
    mini = {**upstream, "name": "mini", "model": "small"}
    found = {
        "version": version,
        "revision": "r1" if share is None else "r2",
        "share": {"desired": share or 0},
        "endpoint": name,
        "selector": SELECTOR,
        "units": [{"header": "x-user-id"}],
        "stable": {"revision": "r1", "upstreams": [upstream], "baseline": "frontier"},
    }
    if share is not None:
        found["candidate"] = {"revision": "r2", "upstreams": [upstream, mini], "baseline": "frontier", "single": "mini"}
    return found


async def serve(kube: KubeClient, namespace: str, name: str, found: Json) -> str:
    """Writes `status.traffic` as the operator does. Returns the policy's uid."""
    path = path_of(API_VERSION, PLURAL, namespace)
    answer = await kube.patch(f"{path}/{name}/status", {"status": {"traffic": found}})
    return str(answer["metadata"]["uid"])


async def make_policy(kube: KubeClient, namespace: str, name: str) -> None:
    slo = {"name": "thumbs", "indicator": "ThumbsUpRate", "allowedDecrease": 0.05}
    body = {
        "apiVersion": API_VERSION,
        "kind": "RoutingPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec_body(endpoint={"model": name}, slos=[slo]),
    }
    await kube.create(path_of(API_VERSION, PLURAL, namespace), body)


async def make_secret(kube: KubeClient, namespace: str, name: str, key: str, value: str) -> None:
    data = {key: base64.b64encode(value.encode()).decode()}
    await kube.create(
        path_of("v1", "secrets", namespace),
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data},
    )


def apply_gateway(cluster: Cluster, namespace: str) -> None:
    env = {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}"}
    cluster.add_images(
        {
            "test.local/agent": Image((sys.executable, "-m", "funicular.agent.main"), env=env),
            "test.local/envoy": Image((str(ENVOY),), programs={"envoy": (str(ENVOY),)}),
        }
    )
    values = {
        "namespace": namespace,
        "image": "test.local/agent",
        "envoy_image": "test.local/envoy",
        "replicas": "2",
        "dns": cluster.dns,
        "admin_host": "$(FUNICULAR_POD_IP)",
        "secrets": json.dumps(["keys"]),
    }
    cluster.apply(Template((ROOT / "hack/manifests/gateway.yaml").read_text()).safe_substitute(values))


async def ready_pods(kube: KubeClient, namespace: str) -> list[Json]:
    pods = (await kube.get(path_of("v1", "pods", namespace), labelSelector="app.kubernetes.io/component=gateway"))[
        "items"
    ]

    def is_ready(pod: Json) -> bool:
        conditions = (pod.get("status") or {}).get("conditions") or []
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    return [pod for pod in pods if is_ready(pod)]


async def test_gateway_pods_serve_acknowledge_and_rotate_with_the_rights_they_are_given(
    cluster: Cluster, kube: KubeClient, namespace: str, book: Book, provider: Provider
) -> None:
    await make_secret(kube, namespace, "keys", "api-key", "sk-one")
    await make_secret(kube, namespace, "funicular-id-key", "key", secrets.token_hex(32))
    await make_policy(kube, namespace, "chat")
    uid = await serve(kube, namespace, "chat", traffic("chat", provider, 1))
    await asyncio.to_thread(apply_gateway, cluster, namespace)

    async def both() -> bool:
        return len(await ready_pods(kube, namespace)) == 2

    await eventually(both, seconds=60)
    await eventually(lambda: book.confirmed(uid, 1) == 2)
    addresses = [pod["status"]["podIP"] for pod in await ready_pods(kube, namespace)]
    async with aiohttp.ClientSession() as session:

        async def ask(address: str) -> tuple[int, str]:
            body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
            url = f"http://{address}:8080/v1/chat/completions"
            async with session.post(url, json=body, headers={"x-user-id": "u"}) as answer:
                return answer.status, answer.headers.get("x-funicular-id", "")

        for address in addresses:
            status, answer_id = await ask(address)
            assert status == 200
            assert answer_id.startswith(f"{namespace}/chat;r1;control;frontier;")
        assert provider.keys == ["bearer sk-one"]

        await serve(kube, namespace, "chat", traffic("chat", provider, 2, share=10_000))
        await eventually(lambda: book.confirmed(uid, 2) == 2)
        ids = [await ask(address) for address in addresses]
        assert all(";treatment;mini;" in answer_id for _, answer_id in ids)
        # An answer of one pod may be judged at another: they share the key.
        feedback = {"id": ids[0][1], "thumb": "up"}
        async with session.post(f"http://{addresses[1]}:8080/v1/feedback", json=feedback) as answer:
            assert answer.status == 200, await answer.text()

        body = {"data": {"api-key": base64.b64encode(b"sk-two").decode()}}
        await kube.patch(path_of("v1", "secrets", namespace, "keys"), body)

        async def rotated() -> bool:
            await ask(addresses[0])
            return provider.keys[-1] == "bearer sk-two"

        await eventually(rotated)
        await serve(kube, namespace, "chat", traffic("chat", provider, 3, share=0))
        await eventually(lambda: book.confirmed(uid, 3) == 2)
        assert ";control;frontier;" in (await ask(addresses[0]))[1]


async def test_lightweight_agents_confirm_as_pods_do(
    cluster: Cluster, kube: KubeClient, namespace: str, book: Book, provider: Provider
) -> None:
    await make_policy(kube, namespace, "chat")
    uid = await serve(kube, namespace, "chat", traffic("chat", provider, 1))
    options = ["--count", "20", "--kubeconfig", str(cluster.kubeconfig), "--namespace", namespace]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hack.agents", *options, "--operator-namespace", namespace),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}"},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"ready\n"
        await eventually(lambda: book.confirmed(uid, 1) == 20)
        assert len(await ready_pods(kube, namespace)) == 20
        for version in range(2, 12):
            start = time.perf_counter()
            await serve(kube, namespace, "chat", traffic("chat", provider, version, share=version))
            await eventually(lambda version=version: book.confirmed(uid, version) == 20)  # type: ignore[misc]
            print(f"20 agents: {(time.perf_counter() - start) * 1000:.0f} ms")
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await process.wait()
    assert process.returncode == 0
    assert (await kube.get(path_of("v1", "pods", namespace)))["items"] == []
