"""The one decision: an observation in, the next status and an ordered tuple of actions out. Pure; called by the controller.

It reads like the rules: judge, classify, look the cell up, move the facts, describe them, list what is to be done.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from funicular.api.base import FINALIZER
from funicular.api.duration import delta
from funicular.api.revision import revision_of
from funicular.api.spec import ClassifierStrategy, schema_free
from funicular.api.status import Condition, Status, Timings, Verb, VerdictStatus
from funicular.api.traffic import Traffic
from funicular.api.verbs import ANNOTATION, HOW_TO_ASK, unreadable
from funicular.rollout.actions import (
    Action,
    Decision,
    DropFinalizer,
    Emit,
    EnsureFinalizer,
    RecordRevision,
    RestoreSpec,
    RunClassifiers,
    WriteStatus,
)
from funicular.rollout.classify import classify, evidence_is_complete, signal_of
from funicular.rollout.describe import conditions_of, message_of, phase_of
from funicular.rollout.judgement import current_look, judged, tightest
from funicular.rollout.moves import (
    MOVES,
    first_traffic,
    limits_of,
    percent,
    revision_name,
    route_now,
    traffic_for,
    verb_result,
)
from funicular.rollout.observation import Observation
from funicular.rollout.transitions import TRANSITIONS, Move, State, Step

LOOK_AGAIN = timedelta(seconds=30)  # a safety net: events, reports and looks at Prometheus wake a policy earlier
TROUBLE = {"Stalled": "True", "MetricsAvailable": "False", "ClassifierAvailable": "False", "GatewaysSynced": "False"}
LOOK_AGAIN_SOON = timedelta(seconds=5)  # a Secret that appears wakes nobody


def decide(seen: Observation) -> Decision:
    """What to do next with one policy."""
    before = seen.status
    status, served = _served(seen)
    status, lost = _without_lost_spec(seen, status)
    verdicts = judged(_with(seen, status))
    seen = _with(seen, _measured(_with(seen, status), verdicts))
    state = classify(seen)
    transition = TRANSITIONS[state, signal_of(seen, state, verdicts)]
    moved = MOVES[transition.move](seen, seen.status, transition.reason)
    after, settled = _after(seen, _answered(seen, moved.status, transition), transition, state)
    status = _described(_with(after, _recorded(seen, after.status)), settled, transition, before)
    return Decision(
        status,
        _actions(seen, before, status, transition, (*served, *lost, *moved.events)),
        _look_again(after, status, settled),
    )


def _without_lost_spec(seen: Observation, status: Status) -> tuple[Status, tuple[Emit, ...]]:
    """Somebody deleted the ControllerRevision that a revert was to write back. Traffic does not need it: it is back already."""
    name = status.spec_to_revert
    if name is None or not seen.spec_is_lost:
        return status, ()
    text = f"the good spec cannot be written back, ControllerRevision {name} is gone: apply it again from its source"
    rejected = tuple(
        r.model_copy(update={"message": f"{r.message[:240]}; {text}"}) if r.revision == status.revision else r
        for r in status.rejected
    )
    fresh = status.model_copy(update={"spec_to_revert": None, "rejected": rejected})
    return fresh, (Emit("SpecLost", text, warning=True),)


def _with(seen: Observation, status: Status) -> Observation:
    return replace(seen, status=status)


def _served(seen: Observation) -> tuple[Status, tuple[Emit, ...]]:
    """Facts that follow from the spec alone: a first traffic, and what is no part of a revision (prices, bounds, steps)."""
    status = seen.status
    if seen.spec is None or seen.metadata.deleted is not None or seen.conflict is not None:
        return status, ()
    status = status.model_copy(update={"revision": revision_of(seen.spec)})
    if status.traffic is None:
        return first_traffic(seen, status), (Emit("Served", "everything goes to the baseline until the first step"),)
    return _refreshed(seen, status), ()


def _refreshed(seen: Observation, status: Status) -> Status:
    """The parts of the spec that need no ramp: into the traffic, and a step that was edited starts anew."""
    assert seen.spec is not None
    assert status.traffic is not None
    traffic, route = status.traffic, route_now(seen)
    stable = route if traffic.stable.revision == route.revision else traffic.stable
    candidate = (
        route if traffic.candidate is not None and traffic.candidate.revision == route.revision else traffic.candidate
    )
    if traffic.candidate is not None and candidate is traffic.candidate:
        return status  # superseded: nothing of the new spec before the old candidate is gone
    status, share = _restepped(seen, status), traffic.share.desired
    if status.step is not None and candidate is not None:
        share = status.step.share
    fresh = traffic_for(seen, traffic, stable, candidate, share)
    if fresh.holdback != traffic.holdback and status.step is not None:
        status = status.model_copy(
            update={"step": status.step.model_copy(update={"started_at": None, "entered_at": seen.now}), "verdicts": ()}
        )
    return status.model_copy(update={"traffic": fresh})


def _restepped(seen: Observation, status: Status) -> Status:
    """Steps edited in mid-ramp: the highest declared step that does not exceed the share in effect starts anew. What a step
    of the same share now wants (samples, shortest and longest time) counts at once, from its own beginning."""
    step = status.step
    if step is None or seen.spec is None:
        return status
    shares = [round(s.share * 100) for s in seen.spec.rollout.steps]
    if step.of == len(shares) and step.index < len(shares) and shares[step.index] == step.share:
        declared = seen.spec.rollout.steps[step.index]
        limits = limits_of(declared, step.started_at)
        return status.model_copy(
            update={"step": step.model_copy(update={"min_samples": declared.min_samples, **limits})}
        )
    index = max((i for i, share in enumerate(shares) if share <= step.share), default=0)
    declared = seen.spec.rollout.steps[index]
    fresh = step.model_copy(
        update={
            "index": index,
            "of": len(shares),
            "share": shares[index],
            "entered_at": seen.now,
            "started_at": None,
            "min_until": None,
            "max_until": None,
            "passed_at": None,
            "approved_by": None,
            "samples": 0,
            "min_samples": declared.min_samples,
        }
    )
    return status.model_copy(update={"step": fresh, "verdicts": (), "tightest": ""})


def _measured(seen: Observation, verdicts: tuple[VerdictStatus, ...]) -> Status:
    """Facts from the gateways and from Prometheus: shares confirmed and observed, samples, when the evidence was complete."""
    status, look = seen.status.model_copy(update={"verdicts": verdicts, "timings": _timed(seen)}), current_look(seen)
    if status.traffic is not None:
        status = status.model_copy(update={"traffic": _confirmed(seen, status.traffic)})
    step = status.step
    if step is not None and look is not None and step.started_at is not None:
        step = step.model_copy(update={"samples": round(look.samples)})
        status = status.model_copy(update={"step": step})
        if step.passed_at is None and evidence_is_complete(_with(seen, status), verdicts):
            status = status.model_copy(update={"step": step.model_copy(update={"passed_at": seen.now})})
    if look is not None and look.idle:
        status = status.model_copy(update={"drift_since": look.started_at})
    tight = tightest(verdicts)
    return status.model_copy(update={"tightest": f"{tight.slo} {tight.outcome}" if tight else ""})


def _confirmed(seen: Observation, traffic: Traffic) -> Traffic:
    look = current_look(seen)
    acked = traffic.share.desired if seen.gateways.all_acked else None
    observed = look.observed_share if look is not None else traffic.share.observed
    return traffic.model_copy(update={"share": traffic.share.model_copy(update={"acked": acked, "observed": observed})})


def _timed(seen: Observation) -> Timings | None:
    """How long the last revert took, from the decision to the last pod's confirmation."""
    status, facts = seen.status, seen.gateways
    if status.reverted_at is None or status.timings is not None or not facts.all_acked or facts.acked_at is None:
        return status.timings
    return Timings(
        decision_to_acked_ms=round(max(0.0, (facts.acked_at - status.reverted_at).total_seconds() * 1000), 1)
    )


