"""Watches all promoted policies together for drift: one query for each indicator and window, whatever their number.

Owned by the evaluator. It only says whom to look at closely; what it sees is no evidence, because it is not corrected for
users being clusters and may be looked at as often as one likes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

import orjson

from funicular.api.spec import LATENCY_QUANTILE, Indicator, Prometheus, Slo
from funicular.ports import Metrics
from funicular.slo import queries
from funicular.slo.queries import Vector

FEWEST = 30  # requests
DEVIATIONS = 2.5
LABEL = {"outcomes": "outcome", "slow": "indicator", "thumbs": "kind"}
METRIC = {"outcomes": queries.OUTCOMES, "slow": queries.SLOW, "thumbs": queries.FEEDBACK}


@dataclass(frozen=True, slots=True)
class Bound:
    """One SLO, as far as it can be screened. source: outcomes | slow | thumbs; bad: the label's value that counts as bad."""

    source: str
    bad: str
    maximum: float | None
    margin: float | None


@dataclass(frozen=True, slots=True)
class IdlePolicy:
    key: str
    uid: str
    version: int
    revision: str
    since: datetime  # of its promotion: before it, arm `control` was something else
    group: str  # policies with the same Prometheus
    namespace: str
    prometheus: Prometheus
    bounds: tuple[Bound, ...]


@lru_cache(maxsize=1024)
def bounds_of(slos: bytes) -> tuple[Bound, ...]:
    """Of the JSON of `spec.slos`; cached because idle policies are many and alike."""
    found = []
    for raw in orjson.loads(slos):
        slo = Slo.model_validate(raw)
        source, bad = _source(slo.indicator)
        if not source:
            continue
        question = queries.question_of(slo, 1)
        margin = slo.allowed_from_baseline if slo.allowed_from_baseline is not None else question.allowed_increase
        found.append(Bound(source, bad, question.maximum, margin))
    return tuple(found)


@lru_cache(maxsize=256)
def prometheus_of(raw: bytes) -> Prometheus:
    return Prometheus.model_validate_json(raw)


def _source(indicator: Indicator | None) -> tuple[str, str]:
    if indicator is Indicator.ERROR_RATE:
        return "outcomes", "bad"
    if indicator is Indicator.THUMBS_UP_RATE:
        return "thumbs", "thumbs_down"
    if indicator in LATENCY_QUANTILE:
        return "slow", indicator.value
    return "", ""


async def screen(metrics: Metrics, policies: Sequence[IdlePolicy], window_seconds: int, now: datetime) -> set[str]:
    """Keys of those that look worse than they should. Raises what the query raises."""
    fit = [p for p in policies if (now - p.since).total_seconds() > window_seconds]
    wanted = {bound.source for policy in fit for bound in policy.bounds}
    if not wanted:
        return set()
    tables = {}
    for source in ("outcomes", *sorted(wanted - {"outcomes"})):
        more = ',kind=~"thumbs_up|thumbs_down"' if source == "thumbs" else ""
        text = queries.share_series(METRIC[source], [LABEL[source]], window_seconds, more)
        tables[source] = _table(await metrics.query(text, now), LABEL[source])
    return {policy.key for policy in fit if _looks_bad(policy, tables)}


Cell = tuple[str, str, str, str]  # namespace, policy, revision, arm


def _table(vector: Vector, label: str) -> Mapping[Cell, dict[str, float]]:
    table: dict[Cell, dict[str, float]] = {}
    for labels, value in vector:
        at = (
            labels.get("namespace", ""),
            labels.get("policy", ""),
            labels.get("revision", ""),
            labels.get("arm", ""),
        )
        table.setdefault(at, {})[labels.get(label, "")] = value
    return table


def _looks_bad(policy: IdlePolicy, tables: Mapping[str, Mapping[Cell, dict[str, float]]]) -> bool:
    namespace, name = policy.key.split("/", 1)
    for bound in policy.bounds:
        arms = []
        for arm in ("control", "holdback"):
            at = (namespace, name, policy.revision, arm)
            row = tables[bound.source].get(at, {})
            total = sum((tables["outcomes"] if bound.source == "slow" else tables[bound.source]).get(at, {}).values())
            arms.append((total, row.get(bound.bad, 0.0)))
        if is_suspicious(*arms[0], *arms[1], bound):
            return True
    return False


def is_suspicious(served: float, bad: float, beside: float, beside_bad: float, bound: Bound) -> bool:
    """Over the bound, or worse than the holdback by more than half the margin; either by 2.5 standard deviations."""
    if served < FEWEST:
        return False
    rate = bad / served
    if bound.maximum is not None and _far(rate - bound.maximum, max(rate, bound.maximum), 1 / served):
        return True
    if bound.margin is None or beside < FEWEST:
        return False
    pooled = (bad + beside_bad) / (served + beside)
    return _far(rate - beside_bad / beside - bound.margin / 2, pooled, 1 / served + 1 / beside)


def _far(excess: float, rate: float, inverse: float) -> bool:
    rate = min(max(rate, 1e-6), 1 - 1e-6)
    return excess > DEVIATIONS * math.sqrt(rate * (1 - rate) * inverse)


def grouped(policies: Iterable[IdlePolicy]) -> dict[str, list[IdlePolicy]]:
    groups: dict[str, list[IdlePolicy]] = {}
    for policy in policies:
        groups.setdefault(policy.group, []).append(policy)
    return groups
