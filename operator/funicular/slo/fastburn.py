"""The guard for gross failures: half of the treated requests fail, and no ramp may wait for a verdict on that.

Called for every report of an agent, so it uses no distributions: a few sums over 64 replicates. Wald's sequential
probability ratio test of a failure rate of 0.5 against 0.1 needs no look budget (by Ville's inequality a false alarm
has probability at most `ALPHA` however often it is asked), and 19 requests are enough when half of them fail.

What it assumes: the counts are those of one unbroken stretch since the share took effect. A failure that starts late
is diluted by the good requests before it; feed a second call with the last few minutes, and count its ALPHA again.
"""

from __future__ import annotations

import math

from funicular.slo.model import ArmCounts, Outcome, Verdict

ALPHA = 1e-4
BURNING, HEALTHY = 0.5, 0.1  # the two failure rates that are told apart
CAP = 3.0  # requests a replicate counts for at most: one user who fails all day must not speak for everyone
FEWEST_FAILING = 4  # replicates

_PER_FAILURE = math.log(BURNING / HEALTHY)
_PER_SUCCESS = math.log((1 - BURNING) / (1 - HEALTHY))
_ALARM = math.log(1 / ALPHA)
_CLEAR = -3.0  # control must look healthy by 20 to 1: 6 good requests


def fast_burn(treatment: ArmCounts, control: ArmCounts | None, slo: str = "fast-burn") -> Verdict | None:
    """A Fail if the treatment burns and control demonstrably does not; None otherwise.

    `n`: requests, `x`: failed ones (errors, or answers slower than the bound), by replicate. `control`: the arm next
    to it; where it is empty by design (share 100 %) the holdback; None only if there is no other arm at all, then the
    guard cannot tell the candidate's failure from everybody's.
    """
    failing = sum(1 for x in treatment.x if x > 0)
    if failing < FEWEST_FAILING:
        return None
    n, x = _shrunk(treatment)
    if _evidence(n, x) < _ALARM:
        return None
    if control is not None and not _is_healthy(control):
        return None
    reference = control.rate if control is not None and control.total > 0 else None
    beside = f"{100 * reference:.2g} % in control" if reference is not None else "no other arm to compare with"
    message = (
        f"{slo}: {treatment.events:,.0f} of {treatment.total:,.0f} treated requests failed, in {failing} of"
        f" {len(treatment.n)} groups of users; {beside}"
    )
    return Verdict(
        slo=slo,
        outcome=Outcome.FAIL,
        reason="FastBurn",
        message=message,
        estimate=treatment.rate,
        reference=reference,
        samples=treatment.total,
        effective_samples=n,
        tightness=1.0,
    )


def _shrunk(arm: ArmCounts) -> tuple[float, float]:
    """Requests and failures with no replicate counting for more than CAP requests."""
    n = x = 0.0
    for trials, events in zip(arm.n, arm.x, strict=True):
        if trials > 0:
            weight = min(1.0, CAP / trials)
            n += trials * weight
            x += min(events, trials) * weight
    return n, x


def _evidence(n: float, x: float) -> float:
    """Log-likelihood ratio of burning over healthy."""
    return x * _PER_FAILURE + (n - x) * _PER_SUCCESS


def _is_healthy(control: ArmCounts) -> bool:
    """Both: evidence for 0.1 over 0.5, and a rate that chance does not lift above 0.1 (so 0.2 of many is burning)."""
    n, x = _shrunk(control)
    if n <= 0 or _evidence(n, x) > _CLEAR:
        return False
    return x / n <= HEALTHY + 2 * math.sqrt(HEALTHY * (1 - HEALTHY) / n)
