"""All that a decision may see, `now` included, as one frozen value; the controller's gather fills it.

If decide needs it, it is a field here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from funicular.api.policy import Metadata
from funicular.api.spec import RoutingPolicySpec
from funicular.api.status import Status
from funicular.api.verbs import Request
from funicular.slo.model import Arm, ArmCounts, Evidence, Verdict


@dataclass(frozen=True, slots=True)
class Problem:
    """Something a person has to mend before the ramp may go on: names the field and the remedy."""

    field: str
    reason: str  # CamelCase
    message: str
    remedy: str

    def sentence(self) -> str:
        return f"{self.field}: {self.message}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class GatewayFacts:
    """About the ready gateway pods that the policy selects, and the present `status.traffic.version`."""

    ready: int = 0
    acked: int = 0
    acked_at: datetime | None = None  # when the last of them confirmed; None unless all have
    errors: tuple[str, ...] = ()  # what pods could not take, with their names

    @property
    def all_acked(self) -> bool:
        return self.ready > 0 and self.acked >= self.ready


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """A revision's classifier as far as the operator runs it."""

    needed: bool = False
    available: bool = True
    reason: str = ""  # ImagePullBackOff, CrashLoopBackOff, Unready ...
    message: str = ""


@dataclass(frozen=True, slots=True)
class SloMeasurement:
    """One SLO's evidence, or why there is none. `values` instead of evidence for a `query.value`: one number an arm."""

    slo: str
    evidence: Evidence | None = None
    values: Mapping[Arm, float] | None = None
    # CamelCase: InvalidQuery, AccessDenied, MetricsUnavailable, SeveralSeries, NotANumber, NoData, Stale
    error: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Measurements:
    """One look at Prometheus, bound to what it measured: version, revision and the instant the window begins.

    While ramping the arms are as labelled and started_at is `status.step.startedAt`. In the steady state `treatment` is what
    the stable revision serves (label control), `control` is the holdback, and started_at is the begin of the window that the
    evaluator chose: as long as it stays the same the window only grows, which the sequential test relies on; a new window
    begins when the old one is a day old."""

    at: datetime
    version: int
    revision: str
    started_at: datetime
    idle: bool = False  # measured in the steady state
    slos: tuple[SloMeasurement, ...] = ()
    outcomes: Mapping[Arm, ArmCounts] = field(default_factory=dict)  # answers (n) and bad ones (x), arms as labelled
    observed_share: int | None = (
        None  # treatment's basis points of the requests outside the holdback; None: no requests
    )
    exercised: float | None = (
        None  # share of treated requests that the strategy decided; the rest fell to the baseline unasked
    )
    # Shares of the treated requests that it did not decide, by reason: no_answer, unknown_label, not_asked.
    undecided: Mapping[str, float] = field(default_factory=dict)
    error: str = ""  # the whole of Prometheus: MetricsUnavailable, AccessDenied, Stale
    message: str = ""

    @property
    def samples(self) -> float:
        arm = self.outcomes.get(Arm.CONTROL if self.idle else Arm.TREATMENT)
        return arm.total if arm else 0.0


@dataclass(frozen=True, slots=True)
class Alarm:
    """The fast-burn guard fired on counts that the agents reported."""

    version: int
    revision: str
    at: datetime
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Observation:
    now: datetime
    metadata: Metadata
    status: Status
    spec: RoutingPolicySpec | None  # None: it cannot be read; then `spec_problem` says why
    spec_problem: Problem | None = None
    gateways: GatewayFacts = field(default_factory=GatewayFacts)
    classifier: WorkloadFacts = field(default_factory=WorkloadFacts)  # of the spec's revision
    problems: tuple[Problem, ...] = ()  # missing Secrets, queries that do not parse ...
    preflight_done: bool = True  # every query was tried once for this spec
    measurements: Measurements | None = None  # the latest look at Prometheus
    alarm: Alarm | None = None
    request: Request | None = None  # a person's verb that was not handled yet
    bad_request: str | None = None  # text of a verb annotation that is no request
    managed_by: str | None = None  # "Argo CD application x"; None: not managed from git
    conflict: str | None = None  # key of the older policy that owns this endpoint
    spec_is_lost: bool = False  # the ControllerRevision that a revert is to write back does not exist
    stable_spec: RoutingPolicySpec | None = (
        None  # from its ControllerRevision, where the stable revision is not the spec's
    )
