"""What each move does to the facts. One function a move: (observation, status, reason) -> status and the events to emit.

Nothing here looks at the state again: that a move fits the state is transitions.py's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from funicular.api.duration import delta
from funicular.api.revision import baseline_route, digest, revision_of, route_of
from funicular.api.spec import LATENCY_QUANTILE, OnRegression, RoutingPolicySpec, Step, schema_free
from funicular.api.status import HistoryEntry, Rejected, RevisionStatus, Status, StepStatus, Verb
from funicular.api.traffic import Route, Share, Traffic
from funicular.rollout.actions import Emit
from funicular.rollout.classify import bound
from funicular.rollout.judgement import failed, tightest
from funicular.rollout.observation import Observation
from funicular.rollout.transitions import Move

KEPT_HISTORY, KEPT_REJECTED = 30, 50


@dataclass(frozen=True, slots=True)
class Moved:
    status: Status
    events: tuple[Emit, ...] = ()


def basis_points(percent: float) -> int:
    return round(percent * 100)


def _spec(seen: Observation) -> RoutingPolicySpec:
    assert seen.spec is not None
    return seen.spec


def remembered(status: Status, seen: Observation, event: str, revision: str, message: str = "", by: str = "") -> Status:
    share = status.traffic.share.desired if status.traffic else 0
    entry = HistoryEntry(at=seen.now, revision=revision, event=event, share=share, message=message[:500], by=by)
    return status.model_copy(update={"history": (*status.history, entry)[-KEPT_HISTORY:]})


def latency_bounds(spec: RoutingPolicySpec) -> dict[str, str]:
    return {slo.indicator.value: slo.bound for slo in spec.slos if slo.indicator in LATENCY_QUANTILE and slo.bound}


def traffic_for(
    seen: Observation, before: Traffic | None, stable: Route, candidate: Route | None, share: int
) -> Traffic:
    """The traffic that these facts ask for; its version rises only if something the gateways obey has changed."""
    spec = _spec(seen)
    wanted = Traffic(
        version=before.version if before else 0,
        revision=(candidate or stable).revision,
        share=Share(desired=share),
        endpoint=spec.endpoint.model,
        selector=dict(spec.gateway.selector.match_labels),
        units=spec.assignment.units,
        salt=spec.assignment.salt,
        holdback=basis_points(spec.rollout.holdback),
        stable=stable,
        candidate=candidate,
        latency_bounds=latency_bounds(spec),
    )
    if before is not None and obeyed(before) == obeyed(wanted):
        return before
    return wanted.model_copy(update={"version": wanted.version + 1})


def obeyed(traffic: Traffic) -> Traffic:
    """Without what is only reported."""
    return traffic.model_copy(update={"version": 0, "share": Share(desired=traffic.share.desired)})


def route_now(seen: Observation) -> Route:
    return route_of(_spec(seen), seen.metadata.namespace, seen.metadata.name)


def stable_route(seen: Observation) -> Route:
    """What production does today: kept in traffic; at the very first, everything to the baseline."""
    traffic = seen.status.traffic
    return traffic.stable if traffic else baseline_route(_spec(seen))


def first_traffic(seen: Observation, status: Status) -> Status:
    """A policy that is not served yet: everything to the baseline."""
    stable = baseline_route(_spec(seen))
    traffic = traffic_for(seen, None, stable, None, 0)
    return status.model_copy(
        update={"traffic": traffic, "stable": RevisionStatus(revision=stable.revision, since=seen.now)}
    )


def _step(seen: Observation, index: int) -> StepStatus:
    steps = _spec(seen).rollout.steps
    return StepStatus(
        index=index,
        of=len(steps),
        share=basis_points(steps[index].share),
        entered_at=seen.now,
        min_samples=steps[index].min_samples,
    )


def _at_step(seen: Observation, status: Status, index: int, candidate: Route) -> Status:
    step = _step(seen, index)
    traffic = traffic_for(seen, status.traffic, stable_route(seen), candidate, step.share)
    return status.model_copy(update={"traffic": traffic, "step": step, "verdicts": (), "tightest": ""})


def start_ramp(seen: Observation, status: Status, reason: str) -> Moved:
    route = route_now(seen)
    status = status.model_copy(
        update={
            "candidate": RevisionStatus(revision=route.revision, since=seen.now),
            "ramp_started_at": None,
            "reverted_at": None,
            "spec_to_revert": None,
            "paused": False,
            "drift_since": None,
        }
    )
    status = _at_step(seen, status, 0, route)
    status = remembered(status, seen, reason, route.revision)
    return Moved(
        status, (Emit(reason, f"revision {route.revision} ramps: step 1/{_steps(seen)} at {percent(status)}"),)
    )


def limits_of(declared: Step, began: datetime | None) -> dict[str, datetime | None]:
    """The absolute deadlines of a step that began then; none of one that has not begun."""
    if began is None:
        return {"min_until": None, "max_until": None}
    longest = declared.max_duration
    return {
        "min_until": began + delta(declared.min_duration),
        "max_until": began + delta(longest) if longest else None,
    }


def start_clock(seen: Observation, status: Status, reason: str) -> Moved:
    """Rule 5: the window of the SLOs begins when the last ready pod has confirmed the share."""
    step = status.step
    assert step is not None
    declared = _spec(seen).rollout.steps[step.index]
    began = max(step.entered_at, seen.gateways.acked_at or seen.now)
    started = step.model_copy(update={"started_at": began, **limits_of(declared, began)})
    status = status.model_copy(update={"step": started, "ramp_started_at": status.ramp_started_at or began})
    message = f"step {step.index + 1}/{step.of} at {percent(status)} is in effect on {seen.gateways.acked} gateway pods"
    return Moved(remembered(status, seen, reason, _candidate(status)), (Emit(reason, message),))


def next_step(seen: Observation, status: Status, reason: str, by: str = "") -> Moved:
    step = status.step
    assert step is not None
    if step.index + 1 >= _steps(seen):
        return promoted(seen, status, by)
    candidate = status.traffic.candidate if status.traffic else None
    assert candidate is not None
    status = _at_step(seen, status, step.index + 1, candidate)
    status = remembered(status, seen, reason, candidate.revision, by=by)
    message = f"step {step.index + 1}/{_steps(seen)} passed; step {step.index + 2}/{_steps(seen)} at {percent(status)} is ordered"
    return Moved(status, (Emit(reason, message + (f" (by {by})" if by else "")),))


def skip_step(seen: Observation, status: Status, reason: str) -> Moved:
    return next_step(seen, status, reason, by=_by(seen))


def promoted(seen: Observation, status: Status, by: str = "") -> Moved:
    traffic = status.traffic
    assert traffic is not None
    assert traffic.candidate is not None
    route = traffic.candidate
    status = status.model_copy(
        update={
            "stable": RevisionStatus(revision=route.revision, since=seen.now, controller_revision=revision_name(seen)),
            "previous": status.stable,
            "candidate": None,
            "step": None,
            "traffic": traffic_for(seen, traffic, route, None, 0),
            "drift_since": None,
            "ramp_started_at": None,
        }
    )
    status = remembered(status, seen, "Promoted", route.revision, by=by)
    holdback = (
        f"; {_spec(seen).rollout.holdback:g} % of the units stay on the baseline"
        if _spec(seen).rollout.holdback
        else ""
    )
    return Moved(
        status, (Emit("Promoted", f"revision {route.revision} is promoted{holdback}" + (f" (by {by})" if by else "")),)
    )


def revert(seen: Observation, status: Status, reason: str) -> Moved:
    """Rules 9 and 10: traffic to the stable revision at once, the candidate latched as rejected."""
    revision = _candidate(status)
    message = why(seen, status, reason)
    status = status.model_copy(
        update={
            "candidate": None,
            "step": None,
            "paused": False,
            "traffic": traffic_for(seen, status.traffic, stable_route(seen), None, 0),
            "reverted_at": seen.now,
            "timings": None,
            "drift_since": None,
            "verdicts": (),  # of the revision that is gone: a Fail that stood would look like a drift of the stable one
            "tightest": "",
            "rejected": latched(seen, status, revision, reason, message),
            "spec_to_revert": spec_to_restore(seen, status),
            "ramp_started_at": None,
        }
    )
    event = "Aborted" if reason == "Aborted" else "Reverted"
    status = remembered(status, seen, event, revision, message, by=_by(seen) if event == "Aborted" else "")
    return Moved(status, (Emit(event, f"revision {revision} goes back to share 0: {message}", warning=True),))


def why(seen: Observation, status: Status, reason: str) -> str:
    if reason == "Aborted":
        return f"aborted by {_by(seen) or 'a person'}"
    if seen.alarm is not None and status.candidate and seen.alarm.revision == status.candidate.revision:
        return seen.alarm.verdict.message
    verdict = failed(status.verdicts) or tightest(status.verdicts)
    return verdict.message if verdict else reason


def latched(seen: Observation, status: Status, revision: str, reason: str, message: str) -> tuple[Rejected, ...]:
    others = tuple(r for r in status.rejected if r.revision != revision)
    return (*others, Rejected(revision=revision, at=seen.now, reason=reason, message=message[:500]))[-KEPT_REJECTED:]


def spec_to_restore(seen: Observation, status: Status) -> str | None:
    """The ControllerRevision whose spec goes back into the object, if the policy says so and there is one."""
    mode = _spec(seen).rollout.on_regression
    if mode is OnRegression.HOLD_SPEC or (mode is OnRegression.AUTO and seen.managed_by):
        return None
    return status.stable.controller_revision if status.stable else None


def reject(seen: Observation, status: Status, reason: str) -> Moved:
    revision = revision_of(_spec(seen))
    message = f"aborted by {_by(seen) or 'a person'} before it ramped"
    status = status.model_copy(update={"rejected": latched(seen, status, revision, reason, message)})
    return Moved(remembered(status, seen, "Aborted", revision, message, _by(seen)), (Emit("Aborted", message),))


def drop_candidate(seen: Observation, status: Status, reason: str) -> Moved:
    """The spec was edited in mid-ramp: back to the stable revision; the old candidate is not rejected, only gone."""
    revision = _candidate(status)
    status = status.model_copy(
        update={
            "candidate": None,
            "step": None,
            "paused": False,
            "verdicts": (),
            "tightest": "",
            "traffic": traffic_for(seen, status.traffic, stable_route(seen), None, 0),
            "ramp_started_at": None,
        }
    )
    message = f"the spec was edited while {revision} ramped: its share is 0, the new spec starts at its first step"
    return Moved(remembered(status, seen, reason, revision, message), (Emit(reason, message),))


def drift(seen: Observation, status: Status, reason: str) -> Moved:
    """Rule 10: a promoted revision regressed, or a person aborts it: everything to the baseline.

    An abort leaves the spec as it is: the spec before it would ramp anew, and that is not what was asked for.
    """
    aborted = reason == "Aborted"
    revision = status.stable.revision if status.stable else ""
    message = why(seen, status, reason)
    route = baseline_route(_spec(seen))
    earlier = status.previous
    is_good = earlier is not None and not any(r.revision == earlier.revision for r in status.rejected)
    restores = earlier is not None and is_good and not aborted and spec_to_restore(seen, status)
    restore = earlier.controller_revision if earlier is not None and restores else None
    status = status.model_copy(
        update={
            "stable": RevisionStatus(revision=route.revision, since=seen.now),
            "traffic": traffic_for(seen, status.traffic, route, None, 0),
            "reverted_at": seen.now,
            "timings": None,
            "drift_since": None,
            "verdicts": (),
            "tightest": "",
            "rejected": latched(seen, status, revision, reason, message),
            "spec_to_revert": restore,
        }
    )
    happened = "is taken back" if aborted else "regressed"
    message = f"promoted revision {revision} {happened}, everything goes to the baseline: {message}"
    status = remembered(status, seen, reason, revision, message, by=_by(seen) if aborted else "")
    return Moved(status, (Emit(reason, message, warning=True),))


def pause(seen: Observation, status: Status, reason: str) -> Moved:
    status = remembered(status.model_copy(update={"paused": True}), seen, reason, _candidate(status), by=_by(seen))
    return Moved(
        status,
        (Emit(reason, f"held at {percent(status)} by {_by(seen) or 'a person'}; a regression still reverts it"),),
    )


def resume(seen: Observation, status: Status, reason: str) -> Moved:
    status = remembered(status.model_copy(update={"paused": False}), seen, reason, _candidate(status), by=_by(seen))
    return Moved(status, (Emit(reason, f"goes on at {percent(status)}"),))


def approve(seen: Observation, status: Status, reason: str) -> Moved:
    assert status.step is not None
    step = status.step.model_copy(update={"approved_by": _by(seen) or "a person"})
    status = remembered(status.model_copy(update={"step": step}), seen, reason, _candidate(status), by=_by(seen))
    return Moved(status, (Emit(reason, f"step {step.index + 1}/{step.of} approved by {step.approved_by}"),))


def forgive(seen: Observation, status: Status, reason: str) -> Moved:
    revision = revision_of(_spec(seen))
    kept = tuple(r for r in status.rejected if r.revision != revision)
    status = status.model_copy(update={"rejected": kept, "reverted_at": None})
    return Moved(
        remembered(status, seen, reason, revision, by=_by(seen)), (Emit(reason, f"revision {revision} may ramp again"),)
    )


def settle(seen: Observation, status: Status, reason: str) -> Moved:
    """All pods confirmed the revert. The spec, where it is to be restored, is written by the RestoreSpec action until it is seen.
    A spec that is neither the rejected one nor the restored one is a person's newer wish: it is left alone."""
    restored = status.spec_to_revert is None or not any(r.revision == status.revision for r in status.rejected)
    return Moved(status.model_copy(update={"spec_to_revert": None}) if restored else status)


