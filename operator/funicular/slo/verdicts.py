"""The judgement of one SLO: evidence, budget and memory in, verdict out.

Called by the rollout for every SLO whenever counts are new, as often as it likes: a look is taken (and paid for) only
when enough information came in, all between is free and changes nothing but the figures. Pure.

    budget = split_budget(0.01, 0.05, steps=4, enforced_slos=3)
    verdict = judge(question, evidence, budget, looks)     # looks: Looks() at the start of a step
    looks = verdict.looks                                  # keep it, hand it in next time

- Fail: a paid look found the treatment beyond a bound. Final within the step. The bounds of one SLO share its alpha.
- Pass: a paid look found the treatment within every bound, with beta spent over looks, and the present figures still
  show it at the unspent level, with at least `min_samples` requests in the treatment arm. Can be lost again.
- Inconclusive: everything else, with the reason, and what would help.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scipy import special

from funicular.slo import messages, sequential
from funicular.slo.comparisons import (
    BASELINE,
    INCREASE,
    MAXIMUM,
    POWER_Z,
    Comparison,
    difference_of_means,
    difference_of_proportions,
    mean_against_maximum,
    proportion_against_maximum,
)
from funicular.slo.effective import Spread, measure
from funicular.slo.model import ArmCounts, Budget, Evidence, Looks, Outcome, Question, Verdict

# Shapes of the spending. For a Fail: in Brownian motion, a power of 0.96 within 1.5 times the samples of a fixed test of
# power 0.9, and 0.77 of them on average, at the effect that the plan is made for.
FAIL_SHAPE = 2.5
PASS_SHAPE = 2.0
FEWEST_REPLICATES = 4  # with treated requests: below it one user may be all there is
FEWEST_EFFECTIVE = 20.0  # effective treatment samples before the first look: the plan needs rates to plan with
FAST_BURN = 1e-4  # of the whole rollout's false reverts, for the fast-burn guard
SAMPLE_RATIO = 1e-4  # the same for the sample-ratio check


@dataclass(frozen=True, slots=True)
class _Case:
    """Everything about one judgement that does not change while it is made."""

    question: Question
    arm: Spread
    comparisons: tuple[Comparison, ...]
    alpha: float  # for each bound
    beta: float

    @property
    def clock(self) -> float:
        return min(comparison.clock for comparison in self.comparisons)


def split_budget(
    false_revert_rate: float,
    false_promotion_rate: float,
    steps: int,
    enforced_slos: int,
    fast_burn: float = FAST_BURN,
    sample_ratio: float = SAMPLE_RATIO,
) -> Budget:
    """The budget of each enforced SLO at each step, from the rates promised for the whole rollout.

    A false revert needs one false Fail among steps x SLOs, so what the two guards leave is divided by their number.
    A false promotion needs a false Pass of the bad SLO at every step, so none is divided: each step is held to the
    whole rate by itself, because a candidate may turn bad at the last of them.
    """
    if not 0 < false_promotion_rate < 1:
        raise ValueError(f"false_promotion_rate must lie between 0 and 1, got {false_promotion_rate}")
    if steps < 1 or enforced_slos < 1:
        raise ValueError(f"needs at least one step and one SLO, got {steps} and {enforced_slos}")
    left = false_revert_rate - fast_burn - sample_ratio
    if not 0 < left < 1:
        raise ValueError(
            f"false_revert_rate {false_revert_rate} leaves nothing after the guards' {fast_burn + sample_ratio}"
        )
    return Budget(alpha=left / (steps * enforced_slos), beta=false_promotion_rate)


def at_full_share(question: Question, evidence: Evidence) -> tuple[Question, Evidence]:
    """The question where the control arm is empty by design (share 100 %): the holdback is all there is to compare with.

    A margin to the holdback stands as it is; without one the margin to control is asked of the holdback.
    """
    if evidence.holdback is None:
        return question, evidence
    baseline = question.allowed_from_baseline
    if baseline is None:
        baseline = question.allowed_increase
    return (
        replace(question, allowed_increase=None, allowed_from_baseline=baseline),
        replace(evidence, control=evidence.holdback),
    )


def judge(question: Question, evidence: Evidence, budget: Budget, looks: Looks) -> Verdict:
    """One SLO's verdict. Raises ValueError if no bound is set or the evidence is malformed (the caller's bug)."""
    _validate(question, evidence)
    arm = _measure(question, evidence, evidence.treatment)
    control = _measure(question, evidence, evidence.control)
    holdback = _measure(question, evidence, evidence.holdback) if evidence.holdback is not None else None
    obstacle = _obstacle(question, evidence, arm, control, holdback)
    if obstacle is not None:
        reason, message = obstacle
        rate = arm.rate if arm.samples > 0 else None
        return Verdict(question.name, Outcome.INCONCLUSIVE, reason, message, rate, samples=arm.samples, looks=looks)
    comparisons = _compare(question, arm, control, holdback)
    case = _Case(question, arm, comparisons, budget.alpha / len(comparisons), budget.beta)
    looks = _look_for_failure(case, budget, looks)
    looks = _look_for_pass(case, looks)
    return _conclude(case, looks, evidence)


def _measure(question: Question, evidence: Evidence, counts: ArmCounts) -> Spread:
    return measure(counts, proportion=question.kind == "proportion", borrowed_effect=evidence.borrowed_effect)


def _compare(question: Question, arm: Spread, control: Spread, holdback: Spread | None) -> tuple[Comparison, ...]:
    proportion = question.kind == "proportion"
    against_maximum = proportion_against_maximum if proportion else mean_against_maximum
    difference = difference_of_proportions if proportion else difference_of_means
    found = []
    if question.maximum is not None:
        reference = control if control.samples > 0 else holdback
        found.append(against_maximum(question.maximum, arm, reference))
    if question.allowed_increase is not None:
        found.append(difference(INCREASE, question.allowed_increase, arm, control))
    if question.allowed_from_baseline is not None and holdback is not None:
        found.append(difference(BASELINE, question.allowed_from_baseline, arm, holdback))
    return tuple(found)


def _look_for_failure(case: _Case, budget: Budget, looks: Looks) -> Looks:
    """Take the next look for a Fail if it is due, and remember it."""
    if looks.failed or case.clock < FEWEST_EFFECTIVE:
        return looks
    planned = looks.planned or budget.planned_information or _plan_failure(case)
    fraction = sequential.floor_fraction(case.clock / planned)
    if not sequential.is_due(fraction, looks.done):
        return looks
    looks = replace(looks, planned=planned, done=(*looks.done, fraction))
    limit = _fail_limit(case, looks)
    failed = next((c.name for c in case.comparisons if c.fail_z >= limit and not _control_fails_too(c, limit)), "")
    return replace(looks, failed=failed)


def _look_for_pass(case: _Case, looks: Looks) -> Looks:
    """Take the next look for a Pass if it is due; none before `min_samples`, where a Pass could not be used."""
    if looks.failed or case.arm.samples < case.question.min_samples or case.clock < FEWEST_EFFECTIVE:
        return looks
    planned = looks.planned_pass or _plan_pass(case)
    fraction = sequential.floor_fraction(case.clock / planned)
    if not sequential.is_due(fraction, looks.done_pass):
        return looks
    looks = replace(looks, planned_pass=planned, done_pass=(*looks.done_pass, fraction))
    limit = _pass_limit(case, looks)
    passed = tuple(c.name for c in case.comparisons if c.name in looks.passed or c.pass_z >= limit)
    return replace(looks, passed=passed)


def _fail_limit(case: _Case, looks: Looks) -> float:
    return sequential.bound(looks.done, case.alpha, FAIL_SHAPE)


def _pass_limit(case: _Case, looks: Looks) -> float:
    return sequential.bound(looks.done_pass, case.beta, PASS_SHAPE)


def _control_fails_too(comparison: Comparison, limit: float) -> bool:
    """Control is beyond an absolute bound as well, and treatment is not shown to be worse than it: not our doing."""
    if comparison.worse_z is None or comparison.reference is None:
        return False
    return comparison.reference > comparison.bound and comparison.worse_z < limit


def _plan_failure(case: _Case) -> float:
    """Effective treatment samples of a fixed test that finds a clear regression with power 0.9.

    Several bounds share the looks, so their plans are averaged (geometrically); the spending forgives that.
    """
    z = POWER_Z - float(special.ndtri(case.alpha))
    plans = [
        c.per_sample * (z / c.clear_shift) ** 2 for c in case.comparisons if c.clear_shift > 0 and c.per_sample > 0
    ]
    return max(math.prod(plans) ** (1 / len(plans)), FEWEST_EFFECTIVE) if plans else case.clock


def _plan_pass(case: _Case) -> float:
    """Effective treatment samples at which a candidate as good as control is expected to Pass every bound."""
    return max(max(_pass_plan(c, case.beta) for c in case.comparisons), FEWEST_EFFECTIVE)


def _pass_plan(comparison: Comparison, beta: float) -> float:
    z_beta = -float(special.ndtri(beta))
    if comparison.name != MAXIMUM:
        room = max(comparison.bound, comparison.clear_shift / 4)
        return comparison.per_sample * ((z_beta + POWER_Z) / room) ** 2 if room > 0 else comparison.clock
    if comparison.bound <= 0:
        return comparison.clock
    expected = comparison.estimate if comparison.reference is None else comparison.reference
    expected = min(expected, 0.8 * comparison.bound)
    room = comparison.bound - expected
    ratio = math.sqrt(expected / comparison.bound)  # the variance of a share is nearly proportional to it
    return max(
        comparison.per_sample * ((z_beta + POWER_Z * ratio) / room) ** 2,
        -math.log(beta) / comparison.bound,  # without any event: (1 - maximum)^n = beta
    )


def _conclude(case: _Case, looks: Looks, evidence: Evidence) -> Verdict:
    outcome, reason, shown = _outcome(case, looks)
    limit = _fail_limit(case, looks)
    needed = _needed(case, looks) if outcome is Outcome.INCONCLUSIVE else 0.0
    width = 1.96 if shown.freedom > 1e6 else float(special.stdtrit(shown.freedom, 0.975))
    half = width * math.sqrt(shown.variance)
    return Verdict(
        slo=case.question.name,
        outcome=outcome,
        reason=reason,
        message=messages.explain(
            case.question, case.arm, shown, outcome, reason, half, needed, evidence.borrowed_effect
        ),
        estimate=shown.estimate,
        reference=shown.reference,
        low=shown.distance - half,
        high=shown.distance + half,
        samples=case.arm.samples,
        effective_samples=case.clock,
        needed=needed,
        looks=looks,
        tightness=max(_tightness(c, limit) for c in case.comparisons),
    )


def _outcome(case: _Case, looks: Looks) -> tuple[Outcome, str, Comparison]:
    """The outcome, its reason, and the bound that it is about."""
    if looks.failed:
        broken = [c for c in case.comparisons if c.name == looks.failed]
        return Outcome.FAIL, "Regressed", (broken or list(case.comparisons))[0]
    plain = -float(special.ndtri(case.beta))
    open_bounds = [c for c in case.comparisons if c.name not in looks.passed or c.pass_z < plain]
    tightest = max(open_bounds or case.comparisons, key=lambda c: -c.pass_z)
    if case.arm.samples < case.question.min_samples:
        return Outcome.INCONCLUSIVE, "TooFewSamples", tightest
    if not open_bounds:
        return Outcome.PASS, "WithinBound" if tightest.name == MAXIMUM else "NonInferior", tightest
    limit = _fail_limit(case, looks)
    for comparison in open_bounds:
        if comparison.estimate > comparison.bound and _control_fails_too(comparison, limit):
            return Outcome.INCONCLUSIVE, "ControlFailsToo", comparison
    for comparison in open_bounds:
        if _is_saturated(case, comparison):
            return Outcome.INCONCLUSIVE, "InformationSaturated", comparison
    return Outcome.INCONCLUSIVE, "NotYetSignificant", tightest


def _is_saturated(case: _Case, comparison: Comparison) -> bool:
    """Whether not even endless requests of the same users would let a good candidate pass this bound.

    The users' part of the variance is taken at its lower end, since it is estimated itself.
    """
    if not case.arm.has_replicates:
        return False
    sure = max(0.0, 1 - 2 * math.sqrt(2 / max(comparison.freedom, 2.0)))
    users_part = comparison.variance * sure - comparison.independent
    room = max(comparison.bound, comparison.clear_shift / 4) if comparison.name != MAXIMUM else comparison.bound
    return users_part > (room / -float(special.ndtri(case.beta / 2))) ** 2


def _needed(case: _Case, looks: Looks) -> float:
    """Treatment requests at which this SLO is expected to be settled at the present rates; 0 if that is unknown."""
    to_fail = _fail_limit(case, looks) if looks.done else -float(special.ndtri(case.alpha / 2))
    to_pass = _pass_limit(case, looks) if looks.done_pass else -float(special.ndtri(case.beta / 2))
    failing = [_factor(c, min(to_fail, 6.0)) for c in case.comparisons if c.distance > c.bound]
    passing = [_factor(c, to_pass) for c in case.comparisons if c.distance <= c.bound and c.name not in looks.passed]
    factor = min(failing) if failing else max(passing, default=1.0)
    if not math.isfinite(factor) or factor > 1e4:
        return 0.0
    return float(math.ceil(max(case.arm.samples * factor, case.question.min_samples)))


def _factor(comparison: Comparison, limit: float) -> float:
    """How many times the present requests bring the present distance to `limit` standard deviations."""
    users_part = max(0.0, comparison.variance - comparison.independent)
    wanted = ((comparison.bound - comparison.distance) / max(limit, 0.1)) ** 2
    if wanted >= comparison.variance:
        return 1.0
    return comparison.independent / (wanted - users_part) if wanted > users_part else math.inf


def _tightness(comparison: Comparison, limit: float) -> float:
    """0: far from the bound, 1: at it."""
    if comparison.bound > 0:
        return max(0.0, comparison.distance / comparison.bound)
    return max(0.0, comparison.fail_z / limit)


def _obstacle(
    question: Question, evidence: Evidence, arm: Spread, control: Spread, holdback: Spread | None
) -> tuple[str, str] | None:
    """Why nothing can be judged at all: reason and sentence."""
    name = question.name
    if arm.samples <= 0:
        return "NoData", f"{name}: no treated request was counted yet"
    if question.allowed_increase is not None and control.samples <= 0:
        return "NoControl", f"{name}: {arm.samples:,.0f} treated requests, but none in control to compare them with"
    if question.allowed_from_baseline is not None and (holdback is None or holdback.samples <= 0):
        return (
            "NoControl",
            f"{name}: {arm.samples:,.0f} treated requests, but none in the holdback to compare them with",
        )
    if not arm.has_replicates:
        if question.kind == "mean":
            return "NoReplicates", f"{name}: one mean without its spread between replicates cannot be judged"
        if evidence.borrowed_effect is None:
            return (
                "NoReplicates",
                f"{name}: counts without replicates need a design effect, and there is none to borrow yet",
            )
        return None
    filled = sum(1 for n in evidence.treatment.n if n > 0)
    if filled < FEWEST_REPLICATES:
        return "TooFewUsers", (
            f"{name}: {arm.samples:,.0f} treated requests come from {filled} of {len(evidence.treatment.n)} groups of users;"
            f" a verdict needs at least {FEWEST_REPLICATES}"
        )
    return None


def _validate(question: Question, evidence: Evidence) -> None:
    bounds = (question.maximum, question.allowed_increase, question.allowed_from_baseline)
    if all(bound is None for bound in bounds):
        raise ValueError(f"{question.name}: no bound is set, so nothing can ever fail")
    if question.kind not in ("proportion", "mean"):
        raise ValueError(f"{question.name}: kind must be proportion or mean, got {question.kind!r}")
    if any(bound is not None and not math.isfinite(bound) for bound in bounds):
        raise ValueError(f"{question.name}: bounds must be finite, got {bounds}")
    if any(margin is not None and margin < 0 for margin in bounds[1:]):
        raise ValueError(f"{question.name}: an allowed increase cannot be negative, got {bounds[1:]}")
    arms = {"treatment": evidence.treatment, "control": evidence.control, "holdback": evidence.holdback}
    for label, counts in arms.items():
        if counts is None:
            continue
        if len(counts.n) != len(counts.x) or not counts.n:
            raise ValueError(f"{question.name}: {label} has {len(counts.n)} totals and {len(counts.x)} events")
        if not all(map(math.isfinite, (*counts.n, *counts.x))) or min(counts.n) < 0:
            raise ValueError(f"{question.name}: {label}'s counts must be finite and its totals not negative")
