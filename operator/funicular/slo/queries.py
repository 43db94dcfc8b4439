"""PromQL for the SLOs, and what its answers mean. Pure: the evaluator asks, the statistics judge.

Counts are exact: no extrapolation as in increase(), a series born within the window counts from zero, and what a restarted
or removed pod had counted is not lost. The exact form costs two sub-queries, so a cheap `frame` query says first whether
anything restarted or vanished in the window; mostly nothing has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from funicular.api.duration import seconds
from funicular.api.spec import LATENCY_QUANTILE, Indicator, Query, Slo
from funicular.errors import InvalidPolicy, InvalidQuery, OurBug
from funicular.slo.model import REPLICATES, Arm, ArmCounts, Question

Vector = Sequence[tuple[Mapping[str, str], float]]

OUTCOMES = "funicular_outcomes_total"
SLOW = "funicular_slow_total"
FEEDBACK = "funicular_replicate_feedback_total"
COST = "funicular_replicate_cost_dollars_total"
REQUESTS = "funicular_requests_total"
LOOKBACK = "5m"  # Prometheus's own: how long a sample speaks for its series


# --- what is asked ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Scope:
    """Whose series."""

    namespace: str
    policy: str
    revision: str

    def selector(self, *more: str) -> str:
        own = (f'namespace="{self.namespace}"', f'policy="{self.policy}"', f'revision="{self.revision}"')
        return "{" + ",".join((*own, *more)) + "}"


@dataclass(frozen=True, slots=True)
class Window:
    """From `start` to `end`, seconds since the epoch. disturbed: a pod restarted or vanished in it (see `frame`)."""

    start: float
    end: float
    disturbed: bool = False

    @property
    def millis(self) -> int:
        return max(1000, round((self.end - self.start) * 1000))


def count(series: str, by: Sequence[str], window: Window) -> str:
    """How far the counters of `series` rose in the window, summed by labels.

    Start: the last sample before it, within Prometheus's lookback. A series that has none is newborn and began at zero. In a
    disturbed window the end is the last sample that the series ever had in it, and the value before each reset is added.
    """
    start, end = f"{window.start:.3f}", f"{window.end:.3f}"
    before = f"last_over_time({series}[{LOOKBACK}] @ {start})"
    now = f"{series} @ {end}"
    if not window.disturbed:
        return f"sum by ({', '.join(by)}) (({now} - {before}) >= 0 or {now})"
    step = max(1000, window.millis // 1000)
    last = f"({now} or last_over_time({series}[{window.millis}ms:{step}ms] @ {end}))"
    inner = max(step, window.millis - step)  # a reset in the first step may lie before the start
    previous = f"last_over_time({series}[{LOOKBACK}] offset {step}ms)"
    lost = f"sum_over_time(({previous} > {series})[{inner}ms:{step}ms] @ {end})"
    total = f"({last} + {lost} or {last})"
    return f"sum by ({', '.join(by)}) (({total} - {before}) >= 0 or ({total} unless {before}) or {last})"


def outcomes(scope: Scope, window: Window) -> str:
    return count(OUTCOMES + scope.selector(), ("arm", "replicate", "outcome"), window)


def slow(scope: Scope, window: Window) -> str:
    return count(SLOW + scope.selector(), ("arm", "replicate", "indicator"), window)


def thumbs(scope: Scope, window: Window) -> str:
    return count(FEEDBACK + scope.selector('kind=~"thumbs_up|thumbs_down"'), ("arm", "replicate", "kind"), window)


def cost(scope: Scope, window: Window) -> str:
    return count(COST + scope.selector(), ("arm", "replicate"), window)


def frame(scope: Scope, window: Window) -> str:
    """Three numbers by label `what`: seconds since the last sample (age), counter resets, and series that vanished.

    The requests' series stand for all: a few for each pod, and they restart and vanish with the others."""
    requests = REQUESTS + scope.selector()
    across = f"{window.millis}ms"
    parts = {
        "age": f"time() - max(timestamp({OUTCOMES}{scope.selector()}))",
        "resets": f"sum(resets({requests}[{across}]))",
        "vanished": f"count(last_over_time({requests}[{across}]) unless {requests})",
    }
    return " or ".join(f'label_replace({q}, "what", "{what}", "", "")' for what, q in parts.items())


def renamed(scope: Scope) -> str:
    """Whether Prometheus put the scraped pod's namespace over the policy's, as it does without honor_labels."""
    own = (f'exported_namespace="{scope.namespace}"', f'policy="{scope.policy}"', f'revision="{scope.revision}"')
    return f"count({REQUESTS}{{{','.join(own)}}})"


