from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from funicular.adapters.clock import SystemClock
from funicular.api.policy import parse_policy
from funicular.controller.evaluator import BackgroundEvaluator
from funicular.controller.measuring import Look, look_at, measure
from funicular.controller.preflight import ask
from funicular.controller.screening import Bound, is_suspicious
from funicular.controller.store import ClusterStore
from funicular.errors import AccessDenied, InvalidQuery, MetricsUnavailable
from funicular.slo.model import REPLICATES, Arm
from funicular.slo.queries import Scope
from tests.builders import make_spec, spec_body
from tests.controller.fakes import NOW, FakeClients, FakeMetrics, until

Json = dict[str, Any]
SCOPE = Scope("shop", "chat", "r2")
CALM = [({"what": "age"}, 3.0), ({"what": "resets"}, 0.0)]


def outcomes(treatment: int = 100, control: int = 900, bad: int = 10) -> list[tuple[Json, float]]:
    found = []
    for arm, n in (("treatment", treatment), ("control", control), ("holdback", 50)):
        found += [({"arm": arm, "replicate": str(r), "outcome": "good"}, n / 10) for r in range(9)]
        found += [({"arm": arm, "replicate": "9", "outcome": "bad"}, float(bad))]
    return found


def metrics(**more: Any) -> FakeMetrics:
    answers = {"timestamp(": CALM, "funicular_slow_total": [], "funicular_replicate_feedback_total": []}
    return FakeMetrics({**answers, **more, "funicular_outcomes_total": outcomes()})


def look(**changes: Any) -> Look:
    fields = {
        "scope": SCOPE,
        "version": 3,
        "begin": NOW,
        "now": NOW + timedelta(seconds=305),
        "idle": False,
        "interval": 5.0,
    }
    return Look(**{**fields, **changes})


async def test_a_look_is_bound_to_what_it_measured() -> None:
    found = await measure(metrics(), make_spec(), look())
    assert (found.version, found.revision, found.started_at, found.error) == (3, "r2", NOW, "")
    (errors,) = found.slos
    assert errors.evidence is not None
    assert errors.evidence.treatment.events == 10
    assert errors.evidence.window_seconds == 300
    assert errors.evidence.holdback is not None
    assert found.samples == 100
    assert found.observed_share == 1087  # 100 of 920


async def test_the_window_never_reaches_back_before_the_step() -> None:
    """Rule 5: the last sample before an instant is up to one interval old, so counting begins one interval later."""
    asked = metrics()
    await measure(asked, make_spec(), look())
    (query,) = [q for q in asked.asked if "sum by (arm, replicate, outcome)" in q]
    assert f"@ {(NOW + timedelta(seconds=5)).timestamp():.3f}" in query


async def test_in_the_steady_state_what_is_served_is_compared_with_the_holdback() -> None:
    found = await measure(metrics(), make_spec(), look(idle=True))
    evidence = found.slos[0].evidence
    assert evidence is not None
    assert (evidence.treatment.total, evidence.control.total) == (820, 55)
    assert found.idle


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        pytest.param([], "NoData", id="no series yet"),
        pytest.param([({"what": "vanished"}, 4.0)], "Stale", id="series that are gone"),
        pytest.param([({"what": "age"}, 15.1)], "Stale", id="a sample older than three intervals"),
        pytest.param(MetricsUnavailable("down"), "MetricsUnavailable", id="Prometheus is down"),
        pytest.param(AccessDenied("401"), "AccessDenied", id="Prometheus refuses us"),
    ],
)
async def test_a_whole_look_fails(frame: Any, error: str) -> None:
    found = await measure(metrics(**{"timestamp(": frame}), make_spec(), look())
    assert found.error == error
    assert found.message
    assert found.slos == ()


async def test_a_renamed_namespace_is_told_with_the_remedy() -> None:
    found = await measure(metrics(**{"timestamp(": [], "exported_namespace": [({}, 12.0)]}), make_spec(), look())
    assert "honorLabels" in found.message


