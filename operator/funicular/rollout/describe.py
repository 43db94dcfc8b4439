"""What people read: phase, message and conditions, computed from the facts and the transition; no code reads them back."""

from __future__ import annotations

from datetime import datetime

from funicular.api.duration import delta, readable
from funicular.api.spec import Approval
from funicular.api.status import Condition, Status, VerdictStatus
from funicular.rollout.classify import blockers, waits_for
from funicular.rollout.judgement import tightest
from funicular.rollout.moves import percent
from funicular.rollout.observation import Observation
from funicular.rollout.transitions import State, Step
from funicular.slo.model import Outcome


def phase_of(seen: Observation, status: Status, state: State) -> str:
    """For `kubectl get` and dashboards: whatever a person must look at has a word of its own."""
    match state:
        case State.STEADY:
            if status.reverted_at is not None:
                return "Reverted"
            return "Promoted" if status.traffic and not status.traffic.stable.is_baseline_only else "Baseline"
        case State.SHIFTING | State.WATCHING:
            if state is State.WATCHING and _awaits_approval(seen, status):
                return "AwaitingApproval"
            return "Ramping"
        case State.PREPARING:
            return "Blocked" if _is_blocked(seen) else "Preparing"
        case State.REJECTED:
            return "Degraded"
        case _:
            return state.value


def _is_blocked(seen: Observation) -> bool:
    return bool(seen.problems) or any(b.reason not in ("Preflight", "Unready", "Progressing") for b in blockers(seen))


def _awaits_approval(seen: Observation, status: Status) -> bool:
    step = status.step
    if seen.spec is None or step is None or step.approved_by is not None:
        return False
    declared = seen.spec.rollout.steps[min(step.index, len(seen.spec.rollout.steps) - 1)]
    return declared.approval is Approval.REQUIRED and waits_for(seen, status.verdicts) == ("approval by a person",)


def message_of(seen: Observation, status: Status, state: State) -> str:
    """One sentence with numbers."""
    match state:
        case State.INVALID:
            return seen.spec_problem.sentence() if seen.spec_problem else "the spec cannot be read"
        case State.CONFLICTED:
            return f"spec.endpoint.model: {seen.conflict} serves this endpoint; choose another name or delete one of the two"
        case State.PREPARING:
            found = blockers(seen)
            return found[0].sentence() if found else f"revision {status.revision} is about to ramp"
        case State.SHIFTING:
            return f"{_position(status)}: waiting for {_missing(seen)} to confirm the share"
        case State.WATCHING:
            return f"{_position(status)}: {_evidence(seen, status)}"
        case State.PAUSED:
            return f"{_position(status)}: paused; a regression still reverts it"
        case State.STEADY:
            return _steady(status)
        case State.REVERTING:
            return f"revision {_last_rejected(status)} is reverted: waiting for {_missing(seen)} to confirm share 0"
        case State.REJECTED:
            rejected = next((r for r in status.rejected if r.revision == status.revision), None)
            stable = status.stable.revision if status.stable else "the baseline"
            because = f": {rejected.message}" if rejected else ""
            remedy = "apply a new spec, or retry this revision"
            return f"revision {status.revision} was rejected{because}; traffic is at {stable}; {remedy}"
        case State.DELETING:
            return f"the endpoint goes to the baseline: waiting for {_missing(seen)} to confirm"
        case State.SUPERSEDED:
            return "the spec was edited: the revision that ramped goes back to share 0"


def _position(status: Status) -> str:
    step = status.step
    return f"step {step.index + 1}/{step.of} at {percent(status)}" if step else "ramping"


def _missing(seen: Observation) -> str:
    if seen.gateways.ready == 0:
        return "a ready gateway pod"
    return f"{seen.gateways.ready - seen.gateways.acked} of {seen.gateways.ready} gateway pods"


def _last_rejected(status: Status) -> str:
    return status.rejected[-1].revision if status.rejected else ""


def _steady(status: Status) -> str:
    revision = status.stable.revision if status.stable else ""
    if status.reverted_at is not None and status.rejected:
        last = status.rejected[-1]
        return f"revision {last.revision} was reverted ({last.message}); {revision} serves"
    tight = tightest(status.verdicts)
    if status.traffic and status.traffic.stable.is_baseline_only:
        return "everything goes to the baseline"
    held = (
        f", {status.traffic.holdback / 100:g} % held back on the baseline"
        if status.traffic and status.traffic.holdback
        else ""
    )
    return f"revision {revision} is promoted{held}" + (f"; {tight.slo}: {tight.message}" if tight else "")


def _evidence(seen: Observation, status: Status) -> str:
    step = status.step
    assert step is not None
    missing = waits_for(seen, status.verdicts)
    if not missing:
        return "passed"
    tight = tightest(status.verdicts)
    if tight is None or tight.outcome == Outcome.PASS:
        return missing[0]
    samples = f"{step.samples:.0f} of {max(step.min_samples, round(tight.needed)):.0f} samples"
    left = eta(seen, status, tight)
    text = f"{tight.slo} {tight.outcome.lower()}, {samples}" + (f", about {readable(left)}" if left else "")
    return text if tight.outcome == Outcome.INCONCLUSIVE else f"{text}: {tight.message}"


