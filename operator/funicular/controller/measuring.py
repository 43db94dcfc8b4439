"""One look at Prometheus for one policy: asks the queries of slo/queries.py and puts the answers together as Measurements.

Called by the evaluator, in the background. What cannot be asked becomes data, SLO by SLO. It judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from funicular.api.duration import seconds
from funicular.api.policy import RoutingPolicy
from funicular.api.spec import LATENCY_QUANTILE, Indicator, RoutingPolicySpec, Slo
from funicular.errors import AccessDenied, FunicularError, InvalidQuery, OurBug, SecretMissing
from funicular.ports import Metrics
from funicular.rollout.observation import Measurements, SloMeasurement
from funicular.slo import queries
from funicular.slo.effective import design_effect
from funicular.slo.model import Arm, ArmCounts, Evidence
from funicular.slo.queries import Scope, Vector, Window

STALE_INTERVALS = 3
RENAMED = (
    "Prometheus has this policy's series with the label exported_namespace instead of namespace: set honorLabels: true"
    " (honor_labels in a scrape configuration) for the gateway pods"
)
EMPTY = ArmCounts(queries.NONE, queries.NONE)


@dataclass(frozen=True, slots=True)
class Look:
    """What to measure, and what the answer is bound to. begin: `started_at` of the result; the counts begin one interval
    later, because the last sample before a later instant may be older than `begin` and would reach back over it."""

    scope: Scope
    version: int
    begin: datetime
    now: datetime
    idle: bool
    interval: float

    @property
    def window_start(self) -> datetime:
        return self.begin + timedelta(seconds=self.interval)

    @property
    def seconds(self) -> float:
        return (self.now - self.window_start).total_seconds()


class Unusable(Exception):
    """An answer that is no single finite number; reason as in SloMeasurement.error."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def look_at(policy: RoutingPolicy, begin: datetime, now: datetime) -> Look:
    """`policy` has a traffic."""
    traffic = policy.status.traffic
    if traffic is None:
        raise OurBug(f"{policy.metadata.key} is measured without a traffic")
    return Look(
        scope=Scope(policy.metadata.namespace, policy.metadata.name, traffic.revision),
        version=traffic.version,
        begin=begin,
        now=now,
        idle=traffic.candidate is None,
        interval=seconds(policy.spec.prometheus.interval),
    )


async def measure(metrics: Metrics, spec: RoutingPolicySpec, look: Look) -> Measurements:
    """Never raises FunicularError: it is in the result."""
    try:
        window = await _frame(metrics, look)
        outcomes = queries.outcome_counts(await metrics.query(queries.outcomes(look.scope, window), look.now))
        decisions = await _decisions(metrics, look, window) if spec.strategy.classifier else ()
    except Unusable as exc:
        return _failed(look, exc.reason, str(exc))
    except FunicularError as exc:
        return _failed(look, reason_of(exc), str(exc))
    session = _Session(metrics, look, window, outcomes)
    return Measurements(
        at=look.now,
        version=look.version,
        revision=look.scope.revision,
        started_at=look.begin,
        idle=look.idle,
        slos=tuple([await session.slo(slo) for slo in spec.slos]),
        outcomes=outcomes,
        observed_share=observed_share(outcomes),
        exercised=queries.exercised(decisions),
        undecided=queries.undecided(decisions),
    )


async def _frame(metrics: Metrics, look: Look) -> Window:
    """The window, or why nothing may be measured in it."""
    start, end = look.window_start.timestamp(), look.now.timestamp()
    answer = await metrics.query(queries.frame(look.scope, Window(start, end)), look.now)
    found = {labels.get("what"): value for labels, value in answer}
    age, limit = found.get("age"), STALE_INTERVALS * look.interval
    if age is None:
        if found.get("vanished"):
            raise Unusable("Stale", "Prometheus has no present sample of this policy, though it had some")
        if await metrics.query(queries.renamed(look.scope), look.now):
            raise Unusable("NoData", RENAMED)
        raise Unusable("NoData", f"Prometheus has no series of revision {look.scope.revision} yet")
    if age > limit:
        raise Unusable("Stale", f"the last sample is {age:.0f} s old, more than {STALE_INTERVALS} intervals")
    return Window(start, end, disturbed=bool(found.get("resets") or found.get("vanished")))


async def _decisions(metrics: Metrics, look: Look, window: Window) -> Vector:
    arm = Arm.CONTROL if look.idle else Arm.TREATMENT
    return await metrics.query(queries.decisions(look.scope, window, arm), look.now)


def _failed(look: Look, reason: str, message: str) -> Measurements:
    return Measurements(
        at=look.now,
        version=look.version,
        revision=look.scope.revision,
        started_at=look.begin,
        idle=look.idle,
        error=reason,
        message=message,
    )


def reason_of(exc: FunicularError) -> str:
    """CamelCase, for conditions: by what the caller should do."""
    kinds = ((InvalidQuery, "InvalidQuery"), (AccessDenied, "AccessDenied"), (SecretMissing, "SecretMissing"))
    return next((reason for kind, reason in kinds if isinstance(exc, kind)), "MetricsUnavailable")


def observed_share(outcomes: Mapping[Arm, ArmCounts]) -> int | None:
    treated = outcomes.get(Arm.TREATMENT, EMPTY).total
    total = treated + outcomes.get(Arm.CONTROL, EMPTY).total
    return round(10_000 * treated / total) if total > 0 else None


