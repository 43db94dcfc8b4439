"""What dies on a real node, under traffic: no request is lost but those that the README names, and no ramp moves for it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from funicular.adapters.kube import path_of
from hack.cluster.errors import CommandFailed
from hack.demo.installed import Installed
from tests.e2e.account import Account
from tests.e2e.apps import AppPod, app, patient, served
from tests.integration.stack_fixtures import Scene, manifest, on_stage, until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]
# Stays where it is: whatever dies here must neither promote nor revert it.
STEPS = ({"share": 50, "minDuration": "1h", "minSamples": 40}, {"share": 100, "minDuration": "1s", "minSamples": 40})
GATEWAYS, RATE = 3, 60.0
Json = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ramping(installed: Installed) -> AsyncIterator[Scene]:
    """A classifier's policy at 50 %."""
    async with on_stage(installed, "faults") as scene:
        await served(scene, patient(manifest(installed, "faults", classifier=True, steps=STEPS)))
        await scene.step(0)
        yield scene


@pytest_asyncio.fixture(loop_scope="session")
async def users(
    installed: Installed, account: Account, ramping: Scene, request: pytest.FixtureRequest
) -> AsyncIterator[AppPod]:
    """Half of the requests on connections of their own; a broken connection is tried again, as OpenAI's clients do."""
    name = request.function.__name__.removeprefix("test_").replace("_", "-")[:40].strip("-")
    async with app(
        installed, account, name, "faults", RATE, "--new-connections", "0.5", "--retry", "--no-votes"
    ) as pod:
        await pod.more(200)
        yield pod


async def unharmed(users: AppPod, ramping: Scene, account: Account, what: str) -> None:
    """Nothing was lost, and the ramp is where it was."""
    await users.more(300)
    state = await users.settle()
    account.tables.setdefault("what died under traffic", []).append(
        {"what": what, "requests": state["sent"], "asked again": state["retried"], "lost": state["lost"]}
    )
    assert not state["lost"], await users.lost()
    last = ramping.timeline.last
    assert last is not None
    assert last.share == 50, last.status.message
    assert not last.status.rejected


async def test_a_rolling_update_of_the_gateways(
    installed: Installed, users: AppPod, ramping: Scene, account: Account
) -> None:
    """`kubectl rollout restart` of the gateways: every pod is replaced, no request is lost, none is even asked again."""
    before = {it["metadata"]["uid"] for it in installed.pods("gateway")}
    began = time.monotonic()
    await installed.kubectl("rollout", "restart", "deployment/funicular-gateway")
    await installed.kubectl("rollout", "status", "deployment/funicular-gateway", "--timeout=240s")
    account.facts["rolling_update_seconds"] = round(time.monotonic() - began, 1)
    await gateways(installed, lambda uids: len(uids) == GATEWAYS and not uids & before, "three new gateway pods")
    await ramping.confirmed()
    await unharmed(users, ramping, account, "rolling update of the gateways")
    assert (await users.state())["retried"] == 0


async def test_a_drain_of_the_only_node(installed: Installed, users: AppPod, ramping: Scene, account: Account) -> None:
    """`kubectl drain`: the PodDisruptionBudget gives up one gateway pod and refuses the next, for there is no other node."""
    node = installed.node.name
    before = {it["metadata"]["uid"] for it in installed.pods("gateway")}
    try:
        with pytest.raises(CommandFailed, match="disruption budget"):
            await installed.kubectl(
                "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=15s",
                "--pod-selector=app.kubernetes.io/component=gateway",
            )  # fmt: skip
        await gateways(installed, lambda uids: len(uids & before) == GATEWAYS - 1, "one pod was evicted, two are there")
    finally:
        await installed.kubectl("uncordon", node)
    await gateways(installed, lambda uids: len(uids) == GATEWAYS, "the third gateway pod is back")
    await unharmed(users, ramping, account, "drain of the node")


