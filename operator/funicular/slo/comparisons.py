"""One bound of one SLO, as two test statistics: how far beyond it the treatment is, and how far within.

Called by the verdicts, once per bound. A Fail tests "the bound is kept", a Pass tests "the bound is broken"; both
statistics are in standard deviations, larger is stronger, and already allow for users being clusters.
Must not know about looks, budgets or outcomes.

The allowance is part of the null hypothesis: a candidate that is worse by less than the policy allows is a good one,
and the promised rate of false reverts holds for it too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from funicular.slo.effective import CERTAIN, Spread, compare, compare_means, welch

MAXIMUM = "max"
INCREASE = "allowedIncrease"
BASELINE = "allowedFromBaseline"

POWER_Z = 1.2816  # plans aim at a power of 0.9
FEW_EVENTS = 5.0  # of control: below it the split of the events says little about a difference that is allowed
_LARGEST = 37.0  # standard deviations; beyond it the normal tail underflows


@dataclass(frozen=True, slots=True)
class Comparison:
    """bound, estimate, reference: shares in 0..1 or means. variance: of `distance`, under the null of a Pass.

    independent: the part of `variance` that more requests of the same users would shrink.
    clock: effective treatment samples. per_sample: variance times clock, for planning.
    """

    name: str
    bound: float
    estimate: float
    reference: float | None
    fail_z: float
    pass_z: float
    variance: float
    independent: float
    freedom: float
    clock: float
    per_sample: float
    clear_shift: float  # a regression beyond the bound that nobody would want to miss
    worse_z: float | None = None  # treatment above the reference at all: guards an absolute bound

    @property
    def distance(self) -> float:
        """What is held against `bound`: the rate itself, or its difference to the reference."""
        return self.estimate - (self.reference or 0.0) if self.name != MAXIMUM else self.estimate


def difference_of_proportions(name: str, allowed: float, arm: Spread, other: Spread) -> Comparison:
    """Treatment minus `other` against `allowed`, for shares.

    Fail: the events of both arms, deflated to effective counts, are split between the arms as a binomial; its share
    under the null follows from the maximum-likelihood rates with a difference of exactly `allowed` (quadratic, Poisson
    limit of Farrington and Manning 1990). Mid-p, then through t as far as the variance is estimated. Where control has
    hardly an event and some increase is allowed, the split alone could never Fail (all events would be the treatment's
    under the null too): there the two arms' own tails are asked as well, and half of the error rate is given to each.
    Pass: Wald with the larger of the null's and the observed variances.
    """
    worth, other_worth = compare(arm, other), compare(other, arm)
    n, n_other = arm.samples / worth.effect, other.samples / other_worth.effect
    pooled = (arm.rate * arm.samples + other.rate * other.samples) / (arm.samples + other.samples)
    fail_z = _split_z(arm.rate, n, other.rate, n_other, pooled, allowed)
    if allowed > 0 and other.rate * n_other < FEW_EVENTS:
        best = max(fail_z, _joint_z(arm.rate * n, n, other.rate * n_other, n_other, allowed))
        fail_z = _from_tail(2 * float(special.ndtr(-best)))
    unit = max(_bernoulli(arm.rate), _bernoulli(pooled), _bernoulli(other.rate + allowed))
    unit_other = max(_bernoulli(other.rate), _bernoulli(pooled))
    variance, variance_other = unit / n, unit_other / n_other
    freedom = welch(variance, worth.freedom, variance_other, other_worth.freedom)
    total = variance + variance_other
    pass_z = _ratio(allowed - (arm.rate - other.rate), total)
    base = (other.rate * other.samples + 0.5) / (other.samples + 1)
    shift = max(allowed, _bernoulli(base))
    return Comparison(
        name=name,
        bound=allowed,
        estimate=arm.rate,
        reference=other.rate,
        fail_z=_through_t(fail_z, freedom),
        pass_z=_through_t(pass_z, freedom),
        variance=total,
        independent=unit / arm.samples + unit_other / other.samples if arm.has_replicates else total,
        freedom=freedom,
        clock=n,
        per_sample=_bernoulli(base + allowed + shift / 2) * (1 + n / n_other),
        clear_shift=shift,
    )


def proportion_against_maximum(maximum: float, arm: Spread, other: Spread | None) -> Comparison:
    """The treatment's share against `maximum`: binomial tails on effective counts, mid-p on both sides."""
    worth = compare(arm, other)
    n = arm.samples / worth.effect
    x = arm.rate * n
    above, below = _binomial_tails(x, n, maximum)
    unit = max(_bernoulli(maximum), _bernoulli(arm.rate))
    worse_z = None
    if other is not None and other.samples > 0:
        worse_z = difference_of_proportions(INCREASE, 0.0, arm, other).fail_z
    return Comparison(
        name=MAXIMUM,
        bound=maximum,
        estimate=arm.rate,
        reference=other.rate if other is not None and other.samples > 0 else None,
        fail_z=_through_t(_from_tail(above), worth.freedom),
        pass_z=_through_t(_from_tail(below), worth.freedom),
        variance=unit / n,
        independent=unit / arm.samples if arm.has_replicates else unit / n,
        freedom=worth.freedom,
        clock=n,
        per_sample=_bernoulli(maximum),
        clear_shift=_bernoulli(maximum),
        worse_z=worse_z,
    )


