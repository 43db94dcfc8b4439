"""What people are told: the condition and the Event name the field and the remedy, and each is said once."""

from __future__ import annotations

from datetime import timedelta

import pytest

from funicular.api.status import Condition
from funicular.api.verbs import Request, Verb
from funicular.rollout.actions import Emit
from funicular.rollout.observation import GatewayFacts, Problem, WorkloadFacts
from tests.builders import ERRORS, Ramp, evidence, make_measurements, make_spec

CLASSIFIER = {"classifier": {"image": "example.com/c:1", "routes": {"easy": "mini"}}}
NOT_READY = WorkloadFacts(True, False, "Unready", "0 of 1 pods are ready")
MISSING = Problem("spec.candidates[1].credentials.secretRef", "SecretMissing", "Secret x does not exist", "create it")


def condition(ramp: Ramp, kind: str) -> Condition:
    found = ramp.status.condition(kind)
    assert found is not None
    return found


def warnings(ramp: Ramp, reason: str) -> list[str]:
    return [it.message for it in ramp.actions if isinstance(it, Emit) and it.reason == reason and it.warning]


def test_a_classifier_that_starts_is_no_news_and_one_that_never_does_is_told_twice() -> None:
    ramp = Ramp(make_spec(strategy=CLASSIFIER), classifier=NOT_READY)
    for _ in range(14):
        ramp.tick(1)
    assert condition(ramp, "ClassifierAvailable").reason == "Starting"
    assert not [it for it in ramp.actions if isinstance(it, Emit) and it.warning]
    ramp.tick(5)
    assert condition(ramp, "ClassifierAvailable").reason == "Unready"
    assert ramp.status.phase == "Preparing"
    for _ in range(30):
        ramp.tick(5)
    assert (ramp.status.phase, condition(ramp, "Stalled").status) == ("Blocked", "True")
    for reason in ("Unready", "Blocked"):
        (text,) = warnings(ramp, reason)
        assert text.startswith(
            "spec.strategy.classifier.image: 0 of 1 pods are ready; see kubectl -n shop describe deployment/"
        )
    ramp.tick(5, classifier=WorkloadFacts(True, True))
    assert ramp.share == 100


def test_what_must_be_mended_is_told_before_what_is_only_waited_for() -> None:
    ramp = Ramp(make_spec(strategy=CLASSIFIER), classifier=NOT_READY, preflight_done=False)
    ramp.tick(problems=(MISSING,))
    assert ramp.status.message == MISSING.sentence()
    nobody = GatewayFacts()
    ramp.tick(gateways=nobody)
    assert ramp.status.message.startswith("spec.gateway.selector: no ready gateway pod carries these labels; correct")
    assert condition(ramp, "GatewaysSynced").message == ramp.status.message


def test_the_next_obstacle_is_told_when_the_first_is_mended() -> None:
    ramp = Ramp()
    other = Problem("spec.slos[0].query.good", "InvalidQuery", "it does not parse", "correct the query")
    for problems in ((MISSING, other), (MISSING, other), (other,), (other,)):
        ramp.tick(problems=problems)
    assert warnings(ramp, "Blocked") == [MISSING.sentence(), other.sentence()]


def test_a_verb_that_is_refused_is_told_once_with_the_reason() -> None:
    ramp = Ramp().to_step(0)
    request = Request(Verb.ABORT, "0123456789", "1", "ada")
    ramp.tick(request=request)
    ramp.tick()
    (text,) = warnings(ramp, "VerbRefused")
    assert text.startswith("abort of 0123456789 by ada is refused: it names revision 0123456789, but ")
    assert ramp.share == 100


def test_a_verb_that_means_nothing_now_is_told_too() -> None:
    ramp = Ramp().to_step(0)
    assert ramp.status.candidate is not None
    ramp.tick(request=Request(Verb.RETRY, ramp.status.candidate.revision, "1", "ada"))
    assert "there is nothing to retry now" in warnings(ramp, "VerbRefused")[0]


def test_an_annotation_that_is_no_verb_is_answered_with_how_to_write_one() -> None:
    ramp = Ramp().to_step(0)
    ramp.tick(bad_request="explode it")
    ramp.tick(bad_request="explode it")
    (text,) = warnings(ramp, "UnknownVerb")
    assert "'explode it' is not understood: write `<verb> <revision> <any unique id> [who]`" in text
    assert ramp.status.last_verb is not None
    assert ramp.status.last_verb.id == "not understood: explode it"


@pytest.mark.parametrize("n", [40, 64_000])
def test_an_slo_without_any_data_is_a_trouble_once_the_step_has_its_samples(n: float) -> None:
    own = {"name": "own", "query": {"value": "sum(x)"}, "max": 1}
    ramp = Ramp(make_spec(slos=[ERRORS, own])).to_step(0)
    look = make_measurements(
        ramp.status, ramp.now + timedelta(seconds=5), {"errors": evidence(), "own": "NoData"}, n=n * 100
    )
    ramp.tick(5, measurements=look)
    if n == 40:
        assert condition(ramp, "MetricsAvailable").status == "True"
        return
    (text,) = warnings(ramp, "NoData")
    assert text.startswith("spec.slos[1].query (own): NoData; check the query's metric and labels")
    assert "step 1/4 at 1 %: held: spec.slos[1].query (own): " in ramp.status.message