def share_series(metric: str, labels: Sequence[str], window_seconds: int, selector: str = "") -> str:
    """All policies at once, for screening: how far counters rose in the last seconds, at the cost of two lookups a series."""
    series = f'{metric}{{arm=~"control|holdback"{selector}}}'
    by = ("namespace", "policy", "revision", "arm", *labels)
    return f"sum by ({', '.join(by)}) (({series} - {series} offset {window_seconds}s) >= 0 or {series})"


# --- queries of the user's own ---------------------------------------------------------------------------------------
_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_]*)\s*\}\}")
_SAFE = re.compile(r"[A-Za-z0-9._-]*")
PLACEHOLDERS = ("arm", "window", "policy", "namespace", "revision")


def fill(template: str, *, arm: str, window_seconds: float, scope: Scope) -> str:
    """`{{arm}}` and the others replaced by values that can neither end a string nor add a matcher. Raises InvalidQuery."""
    values = {
        "arm": str(arm),
        "window": f"{max(1, math.floor(window_seconds))}s",
        "policy": scope.policy,
        "namespace": scope.namespace,
        "revision": scope.revision,
    }
    for name, value in values.items():
        if not _SAFE.fullmatch(value):
            raise OurBug(f"{name} {value!r} cannot stand in a query")

    def value_of(match: re.Match[str]) -> str:
        if match[1] not in values:
            known = ", ".join("{{" + name + "}}" for name in PLACEHOLDERS)
            raise InvalidQuery(f"{match[0]} is not known", remedy=f"use {known}")
        return values[match[1]]

    return _PLACEHOLDER.sub(value_of, template)


def parts_of(query: Query) -> tuple[tuple[str, str], ...]:
    """(member, template) of what has to be asked, good before total."""
    named = (("good", query.good), ("total", query.total), ("value", query.value))
    return tuple((name, text) for name, text in named if text)


# --- what the answers mean -------------------------------------------------------------------------------------------
def by_replicate(vector: Vector, label: str | None = None) -> dict[tuple[Arm, str], tuple[float, ...]]:
    """(arm, value of `label`) -> a value for each replicate. Samples of unknown arms or replicates are left out."""
    found: dict[tuple[Arm, str], list[float]] = {}
    for labels, value in vector:
        arm, replicate = labels.get("arm", ""), labels.get("replicate", "")
        if arm in list(Arm) and replicate.isdigit() and int(replicate) < REPLICATES and math.isfinite(value):
            at = (Arm(arm), labels.get(label, "") if label else "")
            found.setdefault(at, [0.0] * REPLICATES)[int(replicate)] += value
    return {at: tuple(values) for at, values in found.items()}


NONE = (0.0,) * REPLICATES


