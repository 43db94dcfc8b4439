"""From evidence to verdicts: each SLO is judged once per look at Prometheus, and its memory (the looks) stays in status.

Called by decide. Says nothing about what follows from a verdict: that is transitions.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from funicular.api.spec import Mode, RoutingPolicySpec, Slo
from funicular.api.status import LooksStatus, Status, VerdictStatus
from funicular.api.traffic import WHOLE
from funicular.rollout.observation import Measurements, Observation, SloMeasurement
from funicular.slo.model import REPLICATES, Arm, ArmCounts, Budget, Looks, Outcome, Verdict
from funicular.slo.queries import question_of
from funicular.slo.ratio import sample_ratio
from funicular.slo.verdicts import at_full_share, judge, split_budget

SAMPLE_RATIO = "sample-ratio"
FAST_BURN = (
    4e-4  # of falseRevertRate: the guard looks at errors and latency, each over the whole step and its last part
)
DRIFT_WINDOWS_PER_BUDGET = 30  # falseRevertRate is the drift test's budget for thirty windows


def current_look(seen: Observation) -> Measurements | None:
    """The latest look, if it measured what is in effect now: same revision, same beginning of the window."""
    found, status = seen.measurements, seen.status
    if found is None or status.traffic is None or found.revision != status.traffic.revision:
        return None
    if status.candidate is None:
        return found if found.idle else None
    return found if status.step and found.started_at == status.step.started_at else None


def judged(seen: Observation) -> tuple[VerdictStatus, ...]:
    """status.verdicts brought up to date: unchanged unless there is a newer look."""
    found, status = current_look(seen), seen.status
    if seen.spec is None or found is None:
        return status.verdicts
    last = max((v.at for v in status.verdicts if v.at), default=None)
    if last is not None and found.at <= last:
        return status.verdicts
    kept = {} if is_new_window(status, found) else {v.slo: v for v in status.verdicts}
    budget = _budget(seen)
    by_name = {m.slo: m for m in found.slos}
    verdicts = [
        _judge_slo(seen, slo, by_name.get(slo.name), kept.get(slo.name), budget, found) for slo in seen.spec.slos
    ]
    step = status.step
    if status.candidate is not None and step is not None and step.share < WHOLE and Arm.TREATMENT in found.outcomes:
        verdicts.append(_judge_ratio(found, step.share, kept.get(SAMPLE_RATIO)))
    return tuple(verdicts)


def is_new_window(status: Status, found: Measurements) -> bool:
    """In the steady state each window has looks of its own."""
    return found.idle and found.started_at != status.drift_since


def _budget(seen: Observation) -> Budget:
    spec = seen.spec
    assert spec is not None
    enforced = sum(slo.mode is Mode.ENFORCE for slo in spec.slos)
    budget = split_budget(
        spec.rollout.false_revert_rate, spec.rollout.false_promotion_rate, len(spec.rollout.steps), max(1, enforced)
    )
    if seen.status.candidate is None:
        return replace(budget, alpha=spec.rollout.false_revert_rate / DRIFT_WINDOWS_PER_BUDGET / max(1, enforced))
    return budget


def _min_samples(spec: RoutingPolicySpec, seen: Observation) -> int:
    step = seen.status.step
    if step is None or step.index >= len(spec.rollout.steps):
        return spec.rollout.steps[-1].min_samples
    return spec.rollout.steps[step.index].min_samples


def _judge_slo(
    seen: Observation,
    slo: Slo,
    measured: SloMeasurement | None,
    before: VerdictStatus | None,
    budget: Budget,
    found: Measurements,
) -> VerdictStatus:
    assert seen.spec is not None
    looks = remembered_looks(before)
    if measured is not None and measured.values is not None:
        return to_status(by_value(slo, measured.values), slo.mode, found.at)
    if measured is None or measured.evidence is None:
        return to_status(replace(_unmeasured(slo.name, measured, found), looks=looks), slo.mode, found.at)
    status = seen.status
    share = status.step.share if status.step and status.candidate else None
    question, evidence = question_of(slo, _min_samples(seen.spec, seen)), measured.evidence
    if share is None or share >= WHOLE:  # nobody is left in control
        question, evidence = at_full_share(
            question, evidence if share else replace(evidence, holdback=evidence.control)
        )
    return to_status(judge(question, evidence, budget, looks), slo.mode, found.at)


def _unmeasured(name: str, measured: SloMeasurement | None, found: Measurements) -> Verdict:
    reason = (measured.error if measured else "") or found.error or "NoData"
    message = (measured.message if measured else "") or found.message or "Prometheus has no samples of it yet"
    return Verdict(name, Outcome.INCONCLUSIVE if reason in ("NoData", "Stale") else Outcome.ERROR, reason, message)


def by_value(slo: Slo, values: Mapping[Arm, float]) -> Verdict:
    """One number says nothing of its own uncertainty: outside its bound it holds the ramp, it never reverts."""
    value = values.get(Arm.TREATMENT)
    if value is None:
        return Verdict(slo.name, Outcome.INCONCLUSIVE, "NoData", "the query gives no value for the treatment arm")
    above = slo.max is not None and value > slo.max
    below = slo.min is not None and value < slo.min
    reference = values.get(Arm.CONTROL)
    if above or below:
        bound = f"above {slo.max:g}" if above else f"below {slo.min:g}"
        return Verdict(
            slo.name,
            Outcome.INCONCLUSIVE,
            "ValueOutsideBound",
            f"{value:g} is {bound}",
            value,
            reference,
            tightness=1.0,
        )
    return Verdict(slo.name, Outcome.PASS, "ValueWithinBound", f"{value:g} is within its bound", value, reference)


def _judge_ratio(found: Measurements, share: int, before: VerdictStatus | None) -> VerdictStatus:
    looks = remembered_looks(before)
    control = found.outcomes.get(Arm.CONTROL) or ArmCounts((0.0,) * REPLICATES, (0.0,) * REPLICATES)
    verdict = sample_ratio(found.outcomes[Arm.TREATMENT], control, share, looks)
    return to_status(replace(verdict, slo=SAMPLE_RATIO), Mode.ENFORCE, found.at)


def remembered_looks(before: VerdictStatus | None) -> Looks:
    return Looks(**before.memory.model_dump()) if before else Looks()


def to_status(verdict: Verdict, mode: Mode, at: datetime) -> VerdictStatus:
    def short(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.6g}")

    return VerdictStatus(
        slo=verdict.slo,
        outcome=verdict.outcome.value,
        reason=verdict.reason,
        message=verdict.message,
        mode=mode.value,
        estimate=short(verdict.estimate),
        reference=short(verdict.reference),
        low=short(verdict.low),
        high=short(verdict.high),
        samples=round(verdict.samples),
        effective_samples=round(verdict.effective_samples),
        needed=round(verdict.needed),
        tightness=short(verdict.tightness) or 0.0,
        memory=LooksStatus(
            planned=verdict.looks.planned,
            done=verdict.looks.done,
            failed=verdict.looks.failed,
            planned_pass=verdict.looks.planned_pass,
            done_pass=verdict.looks.done_pass,
            passed=verdict.looks.passed,
        ),
        at=at,
    )


def enforced(verdicts: tuple[VerdictStatus, ...]) -> tuple[VerdictStatus, ...]:
    return tuple(v for v in verdicts if v.mode == Mode.ENFORCE.value)


def failed(verdicts: tuple[VerdictStatus, ...]) -> VerdictStatus | None:
    return next((v for v in enforced(verdicts) if v.outcome == Outcome.FAIL), None)


def tightest(verdicts: tuple[VerdictStatus, ...]) -> VerdictStatus | None:
    """The SLO that matters most now: a failure, else what is still missing, else the one nearest to its bound."""
    order = {Outcome.FAIL.value: 0, Outcome.ERROR.value: 1, Outcome.INCONCLUSIVE.value: 2, Outcome.PASS.value: 3}
    gates = [v for v in enforced(verdicts) if v.slo != SAMPLE_RATIO or v.outcome == Outcome.FAIL]
    return min(gates, key=lambda v: (order.get(v.outcome, 4), -v.tightness, v.slo), default=None)