def to_baseline(seen: Observation, status: Status, reason: str) -> Moved:
    if status.traffic is None or (status.traffic.stable.is_baseline_only and status.traffic.candidate is None):
        return Moved(status)
    stable = status.traffic.stable
    upstreams = tuple(u for u in stable.upstreams if u.name == stable.baseline)
    route = Route(revision=f"baseline-{stable.revision}"[:19], upstreams=upstreams, baseline=stable.baseline)
    share = Share(desired=0)
    traffic = status.traffic.model_copy(
        update={
            "version": status.traffic.version + 1,
            "stable": route,
            "candidate": None,
            "share": share,
            "revision": route.revision,
        }
    )
    status = status.model_copy(update={"traffic": traffic, "candidate": None, "step": None, "paused": False})
    return Moved(
        status,
        (Emit(reason, "the endpoint goes to the baseline; the object is kept until all gateway pods confirmed"),),
    )


def refuse(seen: Observation, status: Status, reason: str) -> Moved:
    return Moved(status)


def stay(seen: Observation, status: Status, reason: str) -> Moved:
    return Moved(status)


def withhold(seen: Observation, status: Status, reason: str) -> Moved:
    return Moved(status.model_copy(update={"traffic": None, "candidate": None, "step": None}))


MOVES: dict[Move, Callable[[Observation, Status, str], Moved]] = {
    Move.STAY: stay,
    Move.REFUSE: refuse,
    Move.START_RAMP: start_ramp,
    Move.START_CLOCK: start_clock,
    Move.NEXT_STEP: next_step,
    Move.SKIP_STEP: skip_step,
    Move.APPROVE: approve,
    Move.REVERT: revert,
    Move.REJECT: reject,
    Move.DROP_CANDIDATE: drop_candidate,
    Move.PAUSE: pause,
    Move.RESUME: resume,
    Move.FORGIVE: forgive,
    Move.TO_BASELINE: to_baseline,
    Move.LET_GO: stay,
    Move.DRIFT: drift,
    Move.SETTLE: settle,
    Move.WITHHOLD: withhold,
}