def eta(seen: Observation, status: Status, tight: VerdictStatus) -> float:
    """Seconds until the needed samples are there at the present rate; 0: unknown."""
    step = status.step
    if step is None or step.started_at is None or step.samples <= 0:
        return 0.0
    elapsed = (seen.now - step.started_at).total_seconds()
    missing = max(tight.needed, step.min_samples) - step.samples
    return max(0.0, missing * elapsed / step.samples)


def conditions_of(seen: Observation, status: Status, state: State, transition: Step) -> tuple[Condition, ...]:
    """kstatus's three and ours. A transition time moves only on a flip."""
    synced = seen.gateways.all_acked and status.traffic is not None and not _just_changed(seen, status)
    found = [
        *_kstatus(seen, status, state, transition, synced),
        _gateways(seen, status, synced),
        _metrics(seen, status),
    ]
    found += [_classifier(seen), _regressed(status)]
    return tuple(_kept(seen, status, *c) for c in found)


def _just_changed(seen: Observation, status: Status) -> bool:
    before = seen.status.traffic
    return before is None or status.traffic is None or before.version != status.traffic.version


Facts = tuple[str, bool | None, str, str]


def _kstatus(seen: Observation, status: Status, state: State, transition: Step, synced: bool) -> list[Facts]:
    stuck = state in (State.INVALID, State.CONFLICTED, State.REJECTED) or (
        state is State.PREPARING and _is_blocked(seen)
    )
    moving = not stuck and (
        state in (State.PREPARING, State.SUPERSEDED, State.SHIFTING, State.REVERTING, State.DELETING) or not synced
    )
    ready = synced and not stuck and not moving
    reason = transition.reason
    return [
        ("Ready", ready, reason if not ready else "Serving", status.message),
        ("Reconciling", moving, reason if moving else "Settled", status.message if moving else ""),
        ("Stalled", stuck, reason if stuck else "NotStalled", status.message if stuck else ""),
    ]


def _gateways(seen: Observation, status: Status, synced: bool) -> Facts:
    facts = seen.gateways
    if facts.ready == 0:
        return (
            "GatewaysSynced",
            False,
            "NoGateways",
            "spec.gateway.selector: no ready gateway pod carries these labels",
        )
    if facts.errors:
        return ("GatewaysSynced", False, "NotTaken", "; ".join(facts.errors)[:900])
    version = status.traffic.version if status.traffic else 0
    text = f"{facts.acked} of {facts.ready} gateway pods confirmed traffic version {version}"
    return ("GatewaysSynced", synced, "AllConfirmed" if synced else "WaitingForGateways", text)


def _metrics(seen: Observation, status: Status) -> Facts:
    query = next((p for p in seen.problems if p.field.startswith(("spec.prometheus", "spec.slos"))), None)
    if query is not None:
        return ("MetricsAvailable", False, query.reason, query.sentence())
    look = seen.measurements
    if look is not None and look.error:
        kept = "; the share is frozen until it answers again" if status.candidate else ""
        return ("MetricsAvailable", False, look.error, look.message + kept)
    broken = next((v for v in status.verdicts if v.outcome == Outcome.ERROR), None)
    if broken is not None:
        return ("MetricsAvailable", False, broken.reason, f"{broken.slo}: {broken.message}")
    if look is None and not status.verdicts:
        return ("MetricsAvailable", None, "NotAsked", "nothing is measured yet")
    if (
        look is not None
        and seen.spec is not None
        and seen.now - look.at > 4 * delta(seen.spec.prometheus.interval)
        and status.candidate
    ):
        return ("MetricsAvailable", False, "Stale", f"the last look at Prometheus was at {look.at:%H:%M:%S} UTC")
    return ("MetricsAvailable", True, "Answering", "")


def _classifier(seen: Observation) -> Facts:
    facts = seen.classifier
    if not facts.needed:
        return ("ClassifierAvailable", True, "NotNeeded", "")
    if facts.available:
        return ("ClassifierAvailable", True, "Ready", "")
    message = (
        f"spec.strategy.classifier.image: {facts.message or 'no pod is ready'}; treated requests go to the baseline"
    )
    return ("ClassifierAvailable", False, facts.reason or "Unready", message)


def _regressed(status: Status) -> Facts:
    if status.reverted_at is None or not status.rejected:
        return ("Regressed", False, "NoRegression", "")
    last = status.rejected[-1]
    return ("Regressed", True, last.reason, f"revision {last.revision}: {last.message}")


def _kept(seen: Observation, status: Status, kind: str, fact: bool | None, reason: str, message: str) -> Condition:
    text = {True: "True", False: "False", None: "Unknown"}[fact]
    before = seen.status.condition(kind)
    since: datetime = before.last_transition_time if before is not None and before.status == text else seen.now
    return Condition(
        type=kind,
        status=text,
        observed_generation=seen.metadata.generation,
        last_transition_time=since,
        reason=reason,
        message=message[:1000],
    )