class _Session:
    """The queries of one look; those that several SLOs share are asked once."""

    def __init__(self, metrics: Metrics, look: Look, window: Window, outcomes: Mapping[Arm, ArmCounts]) -> None:
        self._metrics = metrics
        self._look = look
        self._window = window
        self._outcomes = outcomes
        self._asked: dict[str, Vector | FunicularError] = {}

    async def slo(self, slo: Slo) -> SloMeasurement:
        try:
            if slo.query is not None:
                return await self._own(slo)
            return self._built_in(slo, await self._counts(slo.indicator))
        except Unusable as exc:
            return SloMeasurement(slo.name, error=exc.reason, message=str(exc))
        except FunicularError as exc:
            return SloMeasurement(slo.name, error=reason_of(exc), message=str(exc))

    # --- indicators ----------------------------------------------------------------------------------------------
    async def _counts(self, indicator: Indicator | None) -> Mapping[Arm, ArmCounts]:
        if indicator is Indicator.ERROR_RATE:
            return self._outcomes
        if indicator is Indicator.THUMBS_UP_RATE:
            return queries.thumb_counts(await self._once(queries.thumbs))
        if indicator is Indicator.COST_PER_REQUEST:
            return queries.cost_counts(await self._once(queries.cost), self._outcomes)
        if indicator in LATENCY_QUANTILE:
            return queries.slow_counts(await self._once(queries.slow), indicator, self._outcomes)
        raise InvalidQuery(f"{indicator} is not known to this version", remedy="use another indicator")

    async def _once(self, build: Callable[[Scope, Window], str]) -> Vector:
        """An error is remembered too: three latency SLOs do not wait three times for a Prometheus that is down."""
        text = build(self._look.scope, self._window)
        if text not in self._asked:
            try:
                self._asked[text] = await self._metrics.query(text, self._look.now)
            except FunicularError as exc:
                self._asked[text] = exc
        found = self._asked[text]
        if isinstance(found, FunicularError):
            raise found
        return found

    def _built_in(self, slo: Slo, counts: Mapping[Arm, ArmCounts]) -> SloMeasurement:
        if not counts:
            raise Unusable("NoData", f"Prometheus has no series for {slo.indicator} of this policy yet")
        return SloMeasurement(slo.name, evidence=self._evidence(counts, EMPTY))

    def _evidence(
        self, counts: Mapping[Arm, ArmCounts], empty: ArmCounts, borrowed_effect: float | None = None
    ) -> Evidence:
        """In the steady state what is served stands as treatment, and the holdback beside it."""
        on_trial, beside = (Arm.CONTROL, Arm.HOLDBACK) if self._look.idle else (Arm.TREATMENT, Arm.CONTROL)
        return Evidence(
            treatment=counts.get(on_trial, empty),
            control=counts.get(beside, empty),
            holdback=counts.get(Arm.HOLDBACK),
            borrowed_effect=borrowed_effect,
            window_seconds=max(0.0, self._look.seconds),
        )

    # --- queries of the user's own -------------------------------------------------------------------------------
    async def _own(self, slo: Slo) -> SloMeasurement:
        assert slo.query is not None
        parts = queries.parts_of(slo.query)
        if [name for name, _ in parts] == ["value"]:
            return SloMeasurement(slo.name, values=await self._values(parts[0][1]))
        counts: dict[Arm, ArmCounts] = {}
        for arm in self._arms():
            try:
                good, total = [await self._number(text, arm) for _, text in parts]
                counts[arm] = queries.ratio_counts(slo, good, total)
            except Unusable:
                if arm is not Arm.HOLDBACK:  # which may be too small to have anything
                    raise
        effect = max((design_effect(found) for found in self._outcomes.values() if found.total > 0), default=1.0)
        evidence = self._evidence(counts, ArmCounts((0.0,), (0.0,)), borrowed_effect=effect)
        return SloMeasurement(slo.name, evidence=evidence)

    def _arms(self) -> tuple[Arm, ...]:
        return (Arm.CONTROL, Arm.HOLDBACK) if self._look.idle else (Arm.TREATMENT, Arm.CONTROL, Arm.HOLDBACK)

    async def _values(self, template: str) -> dict[Arm, float]:
        """Only the arm on trial must have a value: it is judged by its bound alone."""
        first, *others = self._arms()
        values = {Arm.TREATMENT: await self._number(template, first)}
        for arm in others:
            try:
                value = await self._number(template, arm)
            except Unusable:
                continue
            values[Arm.CONTROL if self._look.idle else arm] = value
        return values

    async def _number(self, template: str, arm: Arm) -> float:
        text = queries.fill(template, arm=arm, window_seconds=self._look.seconds, scope=self._look.scope)
        return single(await self._metrics.query(text, self._look.now), arm)


def single(answer: Vector, arm: str) -> float:
    """The one number that a query of the user's own must give."""
    if not answer:
        raise Unusable("NoData", f"the query gives nothing for the {arm} arm")
    if len(answer) > 1:
        labels = sorted({name for found, _ in answer for name in found})
        raise Unusable(
            "SeveralSeries",
            f"the query gives {len(answer)} series for the {arm} arm (by {', '.join(labels[:5])})",
        )
    value = answer[0][1]
    if not math.isfinite(value):
        raise Unusable("NotANumber", f"the query gives {value} for the {arm} arm, as a division by zero does")
    return value
