"""Asks every query of a spec once before its revision may ramp, so that a typing error shows in seconds and not after a day.

Owned by the evaluator. A query without data is no problem here: nothing has been counted yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from funicular.api.duration import seconds
from funicular.api.spec import RoutingPolicySpec
from funicular.controller.measuring import Unusable, reason_of, single
from funicular.errors import FunicularError, UserMustFix
from funicular.ports import Clock, Metrics
from funicular.rollout.observation import Problem
from funicular.slo import queries
from funicular.slo.model import Arm
from funicular.slo.queries import Scope

AGAIN = timedelta(seconds=15)  # a person who mends it looks on
REMEDY = {
    "MetricsUnavailable": "check spec.prometheus.url and that Prometheus runs",
    "AccessDenied": "correct spec.prometheus.auth",
    "SecretMissing": "create the Secret or correct the reference",
    "InvalidQuery": "correct the query",
}


async def ask(metrics: Metrics, spec: RoutingPolicySpec, scope: Scope, now: datetime) -> tuple[Problem, ...]:
    """One problem for a Prometheus that cannot be asked at all; else one for each query that cannot be used."""
    try:
        await metrics.query("vector(1)", now)
    except FunicularError as exc:
        return (_problem(exc, "spec.prometheus"),)
    found = []
    for i, slo in enumerate(spec.slos):
        for member, template in queries.parts_of(slo.query) if slo.query else ():
            field = f"spec.slos[{i}].query.{member}"
            problem = await _try(metrics, template, scope, now, field, seconds(spec.prometheus.interval))
            if problem is not None:
                found.append(problem)
    return tuple(found)


async def _try(
    metrics: Metrics, template: str, scope: Scope, now: datetime, field: str, interval: float
) -> Problem | None:
    try:
        text = queries.fill(template, arm=Arm.TREATMENT, window_seconds=max(300.0, 4 * interval), scope=scope)
        single(await metrics.query(text, now), Arm.TREATMENT)
    except Unusable as exc:
        if exc.reason != "SeveralSeries":  # nothing has been counted yet
            return None
        return Problem(field, exc.reason, str(exc), "make it one series, for example with sum(...)")
    except FunicularError as exc:
        return _problem(exc, field)
    return None


def _problem(exc: FunicularError, field: str) -> Problem:
    reason = reason_of(exc)
    own = exc if isinstance(exc, UserMustFix) else None
    return Problem((own and own.field) or field, reason, str(exc), (own and own.remedy) or REMEDY[reason])


@dataclass(slots=True)
class _Asked:
    digest: str
    at: datetime | None = None  # when it was answered
    problems: tuple[Problem, ...] | None = None


class PreflightBook:
    """What came of it, by policy. `start(key)` queues the asking."""

    def __init__(self, start: Callable[[str], None], clock: Clock) -> None:
        self._start = start
        self._clock = clock
        self._asked: dict[str, _Asked] = {}

    def of(self, key: str, spec: RoutingPolicySpec) -> tuple[Problem, ...] | None:
        digest = digest_of(spec)
        known = self._asked.get(key)
        if known is None or known.digest != digest:
            known = self._asked[key] = _Asked(digest)
            self._start(key)
        elif known.problems and known.at and self._clock.now() - known.at > AGAIN:
            known.at = None
            self._start(key)
        return known.problems

    def answer(self, key: str, spec: RoutingPolicySpec, problems: tuple[Problem, ...]) -> None:
        self._asked[key] = _Asked(digest_of(spec), self._clock.now(), problems)

    def forget(self, key: str) -> None:
        self._asked.pop(key, None)


def digest_of(spec: RoutingPolicySpec) -> str:
    """What a preflight depends on."""
    return spec.model_dump_json(include={"slos", "prometheus"})
