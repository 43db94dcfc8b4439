"""The pure query builder: texts, the meaning of answers, SLOs as questions. The counts themselves: tests/integration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from funicular.api.spec import Indicator, Query, Slo
from funicular.errors import InvalidPolicy, InvalidQuery, OurBug
from funicular.slo import queries
from funicular.slo.model import REPLICATES, Arm, ArmCounts, Question
from funicular.slo.queries import Scope, Window

SCOPE = Scope("shop", "chat", "abc123")


def slo(**fields: Any) -> Slo:
    return Slo.model_validate({"name": "s", **fields})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param(
            {"indicator": "ErrorRate", "max": 0.01, "allowedIncrease": 0.002, "allowedFromBaseline": 0.005},
            Question("s", maximum=0.01, allowed_increase=0.002, allowed_from_baseline=0.005),
            id="a rate of errors is the share of bad events itself",
        ),
        pytest.param(
            {"indicator": "LatencyP95", "bound": "4s"},
            Question("s", maximum=0.05),
            id="a percentile within its bound is at most 5 % over it",
        ),
        pytest.param({"indicator": "LatencyP99", "bound": "4s"}, Question("s", maximum=0.01), id="at most 1 %"),
        pytest.param({"indicator": "LatencyP50", "bound": "4s"}, Question("s", maximum=0.5), id="at most half"),
        pytest.param(
            {"indicator": "TimeToFirstToken", "bound": "1s", "allowedIncrease": 0.02},
            Question("s", maximum=0.05, allowed_increase=0.02),
            id="the first token by its 95th percentile",
        ),
        pytest.param(
            {"indicator": "ThumbsUpRate", "min": 0.9, "allowedDecrease": 0.02, "minSamples": 50},
            Question("s", maximum=0.1, allowed_increase=0.02, min_samples=50),
            id="at least 90 % thumbs up is at most 10 % down",
        ),
        pytest.param(
            {"indicator": "CostPerRequest", "max": 0.01, "allowedIncrease": 0.0},
            Question("s", kind="mean", maximum=0.01, allowed_increase=0.0),
            id="cost is a mean",
        ),
        pytest.param(
            {"query": {"good": "g", "total": "t"}, "min": 0.8, "allowedDecrease": 0.05},
            Question("s", maximum=0.2, allowed_increase=0.05),
            id="good events of one's own",
        ),
        pytest.param(
            {"query": {"good": "g", "total": "t"}, "max": 0.05},
            Question("s", maximum=0.05),
            id="a max on one's own events makes them the bad ones",
        ),
        pytest.param(
            {"query": {"value": "v"}, "max": 3},
            Question("s", kind="mean", maximum=3.0),
            id="a value with an upper bound",
        ),
        pytest.param(
            {"query": {"value": "v"}, "min": 3},
            Question("s", kind="mean", maximum=-3.0),
            id="a value with a lower bound is turned around",
        ),
    ],
)
def test_an_slo_as_a_question(fields: dict[str, Any], expected: Question) -> None:
    assert replace(queries.question_of(slo(**fields), 300), of="", trials="requests") == expected


@pytest.mark.parametrize(
    ("fields", "of", "trials"),
    [
        pytest.param({"indicator": "ErrorRate", "max": 0.01}, "failed", "requests", id="errors"),
        pytest.param({"indicator": "LatencyP95", "bound": "4s"}, "over 4s", "requests", id="latency"),
        pytest.param(
            {"indicator": "ThumbsUpRate", "min": 0.9}, "thumbs down", "votes", id="thumbs are judged by those down"
        ),
        pytest.param(
            {"query": {"good": "a", "total": "b"}, "min": 0.9}, "not good", "events", id="good events of one's own"
        ),
    ],
)
def test_a_verdict_says_what_it_counts(fields: dict[str, Any], of: str, trials: str) -> None:
    question = queries.question_of(slo(**fields), 300)
    assert (question.of, question.trials) == (of, trials)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"indicator": "ThumbsUpRate", "max": 0.9}, id="thumbs up may not be too many"),
        pytest.param({"indicator": "ErrorRate", "min": 0.1}, id="errors may not be too few"),
        pytest.param({"query": {"good": "g", "total": "t"}, "max": 0.1, "allowedDecrease": 0.1}, id="both directions"),
    ],
)
def test_contradictory_bounds_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        queries.question_of(slo(**fields), 300)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("fields", "good", "total", "bad"),
    [
        pytest.param({"min": 0.8}, 90, 100, 10, id="the rest is bad"),
        pytest.param({"max": 0.2}, 90, 100, 90, id="what is counted is bad"),
        pytest.param({"min": 0.8}, 100.4, 100, 0, id="more good than all, by extrapolation"),
    ],
)
def test_counts_of_ones_own(fields: dict[str, Any], good: float, total: float, bad: float) -> None:
    counts = queries.ratio_counts(slo(query={"good": "g", "total": "t"}, **fields), good, total)
    assert counts.events == bad
    assert counts.rate <= 1


def test_templates_are_filled() -> None:
    text = 'x{arm="{{arm}}",p="{{ policy }}",n="{{namespace}}",r="{{revision}}"}[{{window}}]'
    filled = queries.fill(text, arm=Arm.TREATMENT, window_seconds=90.7, scope=SCOPE)
    assert filled == 'x{arm="treatment",p="chat",n="shop",r="abc123"}[90s]'


@pytest.mark.parametrize("seconds", [-5.0, 0.0, 0.4])
def test_a_window_is_never_empty(seconds: float) -> None:
    assert queries.fill("[{{window}}]", arm=Arm.CONTROL, window_seconds=seconds, scope=SCOPE) == "[1s]"


def test_an_unknown_placeholder_is_refused_with_what_there_is() -> None:
    with pytest.raises(InvalidQuery, match="user") as caught:
        queries.fill("{{user}}", arm=Arm.CONTROL, window_seconds=1, scope=SCOPE)
    assert "{{window}}" in caught.value.remedy


def test_no_value_can_leave_its_string() -> None:
    with pytest.raises(OurBug):
        queries.fill("{{policy}}", arm=Arm.CONTROL, window_seconds=1, scope=Scope("n", 'x"} or vector(1)', "r"))


def test_braces_of_promql_are_left_alone() -> None:
    text = 'sum(rate(x{a="b"}[5m])) by (c)'
    assert queries.fill(text, arm=Arm.CONTROL, window_seconds=1, scope=SCOPE) == text


def test_a_calm_window_is_cheap_and_never_extrapolates() -> None:
    text = queries.outcomes(SCOPE, Window(1000.0, 1300.0))
    assert ":" not in text  # no sub-query
    assert "increase" not in text
    assert "rate(" not in text
    assert text.startswith("sum by (arm, replicate, outcome)")
    assert "@ 1000.000" in text
    assert "@ 1300.000" in text


@pytest.mark.parametrize(
    ("seconds", "step"),
    [
        pytest.param(5, 1000, id="never under a second"),
        pytest.param(7 * 86400, 604_800, id="a thousandth of a long one"),
    ],
)
def test_a_disturbed_window_looks_at_a_thousand_instants_at_most(seconds: int, step: int) -> None:
    text = queries.outcomes(SCOPE, Window(0.0, float(seconds), disturbed=True))
    assert f":{step}ms]" in text


def sample(arm: str, replicate: int, value: float, **labels: str) -> tuple[dict[str, str], float]:
    return {"arm": arm, "replicate": str(replicate), **labels}, value


def test_outcomes_by_replicate() -> None:
    vector = [
        sample("treatment", 0, 5, outcome="good"),
        sample("treatment", 0, 1, outcome="bad"),
        sample("treatment", 63, 2, outcome="good"),
        sample("nonsense", 0, 9, outcome="good"),
        sample("control", 64, 9, outcome="good"),
        sample("control", 1, float("nan"), outcome="good"),
    ]
    found = queries.outcome_counts(vector)
    assert set(found) == {Arm.TREATMENT}
    counts = found[Arm.TREATMENT]
    assert (counts.n[0], counts.n[63], counts.total, counts.events) == (6, 2, 8, 1)
    assert len(counts.n) == REPLICATES


def spread(n: float, x: float = 0.0) -> ArmCounts:
    rest = (0.0,) * (REPLICATES - 1)
    return ArmCounts((n, *rest), (x, *rest))


def test_slow_answers_are_shares_of_all_answers() -> None:
    answered = {Arm.TREATMENT: spread(10), Arm.CONTROL: spread(20)}
    vector = [sample("treatment", 0, 11, indicator="LatencyP95"), sample("control", 0, 1, indicator="LatencyP99")]
    found = queries.slow_counts(vector, Indicator.LATENCY_P95, answered)
    assert found == {Arm.TREATMENT: spread(10, 10)}  # one more than answered: it was under way


def test_thumbs_down_are_shares_of_all_thumbs() -> None:
    vector = [sample("control", 0, 3, kind="thumbs_up"), sample("control", 0, 1, kind="thumbs_down")]
    assert queries.thumb_counts(vector) == {Arm.CONTROL: spread(4, 1)}


def test_cost_is_divided_by_all_answers() -> None:
    assert queries.cost_counts([sample("control", 0, 0.5)], {Arm.CONTROL: spread(10)}) == {Arm.CONTROL: spread(10, 0.5)}


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        pytest.param({"classified": 90, "no_answer": 10}, 0.9, id="a tenth without an answer"),
        pytest.param({"classified": 50, "fallback": 50}, 1.0, id="a fallback had been decided"),
        pytest.param({"no_answer": 10}, 0.0, id="a classifier that never answers"),
        pytest.param({}, None, id="no requests"),
    ],
)
def test_how_often_the_strategy_decided(reasons: dict[str, float], expected: float | None) -> None:
    assert queries.exercised([({"reason": k}, v) for k, v in reasons.items()]) == expected


def test_parts_of_a_query_in_order() -> None:
    assert queries.parts_of(Query(total="t", good="g")) == (("good", "g"), ("total", "t"))
    assert queries.parts_of(Query(value="v")) == (("value", "v"),)
