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

_NODES = 64  # Gauss-Legendre nodes per look: with twice as many the bounds agree to 9 decimals
_HIGHEST = 8.0  # standard deviations; a bound beyond it stands for "not at this look"
_LOWEST = -6.0  # the density is followed down to here
_LEAST = 1e-14  # a smaller error rate than this cannot be told from none

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
    plan: with a = 2 a plan that is wrong by a factor of four costs about 15 % more samples.
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


@lru_cache(maxsize=20_000)
def bound(done: tuple[float, ...], error_rate: float, shape: float) -> float:
    """The one-sided bound, in standard deviations, at the last of the looks `done` (increasing fractions).

    Crossing any of the bounds so far has probability `error_rate * spent(done[-1])` under the null. Infinite if there
    is no look, or nothing to spend at it.
    """
    return crossing_bound(done, tuple(error_rate * spent(fraction, shape) for fraction in done))


def crossing_bound(times: tuple[float, ...], spending: tuple[float, ...]) -> float:
    """The last bound of looks at `times` (in any unit of information) when `spending` has been spent by each."""
    return _look(times, spending)[0] if times else math.inf


@lru_cache(maxsize=8192)  # 2 KiB each
def _look(times: tuple[float, ...], spending: tuple[float, ...]) -> tuple[float, _Survivors]:
    now = times[-1]
    earlier = _look(times[:-1], spending[:-1])[1] if len(times) > 1 else _START
    to_spend = spending[-1] - (spending[-2] if len(times) > 1 else 0.0)
    step = now - earlier.time
    if step <= 0:
        raise ValueError(f"looks must increase, got {times}")
    score = _solve(earlier, step, to_spend, now)
    nodes, weights = _quadrature(_LOWEST * math.sqrt(now), score)
    kernel = np.exp(-0.5 * (nodes[:, None] - earlier.at[None, :]) ** 2 / step) / math.sqrt(2 * math.pi * step)
    survivors = _Survivors(nodes, (kernel @ earlier.mass) * weights, now)
    return (score / math.sqrt(now) if to_spend > _LEAST else math.inf), survivors


def _solve(earlier: _Survivors, step: float, to_spend: float, now: float) -> float:
    """The score at which `to_spend` of the survivors cross, by bisection: the tail is smooth and falls all the way."""
    low, high = 0.0, _HIGHEST * math.sqrt(now)
    scale = math.sqrt(step)
    for _ in range(34):
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