@pytest.mark.parametrize("event", ["resets", "vanished"])
async def test_a_restart_in_the_window_costs_the_exact_query(event: str) -> None:
    asked = metrics(**{"timestamp(": [({"what": "age"}, 1.0), ({"what": event}, 2.0)]})
    await measure(asked, make_spec(), look())
    assert any("sum_over_time" in q for q in asked.asked)


OWN = {"name": "own", "query": {"good": 'g{a="{{arm}}"}', "total": 't{a="{{arm}}"}'}, "min": 0.8}


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        pytest.param({"g{": [], "t{": [({}, 10.0)]}, "NoData", id="nothing"),
        pytest.param(
            {"g{": [({"x": "1"}, 1.0), ({"x": "2"}, 1.0)], "t{": [({}, 10.0)]}, "SeveralSeries", id="several series"
        ),
        pytest.param({"g{": [({}, float("nan"))], "t{": [({}, 10.0)]}, "NotANumber", id="no number"),
        pytest.param({"g{": InvalidQuery("parse error")}, "InvalidQuery", id="does not parse"),
        pytest.param({"g{": MetricsUnavailable("503")}, "MetricsUnavailable", id="overload"),
    ],
)
async def test_one_slo_that_cannot_be_asked_does_not_silence_the_others(answers: Json, error: str) -> None:
    spec = make_spec(slos=[{"name": "errors", "indicator": "ErrorRate", "max": 0.5}, OWN])
    found = await measure(metrics(**answers), spec, look())
    assert found.error == ""
    assert found.slos[0].evidence is not None
    assert (found.slos[1].error, found.slos[1].evidence) == (error, None)


async def test_ones_own_counts_borrow_the_design_effect_of_the_built_in_ones() -> None:
    spec = make_spec(slos=[OWN])
    found = await measure(metrics(**{"g{": [({}, 90.0)], "t{": [({}, 100.0)]}), spec, look())
    evidence = found.slos[0].evidence
    assert evidence is not None
    assert evidence.treatment.n == (100.0,)
    assert evidence.treatment.x == (10.0,)
    assert evidence.borrowed_effect is not None
    assert evidence.borrowed_effect > 1


async def test_a_value_is_one_number_an_arm() -> None:
    spec = make_spec(slos=[{"name": "v", "query": {"value": 'v{a="{{arm}}"}'}, "max": 3}])
    found = await measure(metrics(**{'a="treatment"': [({}, 2.5)], 'a="control"': []}), spec, look())
    assert found.slos[0].values == {Arm.TREATMENT: 2.5}


async def test_latency_slos_share_one_query() -> None:
    slos = [{"name": i.lower(), "indicator": i, "bound": "4s"} for i in ("LatencyP50", "LatencyP95", "LatencyP99")]
    slow = [({"arm": "treatment", "replicate": "1", "indicator": "LatencyP95"}, 2.0)]
    asked = metrics(funicular_slow_total=slow)
    found = await measure(asked, make_spec(slos=slos), look())
    assert len([q for q in asked.asked if "funicular_slow_total" in q]) == 1
    assert [m.error for m in found.slos] == ["NoData", "", "NoData"]
    assert found.slos[1].evidence is not None
    assert len(found.slos[1].evidence.treatment.x) == REPLICATES


# --- preflight -------------------------------------------------------------------------------------------------------
async def test_preflight_names_the_field_and_the_remedy() -> None:
    spec = make_spec(slos=[{"name": "errors", "indicator": "ErrorRate", "max": 0.5}, OWN])
    found = await ask(FakeMetrics({"g{": InvalidQuery("1:3: parse error", remedy="correct it")}), spec, SCOPE, NOW)
    (problem,) = found
    assert (problem.field, problem.reason, problem.remedy) == ("spec.slos[1].query.good", "InvalidQuery", "correct it")


async def test_preflight_does_not_mind_that_nothing_was_counted_yet() -> None:
    asked = FakeMetrics({"g{": [], "t{": [({}, float("nan"))]})
    assert await ask(asked, make_spec(slos=[OWN]), SCOPE, NOW) == ()