async def test_a_killed_leader(installed: Installed, users: AppPod, ramping: Scene, account: Account) -> None:
    """The leading operator's pod is deleted without grace: the second one takes over, traffic does not notice."""
    holder = await leader(installed)
    pod = holder.rpartition("_")[0]
    began = time.monotonic()
    await installed.kubectl("delete", "pod", pod, "--grace-period=0", "--force")

    async def another() -> bool:
        now = await leader(installed)
        return bool(now) and now != holder

    await until(another, "another leader")
    account.facts["takeover_seconds"] = round(time.monotonic() - began, 1)
    await installed.until_ready()
    await unharmed(users, ramping, account, "the leading operator's pod")


async def test_a_killed_agent(installed: Installed, users: AppPod, ramping: Scene, account: Account) -> None:
    """SIGKILL of an agent's container: Envoy beside it serves on, the agent comes back and confirms."""
    await killed(installed, "agent", ramping)
    await unharmed(users, ramping, account, "an agent's container")


async def test_a_killed_envoy(installed: Installed, users: AppPod, ramping: Scene, account: Account) -> None:
    """SIGKILL of an Envoy: what had no first byte yet is asked again; answers that had begun are lost, and counted."""
    await killed(installed, "envoy", ramping)
    await users.more(300)
    state = await users.settle()
    lost = await users.lost()
    account.tables.setdefault("what died under traffic", []).append(
        {"what": "an Envoy's container", "requests": state["sent"], "asked again": state["retried"], "lost": len(lost)}
    )
    account.cut += len(lost)
    assert {it["reason"] for it in lost} <= {"cut"}, lost
    assert len(lost) <= RATE, "more than a second's requests were under way"


async def test_a_killed_classifier(installed: Installed, users: AppPod, ramping: Scene, account: Account) -> None:
    """The classifier's pod is deleted: the baseline answers what it would have read; a new pod comes from the image."""
    path = path_of("v1", "pods", installed.namespace)
    selector = "routing.funicular.dev/classifier"

    async def ready() -> set[str]:
        items, _ = await installed.kube.list_all(path, labelSelector=selector)
        return {
            it["metadata"]["name"]
            for it in items
            if any(c["type"] == "Ready" and c["status"] == "True" for c in it["status"].get("conditions") or [])
        }

    (before,) = await ready()
    await installed.kubectl("delete", "pod", before, "--grace-period=0", "--force")

    async def replaced() -> bool:
        return bool(await ready() - {before})

    await until(replaced, "a new pod of the classifier")
    await unharmed(users, ramping, account, "the classifier's pod")


async def killed(installed: Installed, container: str, ramping: Scene) -> None:
    """The first gateway pod's container dies and is started again, and the pod confirms."""
    await installed.look()
    pod = installed.pods("gateway")[0]
    path = path_of("v1", "pods", installed.namespace, pod["metadata"]["name"])
    before = restarts(pod, container)
    await installed.kill(pod, container)

    async def again() -> bool:
        return restarts(await installed.kube.get(path), container) > before

    await until(again, f"{container} is started again")
    await installed.until_ready()
    await ramping.confirmed()


def restarts(pod: Json, container: str) -> int:
    states = [*pod["status"]["containerStatuses"], *pod["status"].get("initContainerStatuses", [])]
    return int(next(it["restartCount"] for it in states if it["name"] == container))


async def gateways(installed: Installed, condition: Callable[[set[str]], bool], what: str) -> None:
    """Until the uids of the ready gateway pods are so."""

    async def so() -> bool:
        await installed.look()
        return condition({it["metadata"]["uid"] for it in installed.pods("gateway")})

    await until(so, what)


async def leader(installed: Installed) -> str:
    lease = await installed.kube.get(
        path_of("coordination.k8s.io/v1", "leases", installed.namespace, "funicular-operator")
    )
    return str(lease["spec"].get("holderIdentity") or "")
