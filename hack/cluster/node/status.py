"""A Pod's status from what its containers do.

Called by `pods.py` after every change. Pure: it gets a view and the time and returns the status to write. It must not
know processes, files or the API server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ContainerView:
    """One container now. `state` and `last_state` are as in the API; `sidecar`: an init container that stays."""

    name: str
    image: str
    state: Object
    last_state: Object
    ready: bool
    started: bool
    restart_count: int
    container_id: str
    sidecar: bool = False

    @property
    def is_running(self) -> bool:
        return "running" in self.state

    @property
    def has_succeeded(self) -> bool:
        return "terminated" in self.state and self.state["terminated"]["exitCode"] == 0

    def status(self) -> Object:
        status: Object = {
            "name": self.name,
            "image": self.image,
            "imageID": self.image if self.container_id else "",
            "state": self.state,
            "lastState": self.last_state,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restart_count,
        }
        return status | ({"containerID": self.container_id} if self.container_id else {})


@dataclass(frozen=True, slots=True)
class PodView:
    """One Pod now. `finished`: no container will run again."""

    pod: Object
    ip: str
    started_at: str
    init: Sequence[ContainerView]
    main: Sequence[ContainerView]
    finished: bool

    @property
    def is_initialized(self) -> bool:
        return all(it.started if it.sidecar else it.has_succeeded for it in self.init)

    @property
    def phase(self) -> str:
        if self.finished:
            return "Succeeded" if all(it.has_succeeded for it in self.main) else "Failed"
        never_ran = [it for it in self.main if "waiting" in it.state and not it.last_state]
        return "Pending" if never_ran or not self.is_initialized else "Running"


def pod_status(view: PodView, previous: Mapping[str, Object], now: str) -> Object:
    """The status to write; `previous` holds the conditions written last, by type, and keeps their transition times."""
    status: Object = {
        "phase": view.phase,
        "conditions": [
            _condition(kind, is_true, reason, message, previous.get(kind), view.pod, now)
            for kind, is_true, reason, message in _facts(view)
        ],
        "containerStatuses": [it.status() for it in view.main],
        "startTime": view.started_at,
        "podIP": view.ip,
        "podIPs": [{"ip": view.ip}],
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
        "observedGeneration": view.pod["metadata"].get("generation", 1),
    }
    if view.init:
        status["initContainerStatuses"] = [it.status() for it in view.init]
    return status


def _facts(view: PodView) -> list[tuple[str, bool, str, str]]:
    """Conditions as (type, true?, reason if not, message if not)."""
    uninitialized = [it.name for it in view.init if not (it.started if it.sidecar else it.has_succeeded)]
    unready = [it.name for it in (*view.main, *(it for it in view.init if it.sidecar)) if not it.ready]
    done = view.finished and view.phase == "Succeeded"
    reason = "PodCompleted" if done else "ContainersNotReady"
    message = "" if done or not unready else f"containers with unready status: [{' '.join(unready)}]"
    given = {it["type"]: it["status"] for it in (view.pod.get("status") or {}).get("conditions") or ()}
    gates = [it["conditionType"] for it in view.pod["spec"].get("readinessGates") or ()]
    closed = [gate for gate in gates if given.get(gate) != "True"]
    gate_message = f'corresponding condition of pod readiness gate "{closed[0]}" does not exist.' if closed else ""
    return [
        ("PodReadyToStartContainers", True, "", ""),
        (
            "Initialized",
            not uninitialized,
            "ContainersNotInitialized",
            f"containers with incomplete status: [{' '.join(uninitialized)}]",
        ),
        ("ContainersReady", not unready, reason, message),
        (
            "Ready",
            not unready and not closed,
            reason if unready else "ReadinessGatesNotReady",
            message or gate_message,
        ),
    ]


def _condition(
    kind: str, is_true: bool, reason: str, message: str, previous: Object | None, pod: Object, now: str
) -> Object:
    status = "True" if is_true else "False"
    same = previous is not None and previous["status"] == status
    return {
        "type": kind,
        "status": status,
        "reason": None if is_true or not reason else reason,
        "message": None if is_true or not message else message,
        "lastTransitionTime": previous["lastTransitionTime"] if same and previous else now,
        "observedGeneration": pod["metadata"].get("generation", 1),
    }


def desired_delay(previous: float, ran_for: float) -> float:
    """Back-off before the next start, in seconds: 0.2 doubling to 5, forgotten after 10 s of life."""
    return 0.2 if ran_for > 10 or previous == 0 else min(previous * 2, 5.0)