async def test_preflight_of_a_prometheus_that_is_down_is_one_problem() -> None:
    (problem,) = await ask(FakeMetrics({"vector": MetricsUnavailable("refused")}), make_spec(slos=[OWN]), SCOPE, NOW)
    assert (problem.field, problem.reason) == ("spec.prometheus", "MetricsUnavailable")


# --- the evaluator in time -------------------------------------------------------------------------------------------
class Rig:
    def __init__(self, answers: FakeMetrics, check: float = 3600) -> None:
        self.metrics = answers
        self.woken: list[str] = []
        self.store = ClusterStore(lambda key: None, self._listen)
        self.evaluator = BackgroundEvaluator(
            self.store, FakeClients(answers), self.woken.append, SystemClock(), idle_check_seconds=check
        )
        self.versions = 0

    def _listen(self, key: str, body: Json | None) -> None:
        self.evaluator.listen(key, body)

    def ramp(self, version: int = 1, ago: float = 10.0, **spec: Any) -> None:
        began = (SystemClock().now() - timedelta(seconds=ago)).isoformat()
        step = {"index": 0, "of": 4, "share": 100, "enteredAt": began, "startedAt": began}
        self.put(self.traffic("r2", version, candidate=True), {"step": step}, **spec)

    def promoted(self, ago: float = 86400.0, **spec: Any) -> None:
        since = (SystemClock().now() - timedelta(seconds=ago)).isoformat()
        self.put(self.traffic("r1", 5, candidate=False), {"stable": {"revision": "r1", "since": since}}, **spec)

    @staticmethod
    def traffic(revision: str, version: int, candidate: bool) -> Json:
        stable = {"revision": "r1", "upstreams": [], "baseline": "frontier", "single": "mini"}
        more = {"candidate": {**stable, "revision": revision}} if candidate else {}
        shared = {"selector": {}, "units": [], "endpoint": "support-chat", "holdback": 100, "share": {"desired": 100}}
        return {"version": version, "revision": revision, "stable": stable, **shared, **more}

    def put(self, traffic: Json, status: Json, **spec: Any) -> None:
        self.versions += 1
        prometheus = {"url": "http://p:9090", "interval": "50ms"}
        self.store.put(
            {
                "apiVersion": "routing.funicular.dev/v1alpha1",
                "kind": "RoutingPolicy",
                "metadata": {"namespace": "shop", "name": "chat", "uid": "u1", "resourceVersion": str(self.versions)},
                "spec": spec_body(**{"prometheus": prometheus, **spec}),
                "status": {"traffic": traffic, **status},
            }
        )


async def make_rig(answers: FakeMetrics, **options: Any) -> AsyncIterator[Rig]:
    rig = Rig(answers, **options)
    task = asyncio.create_task(rig.evaluator.run())
    yield rig
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    fresh = metrics(**{"timestamp(": [({"what": "age"}, 0.01)]})
    async for running in make_rig(fresh, check=0.05):
        yield running


async def test_a_ramping_policy_is_looked_at_every_interval_and_woken(rig: Rig) -> None:
    rig.ramp()
    await until(lambda: len(rig.woken) >= 3)
    found = rig.evaluator.latest("u1")
    assert found is not None
    assert (found.version, found.revision, found.idle) == (1, "r2", False)


async def test_a_step_that_has_not_begun_is_not_measured(rig: Rig) -> None:
    rig.put(
        rig.traffic("r2", 1, candidate=True),
        {"step": {"index": 0, "of": 4, "share": 100, "enteredAt": NOW.isoformat()}},
    )
    await asyncio.sleep(0.2)
    assert rig.evaluator.latest("u1") is None
    rig.ramp(version=1)
    await until(lambda: rig.evaluator.latest("u1"))


async def test_a_policy_that_is_gone_leaves_nothing(rig: Rig) -> None:
    rig.ramp()
    await until(lambda: rig.evaluator.latest("u1"))
    rig.store.drop("shop/chat")
    await asyncio.sleep(0.2)
    assert rig.evaluator.latest("u1") is None
    assert not rig.evaluator._bound


