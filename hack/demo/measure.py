"""What Prometheus holds of a run, asked once at its end: each SLO's counts by arm and replicate, second by second, and the money.

Called by the report. The same counters that the operator judged by, and the same design effects (`funicular.slo.effective`),
so that the bands of the plots are as wide as users who are clusters make them. The windows slide; the operator's do not.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from funicular.slo.effective import measure
from funicular.slo.model import REPLICATES, ArmCounts

Json = dict[str, Any]
WINDOW = 8  # seconds of a point
Vectors = dict[tuple[str, str], dict[int, list[float]]]
"""(arm, revision) -> second -> a cumulative count for each replicate"""


@dataclass(frozen=True, slots=True)
class Point:
    at: float
    value: float
    low: float
    high: float
    samples: float


@dataclass(frozen=True, slots=True)
class Series:
    """One arm of one SLO over one revision's comparison."""

    arm: str
    revision: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Money:
    """Dollars, by the policy's prices."""

    baseline: float
    real: float

    @property
    def saved(self) -> float:
        return self.baseline - self.real


@dataclass(frozen=True, slots=True)
class Measured:
    slos: Mapping[str, tuple[Series, ...]]
    money: Money


class Prometheus:
    def __init__(self, url: str, namespace: str, policy: str) -> None:
        self._url = url
        self._scope = f'namespace="{namespace}",policy="{policy}"'

    async def measured(self, start: float, end: float) -> Measured:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
            outcomes = await self._cumulative(http, "funicular_outcomes_total", "outcome", start, end)
            slow = await self._cumulative(
                http, "funicular_slow_total", "indicator", start, end, 'indicator="LatencyP95"'
            )
            thumbs = await self._cumulative(http, "funicular_replicate_feedback_total", "kind", start, end)
            cost = await self._cumulative(http, "funicular_replicate_cost_dollars_total", "", start, end)
            money = await self._money(http, end)
        answered = _added(outcomes["good"], outcomes["bad"])
        voted = _added(thumbs["thumbs_up"], thumbs["thumbs_down"])
        return Measured(
            {
                "errors": _series(outcomes["bad"], answered),
                "p95": _series(slow["LatencyP95"], answered),
                "thumbs-up": _series(thumbs["thumbs_up"], voted),
                "cost": _series(cost[""], answered, proportion=False),
            },
            money,
        )

    async def _money(self, http: aiohttp.ClientSession, end: float) -> Money:
        async def total(name: str) -> float:
            answer = await self._get(http, "query", query=f"sum({name}{{{self._scope}}})", time=f"{end:.3f}")
            found = answer["data"]["result"]
            return float(found[0]["value"][1]) if found else 0.0

        return Money(await total("funicular_baseline_cost_dollars_total"), await total("funicular_cost_dollars_total"))

    async def _cumulative(
        self, http: aiohttp.ClientSession, name: str, label: str, start: float, end: float, more: str = ""
    ) -> defaultdict[str, Vectors]:
        by = ", ".join(it for it in ("arm", "revision", "replicate", label) if it)
        query = f"sum by ({by}) ({name}{{{','.join(it for it in (self._scope, more) if it)}}})"
        answer = await self._get(http, "query_range", query=query, start=f"{start:.0f}", end=f"{end:.0f}", step="1")
        found: defaultdict[str, Vectors] = defaultdict(dict)
        for row in answer["data"]["result"]:
            labels = row["metric"]
            vectors = found[labels.get(label, "")].setdefault((labels["arm"], labels["revision"]), {})
            replicate = int(labels["replicate"])
            for at, value in row["values"]:
                vectors.setdefault(int(at), [0.0] * REPLICATES)[replicate] = float(value)
        return found

    async def _get(self, http: aiohttp.ClientSession, path: str, **parameters: str) -> Json:
        async with http.post(f"{self._url}/api/v1/{path}", data=parameters) as answer:
            answer.raise_for_status()
            found: Json = await answer.json()
            return found


def _added(a: Vectors, b: Vectors) -> Vectors:
    found: Vectors = {}
    for key in a.keys() | b.keys():
        seconds: dict[int, list[float]] = {}
        for source in (a.get(key, {}), b.get(key, {})):
            for at, values in source.items():
                before = seconds.get(at)
                seconds[at] = [x + y for x, y in zip(before, values, strict=True)] if before else list(values)
        found[key] = seconds
    return found


def _series(events: Vectors, trials: Vectors, *, proportion: bool = True) -> tuple[Series, ...]:
    found = []
    for (arm, revision), seconds in sorted(trials.items()):
        counted = events.get((arm, revision), {})
        points = [
            point
            for at in sorted(seconds)
            if (point := _point(at, seconds, counted, proportion=proportion)) is not None
        ]
        if points:
            found.append(Series(arm, revision, tuple(points)))
    return tuple(found)


def _point(
    at: int, trials: Mapping[int, Sequence[float]], events: Mapping[int, Sequence[float]], *, proportion: bool
) -> Point | None:
    """The rise of the last WINDOW seconds; a series younger than that began at zero."""
    zero = [0.0] * REPLICATES

    def rise(source: Mapping[int, Sequence[float]]) -> tuple[float, ...]:
        now, before = source.get(at, zero), source.get(at - WINDOW, zero)
        return tuple(max(0.0, x - y) for x, y in zip(now, before, strict=True))

    spread = measure(ArmCounts(n=rise(trials), x=rise(events)), proportion=proportion)
    if spread.samples < 5:
        return None
    if proportion:
        low, high = wilson(spread.rate, spread.samples / max(1.0, spread.effect))
    else:
        half = 1.96 * math.sqrt(max(0.0, spread.variance))
        low, high = max(0.0, spread.rate - half), spread.rate + half
    return Point(float(at), spread.rate, low, high, spread.samples)


def wilson(rate: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): stays within 0..1, and is not empty where nothing was seen."""
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
