"""Which state a policy is in, and what the strongest signal is: derived from the facts of one observation, never stored."""

from __future__ import annotations

from datetime import datetime

from funicular.api.duration import delta
from funicular.api.revision import classifier_name, revision_of
from funicular.api.spec import Approval, Mode, OnInconclusive, RoutingPolicySpec
from funicular.api.status import Status, VerdictStatus
from funicular.api.verbs import Verb
from funicular.rollout.judgement import SAMPLE_RATIO, current_look, enforced, failed
from funicular.rollout.observation import Observation, Problem
from funicular.rollout.transitions import Signal, State
from funicular.slo.model import Outcome

AWAITED = frozenset({"Preflight", "Unready", "Progressing"})  # reasons that pass by themselves as a rule
NO_GATEWAYS = Problem(
    "spec.gateway.selector",
    "NoGateways",
    "no ready gateway pod carries these labels",
    "correct the selector, or install gateways with these labels",
)
STALE_LOOKS = 3  # a verdict is too old to promote on after this many intervals
LEAST_EXERCISED = (
    0.9  # of the treated requests must have been decided by the strategy, or the evidence speaks of the baseline
)


def classify(seen: Observation) -> State:
    """The first that holds, from the strongest down."""
    status, spec = seen.status, seen.spec
    if seen.metadata.deleted is not None:
        return State.DELETING
    if spec is None:
        return State.INVALID
    if seen.conflict is not None:
        return State.CONFLICTED
    revision = revision_of(spec)
    if status.candidate is not None:
        return _of_a_ramp(seen, revision)
    if _is_reverting(seen):
        return State.REVERTING
    if any(r.revision == revision for r in status.rejected):
        return State.REJECTED
    if status.stable is not None and status.stable.revision == revision:
        return State.STEADY
    return State.PREPARING


def _of_a_ramp(seen: Observation, revision: str) -> State:
    status = seen.status
    if status.candidate is None or status.candidate.revision != revision:
        return State.SUPERSEDED
    if status.paused:
        return State.PAUSED
    if status.step is None or status.step.started_at is None:
        return State.SHIFTING
    return State.WATCHING


def _is_reverting(seen: Observation) -> bool:
    """After a revert until every ready pod has confirmed it and the spec is restored where it is to be."""
    status = seen.status
    if status.reverted_at is None or status.traffic is None:
        return False
    return status.spec_to_revert is not None or (status.timings is None and seen.gateways.ready > 0)


def signal_of(seen: Observation, state: State, verdicts: tuple[VerdictStatus, ...]) -> Signal:
    """The strongest signal: abort > regression > pause > promote > retry > what the world says."""
    asked = _verb(seen, state)
    ramps = seen.status.candidate is not None
    if asked is Signal.ABORT:
        return asked
    if ramps and (alarm_applies(seen) or failed(verdicts)):
        return Signal.REGRESSED
    if (
        state is State.STEADY
        and failed(verdicts)
        and seen.status.traffic
        and not seen.status.traffic.stable.is_baseline_only
    ):
        return Signal.REGRESSED
    if asked is not None:
        return asked
    return _of_the_world(seen, state, verdicts)


def _verb(seen: Observation, state: State) -> Signal | None:
    """A person's request, if it is bound to the revision in question."""
    request = seen.request
    if request is None or not bound(seen):
        return None
    return {
        Verb.ABORT: Signal.ABORT,
        Verb.PAUSE: Signal.PAUSE,
        Verb.RESUME: Signal.RESUME,
        Verb.PROMOTE: Signal.PROMOTE,
        Verb.APPROVE: Signal.APPROVE,
        Verb.RETRY: Signal.RETRY,
    }[request.verb]


def bound(seen: Observation) -> bool:
    """Whether the request names the revision that it would act on."""
    request, status = seen.request, seen.status
    if request is None:
        return False
    if status.candidate is not None:
        return request.revision == status.candidate.revision
    return seen.spec is not None and request.revision == revision_of(seen.spec)


def alarm_applies(seen: Observation) -> bool:
    alarm, status = seen.alarm, seen.status
    return alarm is not None and status.candidate is not None and alarm.revision == status.candidate.revision


def _of_the_world(seen: Observation, state: State, verdicts: tuple[VerdictStatus, ...]) -> Signal:
    acked = seen.gateways.all_acked
    match state:
        case State.DELETING:
            gone = seen.status.traffic is None or (is_at_baseline(seen.status) and (acked or seen.gateways.ready == 0))
            return Signal.ACKED if gone else Signal.NOTHING
        case State.PREPARING:
            return Signal.BLOCKED if blockers(seen) else Signal.READY
        case State.SHIFTING:
            return Signal.ACKED if acked else Signal.NOTHING
        case State.REVERTING:
            return Signal.ACKED if acked or seen.gateways.ready == 0 else Signal.NOTHING
        case State.WATCHING:
            if not waits_for(seen, verdicts):
                return Signal.PASSED
            return Signal.EXPIRED if has_expired(seen) else Signal.NOTHING
        case _:
            return Signal.NOTHING


