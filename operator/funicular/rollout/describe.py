"""What people read: phase, message and conditions, computed from the facts and the transition; no code reads them back."""

from __future__ import annotations

from datetime import datetime, timedelta

from funicular.api.duration import delta, readable
from funicular.api.spec import Approval, Indicator, Mode
from funicular.api.status import Condition, Status, VerdictStatus
from funicular.rollout.classify import AWAITED, LEAST_EXERCISED, NO_GATEWAYS, blockers, classifier_remedy, waits_for
from funicular.rollout.judgement import current_look, tightest
from funicular.rollout.moves import percent
from funicular.rollout.observation import Measurements, Observation
from funicular.rollout.transitions import State, Step
from funicular.slo.model import Outcome

STARTING = timedelta(seconds=15)  # for so long nobody is told that a classifier is not ready
FIRST_DATA = timedelta(minutes=1)  # for so long a new revision may have no series in Prometheus
STUCK = timedelta(minutes=2)  # after so long it counts as blocked: somebody has to look
# What to do about a look at Prometheus, or one SLO in it, that gave nothing to judge: by reason.
METRICS_REMEDY = {
    "MetricsUnavailable": "check spec.prometheus.url and that Prometheus runs",
    "AccessDenied": "correct spec.prometheus.auth or the Secret that it names",
    "SecretMissing": "create the Secret, or correct the reference",
    "Stale": "check that Prometheus scrapes the gateway pods (their port named metrics) and that the pods are there",
    "NoData": "check the query's metric and labels, and that Prometheus scrapes the gateway pods (their port named metrics)",
    "InvalidQuery": "correct the query",
    "SeveralSeries": "make it one series, for example with sum(...)",
    "NotANumber": "keep it finite, for example with `or vector(0)` or `> 0` around the divisor",
}
INDICATOR_REMEDY = {
    Indicator.THUMBS_UP_RATE: "see that the application sends POST /v1/feedback with the answers' x-funicular-id",
    Indicator.COST_PER_REQUEST: "give the candidates a price, and see that they answer with usage",
}
# Outcomes that more samples alone will not settle: the message must say why.
UNSETTLED = ("ControlFailsToo", "InformationSaturated", "ValueOutsideBound")


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
    return any(b.reason not in AWAITED for b in blockers(seen)) or _unready_for(seen) > STUCK


def _unready_for(seen: Observation) -> timedelta:
    """Since when the classifier has not been available."""
    before = seen.status.condition("ClassifierAvailable")
    if not seen.classifier.needed or seen.classifier.available or before is None or before.status != "False":
        return timedelta(0)
    return seen.now - before.last_transition_time


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
    text = f"{seen.gateways.ready - seen.gateways.acked} of {seen.gateways.ready} gateway pods"
    return f"{text} ({seen.gateways.errors[0][:300]})" if seen.gateways.errors else text


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
    return f"revision {revision} is promoted{held}" + (f"; {tight.message}" if tight else "")


def _evidence(seen: Observation, status: Status) -> str:
    step = status.step
    assert step is not None
    missing = waits_for(seen, status.verdicts)
    if not missing:
        return "passed"
    for _, is_fine, _, message in (_metrics(seen, status), _classifier(seen)):
        if is_fine is False:
            return f"held: {message}"
    tight = tightest(status.verdicts)
    if tight is None or tight.outcome == Outcome.PASS:
        return missing[0]
    if tight.reason in UNSETTLED:
        return f"{tight.slo} {tight.outcome.lower()}: {tight.message.removeprefix(f'{tight.slo}: ')}"
    samples = f"{step.samples:.0f} of {max(step.min_samples, round(tight.needed)):.0f} samples"
    left = eta(seen, status, tight)
    text = f"{tight.slo} {tight.outcome.lower()}, {samples}" + (
        f", about {readable(max(1.0, round(left)))}" if left else ""
    )
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
        return ("GatewaysSynced", False, NO_GATEWAYS.reason, NO_GATEWAYS.sentence())
    if status.traffic is None:
        return ("GatewaysSynced", None, "NotServed", "no gateway pod serves this policy")
    if facts.errors:
        return ("GatewaysSynced", False, "NotTaken", "; ".join(facts.errors)[:900])
    text = f"{facts.acked} of {facts.ready} gateway pods confirmed traffic version {status.traffic.version}"
    return ("GatewaysSynced", synced, "AllConfirmed" if synced else "WaitingForGateways", text)


