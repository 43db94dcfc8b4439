"""Builders of evidence for the tests of the verdicts."""

from __future__ import annotations

import numpy as np

from funicular.slo.model import REPLICATES, ArmCounts


def make_arm(n: float, x: float, replicates: int = REPLICATES) -> ArmCounts:
    """An arm whose requests and events are spread over the replicates as evenly as whole numbers allow."""
    return ArmCounts(_even(n, replicates), _even(x, replicates))


def one_element(n: float, x: float) -> ArmCounts:
    return ArmCounts((float(n),), (float(x),))


def scattered_arm(n: int, x: int, seed: int) -> ArmCounts:
    """An arm of independent requests, each in a random replicate."""
    random = np.random.default_rng(seed)
    totals = random.multinomial(n, [1 / REPLICATES] * REPLICATES)
    events = random.multivariate_hypergeometric(totals, x)
    return ArmCounts(tuple(map(float, totals)), tuple(map(float, events)))


def lumpy_arm(n: int, x: int, lumps: int, seed: int = 1) -> ArmCounts:
    """As many requests in each replicate, but all the events in `lumps` of them: a few users fail all the time."""
    random = np.random.default_rng(seed)
    events = np.zeros(REPLICATES)
    events[random.choice(REPLICATES, lumps, replace=False)] = x / lumps
    return ArmCounts((n / REPLICATES,) * REPLICATES, tuple(events.tolist()))


def _even(total: float, replicates: int) -> tuple[float, ...]:
    whole, rest = divmod(int(total), replicates)
    # The remainder goes where a fixed stride leads, so that totals and events do not pile up in the same replicates.
    extra = {(37 * k) % replicates for k in range(rest)}
    return tuple(float(whole + (k in extra)) for k in range(replicates))
