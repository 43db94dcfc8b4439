"""What was last seen of the cluster: policies, gateway pods, classifiers. No I/O: feeds.py fills it, reconciles read it.

A policy is kept as packed JSON (3 KB instead of 20 for the parsed one: 5,000 of them must not matter) beside the few facts
that are looked up without parsing. What is older than what is known is ignored, so that an answer to our own write and
kopf's event about it may come in any order.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from funicular.api.base import KIND
from funicular.api.tenancy import SERVES, named, reaches
from funicular.api.traffic import WHOLE
from funicular.controller.wiring import Claim, GatewayPod
from funicular.rollout.observation import WorkloadFacts

Json = dict[str, Any]
FORGOTTEN = ("managedFields",)
GRAVES = 4096


@dataclass(frozen=True, slots=True)
class Current:
    """What `status.traffic` says now, as far as reports must be compared with it. alone: no arm stands beside the treatment."""

    key: str
    uid: str
    namespace: str
    version: int
    revision: str
    ramping: bool
    selector: Mapping[str, str]
    alone: bool = False


@dataclass(frozen=True, slots=True)
class _Policy:
    packed: bytes
    version: int
    claim: Claim
    current: Current


PolicyListener = Callable[[str, Json | None], None]


class ClusterStore:
    """Implements wiring.Store.

    `requeue(key)` is called for keys whose surroundings changed; `listen(key, body)` for every policy seen or gone;
    `workload_gone(namespace, name)` when a classifier's Deployment was deleted, by whomever; `policy_gone(uid)`.
    `gateway_namespaces`: whose pods are believed that they serve other namespaces.
    """

    def __init__(
        self,
        requeue: Callable[[str], None],
        listen: PolicyListener = lambda key, body: None,
        workload_gone: Callable[[str, str], None] = lambda namespace, name: None,
        policy_gone: Callable[[str], None] = lambda uid: None,
        *,
        gateway_namespaces: Iterable[str] = (),
    ) -> None:
        self._trusted = frozenset(gateway_namespaces)
        self._requeue = requeue
        self._listen = listen
        self._workload_gone = workload_gone
        self._policy_gone = policy_gone
        self._policies: dict[str, _Policy] = {}
        self._by_uid: dict[str, str] = {}
        self._graves: OrderedDict[str, None] = OrderedDict()  # uids: a list that was under way must not revive them
        self._by_model: dict[str, set[str]] = defaultdict(set)
        self._pods: dict[str, GatewayPod] = {}
        self._workloads: dict[tuple[str, str], tuple[str, WorkloadFacts]] = {}  # -> policy's name, facts
        self._synced: set[str] = set()

    # --- reading -------------------------------------------------------------------------------------------------
    def get(self, key: str) -> Json | None:
        found = self._policies.get(key)
        return orjson.loads(found.packed) if found else None

    def keys(self) -> Sequence[str]:
        return list(self._policies)

    def key_of(self, uid: str) -> str | None:
        return self._by_uid.get(uid)

    def current(self, uid: str) -> Current | None:
        key = self._by_uid.get(uid)
        return self._policies[key].current if key else None

    def claims(self, model: str) -> Sequence[Claim]:
        claims = [self._policies[key].claim for key in self._by_model.get(model, ())]
        return sorted(claims, key=lambda c: (c.created, not c.served, c.key))  # created: whole seconds

    def gateways_for(
        self, namespace: str, selector: Mapping[str, str], *, ready_only: bool = True
    ) -> Sequence[GatewayPod]:
        pods = self._pods.values()
        return [p for p in pods if (p.ready or not ready_only) and self._counts(p, namespace, selector)]

    def gateways(self) -> Sequence[GatewayPod]:
        """All that are ready."""
        return [p for p in self._pods.values() if p.ready]

    def can_meet(self, namespace: str, selector: Mapping[str, str], claim: Claim) -> bool:
        """In one namespace: if some pod could carry both selectors; else only on a pod that is there and serves both."""
        if namespace == claim.namespace:
            return all(selector.get(k, v) == v for k, v in claim.selector.items())
        return any(
            self._counts(pod, namespace, selector) and self._counts(pod, claim.namespace, claim.selector)
            for pod in self._pods.values()
        )

    def may_confirm(self, namespace: str, uid: str) -> bool:
        """Whether a pod of this namespace can ever count for this policy."""
        now = self.current(uid)
        return now is not None and (namespace == now.namespace or namespace in self._trusted)

    def _counts(self, pod: GatewayPod, namespace: str, selector: Mapping[str, str]) -> bool:
        return reaches(pod.namespace, pod.serves, namespace, self._trusted) and _matches(selector, pod.labels)

    def is_gateway(self, key: str, uid: str) -> bool:
        pod = self._pods.get(key)
        return pod is not None and pod.uid == uid

    def workload(self, namespace: str, name: str) -> WorkloadFacts | None:
        found = self._workloads.get((namespace, name))
        return found[1] if found else None

    @property
    def synced(self) -> bool:
        return self._synced >= {"policies", "pods", "deployments"}

    def mark_synced(self, what: str) -> None:
        self._synced.add(what)

    # --- policies ------------------------------------------------------------------------------------------------
    def put(self, body: Json) -> None:
        self._take(body)

    def see(self, kind: str | None, body: Json) -> None:
        """An event or an item of a list."""
        if kind == "DELETED":
            self.drop(key_of(body), uid=body["metadata"]["uid"])
        elif self._take(body):
            self._requeue(key_of(body))

    def relisted(self, bodies: Sequence[Json], version: str) -> None:
        """All policies as of `version`: what is not among them and not newer has vanished in a gap of the watch."""
        present = set()
        for body in bodies:
            present.add(key_of(body))
            self.see(None, body)
        for key in [k for k, p in self._policies.items() if k not in present and p.version <= _number(version)]:
            self.drop(key)
        self.mark_synced("policies")

    def drop(self, key: str, uid: str | None = None) -> None:
        found = self._policies.get(key)
        if found is None or (uid is not None and found.claim.uid != uid):
            return
        del self._policies[key]
        self._by_uid.pop(found.claim.uid, None)
        self._graves[found.claim.uid] = None
        if len(self._graves) > GRAVES:
            self._graves.popitem(last=False)
        self._reindex(found.claim, None)
        self._listen(key, None)
        self._policy_gone(found.claim.uid)
        self._requeue(key)

    def _take(self, body: Json) -> bool:
        """Whether it is news."""
        key, meta = key_of(body), body["metadata"]
        known, version = self._policies.get(key), _number(meta.get("resourceVersion", ""))
        if meta["uid"] in self._graves:
            return False
        if known is not None and known.claim.uid != meta["uid"]:
            if version < known.version:
                return False
            self.drop(key)
            known = None
        if known is not None and version <= known.version:
            return False
        slim = {**body, "metadata": {k: v for k, v in meta.items() if k not in FORGOTTEN}}
        claim = _claim(key, body)
        self._policies[key] = _Policy(orjson.dumps(slim), version, claim, _current(key, body))
        self._by_uid[claim.uid] = key
        self._reindex(known.claim if known else None, claim)
        self._listen(key, slim)
        return True

    def _reindex(self, old: Claim | None, new: Claim | None) -> None:
        """Who shares an endpoint must look again when a claim on it comes, changes or goes."""
        if old == new:
            return
        if old is not None:
            self._by_model[old.model].discard(old.key)
            if not self._by_model[old.model]:
                del self._by_model[old.model]
        if new is not None:
            self._by_model[new.model].add(new.key)
        for model in {c.model for c in (old, new) if c is not None}:
            for other in self._by_model.get(model, ()):
                if new is None or other != new.key:
                    self._requeue(other)

    # --- gateway pods --------------------------------------------------------------------------------------------
    def see_pods(self, kind: str, found: Any) -> None:
        """As KubeClient.watch tells: RESYNC with all, or one pod."""
        if kind == "RESYNC":
            pods = {p.key: p for p in map(gateway_pod, found)}
            changed = [p for k, p in pods.items() if self._pods.get(k) != p]
            changed += [p for k, p in self._pods.items() if pods.get(k) != p]
            self._pods = pods
            self.mark_synced("pods")
        else:
            pod = gateway_pod(found)
            before = self._pods.pop(pod.key, None)
            if kind != "DELETED":
                self._pods[pod.key] = pod
            changed = [p for p in (before, pod) if p] if kind == "DELETED" or before != pod else []
        self._requeue_around(changed)

    def _requeue_around(self, pods: Iterable[GatewayPod]) -> None:
        kinds = {(p.namespace, p.serves, frozenset(p.labels.items())): p for p in pods}  # of a rollout: one or two
        for pod in kinds.values():
            for key, policy in self._policies.items():
                selectors = (policy.current.selector, policy.claim.selector)
                if any(self._counts(pod, policy.claim.namespace, selector) for selector in selectors):
                    self._requeue(key)

    # --- classifiers ---------------------------------------------------------------------------------------------
    def see_deployments(self, kind: str, found: Any) -> None:
        if kind == "RESYNC":
            seen = {(d["metadata"]["namespace"], d["metadata"]["name"]): d for d in found}
            for gone in self._workloads.keys() - seen.keys():
                self._set_workload(gone, self._workloads[gone][0], None)
            for at, body in seen.items():
                self._set_workload(at, owner_of(body), self._merged(at, workload_facts(body)))
            self.mark_synced("deployments")
        else:
            at = (found["metadata"]["namespace"], found["metadata"]["name"])
            facts = None if kind == "DELETED" else self._merged(at, workload_facts(found))
            self._set_workload(at, owner_of(found), facts)

    def unavailable(self) -> Sequence[tuple[str, str]]:
        """Classifiers whose pods should be asked for a reason: (namespace, name)."""
        return [at for at, (_, facts) in self._workloads.items() if not facts.available]

    def explain(self, at: tuple[str, str], reason: str, message: str) -> None:
        """Why it is not available, as its pods tell."""
        found = self._workloads.get(at)
        if found is not None and not found[1].available:
            self._set_workload(at, found[0], WorkloadFacts(True, False, reason, message))

    def _merged(self, at: tuple[str, str], facts: WorkloadFacts) -> WorkloadFacts:
        """A reason that the pods gave stays until they give another."""
        before = self._workloads.get(at)
        if before is None or facts.available or before[1].available:
            return facts
        return before[1]

    def _set_workload(self, at: tuple[str, str], policy: str, facts: WorkloadFacts | None) -> None:
        before = self._workloads.pop(at, None)
        if facts is not None:
            self._workloads[at] = (policy, facts)
        else:
            self._workload_gone(*at)
        if (before[1] if before else None) != facts and policy:
            self._requeue(f"{at[0]}/{policy}")


def key_of(body: Json) -> str:
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"


def _number(version: str) -> int:
    """Kubernetes promises since 1.35 that resourceVersions of one kind compare as numbers; they always did."""
    return int(version) if version.isdigit() else 0


def _matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return bool(selector) and all(labels.get(k) == v for k, v in selector.items())


def _selector(body: Json) -> Mapping[str, str]:
    spec = body.get("spec") or {}
    found = ((spec.get("gateway") or {}).get("selector") or {}).get("matchLabels")
    return found or {"app.kubernetes.io/component": "gateway"}


def _claim(key: str, body: Json) -> Claim:
    meta = body["metadata"]
    return Claim(
        created=meta.get("creationTimestamp", ""),
        key=key,
        uid=meta["uid"],
        model=((body.get("spec") or {}).get("endpoint") or {}).get("model", ""),
        selector=_selector(body),
        terminating="deletionTimestamp" in meta,
        namespace=meta["namespace"],
        served="traffic" in (body.get("status") or {}),
    )


def _current(key: str, body: Json) -> Current:
    traffic = (body.get("status") or {}).get("traffic") or {}
    return Current(
        key=key,
        uid=body["metadata"]["uid"],
        namespace=body["metadata"]["namespace"],
        version=traffic.get("version", 0),
        revision=traffic.get("revision", ""),
        ramping=bool(traffic.get("candidate")),
        selector=traffic.get("selector") or _selector(body),
        alone=(traffic.get("share") or {}).get("desired") == WHOLE and not traffic.get("holdback"),
    )


def gateway_pod(body: Json) -> GatewayPod:
    meta = body["metadata"]
    conditions = (body.get("status") or {}).get("conditions") or ()
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return GatewayPod(
        meta["namespace"],
        meta["name"],
        meta["uid"],
        meta.get("labels") or {},
        ready=ready and "deletionTimestamp" not in meta,
        serves=named((meta.get("annotations") or {}).get(SERVES)),
    )


def owner_of(deployment: Json) -> str:
    """Name of the policy that owns it; empty: none does."""
    owners = deployment["metadata"].get("ownerReferences") or ()
    return next((o["name"] for o in owners if o["kind"] == KIND), "")


def workload_facts(deployment: Json) -> WorkloadFacts:
    status, meta = deployment.get("status") or {}, deployment["metadata"]
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    is_current = status.get("observedGeneration", 0) >= meta.get("generation", 0)
    if is_current and conditions.get("Available", {}).get("status") == "True":
        return WorkloadFacts(needed=True, available=True)
    failed = next(
        (conditions[t] for t in ("ReplicaFailure", "Progressing") if conditions.get(t, {}).get("status") == "False"),
        conditions.get("ReplicaFailure"),
    )
    if failed:
        return WorkloadFacts(True, False, failed.get("reason", "Unready"), failed.get("message", ""))
    ready, desired = status.get("readyReplicas", 0), (deployment.get("spec") or {}).get("replicas", 1)
    return WorkloadFacts(True, False, "Unready", f"{ready} of {desired} pods are ready")