def _metrics(seen: Observation, status: Status) -> Facts:
    query = next((p for p in seen.problems if p.field.startswith(("spec.prometheus", "spec.slos"))), None)
    if query is not None:
        return ("MetricsAvailable", False, query.reason, query.sentence())
    look = seen.measurements
    kept = "; the share is frozen until then" if status.candidate else ""
    if look is not None and look.error:
        if look.error == "NoData" and seen.now - look.started_at < FIRST_DATA:
            return ("MetricsAvailable", None, "NoDataYet", look.message)
        return (
            "MetricsAvailable",
            False,
            look.error,
            f"spec.prometheus: {look.message}; {METRICS_REMEDY[_whole(look.error)]}{kept}",
        )
    broken = next((v for v in status.verdicts if _is_unmeasured(v, status)), None)
    if broken is not None:
        text = _unmeasured(seen, broken)
        return ("MetricsAvailable", False, broken.reason, text + (kept if broken.mode == Mode.ENFORCE else ""))
    if look is None and not status.verdicts:
        return ("MetricsAvailable", None, "NotAsked", "nothing is measured yet")
    if look is not None and _is_overdue(seen, status, look.at):
        return ("MetricsAvailable", False, "Stale", f"the last look at Prometheus was at {look.at:%H:%M:%S} UTC")
    return ("MetricsAvailable", True, "Answering", "")


def _is_overdue(seen: Observation, status: Status, last: datetime) -> bool:
    """A step's looks begin when its share took effect: one of the quiet time before is old, and no reason to worry."""
    step = status.step
    if seen.spec is None or status.candidate is None or step is None or step.started_at is None:
        return False
    return seen.now - max(last, step.started_at) > 4 * delta(seen.spec.prometheus.interval)


def _whole(reason: str) -> str:
    """The whole of a policy's series is missing: that is the scraping, not a query."""
    return "Stale" if reason not in METRICS_REMEDY or reason == "NoData" else reason


def _unmeasured(seen: Observation, verdict: VerdictStatus) -> str:
    slos = seen.spec.slos if seen.spec is not None else ()
    index, slo = next(((i, slo) for i, slo in enumerate(slos) if slo.name == verdict.slo), (0, None))
    field = f"spec.slos[{index}]{'.query' if slo is not None and slo.query else ''} ({verdict.slo})"
    remedy = METRICS_REMEDY.get(verdict.reason, "check spec.prometheus")
    if verdict.reason == "NoData" and slo is not None and slo.indicator is not None:
        remedy = INDICATOR_REMEDY.get(slo.indicator, METRICS_REMEDY["Stale"])
    return f"{field}: {verdict.message.removeprefix(f'{verdict.slo}: ')}; {remedy}"


def _is_unmeasured(verdict: VerdictStatus, status: Status) -> bool:
    """An error; or still nothing of it although the step has had all the requests that it wants."""
    if verdict.outcome == Outcome.ERROR:
        return True
    step = status.step
    return verdict.reason == "NoData" and step is not None and step.samples >= max(1, step.min_samples)


def _classifier(seen: Observation) -> Facts:
    facts = seen.classifier
    if facts.needed and not facts.available:
        reason = facts.reason or "Unready"
        if reason in AWAITED and _unready_for(seen) < STARTING:
            reason = "Starting"
        message = f"spec.strategy.classifier.image: {facts.message or 'no pod is ready'}; {classifier_remedy(seen)}"
        return ("ClassifierAvailable", False, reason, f"{message}; until it is ready, the baseline answers")
    look = current_look(seen)
    if look is not None and look.exercised is not None and look.exercised < LEAST_EXERCISED:
        return ("ClassifierAvailable", False, "NotDeciding", _undecided(seen, look))
    if not facts.needed:
        return ("ClassifierAvailable", True, "NotNeeded", "")
    return ("ClassifierAvailable", True, "Ready", "")


def _undecided(seen: Observation, look: Measurements) -> str:
    """Which part of the requests that it should have decided the classifier did not, why, and where to look."""
    shares = look.undecided
    declared = seen.spec.strategy.classifier if seen.spec is not None else None
    labels = ", ".join(declared.routes) if declared else ""
    wait = declared.timeout if declared else ""
    why = {
        "no_answer": f"without a usable answer within spec.strategy.classifier.timeout ({wait}): see the classifier's logs, "
        "or allow more time",
        "unknown_label": f"with a label that spec.strategy.classifier.routes does not list ({labels}): list it, or correct "
        "the classifier",
        "not_asked": "without being asked",
    }
    found = [
        f"{share:.0%} {why.get(reason, reason)}" for reason, share in sorted(shares.items(), key=lambda it: -it[1])
    ]
    place = "url" if declared is not None and declared.url else "image"
    return (
        f"spec.strategy.classifier.{place}: {sum(shares.values()):.0%} of the {'' if look.idle else 'treated '}requests since "
        f"{look.started_at:%Y-%m-%d %H:%M} UTC went to the baseline undecided, {'; '.join(found)}"
        + ("" if look.idle else "; no step passes on that")
    )


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
