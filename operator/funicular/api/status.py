"""What the operator reports: facts and absolute deadlines, never a state machine's position. `phase` is for people only."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from funicular.api.base import StatusModel
from funicular.api.traffic import Traffic


class Condition(StatusModel):
    """One aspect of the policy's state, as all of Kubernetes reports it."""

    type: str = Field(
        description="Ready, Reconciling, Stalled, MetricsAvailable, GatewaysSynced, ClassifierAvailable or Regressed."
    )
    status: str = Field(description="True, False or Unknown.")
    observed_generation: int = Field(description="Generation of the spec that this speaks of.")
    last_transition_time: datetime = Field(description="When status last changed.")
    reason: str = Field(description="The reason in one CamelCase word.")
    message: str = Field(default="", description="The reason in one sentence, with the field and the remedy.")


class RevisionStatus(StatusModel):
    """One revision of the policy."""

    revision: str = Field(description="Hash of what routes.")
    controller_revision: str | None = Field(
        default=None, description="Name of the ControllerRevision that holds its spec; none for the baseline."
    )
    since: datetime | None = Field(default=None, description="When it took this role.")


class StepStatus(StatusModel):
    """Where the ramp of `candidate` stands. Deadlines are absolute."""

    index: int = Field(description="0-based index into spec.rollout.steps.")
    of: int = Field(description="How many steps the ramp has.")
    share: int = Field(description="Basis points.")
    entered_at: datetime = Field(description="When the share was ordered.")
    started_at: datetime | None = Field(
        default=None, description="When all ready gateway pods had confirmed it: the window of the SLOs begins here."
    )
    min_until: datetime | None = Field(default=None, description="Until then the step's minDuration lasts.")
    max_until: datetime | None = Field(default=None, description="After this, onInconclusive decides.")
    passed_at: datetime | None = Field(
        default=None, description="When every enforced SLO first passed; on the last step the bake starts here."
    )
    approved_by: str | None = Field(default=None, description="Who approved the step.")
    samples: float = Field(default=0, description="Treated requests at this share so far.")
    min_samples: int = Field(default=0, description="Treated requests that the step wants.")


class LooksStatus(StatusModel):
    """The memory of one SLO's sequential test within a step: funicular.slo.model.Looks."""

    planned: float = Field(default=0, description="Effective samples at which half of the budget for a Fail is spent.")
    done: tuple[float, ...] = Field(default=(), description="Looks for a Fail so far, as fractions of planned.")
    failed: str = Field(default="", description="The bound that a look proved broken; final within the step.")
    planned_pass: float = Field(
        default=0, description="Effective samples at which half of the budget for a Pass is spent."
    )
    done_pass: tuple[float, ...] = Field(
        default=(), description="Looks for a Pass so far, as fractions of plannedPass."
    )
    passed: tuple[str, ...] = Field(default=(), description="The bounds that a look has shown to be kept.")


class VerdictStatus(StatusModel):
    """What the statistics say of one SLO."""

    slo: str = Field(description="Name of the SLO.")
    outcome: str = Field(description="Pass, Fail, Inconclusive or Error.")
    reason: str = Field(description="The reason in one CamelCase word.")
    message: str = Field(default="", description="The reason in one sentence, with numbers.")
    mode: str = Field(default="Enforce", description="Enforce or Observe.")
    estimate: float | None = Field(
        default=None,
        description="In the treatment arm: the share of bad events (failed, over the bound, thumbs down), or the mean.",
    )
    reference: float | None = Field(default=None, description="The same in the arm it is compared with.")
    low: float | None = Field(default=None, description="Lower end of the confidence interval.")
    high: float | None = Field(default=None, description="Upper end of the confidence interval.")
    samples: float = Field(default=0, description="Requests in the treatment arm.")
    effective_samples: float = Field(
        default=0, description="What they are worth, given that requests of one user are alike."
    )
    needed: float = Field(default=0, description="Samples expected to be enough; 0: not known.")
    tightness: float = Field(default=0, description="How near the bound it is: 0 far, 1 at it.")
    memory: LooksStatus = Field(
        default_factory=lambda: LooksStatus(), description="What the sequential test must not forget."
    )
    at: datetime | None = Field(default=None, description="When it was judged.")


