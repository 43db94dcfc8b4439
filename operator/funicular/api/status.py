"""What the operator reports: facts and absolute deadlines, never a state machine's position. `phase` is for people only."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from funicular.api.base import StatusModel
from funicular.api.traffic import Traffic


class Condition(StatusModel):
    type: str
    status: str
    observed_generation: int
    last_transition_time: datetime
    reason: str
    message: str = ""


class RevisionStatus(StatusModel):
    revision: str
    controller_revision: str | None = Field(
        default=None, description="Name of the ControllerRevision that holds its spec; none for the baseline."
    )
    since: datetime | None = None


class StepStatus(StatusModel):
    """Where the ramp of `candidate` stands. Deadlines are absolute."""

    index: int = Field(description="0-based index into spec.rollout.steps.")
    of: int
    share: int = Field(description="Basis points.")
    entered_at: datetime = Field(description="When the share was ordered.")
    started_at: datetime | None = Field(
        default=None, description="When all ready gateway pods had confirmed it: the window of the SLOs begins here."
    )
    min_until: datetime | None = None
    max_until: datetime | None = None
    passed_at: datetime | None = Field(
        default=None, description="When every enforced SLO first passed; on the last step the bake starts here."
    )
    approved_by: str | None = None
    samples: float = 0
    min_samples: int = 0


class VerdictStatus(StatusModel):
    slo: str
    outcome: str
    reason: str
    message: str = ""
    mode: str = "Enforce"
    estimate: float | None = None
    reference: float | None = None
    low: float | None = None
    high: float | None = None
    samples: float = 0
    effective_samples: float = 0
    needed: float = 0
    tightness: float = 0
    planned: float = 0
    looks: tuple[float, ...] = ()
    at: datetime | None = None


class Rejected(StatusModel):
    revision: str
    at: datetime
    reason: str
    message: str = ""


class HistoryEntry(StatusModel):
    at: datetime
    revision: str
    event: str = Field(description="Ramped, StepStarted, Promoted, Reverted, Aborted, SpecReverted, Paused ...")
    share: int = 0
    message: str = ""
    by: str = ""


class Verb(StatusModel):
    """The last request of a person that was carried out or refused: `verb`, bound to a revision, by its id."""

    id: str
    verb: str
    revision: str
    at: datetime
    result: str = ""


class Timings(StatusModel):
    """Of the last revert, in milliseconds."""

    decision_to_acked_ms: float | None = None


class Status(StatusModel):
    observed_generation: int = 0
    phase: str = "Pending"
    message: str = ""
    revision: str = Field(default="", description="Hash of what routes in the present spec.")
    stable: RevisionStatus | None = None
    candidate: RevisionStatus | None = None
    previous: RevisionStatus | None = Field(
        default=None, description="The stable revision before the last promotion: what a drift goes back to."
    )
    traffic: Traffic | None = None
    step: StepStatus | None = None
    ramp_started_at: datetime | None = Field(
        default=None, description="When the first step's share took effect: assignment.minDuration counts from here."
    )
    paused: bool = False
    drift_since: datetime | None = Field(
        default=None, description="Begin of the present window in which a promoted revision is compared with the holdback."
    )
    verdicts: tuple[VerdictStatus, ...] = ()
    tightest: str = ""
    rejected: tuple[Rejected, ...] = Field(default=(), max_length=50)
    spec_to_revert: str | None = Field(
        default=None, description="ControllerRevision whose spec is yet to be written back."
    )
    reverted_at: datetime | None = None
    history: tuple[HistoryEntry, ...] = Field(default=(), max_length=30)
    last_verb: Verb | None = None
    timings: Timings | None = None
    step_text: str = Field(default="", description="Step of the ramp, of how many: 2/4; for kubectl get.")
    share_text: str = Field(default="", description="Share that is ordered, for people: 10%; for kubectl get.")
    gateways: str = Field(default="", description="Gateway pods that confirmed the traffic, of those ready: 3/3.")
    conditions: tuple[Condition, ...] = ()

    def condition(self, kind: str) -> Condition | None:
        return next((c for c in self.conditions if c.type == kind), None)