def difference_of_means(name: str, allowed: float, arm: Spread, other: Spread) -> Comparison:
    """Treatment minus `other` against `allowed`, for means: a t test between replicates (Welch), variances floored."""
    variance, freedom = compare_means(arm, other)
    variance_other, freedom_other = compare_means(other, arm)
    total = variance + variance_other
    both = welch(variance, freedom, variance_other, freedom_other)
    z = _through_t(_ratio(arm.rate - other.rate - allowed, total), both)
    return _mean_comparison(name, allowed, arm, other.rate, z, total, both)


def mean_against_maximum(maximum: float, arm: Spread, other: Spread | None) -> Comparison:
    """The treatment's mean against `maximum`."""
    variance, freedom = compare_means(arm, other)
    z = _through_t(_ratio(arm.rate - maximum, variance), freedom)
    if other is None or other.samples <= 0:
        return _mean_comparison(MAXIMUM, maximum, arm, None, z, variance, freedom)
    worse_z = difference_of_means(INCREASE, 0.0, arm, other).fail_z
    return _mean_comparison(MAXIMUM, maximum, arm, other.rate, z, variance, freedom, worse_z)


def _mean_comparison(
    name: str,
    bound: float,
    arm: Spread,
    reference: float | None,
    z: float,
    variance: float,
    freedom: float,
    worse_z: float | None = None,
) -> Comparison:
    scale = abs(bound if name == MAXIMUM else reference or arm.rate)
    return Comparison(
        name=name,
        bound=bound,
        estimate=arm.rate,
        reference=reference,
        fail_z=z,
        pass_z=-z,
        variance=variance,
        independent=variance,  # one total per replicate cannot tell the users' part from the requests' part
        freedom=freedom,
        clock=arm.samples,
        per_sample=variance * arm.samples,
        clear_shift=max(bound if name != MAXIMUM else 0.0, 0.2 * scale),
        worse_z=worse_z,
    )


def _split_z(rate: float, n: float, other_rate: float, n_other: float, pooled: float, allowed: float) -> float:
    spread = max(1 - pooled, 1e-9)  # a binomial is narrower than a Poisson by this factor
    n, n_other = n / spread, n_other / spread
    x, x_other = rate * n, other_rate * n_other
    both = n + n_other
    # Rates r and r + allowed that maximise the Poisson likelihood: both * r^2 + b * r - allowed * x_other = 0.
    b = both * allowed - x - x_other
    null_other = (-b + math.sqrt(b * b + 4 * both * allowed * x_other)) / (2 * both)
    null_other = max(null_other, 0.0)
    expected, expected_other = n * (null_other + allowed), n_other * null_other
    share = expected / (expected + expected_other) if expected + expected_other > 0 else n / both
    return _from_tail(float(special.betainc(x + 0.5, x_other + 0.5, share)))


def _joint_z(x: float, n: float, x_other: float, n_other: float, allowed: float) -> float:
    """Both arms' exact tails at every rate that control may have: "at least x" at that rate plus `allowed`, and "at most
    x_other" at that rate. At the true rate they are two independent p-values, whose product q has the tail q (1 - ln q)
    (Fisher); the largest q over all rates is therefore a valid, if cautious, test."""
    furthest = min((x_other + 12 + 4 * math.sqrt(x_other + 1)) / max(n_other, 1.0), 1 - allowed)
    rates = np.linspace(0.0, max(furthest, 0.0), 129)
    more = special.betainc(x, n - x + 1, np.minimum(rates + allowed, 1.0)) if x > 0 else np.ones_like(rates)
    fewer = special.betaincc(x_other + 1, max(n_other - x_other, 1e-9), rates)
    q = float(np.max(more * fewer))
    return _from_tail(min(1.0, q * (1 - math.log(q)))) if q > 0 else _LARGEST


def _through_t(z: float, freedom: float) -> float:
    """A statistic whose variance was estimated, as the normal deviate of the same tail."""
    if freedom >= CERTAIN / 10 or not math.isfinite(z):
        return z
    tail = float(special.stdtr(freedom, -abs(z)))
    return math.copysign(min(-float(special.ndtri(tail)), _LARGEST) if tail > 0 else _LARGEST, z)


def _from_tail(tail: float) -> float:
    if tail <= 0:
        return _LARGEST
    return max(-_LARGEST, min(_LARGEST, -float(special.ndtri(tail)))) if tail < 1 else -_LARGEST


def _ratio(distance: float, variance: float) -> float:
    if variance <= 0:
        return math.copysign(_LARGEST, distance) if distance else 0.0
    return max(-_LARGEST, min(_LARGEST, distance / math.sqrt(variance)))


def _binomial_tails(x: float, n: float, rate: float) -> tuple[float, float]:
    """Mid-p of "at least x of n" and of "at most x of n", for real x and n."""
    if rate >= 1:
        return 1.0, 0.0
    at_least = float(special.betainc(x, n - x + 1, rate)) if x > 0 else 1.0
    more = float(special.betainc(x + 1, n - x, rate)) if x < n else 0.0
    return (at_least + more) / 2, 1 - (at_least + more) / 2


def _bernoulli(rate: float) -> float:
    rate = min(max(rate, 0.0), 1.0)
    return rate * (1 - rate)