def _answered(seen: Observation, status: Status, transition: Step) -> Status:
    if seen.bad_request is not None:
        result = f"refused: {HOW_TO_ASK}"
        answer = Verb(id=unreadable(seen.bad_request), verb="unknown", revision="", at=seen.now, result=result)
        return status.model_copy(update={"last_verb": answer})
    verb = verb_result(seen, transition.move, transition.reason, seen.now)
    return status.model_copy(update={"last_verb": verb}) if verb else status


def _after(seen: Observation, status: Status, transition: Step, state: State) -> tuple[Observation, State]:
    """The observation and state after the move: what pods confirmed and what was measured spoke of the traffic before it."""
    after = _with(seen, status)
    if transition.move in (Move.STAY, Move.REFUSE, Move.LET_GO):
        return after, state
    now, then = status.traffic, seen.status.traffic
    if now is not None and (then is None or now.version != then.version):
        unconfirmed = now.model_copy(update={"share": now.share.model_copy(update={"acked": None, "observed": None})})
        after = replace(
            after,
            status=status.model_copy(update={"traffic": unconfirmed}),
            gateways=replace(seen.gateways, acked=0, acked_at=None, errors=()),
            measurements=None,
            alarm=None,
        )
    return after, classify(after)


def _described(after: Observation, state: State, transition: Step, before: Status) -> Status:
    status = after.status.model_copy(
        update={
            "observed_generation": after.metadata.generation,
            "phase": phase_of(after, after.status, state),
            "message": message_of(after, after.status, state)[:1000],
            "gateways": f"{after.gateways.acked}/{after.gateways.ready}",
            **_columns(after.status),
        }
    )
    return status.model_copy(update={"conditions": conditions_of(_with(after, before), status, state, transition)})


