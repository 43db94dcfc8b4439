"""The sample-ratio check that is always on: does the share of users in treatment match the share that was asked for?

A mismatch means that the split, the gateways or the counting are broken, and then no other verdict can be trusted.
Requests cannot be tested for it: with a few heavy users the treated share of *requests* is far from the share of
*users* nearly always (at 1 % usually far below). What is safe under any activity is the treated share r_k within each
replicate of the user hash: the mean of r_k is the desired share exactly, whoever is heavy, r_k lies in 0..1, and the
replicates are independent. Three one-sided tests share the alpha; each is valid alone:

1. *any users*: Chernoff's bound for independent variables in 0..1 with a known mean. Needs nothing, sees only gross
   mismatches (at 1 %: more than about 13 % observed; at 50 %: 20 points).
2. *too many treated*: the self-normalised sum of r_k - s, null-centred, against Efron's (1969) bound exp(-t^2/2).
   Below one half the r_k are skewed upwards, which only lowers its upper tail. Narrow when users are many. At one
   half exactly the r_k are symmetric and it serves both sides.
3. *too few treated*: Maurer's (2003) bound for sums of non-negative variables, with the users' sum of squared weights
   from the spread of the replicates' totals. Narrow when no user is heavy; blind at 1 % with heavy users.

Shares above one half are judged by their mirror image. Limits: users who send more or less *because* of their arm look
like a mismatch; a share near 0 that is missing altogether looks like "no data" first.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from funicular.slo.model import ArmCounts, Looks, Outcome, Verdict

NAME = "sample-ratio"
ALPHA = 2.5e-5  # for one step of four: 1e-4 over a rollout
FEWEST_REPLICATES = 8
NEAREST = 0.001  # a share of 0 or 1 is judged as this far from it: a straggling request is no mismatch
_TESTS = 4  # one-sided

Array = NDArray[np.float64]


def sample_ratio(
    treatment: ArmCounts, control: ArmCounts, desired_share_bp: int, looks: Looks, alpha: float = ALPHA
) -> Verdict:
    """Fail if the treated share of users cannot be `desired_share_bp` (basis points, of those outside the holdback).

    Looks are taken when the requests of both arms have doubled (`done` holds those numbers): the same users in the
    same arms say the same thing again, so there is little to gain from looking more often. `alpha` is spent over
    them as 1/(k(k+1)), and a Fail is final within the step.
    """
    n, n_control = np.asarray(treatment.n, dtype=np.float64), np.asarray(control.n, dtype=np.float64)
    both = n + n_control
    filled = both > 0
    total, replicates = float(both.sum()), int(np.count_nonzero(filled))
    if not 0 <= desired_share_bp <= 10_000:
        raise ValueError(f"a share lies between 0 and 10000 basis points, got {desired_share_bp}")
    if replicates < FEWEST_REPLICATES:
        reason = "NoData" if total == 0 else "TooFewUsers"
        message = f"{NAME}: requests from {replicates} groups of users, {FEWEST_REPLICATES} are needed"
        return Verdict(NAME, Outcome.INCONCLUSIVE, reason, message, samples=float(n.sum()), looks=looks)
    shares = n[filled] / both[filled]
    desired = min(max(desired_share_bp / 10_000, NEAREST), 1 - NEAREST)
    if not looks.done or total >= 2 * looks.done[-1]:
        looks = replace(looks, done=(*looks.done, total))
        number = len(looks.done)
        allowed = alpha / (number * (number + 1)) / _TESTS
        if not looks.failed and _p_value(shares, n, n_control, desired) <= allowed:
            looks = replace(looks, failed=NAME)
    return _verdict(shares, float(n.sum()), desired_share_bp, looks)


def _verdict(shares: Array, samples: float, desired_share_bp: int, looks: Looks) -> Verdict:
    seen = float(shares.mean())
    error = float(shares.std(ddof=1)) / math.sqrt(shares.size)
    outcome, reason = (Outcome.FAIL, "SampleRatioMismatch") if looks.failed else (Outcome.PASS, "ShareMatches")
    message = (
        f"{NAME}: {100 * seen:.3g} % of users treated (95 % interval {100 * max(0.0, seen - 2 * error):.3g} % to"
        f" {100 * min(1.0, seen + 2 * error):.3g} %), {desired_share_bp / 100:.3g} % desired, from {shares.size} groups of users"
    )
    return Verdict(
        slo=NAME,
        outcome=outcome,
        reason=reason,
        message=message + (": the split or the counting is broken" if looks.failed else ""),
        estimate=seen,
        reference=desired_share_bp / 10_000,
        low=seen - 2 * error,
        high=seen + 2 * error,
        samples=samples,
        effective_samples=float(shares.size),
        looks=looks,
    )


def _p_value(shares: Array, n: Array, n_control: Array, desired: float) -> float:
    """The smallest of the valid one-sided bounds; to be compared with a fourth of alpha."""
    if desired > 0.5:
        shares, n, n_control, desired = 1 - shares, n_control, n, 1 - desired
    missing = _too_few(n, n_control, desired)
    if desired == 0.5:  # r_k and 1 - r_k have the same distribution: Efron's bound holds on both sides
        missing = min(missing, 2 * _too_many(1 - shares, desired))
    return min(_any_users(shares, desired), _too_many(shares, desired), missing)


def _any_users(shares: Array, desired: float) -> float:
    """Chernoff: P(mean at least as far) <= exp(-K * KL(mean, desired)), for either side."""
    mean = float(shares.mean())
    divergence = _term(mean, desired) + _term(1 - mean, 1 - desired)
    return math.exp(-shares.size * max(divergence, 0.0))


def _term(seen: float, expected: float) -> float:
    return seen * math.log(seen / expected) if seen > 0 else 0.0


def _too_many(shares: Array, desired: float) -> float:
    excess = shares - desired
    length = math.sqrt(float(excess @ excess))
    score = float(excess.sum()) / length if length > 0 else 0.0
    return math.exp(-score * score / 2) if score > 0 else 1.0


def _too_few(n: Array, n_control: Array, desired: float) -> float:
    """Maurer: P(treated <= desired * N - t) <= exp(-t^2 / (2 * desired * sum over users of squared requests))."""
    both = n + n_control
    total, size = float(both.sum()), both.size
    missing = desired * total - float(n.sum())
    # E[sum n_k^2] = S + (N^2 - S) / K for users that fall into K replicates at random; at least one request each.
    squares = (float(both @ both) - total * total / size) * size / (size - 1)
    return math.exp(-(missing**2) / (2 * desired * max(squares, total))) if missing > 0 else 1.0