def added(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def outcome_counts(vector: Vector) -> dict[Arm, ArmCounts]:
    """Answered requests and bad ones."""
    found = by_replicate(vector, "outcome")
    arms = {arm for arm, _ in found}
    return {
        arm: ArmCounts(
            n=added(found.get((arm, "good"), NONE), found.get((arm, "bad"), NONE)), x=found.get((arm, "bad"), NONE)
        )
        for arm in arms
    }


def slow_counts(vector: Vector, indicator: Indicator, answered: Mapping[Arm, ArmCounts]) -> dict[Arm, ArmCounts]:
    """Answers over the bound, of all answered. No series of this indicator: nothing, rather than no slow answers."""
    found = by_replicate(vector, "indicator")
    return {
        arm: ArmCounts(n=counts.n, x=_at_most(found[arm, indicator.value], counts.n))
        for arm, counts in answered.items()
        if (arm, indicator.value) in found
    }


def thumb_counts(vector: Vector) -> dict[Arm, ArmCounts]:
    """Thumbs down, of all thumbs."""
    found = by_replicate(vector, "kind")
    arms = {arm for arm, _ in found}
    ups = {arm: found.get((arm, "thumbs_up"), NONE) for arm in arms}
    downs = {arm: found.get((arm, "thumbs_down"), NONE) for arm in arms}
    return {arm: ArmCounts(n=added(ups[arm], downs[arm]), x=downs[arm]) for arm in arms}


def cost_counts(vector: Vector, answered: Mapping[Arm, ArmCounts]) -> dict[Arm, ArmCounts]:
    """Dollars, of all answered."""
    found = by_replicate(vector)
    return {arm: ArmCounts(n=counts.n, x=found[arm, ""]) for arm, counts in answered.items() if (arm, "") in found}


def _at_most(values: Sequence[float], limits: Sequence[float]) -> tuple[float, ...]:
    """Two counters of one scrape may differ by a request that was just under way."""
    return tuple(min(v, limit) for v, limit in zip(values, limits, strict=True))


# --- an SLO as a question --------------------------------------------------------------------------------------------
def counts_good(slo: Slo) -> bool:
    """Whether `query.good` counts what shall be rare (its bound is a `max`), so that it is the bad events itself."""
    return slo.max is not None or slo.allowed_increase is not None


def question_of(slo: Slo, step_min_samples: int) -> Question:
    """Bounds on the share of bad events (or on a mean): a `min` on a good share becomes a `maximum` on the bad share.

    Raises InvalidPolicy where the bounds contradict the direction; the schema's rules refuse that before."""
    maximum, increase, kind = slo.max, slo.allowed_increase, "proportion"
    rising = True  # more is worse
    if slo.indicator in LATENCY_QUANTILE:
        maximum = round(1 - LATENCY_QUANTILE[slo.indicator], 6)
    elif slo.indicator is Indicator.COST_PER_REQUEST:
        kind = "mean"
    elif slo.indicator is Indicator.THUMBS_UP_RATE:
        rising = False
    elif slo.query is not None:
        kind = "mean" if slo.query.value else "proportion"
        rising = counts_good(slo) or (kind == "mean" and slo.min is None and slo.allowed_decrease is None)
    if not rising:
        if slo.max is not None or slo.allowed_increase is not None:
            raise InvalidPolicy(
                f"SLO {slo.name}: more is better, so max and allowedIncrease mean nothing",
                field="spec.slos",
                remedy="use min and allowedDecrease",
            )
        increase = slo.allowed_decrease
        maximum = None if slo.min is None else (1 - slo.min if kind == "proportion" else -slo.min)
    elif slo.min is not None or slo.allowed_decrease is not None:
        raise InvalidPolicy(
            f"SLO {slo.name}: less is better, so min and allowedDecrease mean nothing",
            field="spec.slos",
            remedy="use max and allowedIncrease",
        )
    return Question(
        name=slo.name,
        kind=kind,
        maximum=None if maximum is None else round(maximum, 9),
        allowed_increase=increase,
        allowed_from_baseline=slo.allowed_from_baseline,
        min_samples=slo.min_samples or step_min_samples,
        of=counted(slo),
        trials="votes" if slo.indicator is Indicator.THUMBS_UP_RATE else "events" if slo.query else "requests",
    )


def counted(slo: Slo) -> str:
    """What the judged rate counts, in words: bad events, also where the SLO is declared on good ones."""
    if slo.indicator in LATENCY_QUANTILE:
        return f"over {slo.bound}"
    if slo.query is not None:
        return "" if slo.query.value else "good" if counts_good(slo) else "not good"
    words = {
        Indicator.ERROR_RATE: "failed",
        Indicator.THUMBS_UP_RATE: "thumbs down",
        Indicator.COST_PER_REQUEST: "dollars",
    }
    return words[slo.indicator] if slo.indicator is not None else ""


def ratio_counts(slo: Slo, good: float, total: float) -> ArmCounts:
    """An own query's two counts as one replicate of bad events."""
    total = max(total, good)
    return ArmCounts(n=(total,), x=(good if counts_good(slo) else total - good,))


def value_counts(slo: Slo, value: float) -> ArmCounts:
    """An own query's value as a mean of one; turned around where more is better, as `question_of` turns its bound."""
    turned = slo.min is not None or slo.allowed_decrease is not None
    return ArmCounts(n=(1.0,), x=(-value if turned else value,))


def bound_seconds(slo: Slo) -> float | None:
    return seconds(slo.bound) if slo.bound else None


def decisions(scope: Scope, window: Window, arm: Arm = Arm.TREATMENT) -> str:
    """An arm's requests by how the strategy came to its choice; a request without a unit says nothing of that."""
    selector = scope.selector(f'arm="{arm}"', 'reason!="no_unit"')
    return count("funicular_decisions_total" + selector, ("reason",), window)


UNDECIDED = ("no_answer", "unknown_label", "not_asked")


def exercised(vector: Vector) -> float | None:
    """Share of the treated requests for which the strategy gave a usable answer; None without requests."""
    total = sum(value for _, value in vector)
    return 1 - sum(undecided(vector).values()) if total > 0 else None


def undecided(vector: Vector) -> dict[str, float]:
    """Shares of the treated requests that the baseline answered because the strategy did not decide, by reason."""
    total = sum(value for _, value in vector)
    by_reason: dict[str, float] = {}
    for labels, value in vector:
        if labels.get("reason") in UNDECIDED and total > 0 and value > 0:
            by_reason[labels["reason"]] = by_reason.get(labels["reason"], 0.0) + value / total
    return by_reason