def _columns(status: Status) -> dict[str, str]:
    """Of `kubectl get`: empty while nothing ramps."""
    step = status.step
    if step is None:
        return {"step_text": "", "share_text": ""}
    return {"step_text": f"{step.index + 1}/{step.of}", "share_text": percent(status).replace(" ", "")}


def _actions(
    seen: Observation, before: Status, status: Status, transition: Step, events: tuple[Emit, ...]
) -> tuple[Action, ...]:
    """In order: what must be there before the status says so, the status, what follows from it, and what people read of it."""
    if transition.move is Move.LET_GO:
        return (DropFinalizer(),)
    going = seen.metadata.deleted is not None
    found: list[Action] = []
    if FINALIZER not in seen.metadata.finalizers and status.traffic is not None and not going:
        found.append(EnsureFinalizer())
    found += _records(seen, before, status)
    urgent = transition.move in (Move.REVERT, Move.DRIFT, Move.DROP_CANDIDATE)
    classifiers = [_classifiers(seen, status)] if seen.spec is not None and not going and seen.conflict is None else []
    writes = [WriteStatus(status)] if _is_news(before, status) else []
    found += [*writes, *classifiers] if urgent else [*classifiers, *writes]
    found += [*events, *_troubles(before, status), *_refusal(seen, before, status)]
    if status.spec_to_revert is not None and any(r.revision == status.revision for r in status.rejected):
        found.append(
            RestoreSpec(status.spec_to_revert, status.revision)
        )  # last: it may fail, and what was told stays told
    return tuple(found)


def _refusal(seen: Observation, before: Status, status: Status) -> tuple[Emit, ...]:
    """What was asked by an annotation and is not done, with the reason."""
    verb = status.last_verb
    if verb is None or not verb.result.startswith("refused") or (before.last_verb and before.last_verb.id == verb.id):
        return ()
    if seen.bad_request is not None:
        text = f"metadata.annotations[{ANNOTATION}]: {seen.bad_request!r} is not understood: {HOW_TO_ASK}"
        return (Emit("UnknownVerb", text, warning=True),)
    by = f" by {seen.request.by}" if seen.request is not None and seen.request.by else ""
    return (Emit("VerbRefused", f"{verb.verb} of {verb.revision}{by} is {verb.result}", warning=True),)


def _troubles(before: Status, status: Status) -> tuple[Emit, ...]:
    """A Warning for each condition that has turned bad, or is bad for another reason or at another field than before."""
    found = []
    for now in filter(_is_trouble, status.conditions):
        if now.reason in ("WaitingForGateways", "Starting"):  # as a rule that passes by itself
            continue
        then = before.condition(now.type)
        if then is None or not _is_trouble(then) or (then.reason, _field(then)) != (now.reason, _field(now)):
            found.append(Emit(now.reason, now.message, warning=True))
    return tuple(found)


