"""Paying for looks: error spending and the bounds that follow from it.

Called by the verdicts. Counts come every few seconds and a verdict may be asked for at any time; a test that looks
again and again at its nominal level fails good candidates. So the error rate is spent as information grows (Lan and
DeMets 1983, Biometrika 70), and the bound of each look is solved from the joint distribution of all looks so far
(Armitage, McPherson and Rowe 1969; Jennison and Turnbull 2000, chapter 19). A look's time is its information as a
fraction of the plan; clock time plays no part.

Must not know what is compared: it sees fractions and error rates only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

QUANTUM = 0.01  # fractions are floored to this before they are recorded: short in status, and the bounds are cached
FIRST_LOOK = 0.05  # of the plan
LINEAR_SPACING = 0.05  # of the plan: at most 20 looks up to its end ...
RELATIVE_SPACING = 0.10  # ... and each look brings at least this much more information than the one before
NEVER = 12.0  # a bound, in standard deviations, that stands for "cannot be crossed at this look"

_NODES = 160  # Gauss-Legendre nodes per look; bounds are good to 4 decimals (tests compare with published tables)
_FLOOR = 8.0  # the density is followed down to this many standard deviations below zero

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Survivors:
    """The part of the null's distribution that has crossed no bound yet, on the score scale (Brownian motion)."""

    at: Array  # nodes
    mass: Array  # density times quadrature weight
    time: float


def spent(fraction: float, shape: float) -> float:
    """The share of an error rate spent when `fraction` of the planned information is in: t^a / (1 + t^a).

    Half of it at the plan, the rest after it, never quite all: the plan is a guess about effects nobody knows, and a
    test whose budget ends at the plan is blind afterwards. Spread evenly over the logarithm of information near the
    plan, so that a plan that is wrong by a factor of three costs a few per cent of the samples.
    """
    if fraction <= 0:
        return 0.0
    power = fraction**shape
    return float(power / (1 + power))


def floor_fraction(fraction: float) -> float:
    """A fraction as it is recorded. Rounded down: never more is spent than the information has earned."""
    return round(math.floor(fraction / QUANTUM + 1e-9) * QUANTUM, 2) if fraction < 1e6 else 1e6


def is_due(fraction: float, done: tuple[float, ...]) -> bool:
    """Whether enough information came in since the last look to be worth another one."""
    if not done:
        return fraction >= FIRST_LOOK - 1e-9
    last = done[-1]
    return fraction >= last + max(LINEAR_SPACING, RELATIVE_SPACING * last) - 1e-9


def bound(done: tuple[float, ...], error_rate: float, shape: float) -> float:
    """The one-sided bound, in standard deviations, at the last of the looks `done` (increasing fractions).

    Crossing any of the bounds so far has probability `error_rate * spent(done[-1])` under the null. `NEVER` if there
    is no look.
    """
    if not done:
        return NEVER
    return _look(tuple(round(fraction, 4) for fraction in done), error_rate, shape)[0]


@lru_cache(maxsize=20_000)
def _look(done: tuple[float, ...], error_rate: float, shape: float) -> tuple[float, _Survivors]:
    now, before = done[-1], done[:-1]
    earlier = _look(before, error_rate, shape)[1] if before else _START
    step = now - earlier.time
    if step <= 0:
        raise ValueError(f"looks must increase, got {done}")
    to_spend = error_rate * (spent(now, shape) - spent(earlier.time, shape))
    score = _solve(earlier, step, to_spend, now)
    low = -_FLOOR * math.sqrt(now)
    nodes, weights = _quadrature(low, score)
    kernel = np.exp(-0.5 * (nodes[:, None] - earlier.at[None, :]) ** 2 / step) / math.sqrt(2 * math.pi * step)
    return score / math.sqrt(now), _Survivors(nodes, (kernel @ earlier.mass) * weights, now)


def _solve(earlier: _Survivors, step: float, to_spend: float, now: float) -> float:
    """The score at which `to_spend` of the survivors cross, by bisection: the tail is smooth and falls all the way."""
    low, high = 0.0, NEVER * math.sqrt(now)
    scale = math.sqrt(step)
    for _ in range(50):
        middle = (low + high) / 2
        crossing = float(special.ndtr((earlier.at - middle) / scale) @ earlier.mass)
        if crossing > to_spend:
            low = middle
        else:
            high = middle
    return high


def _quadrature(low: float, high: float) -> tuple[Array, Array]:
    half = (high - low) / 2
    return low + half * (_GAUSS_NODES + 1), half * _GAUSS_WEIGHTS


_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(_NODES)
_START = _Survivors(np.zeros(1), np.ones(1), 0.0)