def verb_result(seen: Observation, move: Move, reason: str, at: datetime) -> Verb | None:
    """What became of a person's request, for status.lastVerb; None if there was none."""
    request = seen.request
    if request is None:
        return None
    if not bound(seen):
        ramps = seen.status.candidate.revision if seen.status.candidate else "nothing"
        result = f"refused: it names revision {request.revision}, but {ramps} ramps"
    elif move is Move.REFUSE:
        result = f"refused: there is nothing to {request.verb.value} now ({reason})"
    else:
        result = "done"
    return Verb(id=request.id, verb=request.verb.value, revision=request.revision, at=at, result=result)


def revision_name(seen: Observation) -> str:
    """Of the ControllerRevision of the present spec: unlike the revision's hash it covers SLOs, prices and steps too."""
    return f"{seen.metadata.name[:200]}-{revision_of(_spec(seen))}-{digest(schema_free(_spec(seen)))[:6]}"


def percent(status: Status) -> str:
    share = status.traffic.share.desired if status.traffic else 0
    return f"{share / 100:g} %"


def _steps(seen: Observation) -> int:
    return len(_spec(seen).rollout.steps)


def _candidate(status: Status) -> str:
    return status.candidate.revision if status.candidate else ""


def _by(seen: Observation) -> str:
    return seen.request.by if seen.request else ""
