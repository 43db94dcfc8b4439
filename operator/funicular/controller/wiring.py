"""The controller's seams: what a reconcile may reach, as Protocols. main.py fills them, tests fake them.

`Reconciler(ports).reconcile(key)` is the one consumer: it returns when it wants to look again, or None. It may raise
RetryLater (the queue comes back with a growing delay, at most 10 s); NotLeader ends the term's work on the key.
Every write goes through `ports.kube` or an adapter built on it, and is refused (NotLeader) once the Lease's local deadline
has passed: nobody has to remember the fence, yet `fence.check()` before a chain of writes saves the first of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from funicular.api.policy import Metadata
from funicular.api.spec import ClassifierStrategy, RoutingPolicySpec
from funicular.api.traffic import Traffic
from funicular.errors import RetryLater
from funicular.ports import Clock
from funicular.rollout.observation import Alarm, GatewayFacts, Measurements, Problem, WorkloadFacts
from funicular.settings import OperatorSettings
from funicular.slo.model import ArmCounts

Json = dict[str, Any]


class NotLeader(RetryLater):
    """The Lease's local deadline has passed: another replica may lead, so nothing may be written."""


@dataclass(frozen=True, slots=True)
class GatewayPod:
    """A pod with the gateway label. ready: Ready, and not about to end. serves: what it says, see api/tenancy.py."""

    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str]
    ready: bool
    serves: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Claim:
    """A policy that wants an endpoint: who came first has it where the gateways overlap."""

    created: str
    key: str
    uid: str
    model: str
    selector: Mapping[str, str]
    terminating: bool = False
    namespace: str = ""
    served: bool = False  # its traffic is known to the gateways: nobody of the same second takes the endpoint from it


@dataclass(frozen=True, slots=True)
class Pooled:
    """A ramping policy's counts over its gateway pods, by arm: bad and slow answers as ArmCounts over the replicates."""

    version: int
    revision: str
    bad: Mapping[str, ArmCounts]
    slow: Mapping[str, ArmCounts]


class Store(Protocol):
    """What was last seen of the cluster. Reading never waits."""

    def get(self, key: str) -> Json | None:
        """The policy's body (apiVersion, kind, metadata without managedFields, spec, status), a copy; None: it is gone."""

    def keys(self) -> Sequence[str]: ...

    def key_of(self, uid: str) -> str | None: ...

    def put(self, body: Json) -> None:
        """The API server's answer to a write of our own; older than what is known: ignored. Does not queue the key."""

    def claims(self, model: str) -> Sequence[Claim]:
        """All policies for one endpoint, oldest first (created, then key)."""

    def gateways_for(
        self, namespace: str, selector: Mapping[str, str], *, ready_only: bool = True
    ) -> Sequence[GatewayPod]:
        """Gateway pods that may serve this namespace and whose labels carry all of the selector's."""

    def can_meet(self, namespace: str, selector: Mapping[str, str], claim: Claim) -> bool:
        """Whether a policy of this namespace and selector and the claim's policy may be served by the same pod."""

    def workload(self, namespace: str, name: str) -> WorkloadFacts | None:
        """A classifier's Deployment; None: it has not been seen (yet)."""

    @property
    def synced(self) -> bool:
        """Policies, gateway pods and Deployments have been listed at least once in this term."""


class Reports(Protocol):
    """What the agents said. Lost with the process; they say it again."""

    def ack_facts(self, uid: str, version: int, pods: Sequence[GatewayPod]) -> GatewayFacts:
        """Who of `pods` serves `version`, since when all of them do, and what they could not take."""

    def pooled(self, uid: str) -> Pooled | None: ...

    def alarm(self, uid: str) -> Alarm | None:
        """Only of the traffic's present version and revision."""

    def forget(self, uid: str) -> None: ...


class Evaluator(Protocol):
    """Measures in the background; the key is queued when something new is there."""

    def latest(self, uid: str) -> Measurements | None:
        """The last look; it is bound to a version, revision and beginning of the window: compare before use."""

    def preflight(
        self, key: str, spec: RoutingPolicySpec, traffic: Traffic | None = None
    ) -> tuple[Problem, ...] | None:
        """What came of asking each query of the spec once; None: being asked, the key is queued when it is known.
        Asked again every 15 s while there are problems."""


class History(Protocol):
    """Good specs as ControllerRevisions, owned by the policy."""

    async def record(self, policy: Metadata, name: str, revision: str, spec: Json) -> None:
        """Idempotent: one of this name that exists already is left as it is."""

    async def list(self, policy: Metadata) -> dict[str, str]:
        """revision -> name, oldest first."""

    async def spec_of(self, namespace: str, name: str) -> Json:
        """Raises NotFound."""

    async def prune(self, policy: Metadata, keep: Sequence[str], limit: int = 10) -> None:
        """Deletes the oldest beyond `limit`, never one of `keep` (names)."""


class Events(Protocol):
    def record(self, policy: Metadata, kind: str, reason: str, message: str) -> None:
        """kind: Normal or Warning. Never waits, never raises; the same again is counted up; limited per policy and reason."""


class Workloads(Protocol):
    """Classifiers that the operator runs: Deployment and Service of one revision each."""

    async def ensure(self, policy: Metadata, revision: str, classifier: ClassifierStrategy) -> None:
        """Nothing to do without an image. Writes only if what would be written has changed, or it vanished."""

    async def retire(self, policy: Metadata, keep: frozenset[str]) -> None:
        """Deletes this policy's classifiers of all revisions but `keep`."""


class Kube(Protocol):
    """funicular.adapters.kube.KubeClient, fenced: a write raises NotLeader when the Lease is not held."""

    async def get(self, path: str, **params: str) -> Json: ...
    async def create(self, path: str, body: Json, **params: str) -> Json: ...
    async def replace(self, path: str, body: Json) -> Json: ...
    async def patch(self, path: str, body: Any, *, content_type: str = ..., **params: str) -> Json: ...
    async def delete(self, path: str, body: Json | None = None) -> Json: ...
    async def list_all(self, path: str, **params: str) -> tuple[list[Json], str]: ...
    def watch(self, path: str, **params: str) -> AsyncIterator[tuple[str, Any]]: ...


class Fence(Protocol):
    def check(self) -> None:
        """Raises NotLeader unless the Lease is surely held."""


class Telemetry(Protocol):
    """The operator's own metrics (funicular_operator_*)."""

    def policy(
        self,
        key: str,
        *,
        revision: str,
        phase: str,
        desired: int,
        acked: int | None,
        observed: int | None,
        verdicts: Mapping[str, str],
    ) -> None:
        """The present state of one policy; verdicts: outcome by SLO."""

    def forget(self, key: str) -> None: ...

    def reverted(self, key: str, reason: str) -> None: ...

    def acknowledged(self, seconds: float) -> None:
        """From the decision to the last pod's confirmation."""


class Queue(Protocol):
    def add(self, key: str, *, urgent: bool = False) -> None:
        """Reconcile soon; urgent: before what waits. While the key runs: once more afterwards."""

    def add_after(self, key: str, at: datetime) -> None:
        """Reconcile at `at`, if nothing makes it happen earlier; replaces the key's earlier appointment."""


@dataclass(frozen=True, slots=True)
class Ports:
    settings: OperatorSettings
    clock: Clock
    fence: Fence
    kube: Kube
    store: Store
    reports: Reports
    evaluator: Evaluator
    history: History
    events: Events
    workloads: Workloads
    telemetry: Telemetry
    queue: Queue