def is_at_baseline(status: Status) -> bool:
    traffic = status.traffic
    return traffic is None or (traffic.candidate is None and traffic.stable.is_baseline_only)


def blockers(seen: Observation) -> tuple[Problem, ...]:
    """What keeps a first share from being ordered. Traffic stays where it is. What is only waited for stands last."""
    found = list(seen.problems)
    if seen.gateways.ready == 0:
        found.append(NO_GATEWAYS)
    if seen.classifier.needed and not seen.classifier.available:
        reason = seen.classifier.reason or "Unready"
        found.append(
            Problem(
                "spec.strategy.classifier.image",
                reason,
                seen.classifier.message or "no classifier pod is ready yet",
                classifier_remedy(seen),
            )
        )
    if not seen.preflight_done:
        found.append(
            Problem(
                "spec.slos",
                "Preflight",
                "the queries have not been tried yet",
                "wait, or check that Prometheus answers",
            )
        )
    return tuple(sorted(found, key=lambda problem: problem.reason in AWAITED))


def classifier_remedy(seen: Observation) -> str:
    """Where a person looks next when the operator's own classifier is not available."""
    if "Image" in seen.classifier.reason:
        return "correct the image's name, or give the namespace's default service account its pull secret"
    revision = revision_of(seen.spec) if seen.spec else seen.status.revision
    name = classifier_name(seen.metadata.name, revision)
    return f"see kubectl -n {seen.metadata.namespace} describe deployment/{name}, and logs of the same"


def has_expired(seen: Observation) -> bool:
    step = seen.status.step
    return (
        seen.spec is not None
        and seen.spec.rollout.on_inconclusive is OnInconclusive.REVERT
        and step is not None
        and step.max_until is not None
        and seen.now >= step.max_until
    )


def waits_for(seen: Observation, verdicts: tuple[VerdictStatus, ...]) -> tuple[str, ...]:
    """All that the present step still lacks, as sentences; empty: it has passed."""
    spec, step = seen.spec, seen.status.step
    if spec is None or step is None or step.started_at is None:
        return ("the share is not in effect yet",)
    found = [*_evidence_lacks(seen, spec, verdicts)]
    last = step.index >= len(spec.rollout.steps) - 1
    declared = spec.rollout.steps[min(step.index, len(spec.rollout.steps) - 1)]
    if step.min_until is not None and seen.now < step.min_until:
        found.append(f"minDuration until {_clock(step.min_until)}")
    if last and not found:
        baked = (step.passed_at or seen.now) + delta(declared.bake)
        if seen.now < baked:
            found.append(f"baking until {_clock(baked)}")
        ran = (seen.status.ramp_started_at or seen.now) + delta(spec.assignment.min_duration)
        if seen.now < ran:
            found.append(f"assignment.minDuration until {_clock(ran)}")
    if not found and declared.approval is Approval.REQUIRED and step.approved_by is None:
        found.append("approval by a person")
    return tuple(found)


def evidence_is_complete(seen: Observation, verdicts: tuple[VerdictStatus, ...]) -> bool:
    return seen.spec is not None and seen.status.step is not None and not _evidence_lacks(seen, seen.spec, verdicts)


def _evidence_lacks(seen: Observation, spec: RoutingPolicySpec, verdicts: tuple[VerdictStatus, ...]) -> list[str]:
    step = seen.status.step
    assert step is not None
    found: list[str] = []
    by_name = {v.slo: v for v in enforced(verdicts) if v.slo != SAMPLE_RATIO}
    gates = [slo for slo in spec.slos if slo.mode is Mode.ENFORCE]
    if not gates:
        found.append("an enforced SLO: without one nothing is promoted by itself")
    for slo in gates:
        verdict = by_name.get(slo.name)
        if verdict is None:
            found.append(f"{slo.name}: not measured yet")
        elif verdict.outcome != Outcome.PASS:
            found.append(f"{slo.name} {verdict.outcome.lower()}: {verdict.message}")
    if step.samples < step.min_samples:
        found.append(f"{step.samples:.0f} of {step.min_samples} samples")
    if seen.classifier.needed and not seen.classifier.available:
        found.append("a ready classifier: treated requests go to the baseline meanwhile")
    look = current_look(seen)
    if look is not None and look.exercised is not None and look.exercised < LEAST_EXERCISED:
        found.append(
            f"requests that the strategy decided: {look.exercised:.0%} of the treated ones, the rest fell to the baseline"
        )
    if look is None or look.error or seen.now - look.at > STALE_LOOKS * delta(spec.prometheus.interval):
        found.append("a fresh look at Prometheus" + (f": {look.message}" if look is not None and look.error else ""))
    return found


def _clock(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")