def _is_trouble(condition: Condition) -> bool:
    return TROUBLE.get(condition.type) == condition.status


def _field(condition: Condition) -> str:
    """The message of a condition that is a trouble begins with the field that it speaks of."""
    return condition.message.partition(": ")[0] if _is_trouble(condition) else ""


def _is_news(before: Status, status: Status) -> bool:
    """A policy that does not ramp is written only when something a person or an agent acts on has changed: a thousand idle
    policies must not write because a rate moved in its last digit."""
    if status.candidate is not None or before.candidate is not None:
        return before != status
    return _quiet(before) != _quiet(status)


def _quiet(status: Status) -> Status:
    kept = tuple(VerdictStatus(slo=v.slo, outcome=v.outcome, reason=v.reason, memory=v.memory) for v in status.verdicts)
    traffic = status.traffic
    if traffic is not None:
        traffic = traffic.model_copy(update={"share": traffic.share.model_copy(update={"observed": None})})
    conditions = tuple(c.model_copy(update={"message": _field(c)}) for c in status.conditions)
    outcomes = any(v.outcome not in ("Pass", "Inconclusive") for v in status.verdicts)
    message = status.message if outcomes or not status.verdicts else status.phase
    return status.model_copy(
        update={"verdicts": kept, "traffic": traffic, "message": message, "conditions": conditions, "tightest": ""}
    )


def _recorded(seen: Observation, status: Status) -> Status:
    """The stable spec has a new ControllerRevision when its SLOs, prices or steps change, though its revision stays."""
    if seen.spec is None or seen.metadata.deleted is not None or status.stable is None or status.candidate is not None:
        return status
    if status.stable.revision != status.revision or status.stable.controller_revision is None:
        return status
    return status.model_copy(
        update={"stable": status.stable.model_copy(update={"controller_revision": revision_name(seen)})}
    )


def _records(seen: Observation, before: Status, status: Status) -> list[Action]:
    """The stable spec as a ControllerRevision, before the status names it."""
    name = status.stable.controller_revision if status.stable else None
    if seen.spec is None or status.stable is None or name is None or name != revision_name(seen):
        return []
    if before.stable is not None and before.stable.controller_revision == name:
        return []
    return [RecordRevision(name, status.stable.revision, schema_free(seen.spec))]


def _classifiers(seen: Observation, status: Status) -> Action:
    """The stable revision's classifier runs as long as it is stable; the last rejected one's is kept warm."""
    assert seen.spec is not None
    rejected = {r.revision for r in status.rejected}
    run: list[tuple[str, ClassifierStrategy]] = []
    declared = seen.spec.strategy.classifier
    if declared is not None and declared.image and status.revision not in rejected:
        run.append((status.revision, declared))
    stable = seen.stable_spec.strategy.classifier if seen.stable_spec is not None else None
    if stable is not None and stable.image and status.stable is not None and status.stable.revision != status.revision:
        run.append((status.stable.revision, stable))
    keep = {status.revision, *(r.revision for r in (status.stable, status.candidate) if r is not None)}
    if status.rejected:
        keep.add(status.rejected[-1].revision)
    return RunClassifiers(tuple(run), frozenset(keep))


def _look_again(seen: Observation, status: Status, state: State) -> datetime | None:
    """The next instant at which time alone can change the decision; everything else wakes the policy by itself."""
    if state in (State.STEADY, State.REJECTED, State.INVALID, State.CONFLICTED):
        return None
    step, spec = status.step, seen.spec
    at = [seen.now + (LOOK_AGAIN_SOON if state is State.PREPARING else LOOK_AGAIN)]
    if step is not None and spec is not None:
        at += [t for t in (step.min_until, step.max_until) if t is not None]
        if step.passed_at is not None:
            at.append(step.passed_at + delta(spec.rollout.steps[min(step.index, len(spec.rollout.steps) - 1)].bake))
        if status.ramp_started_at is not None:
            at.append(status.ramp_started_at + delta(spec.assignment.min_duration))
    return min(t for t in at if t > seen.now)
