"""A Pod's status from what its containers do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hack.cluster.node.status import ContainerView, PodView, desired_delay, pod_status

Object = dict[str, Any]

RUNNING: Object = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
WAITING: Object = {"waiting": {"reason": "CrashLoopBackOff"}}


def ended(code: int) -> Object:
    return {"terminated": {"exitCode": code}}


def make_container(name: str = "main", state: Object = RUNNING, **changes: Any) -> ContainerView:
    view = ContainerView(name, "image", state, {}, "running" in state, "running" in state, 0, "process://1")
    return replace(view, **changes)


def make_view(*main: ContainerView, init: tuple[ContainerView, ...] = (), **changes: Any) -> PodView:
    pod: Object = {"metadata": {"generation": 3}, "spec": {}, "status": {}}
    return replace(PodView(pod, "127.10.0.1", "2026-01-01T00:00:00Z", init, main, False), **changes)


def conditions(status: Object) -> dict[str, str]:
    return {it["type"]: it["status"] for it in status["conditions"]}


@pytest.mark.parametrize(
    ("view", "phase", "ready"),
    [
        pytest.param(make_view(make_container()), "Running", "True", id="one runs"),
        pytest.param(make_view(make_container(ready=False)), "Running", "False", id="one is not ready"),
        pytest.param(make_view(make_container(), make_container("b", WAITING)), "Pending", "False", id="one never ran"),
        pytest.param(
            make_view(make_container(state=WAITING, last_state=ended(1))), "Running", "False", id="one restarts"
        ),
        pytest.param(
            make_view(make_container(state=ended(0)), finished=True), "Succeeded", "False", id="all succeeded"
        ),
        pytest.param(make_view(make_container(state=ended(1)), finished=True), "Failed", "False", id="one failed"),
        pytest.param(
            make_view(make_container(), init=(make_container("i", RUNNING),)), "Pending", "True", id="init is running"
        ),
        pytest.param(
            make_view(make_container(), init=(make_container("s", RUNNING, sidecar=True, ready=False),)),
            "Running",
            "False",
            id="a sidecar that is not ready counts",
        ),
    ],
)
def test_phase_and_readiness(view: PodView, phase: str, ready: str) -> None:
    status = pod_status(view, {}, "now")
    assert status["phase"] == phase
    assert conditions(status)["Ready"] == ready


def test_a_transition_time_moves_on_a_flip_only() -> None:
    first = pod_status(make_view(make_container()), {}, "t1")
    known = {it["type"]: it for it in first["conditions"]}
    second = pod_status(make_view(make_container(ready=False)), known, "t2")
    times = {it["type"]: it["lastTransitionTime"] for it in second["conditions"]}
    assert times == {"PodReadyToStartContainers": "t1", "Initialized": "t1", "ContainersReady": "t2", "Ready": "t2"}


def test_a_closed_readiness_gate_keeps_the_pod_unready() -> None:
    view = make_view(make_container())
    view.pod["spec"]["readinessGates"] = [{"conditionType": "example.test/gate"}]
    assert conditions(pod_status(view, {}, "now"))["Ready"] == "False"
    view.pod["status"]["conditions"] = [{"type": "example.test/gate", "status": "True"}]
    assert conditions(pod_status(view, {}, "now"))["Ready"] == "True"


def test_the_back_off_doubles_to_five_seconds_and_is_forgotten() -> None:
    delays = [0.0]
    for _ in range(7):
        delays.append(desired_delay(delays[-1], ran_for=0.1))
    assert delays[1:] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert desired_delay(5.0, ran_for=11) == 0.2
