from __future__ import annotations

from typing import Any

import pytest

from funicular.api.tenancy import SERVES
from funicular.controller.feeds import reason_of
from funicular.controller.store import ClusterStore

Json = dict[str, Any]


def policy(name: str = "chat", version: int = 1, uid: str = "u1", model: str = "chat", **more: Any) -> Json:
    return {
        "apiVersion": "routing.funicular.dev/v1alpha1",
        "kind": "RoutingPolicy",
        "metadata": {
            "namespace": "shop",
            "name": name,
            "uid": uid,
            "resourceVersion": str(version),
            "creationTimestamp": more.pop("created", "2026-01-01T00:00:00Z"),
            "managedFields": [{"manager": "kubectl"}],
            **more.pop("metadata", {}),
        },
        "spec": {"endpoint": {"model": model}, "gateway": {"selector": {"matchLabels": {"app": "gw"}}}},
        **more,
    }


def pod(name: str, ready: bool = True, labels: Json | None = None, **meta: Any) -> Json:
    return {
        "metadata": {
            "namespace": "gw",
            "name": name,
            "uid": f"uid-{name}",
            "labels": labels or {"app": "gw"},
            "annotations": {SERVES: "shop"},
            **meta,
        },
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


class Woken:
    def __init__(self) -> None:
        self.keys: list[str] = []
        self.seen: list[tuple[str, Json | None]] = []
        self.gone: list[tuple[str, str]] = []
        self.store = ClusterStore(
            self.keys.append,
            lambda k, b: self.seen.append((k, b)),
            lambda ns, n: self.gone.append((ns, n)),
            gateway_namespaces={"gw"},
        )

    def take(self) -> list[str]:
        taken, self.keys[:] = sorted(self.keys), []
        return taken


@pytest.fixture
def woken() -> Woken:
    return Woken()


def test_an_event_is_kept_without_what_nobody_reads(woken: Woken) -> None:
    woken.store.see("ADDED", policy())
    body = woken.store.get("shop/chat")
    assert body is not None
    assert "managedFields" not in body["metadata"]
    assert woken.take() == ["shop/chat"]
    assert woken.store.key_of("u1") == "shop/chat"


def test_what_is_not_newer_is_neither_kept_nor_queued(woken: Woken) -> None:
    woken.store.see("ADDED", policy(version=5))
    woken.take()
    woken.store.see("MODIFIED", policy(version=4, status={"phase": "old"}))
    woken.store.see("MODIFIED", policy(version=5))
    assert woken.take() == []
    body = woken.store.get("shop/chat")
    assert body is not None
    assert "status" not in body


def test_our_own_write_is_known_before_its_event_and_queues_nothing(woken: Woken) -> None:
    woken.store.see("ADDED", policy(version=1))
    woken.take()
    woken.store.put(policy(version=2, status={"phase": "Ramping"}))
    woken.store.see("MODIFIED", policy(version=2, status={"phase": "Ramping"}))
    assert woken.take() == []
    assert woken.seen[-1][1]["status"] == {"phase": "Ramping"}  # but the evaluator is told


def test_a_deletion_that_was_never_delivered_is_found_by_the_next_list(woken: Woken) -> None:
    woken.store.see("ADDED", policy("gone", 1, "u1"))
    woken.store.see("ADDED", policy("here", 2, "u2", "other"))
    woken.store.see("ADDED", policy("young", 9, "u3", "third"))
    woken.take()
    woken.store.relisted([policy("here", 2, "u2", "other")], "5")
    assert woken.take() == ["shop/gone"]
    assert sorted(woken.store.keys()) == ["shop/here", "shop/young"]  # younger than the list: not in it, yet alive


def test_a_policy_that_was_made_anew_under_its_name_survives_the_old_ones_deletion(woken: Woken) -> None:
    woken.store.see("ADDED", policy(version=1, uid="old"))
    woken.store.see("ADDED", policy(version=7, uid="new"))
    woken.store.see("DELETED", policy(version=6, uid="old"))
    assert woken.store.key_of("new") == "shop/chat"
    assert woken.store.key_of("old") is None
    assert woken.store.get("shop/chat") is not None


def test_a_list_that_was_under_way_does_not_revive_the_dead(woken: Woken) -> None:
    woken.store.see("ADDED", policy(version=1))
    woken.store.see("DELETED", policy(version=3))
    woken.take()
    woken.store.relisted([policy(version=2)], "2")
    assert woken.store.get("shop/chat") is None
    assert woken.take() == []


def test_who_shares_an_endpoint_looks_again_when_the_other_goes(woken: Woken) -> None:
    woken.store.see("ADDED", policy("first", 1, "u1", created="2026-01-01T00:00:00Z"))
    woken.store.see("ADDED", policy("second", 2, "u2", created="2026-01-02T00:00:00Z"))
    assert [c.key for c in woken.store.claims("chat")] == ["shop/first", "shop/second"]
    woken.take()
    woken.store.see("DELETED", policy("first", 3, "u1"))
    assert woken.take() == ["shop/first", "shop/second"]
    woken.store.see("MODIFIED", policy("second", 4, "u2", model="elsewhere"))
    assert woken.store.claims("chat") == []


def test_gateways_are_those_whose_labels_carry_the_selectors(woken: Woken) -> None:
    woken.store.see_pods("RESYNC", [pod("a"), pod("b", ready=False), pod("c", labels={"app": "x"})])
    woken.store.see_pods("ADDED", pod("d", deletionTimestamp="2026-01-01T00:00:00Z"))
    assert [p.name for p in woken.store.gateways_for("shop", {"app": "gw"})] == ["a"]
    assert [p.name for p in woken.store.gateways_for("shop", {"app": "gw"}, ready_only=False)] == ["a", "b", "d"]
    assert woken.store.gateways_for("shop", {}) == []


def names(store: ClusterStore, namespace: str = "shop") -> list[str]:
    return [p.key for p in store.gateways_for(namespace, {"app": "gw"})]


def test_a_pod_of_another_namespace_does_not_count_whatever_it_says(woken: Woken) -> None:
    """Else whoever may make a pod in namespace A stalls every ramp of namespace B: it is ready and never confirms."""
    woken.store.see_pods("RESYNC", [pod("a"), pod("evil", namespace="evil", annotations={SERVES: "shop,*"})])
    assert names(woken.store) == ["gw/a"]
    assert names(woken.store, "evil") == ["evil/evil"], "in its own namespace it is a gateway"


def test_a_trusted_pod_counts_for_the_namespaces_that_it_names(woken: Woken) -> None:
    said = {"b": {SERVES: "other"}, "c": {SERVES: "*"}, "d": {}}
    pods = [pod("a"), *(pod(name, annotations=annotations) for name, annotations in said.items())]
    woken.store.see_pods("RESYNC", pods)
    assert names(woken.store) == ["gw/a", "gw/c"]
    assert names(woken.store, "other") == ["gw/b", "gw/c"]
    assert names(woken.store, "gw") == ["gw/a", "gw/b", "gw/c", "gw/d"]


def test_only_policies_that_a_pod_counts_for_look_again(woken: Woken) -> None:
    woken.store.see("ADDED", policy())
    woken.take()
    woken.store.see_pods("RESYNC", [pod("a", annotations={SERVES: "other"})])
    woken.store.see_pods("ADDED", pod("evil", namespace="evil", annotations={SERVES: "*"}))
    assert woken.take() == []
    woken.store.see_pods("MODIFIED", pod("a"))
    assert woken.take() == ["shop/chat"], "it serves the namespace now"
    woken.store.see_pods("RESYNC", [pod("a", labels={"app": "x"})])
    assert woken.take() == ["shop/chat"], "it is theirs no more"


@pytest.mark.parametrize(
    ("pods", "meets"),
    [
        pytest.param([], False, id="no gateway, no conflict"),
        pytest.param([pod("own", namespace="shop"), pod("evil", namespace="evil")], False, id="one each"),
        pytest.param([pod("evil", namespace="evil", annotations={SERVES: "*"})], False, id="one that claims both"),
        pytest.param([pod("one"), pod("two", annotations={SERVES: "evil"})], False, id="trusted, and one each"),
        pytest.param([pod("both", annotations={SERVES: "shop,evil"})], True, id="one that serves both"),
        pytest.param([pod("both", annotations={SERVES: "*"}, labels={"app": "x"})], False, id="not selected"),
    ],
)
def test_policies_of_two_namespaces_meet_only_on_a_pod_that_serves_both(
    woken: Woken, pods: list[Json], meets: bool
) -> None:
    """Else a policy in namespace A takes the endpoint's name from namespace B by being older."""
    woken.store.see("ADDED", policy("mine", 1, "u1", metadata={"namespace": "evil"}))
    woken.store.see_pods("RESYNC", pods)
    (claim,) = woken.store.claims("chat")
    assert woken.store.can_meet("shop", {"app": "gw"}, claim) is meets
    assert woken.store.can_meet("evil", {"app": "gw"}, claim) is True, "in one namespace the selectors decide"
    assert woken.store.can_meet("evil", {"app": "x"}, claim) is False


def test_a_gateway_that_changes_queues_the_policies_that_select_it(woken: Woken) -> None:
    woken.store.see("ADDED", policy())
    woken.store.see(
        "ADDED", policy("other", 2, "u2", "other", spec={"gateway": {"selector": {"matchLabels": {"app": "x"}}}})
    )
    woken.store.see_pods("RESYNC", [pod("a", ready=False)])
    woken.take()
    woken.store.see_pods("MODIFIED", pod("a", ready=False))
    assert woken.take() == []  # a heartbeat
    woken.store.see_pods("MODIFIED", pod("a"))
    assert woken.take() == ["shop/chat"]
    woken.store.see_pods("RESYNC", [])
    assert woken.take() == ["shop/chat"]


def deployment(available: bool | None = None, **condition: Any) -> Json:
    conditions = [] if available is None else [{"type": "Available", "status": str(available)}]
    return {
        "metadata": {
            "namespace": "shop",
            "name": "chat-clf-r1",
            "generation": 1,
            "ownerReferences": [{"kind": "RoutingPolicy", "name": "chat"}],
        },
        "spec": {"replicas": 2},
        "status": {
            "observedGeneration": 1,
            "readyReplicas": 1,
            "conditions": conditions + ([condition] if condition else []),
        },
    }


def test_a_classifier_is_available_when_its_deployment_says_so(woken: Woken) -> None:
    store = woken.store
    assert store.workload("shop", "chat-clf-r1") is None
    store.see_deployments("RESYNC", [deployment(False)])
    facts = store.workload("shop", "chat-clf-r1")
    assert facts is not None
    assert (facts.available, facts.message) == (False, "1 of 2 pods are ready")
    assert list(store.unavailable()) == [("shop", "chat-clf-r1")]
    store.explain(("shop", "chat-clf-r1"), "ImagePullBackOff", "no such image")
    store.see_deployments("MODIFIED", deployment(False))
    facts = store.workload("shop", "chat-clf-r1")
    assert facts is not None
    assert facts.reason == "ImagePullBackOff"  # the pods know better than the Deployment
    woken.take()
    store.see_deployments("MODIFIED", deployment(True))
    facts = store.workload("shop", "chat-clf-r1")
    assert facts is not None
    assert facts.available
    assert woken.take() == ["shop/chat"]
    store.see_deployments("DELETED", deployment(True))
    assert woken.gone == [("shop", "chat-clf-r1")]
    assert woken.take() == ["shop/chat"]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param(
            {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}]},
            ("ImagePullBackOff", "not found"),
            id="an image that cannot be pulled",
        ),
        pytest.param(
            {
                "containerStatuses": [
                    {
                        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                        "lastState": {"terminated": {"exitCode": 3}},
                    }
                ]
            },
            ("CrashLoopBackOff", "back-off (exit code 3)"),
            id="a container that crashes",
        ),
        pytest.param(
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no cpu"}
                ]
            },
            ("Unschedulable", "no cpu"),
            id="a pod that fits on no node",
        ),
        pytest.param(
            {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]},
            ("Unready", "pod p runs but its readiness probe (/readyz) does not succeed"),
            id="a classifier that never becomes ready",
        ),
        pytest.param(
            {"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}, None, id="on its way"
        ),
    ],
)
def test_why_a_classifier_is_not_available(status: Json, expected: tuple[str, str] | None) -> None:
    assert reason_of([{"metadata": {"name": "p"}, "status": status}]) == expected


def test_five_thousand_policies_fit_into_little_memory(woken: Woken) -> None:
    big = {"endpoint": {"model": "m"}, "text": ["x" * 20] * 120}
    for i in range(5000):
        woken.store.see("ADDED", policy(f"p{i}", i + 1, f"u{i}", f"m{i}", spec=big))
    packed = sum(len(p.packed) for p in woken.store._policies.values())
    assert packed / 5000 < 4000