async def test_an_outage_is_a_look_too(rig: Rig) -> None:
    rig.metrics.answers["timestamp("] = MetricsUnavailable("down")
    rig.ramp()
    await until(lambda: rig.evaluator.latest("u1"))
    found = rig.evaluator.latest("u1")
    assert found is not None
    assert found.error == "MetricsUnavailable"


async def test_a_promoted_policy_is_only_screened(rig: Rig) -> None:
    rig.promoted()
    await until(lambda: [q for q in rig.metrics.asked if "offset" in q])
    assert rig.evaluator.latest("u1") is None
    assert all("offset" in q for q in rig.metrics.asked)


def drifting(query: str) -> list[tuple[Json, float]]:
    """The screening's answer: the served arm has 20 % errors, the holdback none."""
    labels = {"namespace": "shop", "policy": "chat", "revision": "r1"}
    rows = (("control", "good", 800.0), ("control", "bad", 200.0), ("holdback", "good", 100.0))
    return [({**labels, "arm": arm, "outcome": outcome}, value) for arm, outcome, value in rows]


async def test_a_suspicion_begins_a_fresh_window_and_a_close_watch(rig: Rig) -> None:
    rig.metrics.answers = {"offset": drifting, **rig.metrics.answers}
    before = SystemClock().now()
    rig.promoted()
    await until(lambda: len(rig.woken) >= 2)
    found = rig.evaluator.latest("u1")
    assert found is not None
    assert found.idle
    assert found.started_at >= before  # not the data that raised the suspicion


async def test_a_thousand_promoted_policies_cost_as_many_queries_as_one() -> None:
    asked = metrics()
    async for rig in make_rig(asked, check=0.05):
        since = (SystemClock().now() - timedelta(days=1)).isoformat()
        for i in range(1000):
            body = {
                "metadata": {"namespace": "shop", "name": f"p{i}", "uid": f"u{i}", "resourceVersion": str(i + 1)},
                "spec": spec_body(),
                "status": {
                    "traffic": rig.traffic("r1", 5, candidate=False),
                    "stable": {"revision": "r1", "since": since},
                },
            }
            rig.store.put(body)
        asked.asked.clear()
        await until(lambda: len(asked.asked) >= 4)
        assert set(asked.asked) == set(asked.asked[:2])  # one indicator, two windows


async def test_preflight_answers_later_and_wakes(rig: Rig) -> None:
    rig.ramp(slos=[{"name": "errors", "indicator": "ErrorRate", "max": 0.5}])
    spec = parse_policy(rig.store.get("shop/chat") or {}).spec
    assert rig.evaluator.preflight("shop/chat", spec) is None
    await until(lambda: rig.evaluator.preflight("shop/chat", spec) is not None)
    assert rig.evaluator.preflight("shop/chat", spec) == ()
    assert "shop/chat" in rig.woken


@pytest.mark.parametrize(
    ("counts", "bound", "expected"),
    [
        pytest.param((1000, 100, 100, 0), Bound("", "", 0.05, None), True, id="far over its bound"),
        pytest.param((1000, 52, 100, 0), Bound("", "", 0.05, None), False, id="over its bound by chance"),
        pytest.param((1000, 100, 1000, 20), Bound("", "", None, 0.03), True, id="far worse than the holdback"),
        pytest.param((1000, 30, 1000, 20), Bound("", "", None, 0.03), False, id="within half the margin"),
        pytest.param((20, 20, 1000, 0), Bound("", "", 0.05, 0.03), False, id="too few requests to say"),
    ],
)
def test_who_looks_suspicious(counts: tuple[int, int, int, int], bound: Bound, expected: bool) -> None:
    assert is_suspicious(*counts, bound) is expected


def test_a_look_needs_a_traffic() -> None:
    from funicular.errors import OurBug

    body = {
        "metadata": {"namespace": "n", "name": "p", "uid": "u"},
        "spec": spec_body(),
    }
    with pytest.raises(OurBug):
        look_at(parse_policy(body), NOW, NOW)
