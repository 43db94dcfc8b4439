"""Rule 1: what a policy does next is one cell of TRANSITIONS.

The state is derived from facts by `classify`, never stored; the signal is the strongest thing the observation says, in
the order abort > regression > pause > promote > retry > the rest. A missing cell is a bug: a test fills them all, and
the README's diagram is drawn from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    DELETING = "Deleting"  # has a deletion timestamp: its endpoint goes to the baseline until the pods confirm
    INVALID = "Invalid"  # the spec cannot be read: traffic stays as it is
    CONFLICTED = "Conflicted"  # an older policy owns the endpoint
    PREPARING = "Preparing"  # a new revision that may ramp: classifier, secrets, queries and gateways are checked first
    SUPERSEDED = "Superseded"  # the spec was edited in mid-ramp: what ramps is no longer what is asked for
    SHIFTING = "Shifting"  # a share is ordered, not all ready pods confirmed it
    WATCHING = "Watching"  # the step's clock runs and evidence is collected
    PAUSED = "Paused"  # a person holds the ramp; a regression still reverts it
    STEADY = "Steady"  # the spec's revision is the stable one
    REVERTING = "Reverting"  # traffic is back; not all pods confirmed, or the spec is still to be restored
    REJECTED = "Rejected"  # the spec's revision failed before: it ramps nothing


class Signal(StrEnum):
    ABORT = "Abort"
    REGRESSED = "Regressed"  # an enforced SLO failed, the fast-burn guard fired, or the sample ratio is off
    EXPIRED = "Expired"  # maxDuration is over without a verdict, and onInconclusive is Revert
    PAUSE = "Pause"
    RESUME = "Resume"
    PROMOTE = "Promote"  # a person goes on without evidence
    APPROVE = "Approve"
    RETRY = "Retry"
    BLOCKED = "Blocked"  # something that a person must mend
    ACKED = "Acked"  # all ready pods confirmed the traffic
    PASSED = "Passed"  # all that the step asks for
    READY = "Ready"  # all that a first step needs
    NOTHING = "Nothing"


class Move(StrEnum):
    """What is done; each is one function in moves.py."""

    STAY = "Stay"
    REFUSE = "Refuse"  # a person's verb that means nothing here: say so
    START_RAMP = "StartRamp"
    START_CLOCK = "StartClock"
    NEXT_STEP = "NextStep"  # after the last one: promote
    SKIP_STEP = "SkipStep"  # NEXT_STEP without evidence, by a person
    APPROVE = "Approve"
    REVERT = "Revert"
    REJECT = "Reject"  # latch a revision that never ramped
    DROP_CANDIDATE = "DropCandidate"
    PAUSE = "Pause"
    RESUME = "Resume"
    FORGIVE = "Forgive"  # un-latch a rejected revision
    TO_BASELINE = "ToBaseline"  # everything to the baseline, the policy is on its way out
    LET_GO = "LetGo"  # the pods confirmed: the finalizer may go
    DRIFT = "Drift"  # a promoted revision regressed, or a person takes it back: everything to the baseline
    SETTLE = "Settle"  # after a revert: finish what is left (restore the spec)
    WITHHOLD = "Withhold"  # keep traffic from being served under a foreign endpoint


@dataclass(frozen=True, slots=True)
class Step:
    reason: str  # becomes the Event's and the conditions' reason; never computed from a phase
    move: Move


def _row(quiet: str, **cells: Step) -> dict[Signal, Step]:
    """A row in full: verbs that are not named are refused, signals that are not named leave things as they are."""
    refused = Step("NothingToDo", Move.REFUSE)
    stay = Step(quiet, Move.STAY)
    verbs = {Signal.ABORT, Signal.PAUSE, Signal.RESUME, Signal.PROMOTE, Signal.APPROVE, Signal.RETRY}
    row = {signal: refused if signal in verbs else stay for signal in Signal}
    return {**row, **{Signal[name.upper()]: step for name, step in cells.items()}}


_REVERTS = {
    "abort": Step("Aborted", Move.REVERT),
    "regressed": Step("Regressed", Move.REVERT),
    "expired": Step("Inconclusive", Move.REVERT),
}

ROWS: dict[State, dict[Signal, Step]] = {
    State.DELETING: _row("Deleting", acked=Step("Deleted", Move.LET_GO), nothing=Step("Deleting", Move.TO_BASELINE)),
    State.INVALID: _row("InvalidSpec"),
    State.CONFLICTED: _row("EndpointTaken", nothing=Step("EndpointTaken", Move.WITHHOLD)),
    State.PREPARING: _row(
        "Preparing",
        abort=Step("Aborted", Move.REJECT),
        blocked=Step("Blocked", Move.STAY),
        ready=Step("RampStarted", Move.START_RAMP),
    ),
    State.SUPERSEDED: _row(
        "Superseded",
        abort=_REVERTS["abort"],
        regressed=_REVERTS["regressed"],
        nothing=Step("Superseded", Move.DROP_CANDIDATE),
    ),
    State.SHIFTING: _row(
        "WaitingForGateways",
        **_REVERTS,
        pause=Step("Paused", Move.PAUSE),
        promote=Step("NotInEffect", Move.REFUSE),
        approve=Step("Approved", Move.APPROVE),
        acked=Step("StepStarted", Move.START_CLOCK),
    ),
    State.WATCHING: _row(
        "WaitingForEvidence",
        **_REVERTS,
        pause=Step("Paused", Move.PAUSE),
        promote=Step("PromotedByHand", Move.SKIP_STEP),
        approve=Step("Approved", Move.APPROVE),
        passed=Step("StepPassed", Move.NEXT_STEP),
    ),
    State.PAUSED: _row(
        "Paused",
        abort=_REVERTS["abort"],
        regressed=_REVERTS["regressed"],
        resume=Step("Resumed", Move.RESUME),
    ),
    State.STEADY: _row("Steady", abort=Step("Aborted", Move.DRIFT), regressed=Step("Drifted", Move.DRIFT)),
    State.REVERTING: _row(
        "Reverting", acked=Step("RevertAcknowledged", Move.SETTLE), retry=Step("StillReverting", Move.REFUSE)
    ),
    State.REJECTED: _row("Rejected", retry=Step("Retried", Move.FORGIVE)),
}

TRANSITIONS: dict[tuple[State, Signal], Step] = {
    (state, signal): step for state, row in ROWS.items() for signal, step in row.items()
}
