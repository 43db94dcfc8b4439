"""The operator's runtime on a real API server: Lease, kopf's thread, store, reports, and what its adapters write."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import pytest

from funicular.adapters.clock import SystemClock
from funicular.adapters.events import EventWriter
from funicular.adapters.history import ControllerRevisions
from funicular.adapters.kube import Access, KubeClient, discover, path_of
from funicular.adapters.workloads import Classifiers
from funicular.api.base import API_VERSION, GATEWAY_LABEL, PLURAL
from funicular.api.policy import Metadata, parse_metadata
from funicular.api.report import AUDIENCE, LEASE, REPORT_PATH, REPORT_URL
from funicular.api.revision import classifier_name
from funicular.api.spec import ClassifierStrategy
from funicular.controller.main import Operator
from funicular.controller.wiring import NotLeader, Ports
from funicular.errors import NotFound
from funicular.settings import OperatorSettings
from hack.cluster import Cluster
from hack.cluster.errors import CommandFailed
from tests.builders import spec_body
from tests.controller.fakes import until

Json = dict[str, Any]
CRDS = Path(__file__).resolve().parents[2] / "crds"


@pytest.fixture(scope="session")
def crd(cluster: Cluster) -> None:
    cluster.kubectl("apply", "--server-side", "-f", str(CRDS))
    for _ in range(100):
        try:
            cluster.kubectl("get", "routingpolicies.routing.funicular.dev")
            return
        except CommandFailed:
            time.sleep(0.1)
    raise AssertionError("the resource was not established")


@pytest.fixture
def access(cluster: Cluster, crd: None) -> Access:
    place = str(cluster.kubeconfig)
    with (  # the official loader reads the variable when it is imported
        mock.patch.dict(os.environ, {"KUBECONFIG": place}),
        mock.patch("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", place),
    ):
        return discover()


@pytest.fixture
async def kube(access: Access) -> AsyncIterator[KubeClient]:
    async with KubeClient(access) as client:
        yield client


class Recorder:
    """A reconciler that writes down what it was asked, and can be told to do more."""

    def __init__(self, ports: Ports) -> None:
        self.ports = ports
        self.seen: list[tuple[str, str | None]] = []
        self.act: Any = None

    async def reconcile(self, key: str) -> datetime | None:
        body = self.ports.store.get(key)
        self.seen.append((key, body["metadata"]["resourceVersion"] if body else None))
        if self.act is not None:
            await self.act(key)
        return None


class Running:
    def __init__(self, operator: Operator, recorders: list[Recorder]) -> None:
        self.operator = operator
        self.recorders = recorders

    @property
    def recorder(self) -> Recorder:
        return self.recorders[-1]

    @property
    def leads(self) -> bool:
        return bool(self.recorders) and self.operator.ports is not None and self.operator.fence.is_open


@asynccontextmanager
async def operating(access: Access, namespace: str, name: str, **settings: Any) -> AsyncIterator[Running]:
    recorders: list[Recorder] = []

    def make(ports: Ports) -> Recorder:
        recorders.append(Recorder(ports))
        return recorders[-1]

    defaults = {"lease_seconds": 3.0, "renew_seconds": 0.3, "relist_seconds": 1.0, "check_tokens": False}
    chosen = OperatorSettings(
        pod_name=name,
        pod_namespace=namespace,
        namespaces=namespace,
        report_port=0,
        metrics_port=0,
        **{**defaults, **settings},  # type: ignore[arg-type]
    )
    exits: list[int] = []
    operator = Operator(chosen, access, make, exit_process=exits.append)
    task = asyncio.create_task(operator.run())
    yield Running(operator, recorders)
    operator.stop()
    async with asyncio.timeout(15):
        await task
    assert exits == []


async def make_policy(kube: KubeClient, namespace: str, name: str = "chat") -> Json:
    body = {
        "apiVersion": API_VERSION,
        "kind": "RoutingPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec_body(
            endpoint={"model": name}, slos=[{"name": "thumbs", "indicator": "ThumbsUpRate", "allowedDecrease": 0.05}]
        ),
    }
    return await kube.create(path_of(API_VERSION, PLURAL, namespace), body)


async def test_every_change_of_a_policy_is_seen_and_a_restart_sees_all(
    access: Access, kube: KubeClient, namespace: str
) -> None:
    await make_policy(kube, namespace, "early")
    async with operating(access, namespace, "one") as running:
        await until(lambda: running.leads and running.recorder.seen, 15)
        assert running.recorder.seen[0][0] == f"{namespace}/early"
        late = await make_policy(kube, namespace, "late")
        version = late["metadata"]["resourceVersion"]
        await until(lambda: (f"{namespace}/late", version) in running.recorder.seen)
        path = path_of(API_VERSION, PLURAL, namespace, "late")
        late = await kube.patch(path, {"metadata": {"annotations": {"a": "b"}}})
        await until(lambda: (f"{namespace}/late", late["metadata"]["resourceVersion"]) in running.recorder.seen)
        await kube.delete(path)
        await until(lambda: (f"{namespace}/late", None) in running.recorder.seen)
        assert late["metadata"].get("finalizers") is None
        early = await kube.get(path_of(API_VERSION, PLURAL, namespace, "early"))
        assert set(early["metadata"].get("annotations") or {}) == set()  # kopf left nothing behind


async def test_the_other_replica_takes_over_and_the_former_cannot_write(
    access: Access, kube: KubeClient, namespace: str
) -> None:
    policy = await make_policy(kube, namespace)
    path = path_of(API_VERSION, PLURAL, namespace, "chat")
    async with operating(access, namespace, "one") as one:
        await until(lambda: one.leads and one.recorder.seen, 15)
        former = one.recorder.ports
        async with operating(access, namespace, "two") as two:
            await asyncio.sleep(1)
            assert not two.leads
            lease = await kube.get(path_of("coordination.k8s.io/v1", "leases", namespace, LEASE))
            assert lease["metadata"]["annotations"][REPORT_URL].endswith(f":{one.operator.reports.port}")
            one.operator.stop()
            await until(lambda: two.leads and two.recorder.seen, 15)
            with pytest.raises(NotLeader):
                await former.kube.patch(path, {"metadata": {"annotations": {"late": "write"}}})
            assert (await kube.get(path))["metadata"]["resourceVersion"] == policy["metadata"]["resourceVersion"]
            lease = await kube.get(path_of("coordination.k8s.io/v1", "leases", namespace, LEASE))
            assert lease["metadata"]["annotations"][REPORT_URL].endswith(f":{two.operator.reports.port}")


async def test_a_term_whose_kopf_died_ends_and_another_begins(access: Access, kube: KubeClient, namespace: str) -> None:
    await make_policy(kube, namespace)
    with mock.patch(
        "funicular.controller.term._settings", side_effect=[RuntimeError("no login"), mock.DEFAULT]
    ) as broken:
        from funicular.controller import term

        broken.side_effect = [RuntimeError("no login")]
        async with operating(access, namespace, "one") as running:
            await until(lambda: broken.call_count == 1, 15)
            broken.side_effect = None
            broken.return_value = term.kopf.OperatorSettings()
            broken.return_value.peering.standalone = True
            broken.return_value.scanning.disabled = True
            broken.return_value.posting.enabled = False
            await until(lambda: broken.call_count == 2 and running.leads and running.recorder.seen, 20)


def pod_body(namespace: str, name: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {GATEWAY_LABEL: "true", "app.kubernetes.io/component": "gateway"}},
        "spec": {
            "nodeSelector": {"nowhere": "at-all"},
            "containers": [{"name": "c", "image": "none"}],
            "serviceAccountName": "gateway",
        },
    }


async def bound_token(kube: KubeClient, namespace: str, pod: Json, audience: str) -> str:
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": [audience],
            "boundObjectRef": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": pod["metadata"]["name"],
                "uid": pod["metadata"]["uid"],
            },
        },
    }
    answer = await kube.create(path_of("v1", "serviceaccounts", namespace, "gateway", "token"), request)
    return str(answer["status"]["token"])


async def test_a_report_is_believed_with_the_pods_own_token_only(
    access: Access, kube: KubeClient, namespace: str
) -> None:
    await kube.create(path_of("v1", "serviceaccounts", namespace), {"metadata": {"name": "gateway"}})
    pods = [await kube.create(path_of("v1", "pods", namespace), pod_body(namespace, name)) for name in ("a", "b")]
    policy = await make_policy(kube, namespace)
    uid = policy["metadata"]["uid"]
    async with operating(access, namespace, "one", check_tokens=True) as running, aiohttp.ClientSession() as session:
        await until(lambda: running.leads and running.recorder.seen, 15)

        async def report(pod: Json, token: str) -> int:
            body = {
                "pod": pod["metadata"]["name"],
                "namespace": namespace,
                "uid": pod["metadata"]["uid"],
                "session": "s",
                "full": True,
                "acks": {uid: {"version": 1}},
            }
            url = f"http://127.0.0.1:{running.operator.reports.port}{REPORT_PATH}"
            async with session.post(url, json=body, headers={"authorization": f"Bearer {token}"}) as answer:
                return answer.status

        own = await bound_token(kube, namespace, pods[0], AUDIENCE)
        assert await report(pods[0], own) == 200
        assert await report(pods[1], own) == 403
        assert await report(pods[0], await bound_token(kube, namespace, pods[0], "somebody-else")) == 401
        assert await report(pods[0], "nonsense") == 401
        gateways = running.recorder.ports.store.gateways_for(
            namespace, {"app.kubernetes.io/component": "gateway"}, ready_only=False
        )
        facts = running.recorder.ports.reports.ack_facts(uid, 1, gateways)
        assert (facts.ready, facts.acked) == (2, 1)


@pytest.fixture
async def owner(kube: KubeClient, namespace: str) -> Metadata:
    return parse_metadata(await make_policy(kube, namespace))


async def test_classifiers_are_made_changed_and_retired(kube: KubeClient, owner: Metadata) -> None:
    workloads = Classifiers(kube)
    one = ClassifierStrategy.model_validate(
        {
            "image": "ghcr.io/x/y@sha256:" + "0" * 64,
            "routes": {"easy": "mini"},
            "resources": {"requests": {"cpu": "10m"}},
            "env": [{"name": "A", "value": "b"}],
        }
    )
    for revision in ("r1", "r2", "r3"):
        await workloads.ensure(owner, revision, one)
    name = classifier_name(owner.name, "r1")
    deployment = await kube.get(path_of("apps/v1", "deployments", owner.namespace, name))
    service = await kube.get(path_of("v1", "services", owner.namespace, name))
    assert deployment["metadata"]["ownerReferences"][0]["uid"] == owner.uid
    assert service["spec"]["ports"][0]["port"] == 8080
    version = deployment["metadata"]["resourceVersion"]
    await Classifiers(kube).ensure(owner, "r1", one)  # a new leader writes it once more: nothing changes
    deployment = await kube.get(path_of("apps/v1", "deployments", owner.namespace, name))
    assert deployment["spec"]["replicas"] == 1
    assert deployment["metadata"]["generation"] == 1, version
    await workloads.ensure(owner, "r1", one.model_copy(update={"replicas": 2}))
    deployment = await kube.get(path_of("apps/v1", "deployments", owner.namespace, name))
    assert deployment["spec"]["replicas"] == 2
    await workloads.retire(owner, frozenset({"r1", "r2"}))
    for kind in (("apps/v1", "deployments"), ("v1", "services")):
        with pytest.raises(NotFound):
            await kube.get(path_of(*kind, owner.namespace, classifier_name(owner.name, "r3")))
        await kube.get(path_of(*kind, owner.namespace, classifier_name(owner.name, "r2")))


async def test_history_keeps_ten_and_what_is_referenced(kube: KubeClient, owner: Metadata) -> None:
    history = ControllerRevisions(kube)
    for i in range(13):
        await history.record(owner, f"chat-r{i}", f"r{i}", {"number": i})
    await history.record(owner, "chat-r3", "r3", {"number": "not this"})
    assert list(await history.list(owner)) == [f"r{i}" for i in range(13)]
    assert await history.spec_of(owner.namespace, "chat-r3") == {"number": 3}
    await history.prune(owner, keep=["chat-r0"])
    assert list(await history.list(owner)) == ["r0", *(f"r{i}" for i in range(4, 13))]


async def test_the_same_event_again_is_counted_up(kube: KubeClient, owner: Metadata) -> None:
    events = EventWriter(kube, SystemClock(), "test")
    task = asyncio.create_task(events.run())
    for _ in range(3):
        events.record(owner, "Warning", "Blocked", "spec.x: correct it")
    for i in range(30):
        events.record(owner, "Normal", "Noisy", f"number {i}")
    path = path_of("events.k8s.io/v1", "events", owner.namespace)
    found: list[Json] = []

    async def read() -> None:
        found[:] = (await kube.list_all(path))[0]

    async with asyncio.timeout(5):
        while len(found) < 11:
            await read()
            await asyncio.sleep(0.05)
    task.cancel()
    blocked = [e for e in found if e["reason"] == "Blocked"]
    assert len(blocked) == 1
    assert blocked[0]["series"]["count"] == 3
    assert len([e for e in found if e["reason"] == "Noisy"]) == 10
    assert events.dropped == 20