class Rejected(StatusModel):
    """A revision that ramps no more until a person retries it."""

    revision: str = Field(description="Hash of what routes.")
    at: datetime = Field(description="When it was rejected.")
    reason: str = Field(description="The reason in one CamelCase word.")
    message: str = Field(default="", description="The reason in one sentence.")


class HistoryEntry(StatusModel):
    """One thing that happened to a revision."""

    at: datetime = Field(description="When.")
    revision: str = Field(description="Which revision.")
    event: str = Field(description="Ramped, StepStarted, Promoted, Reverted, Aborted, SpecReverted, Paused ...")
    share: int = Field(default=0, description="Basis points in treatment then.")
    message: str = Field(default="", description="One sentence about it.")
    by: str = Field(default="", description="The person who asked for it; empty: the operator.")


class Verb(StatusModel):
    """The last request of a person that was carried out or refused: `verb`, bound to a revision, by its id."""

    id: str = Field(description="The request's own id.")
    verb: str = Field(description="abort, pause, resume, promote, approve or retry.")
    revision: str = Field(description="The revision it was bound to.")
    at: datetime = Field(description="When it was answered.")
    result: str = Field(default="", description="What became of it, in one sentence.")


class Timings(StatusModel):
    """Of the last revert, in milliseconds."""

    decision_to_acked_ms: float | None = Field(
        default=None, description="From the decision to the last gateway pod's confirmation."
    )


class Status(StatusModel):
    """What the operator reports."""

    observed_generation: int = Field(default=0, description="Generation of the spec that was last seen.")
    phase: str = Field(default="Pending", description="One word for people; no program should read it.")
    message: str = Field(default="", description="The state in one sentence, with numbers.")
    revision: str = Field(default="", description="Hash of what routes in the present spec.")
    stable: RevisionStatus | None = Field(default=None, description="The last good revision.")
    candidate: RevisionStatus | None = Field(
        default=None, description="The revision that ramps; absent while none does."
    )
    previous: RevisionStatus | None = Field(
        default=None, description="The stable revision before the last promotion: what a drift goes back to."
    )
    traffic: Traffic | None = Field(default=None, description="What the gateway pods obey.")
    step: StepStatus | None = Field(default=None, description="Where the ramp stands; absent while none runs.")
    ramp_started_at: datetime | None = Field(
        default=None, description="When the first step's share took effect: assignment.minDuration counts from here."
    )
    paused: bool = Field(default=False, description="True: a person paused the ramp.")
    drift_since: datetime | None = Field(
        default=None,
        description="Begin of the present window in which a promoted revision is compared with the holdback.",
    )
    verdicts: tuple[VerdictStatus, ...] = Field(default=(), description="What the statistics say of each SLO.")
    tightest: str = Field(default="", description="The SLO that is nearest to its bound.")
    rejected: tuple[Rejected, ...] = Field(
        default=(), max_length=50, description="Revisions that ramp no more until a person retries them."
    )
    spec_to_revert: str | None = Field(
        default=None, description="ControllerRevision whose spec is yet to be written back."
    )
    reverted_at: datetime | None = Field(default=None, description="When traffic was last taken back.")
    history: tuple[HistoryEntry, ...] = Field(default=(), max_length=30, description="What happened, the latest last.")
    last_verb: Verb | None = Field(default=None, description="The last request of a person that was answered.")
    timings: Timings | None = Field(default=None, description="How long the last revert took.")
    step_text: str = Field(default="", description="Step of the ramp, of how many: 2/4; for kubectl get.")
    share_text: str = Field(default="", description="Share that is ordered, for people: 10%; for kubectl get.")
    gateways: str = Field(default="", description="Gateway pods that confirmed the traffic, of those ready: 3/3.")
    conditions: tuple[Condition, ...] = Field(default=(), description="The usual conditions.")

    def condition(self, kind: str) -> Condition | None:
        return next((c for c in self.conditions if c.type == kind), None)