def test_a_classifier_that_decides_nothing_is_told_with_the_reasons() -> None:
    ramp = Ramp(make_spec(strategy=CLASSIFIER), classifier=WorkloadFacts(True, True)).to_step(0)
    slos = {"errors": evidence()}
    undecided = {"unknown_label": 0.3, "no_answer": 0.6}
    look = make_measurements(
        ramp.status, ramp.now + timedelta(seconds=5), slos, n=640_000, exercised=0.1, undecided=undecided
    )
    ramp.tick(5, measurements=look)
    (text,) = warnings(ramp, "NotDeciding")
    assert text.startswith("spec.strategy.classifier.image: 90% of the treated requests since 2026-11-25 12:0")
    assert "60% without a usable answer within spec.strategy.classifier.timeout (50ms)" in text
    assert "30% with a label that spec.strategy.classifier.routes does not list (easy)" in text
    assert ramp.share == 100


def test_what_the_pods_cannot_take_is_in_the_message() -> None:
    ramp = Ramp()
    ramp.tick()
    seen = GatewayFacts(ready=3, acked=1, errors=("shop/gateway-a: Secret shop/x, key k: forbidden",))
    ramp.tick(gateways=seen)
    assert "waiting for 2 of 3 gateway pods (shop/gateway-a: Secret shop/x, key k: forbidden)" in ramp.status.message


def test_a_policy_that_is_not_served_does_not_wait_for_gateways() -> None:
    ramp = Ramp(conflict="shop/older")
    ramp.tick()
    assert condition(ramp, "GatewaysSynced").reason == "NotServed"
    assert warnings(ramp, "EndpointTaken")[0].startswith("spec.endpoint.model: shop/older serves this endpoint")


def test_a_trouble_of_a_policy_that_rests_is_told_once_though_its_words_change() -> None:
    ramp = Ramp().to_promoted()
    for number in range(4):
        look = make_measurements(ramp.status, ramp.now, {}, error="MetricsUnavailable", message=f"try {number} failed")
        ramp.tick(60, measurements=look)
    assert len(warnings(ramp, "MetricsUnavailable")) == 1


def test_the_last_look_of_the_quiet_time_is_not_stale_when_a_ramp_begins() -> None:
    ramp = Ramp().to_promoted()
    look = make_measurements(ramp.status, ramp.now, {ERRORS["name"]: evidence()})
    ramp.tick(measurements=look)
    ramp.spec = make_spec(strategy=CLASSIFIER)
    ramp.tick(3600, measurements=look)
    ramp.tick(1, measurements=look)
    assert ramp.status.step is not None
    assert ramp.status.step.started_at is not None
    assert warnings(ramp, "Stale") == []
    for _ in range(12):
        ramp.tick(10, measurements=look)
    assert len(warnings(ramp, "Stale")) == 1, "nobody has looked since the step began"


def test_no_series_is_no_trouble_in_the_first_minute() -> None:
    ramp = Ramp().to_step(0)
    for seconds, status in ((5, "Unknown"), (60, "False")):
        look = make_measurements(
            ramp.status, ramp.now + timedelta(seconds=seconds), {}, error="NoData", message="no series"
        )
        ramp.tick(seconds, measurements=look)
        assert condition(ramp, "MetricsAvailable").status == status
    (text,) = warnings(ramp, "NoData")
    assert text.startswith("spec.prometheus: no series; check that Prometheus scrapes the gateway pods")


def test_an_indicator_without_data_names_what_feeds_it() -> None:
    thumbs = {"name": "thumbs", "indicator": "ThumbsUpRate", "allowedDecrease": 0.05}
    ramp = Ramp(make_spec(slos=[ERRORS, thumbs])).to_step(0)
    slos = {"errors": evidence(), "thumbs": evidence(n=0)}
    ramp.tick(5, measurements=make_measurements(ramp.status, ramp.now + timedelta(seconds=5), slos, n=6_400_000))
    (text,) = warnings(ramp, "NoData")
    assert text.startswith("spec.slos[1] (thumbs): ")
    assert "sends POST /v1/feedback" in text


def test_what_a_step_wants_may_be_edited_while_it_runs() -> None:
    """It counts at once, from the step's own beginning; the step does not start anew."""
    steps = [{"share": 1, "minSamples": 10**9, "minDuration": "24h"}, {"share": 100}]
    ramp = Ramp(make_spec(rollout={"steps": steps})).to_step(0)
    began = ramp.status.step.started_at if ramp.status.step else None
    ramp.measure()
    assert ramp.share == 100
    ramp.spec = make_spec(
        rollout={"steps": [{"share": 1, "minSamples": 10, "minDuration": "1h", "maxDuration": "2h"}, steps[1]]}
    )
    ramp.tick()
    step = ramp.status.step
    assert step is not None
    assert began is not None
    assert (step.index, step.started_at, step.min_samples) == (0, began, 10)
    assert (step.min_until, step.max_until) == (began + timedelta(hours=1), began + timedelta(hours=2))
    ramp.measure(seconds=3600)
    assert ramp.share == 10_000


def test_a_promoted_classifier_that_decides_nothing_is_told_though_nothing_ramps() -> None:
    ramp = Ramp(make_spec(strategy=CLASSIFIER), classifier=WorkloadFacts(True, True)).to_promoted()
    look = make_measurements(ramp.status, ramp.now, {}, exercised=0.0, undecided={"no_answer": 1.0})
    ramp.tick(60, measurements=look)
    (text,) = warnings(ramp, "NotDeciding")
    assert text.startswith("spec.strategy.classifier.image: 100% of the requests since ")
    assert ramp.status.phase == "Promoted"
