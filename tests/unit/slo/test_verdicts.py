from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funicular.slo.model import ArmCounts, Budget, Evidence, Looks, Outcome, Question, Verdict
from funicular.slo.verdicts import at_full_share, judge, split_budget
from tests.unit.slo.arms import lumpy_arm, make_arm, one_element, scattered_arm

BUDGET = split_budget(0.01, 0.05, steps=4, enforced_slos=3)
BIG_CONTROL = make_arm(200_000, 2_000)
EMPTY = make_arm(0, 0)


def make_question(**bounds: float) -> Question:
    return replace(Question("errors", min_samples=300), **bounds)


def ask(question: Question, treatment: ArmCounts, control: ArmCounts, **rest: ArmCounts | float) -> Verdict:
    return judge(question, Evidence(treatment, control, **rest), BUDGET, Looks())


@pytest.mark.parametrize(
    ("bounds", "treatment", "control", "outcome", "reason"),
    [
        pytest.param(
            {"maximum": 0.01}, make_arm(300, 0), EMPTY, "Pass", "WithinBound", id="0 errors of 300 prove less than 1 %"
        ),
        pytest.param(
            {"allowed_increase": 0.05},
            make_arm(800, 232),
            make_arm(7_000, 0),
            "Fail",
            "Regressed",
            id="29 % against a control without a single event is beyond 5 points",
        ),
        pytest.param(
            {"allowed_increase": 0.05},
            make_arm(800, 40),
            make_arm(7_000, 0),
            "Inconclusive",
            "NotYetSignificant",
            id="5 % against a control without a single event is all that is allowed",
        ),
        pytest.param({"maximum": 0.01}, make_arm(299, 0), EMPTY, "Inconclusive", "TooFewSamples", id="299 are too few"),
        pytest.param(
            {"maximum": 0.01}, make_arm(300, 1), EMPTY, "Inconclusive", "NotYetSignificant", id="1 of 300 does not"
        ),
        pytest.param({"maximum": 0.01}, make_arm(3_000, 90), EMPTY, "Fail", "Regressed", id="3 % is over 1 %"),
        pytest.param(
            {"maximum": 0.01},
            make_arm(3_000, 90),
            BIG_CONTROL,
            "Fail",
            "Regressed",
            id="control just over it saves nobody",
        ),
        pytest.param(
            {"maximum": 0.01},
            make_arm(3_000, 90),
            make_arm(9_000, 270),
            "Inconclusive",
            "ControlFailsToo",
            id="the frontier is down",
        ),
        pytest.param(
            {"maximum": 0.01},
            make_arm(3_000, 900),
            make_arm(9_000, 270),
            "Fail",
            "Regressed",
            id="far worse than a failing control",
        ),
        pytest.param({"maximum": 0.01}, make_arm(3_000, 3_000), EMPTY, "Fail", "Regressed", id="everything fails"),
        pytest.param(
            {"maximum": 0.0}, make_arm(3_000, 0), EMPTY, "Inconclusive", "NotYetSignificant", id="nothing proves a zero"
        ),
        pytest.param({"maximum": 1.0}, make_arm(300, 300), EMPTY, "Pass", "WithinBound", id="everything is allowed"),
        pytest.param(
            {"allowed_increase": 0.002},
            make_arm(40_000, 400),
            BIG_CONTROL,
            "Pass",
            "NonInferior",
            id="as good as control",
        ),
        pytest.param(
            {"allowed_increase": 0.002},
            make_arm(3_000, 30),
            BIG_CONTROL,
            "Inconclusive",
            "NotYetSignificant",
            id="as good, too early",
        ),
        pytest.param(
            {"allowed_increase": 0.002}, make_arm(5_000, 150), BIG_CONTROL, "Fail", "Regressed", id="2 points worse"
        ),
        pytest.param(
            {"allowed_increase": 0.002},
            make_arm(90_000, 1_035),
            BIG_CONTROL,
            "Inconclusive",
            "NotYetSignificant",
            id="significantly worse, but by less than is allowed",
        ),
        pytest.param(
            {"allowed_increase": 0.002},
            make_arm(5_000, 0),
            make_arm(50_000, 0),
            "Pass",
            "NonInferior",
            id="no event at all",
        ),
        pytest.param(
            {"allowed_increase": 0.002},
            make_arm(5_000, 150),
            EMPTY,
            "Inconclusive",
            "NoControl",
            id="nobody to compare with",
        ),
        pytest.param(
            {"allowed_increase": 0.002}, EMPTY, BIG_CONTROL, "Inconclusive", "NoData", id="no treated request"
        ),
        pytest.param(
            {"allowed_from_baseline": 0.1}, make_arm(500, 9), EMPTY, "Inconclusive", "NoControl", id="no holdback"
        ),
        pytest.param(
            {"maximum": 0.05, "allowed_increase": 0.002},
            make_arm(5_000, 150),
            BIG_CONTROL,
            "Fail",
            "Regressed",
            id="one broken bound fails",
        ),
        pytest.param(
            {"maximum": 0.05, "allowed_increase": 0.002},
            make_arm(3_000, 30),
            BIG_CONTROL,
            "Inconclusive",
            "NotYetSignificant",
            id="one open bound keeps it open",
        ),
        pytest.param(
            {"maximum": 0.05, "allowed_increase": 0.002},
            make_arm(40_000, 400),
            BIG_CONTROL,
            "Pass",
            "NonInferior",
            id="both bounds kept",
        ),
        pytest.param(
            {"allowed_increase": 0.01},
            lumpy_arm(64_000, 1_280, lumps=5),
            BIG_CONTROL,
            "Inconclusive",
            "InformationSaturated",
            id="few users",
        ),
        pytest.param(
            {"maximum": 0.01},
            ArmCounts((500.0, *(0.0,) * 63), (100.0, *(0.0,) * 63)),
            EMPTY,
            "Inconclusive",
            "TooFewUsers",
            id="a single user",
        ),
    ],
)
def test_first_look(bounds, treatment, control, outcome, reason):
    verdict = ask(make_question(**bounds), treatment, control)
    assert (verdict.outcome, verdict.reason) == (outcome, reason), verdict.message


def test_the_holdback_has_a_margin_of_its_own():
    question = make_question(allowed_increase=0.002, allowed_from_baseline=0.005)
    same = make_arm(60_000, 1_800)
    verdict = ask(question, same, same, holdback=make_arm(20_000, 200))
    assert verdict.outcome is Outcome.FAIL
    assert "in the holdback" in verdict.message


def test_events_of_few_users_fail_nobody():
    worse = {"treatment": scattered_arm(20_000, 400, 1), "control": scattered_arm(20_000, 200, 2)}
    lumpy = {**worse, "treatment": lumpy_arm(20_000, 400, lumps=3)}
    question = make_question(allowed_increase=0.0)
    assert ask(question, **worse).outcome is Outcome.FAIL
    assert ask(question, **lumpy).outcome is Outcome.INCONCLUSIVE


def test_saturated_information_says_what_would_help():
    verdict = ask(make_question(allowed_increase=0.01), lumpy_arm(64_000, 1_280, lumps=5), BIG_CONTROL)
    assert "effective users" in verdict.message
    assert "larger share" in verdict.message
    assert verdict.effective_samples < 1_000
    assert verdict.needed == 0


class TestMeans:
    """Cost and the like: sums of values by replicate."""

    def values(self, mean: float, scatter: float, n: float = 1_000.0) -> ArmCounts:
        sums = [n * (mean + scatter * math.sin(7 * k)) for k in range(64)]
        return ArmCounts((n,) * 64, tuple(sums))

    @pytest.mark.parametrize(
        ("bounds", "mean", "outcome"),
        [
            pytest.param({"allowed_increase": 0.001}, 0.010, "Pass", id="same cost"),
            pytest.param({"allowed_increase": 0.001}, 0.002, "Pass", id="cheaper"),
            pytest.param({"allowed_increase": 0.001}, 0.014, "Fail", id="dearer"),
            pytest.param({"allowed_increase": 0.001}, 0.011, "Inconclusive", id="at the margin"),
            pytest.param({"maximum": 0.012}, 0.010, "Pass", id="below the maximum"),
            pytest.param({"maximum": 0.012}, 0.016, "Fail", id="above the maximum"),
        ],
    )
    def test_first_look(self, bounds, mean, outcome):
        question = replace(make_question(**bounds), name="cost", kind="mean")
        verdict = ask(question, self.values(mean, 0.001), self.values(0.010, 0.001))
        assert verdict.outcome == outcome, verdict.message

    def test_a_constant_arm_is_not_certain(self):
        question = replace(make_question(allowed_increase=0.0), kind="mean")
        verdict = ask(question, self.values(0.0101, 0.0), self.values(0.010, 0.002))
        assert verdict.outcome is Outcome.INCONCLUSIVE

    def test_one_value_without_its_spread_cannot_be_judged(self):
        question = replace(make_question(maximum=1.0), kind="mean")
        assert ask(question, one_element(500, 9), EMPTY, borrowed_effect=2.0).reason == "NoReplicates"


class TestBorrowedEffect:
    """A user's own query has no replicates."""

    def test_it_is_said(self):
        verdict = ask(make_question(maximum=0.05), one_element(3_000, 30), one_element(9_000, 90), borrowed_effect=2.5)
        assert verdict.outcome is Outcome.PASS
        assert "design effect of 2.5 is borrowed" in verdict.message
        assert verdict.effective_samples == pytest.approx(1_200)

    def test_it_makes_the_same_counts_worth_less(self):
        arms = one_element(4_000, 80), one_element(40_000, 400)
        question = make_question(allowed_increase=0.0)
        assert ask(question, *arms, borrowed_effect=1.0).outcome is Outcome.FAIL
        assert ask(question, *arms, borrowed_effect=4.0).outcome is Outcome.INCONCLUSIVE

    def test_without_one_there_is_no_verdict(self):
        assert ask(make_question(maximum=0.05), one_element(3_000, 30), one_element(9_000, 90)).reason == "NoReplicates"


class TestSequence:
    """What Looks carries from verdict to verdict."""

    QUESTION = make_question(allowed_increase=0.002)

    def feed(self, rates: list[float], looks: Looks, budget: Budget = BUDGET) -> list[Verdict]:
        verdicts = []
        for k, rate in enumerate(rates, start=1):
            evidence = Evidence(make_arm(1_000 * k, round(1_000 * k * rate)), make_arm(20_000 * k, 200 * k))
            verdicts.append(judge(self.QUESTION, evidence, budget, looks))
            looks = verdicts[-1].looks
        return verdicts

    def test_the_same_counts_again_change_nothing(self):
        for rate in (0.01, 0.02, 0.04):
            evidence = Evidence(make_arm(8_000, round(8_000 * rate)), BIG_CONTROL)
            first = judge(self.QUESTION, evidence, BUDGET, Looks())
            assert judge(self.QUESTION, evidence, BUDGET, first.looks) == first

    def test_looks_are_taken_sparsely(self):
        verdicts = self.feed([0.01] * 60, Looks())
        assert 10 <= len(verdicts[-1].looks.done) <= 40

    def test_between_looks_nothing_can_fail(self):
        before = self.feed([0.01] * 10, Looks())[-1].looks
        clock = before.done[-1] * before.planned
        slightly_more = Evidence(make_arm(clock + 20, 0.5 * clock), make_arm(200_000, 2_000))
        verdict = judge(self.QUESTION, slightly_more, BUDGET, before)
        assert verdict.looks.done == before.done
        assert verdict.outcome is Outcome.INCONCLUSIVE

    def test_a_fail_is_final_within_the_step(self):
        failed = self.feed([0.05, 0.05], Looks())[-1]
        assert failed.outcome is Outcome.FAIL
        healthy = judge(self.QUESTION, Evidence(make_arm(90_000, 900), BIG_CONTROL), BUDGET, failed.looks)
        assert healthy.outcome is Outcome.FAIL

    def test_a_pass_is_lost_when_the_figures_no_longer_show_it(self):
        passed = ask(self.QUESTION, make_arm(40_000, 400), BIG_CONTROL)
        assert passed.outcome is Outcome.PASS
        later = judge(self.QUESTION, Evidence(make_arm(44_000, 508), BIG_CONTROL), BUDGET, passed.looks)
        assert later.outcome is Outcome.INCONCLUSIVE

    def test_an_outage_of_control_pays_its_look_but_fails_nothing(self):
        question = make_question(maximum=0.01)
        both = judge(question, Evidence(make_arm(3_000, 90), make_arm(9_000, 270)), BUDGET, Looks())
        assert both.looks.done
        assert not both.looks.failed

    def test_a_planned_information_is_used(self):
        budget = replace(BUDGET, planned_information=12_345.0)
        verdict = judge(self.QUESTION, Evidence(make_arm(8_000, 80), BIG_CONTROL), budget, Looks())
        assert verdict.looks.planned == 12_345.0


class TestNeeded:
    """The forecast that an ETA is made of."""

    @pytest.mark.parametrize(
        "rate", [pytest.param(0.010, id="towards a Pass"), pytest.param(0.016, id="towards a Fail")]
    )
    def test_it_is_about_enough(self, rate):
        question = make_question(allowed_increase=0.002)
        early = ask(question, make_arm(2_000, 2_000 * rate), make_arm(20_000, 200))
        assert early.outcome is Outcome.INCONCLUSIVE
        needed = early.needed
        assert needed > 2_000
        looks = early.looks
        for factor in (0.5, 1.0, 1.5):
            n = factor * needed
            verdict = judge(question, Evidence(make_arm(n, n * rate), make_arm(10 * n, 0.1 * n)), BUDGET, looks)
            looks = verdict.looks
        assert verdict.outcome is not Outcome.INCONCLUSIVE

    def test_it_is_at_least_the_samples_wanted(self):
        assert ask(make_question(maximum=0.5), make_arm(30, 0), EMPTY).needed == 300


class TestProperties:
    @given(st.integers(300, 20_000), st.integers(0, 400), st.integers(1, 50))
    def test_more_events_never_help(self, n, x, more):
        question = make_question(maximum=0.02, allowed_increase=0.005)
        control = one_element(50_000, 500)
        order = [Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL]
        fewer = ask(question, one_element(n, min(x, n)), control, borrowed_effect=1.5)
        worse = ask(question, one_element(n, min(x + more, n)), control, borrowed_effect=1.5)
        assert order.index(worse.outcome) >= order.index(fewer.outcome)

    @given(st.integers(0, 299), st.integers(0, 299))
    def test_nothing_passes_below_min_samples(self, n, x):
        question = make_question(maximum=0.9, allowed_increase=0.9)
        assert ask(question, make_arm(n, min(n, x)), BIG_CONTROL).outcome is not Outcome.PASS

    @given(st.integers(1, 100_000), st.floats(0, 1), st.integers(0, 1_000))
    def test_nothing_fails_without_alpha(self, n, rate, seed):
        budget = Budget(alpha=0.0, beta=0.05)
        evidence = Evidence(scattered_arm(n, int(n * rate), seed), make_arm(50_000, 50))
        assert (
            judge(make_question(maximum=0.001, allowed_increase=0.0), evidence, budget, Looks()).outcome
            is not Outcome.FAIL
        )

    @given(st.integers(500, 50_000), st.floats(0.0, 0.3), st.floats(0.0, 0.3), st.integers(0, 1_000))
    def test_with_equal_arms_only_one_direction_fails(self, n, rate, other, seed):
        one, two = scattered_arm(n, int(n * rate), seed), scattered_arm(n, int(n * other), seed + 1)
        question = make_question(allowed_increase=0.0)
        outcomes = [ask(question, one, two).outcome, ask(question, two, one).outcome]
        assert outcomes.count(Outcome.FAIL) <= 1

    @settings(max_examples=50)
    @given(st.lists(st.tuples(st.integers(0, 800), st.floats(0, 0.06)), min_size=1, max_size=15), st.integers(0, 99))
    def test_a_restart_changes_nothing(self, batches, seed):
        question = make_question(maximum=0.04, allowed_increase=0.005)
        n, x, looks = 0, 0, Looks()
        for size, rate in batches:
            n, x = n + size, x + int(size * rate)
            evidence = Evidence(scattered_arm(n, x, seed), scattered_arm(9 * n, n // 12, seed + 1))
            verdict = judge(question, evidence, BUDGET, looks)
            assert judge(question, evidence, BUDGET, verdict.looks) == verdict
            looks = verdict.looks

    @settings(max_examples=200)
    @given(
        st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1)), min_size=64, max_size=64),
        st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1)), min_size=64, max_size=64),
        st.sampled_from(["proportion", "mean"]),
    )
    def test_every_figure_is_a_number(self, treated, controlled, kind):
        arms = [ArmCounts(tuple(n for n, _ in rows), tuple(n * r for n, r in rows)) for rows in (treated, controlled)]
        question = replace(make_question(maximum=0.3, allowed_increase=0.05), kind=kind)
        verdict = ask(question, *arms)
        shown = (verdict.low, verdict.high, verdict.needed, verdict.effective_samples, verdict.tightness)
        assert all(value is None or math.isfinite(value) for value in shown)


@pytest.mark.parametrize(
    ("question", "evidence", "message"),
    [
        pytest.param(Question("errors"), Evidence(BIG_CONTROL, BIG_CONTROL), "no bound", id="no bound at all"),
        pytest.param(
            make_question(maximum=math.nan),
            Evidence(BIG_CONTROL, BIG_CONTROL),
            "finite",
            id="a bound that is no number",
        ),
        pytest.param(
            make_question(allowed_increase=-0.1), Evidence(BIG_CONTROL, BIG_CONTROL), "negative", id="a negative margin"
        ),
        pytest.param(
            make_question(maximum=0.1),
            Evidence(ArmCounts((1.0, 2.0), (1.0,)), BIG_CONTROL),
            "totals",
            id="events without totals",
        ),
        pytest.param(
            make_question(maximum=0.1),
            Evidence(BIG_CONTROL, ArmCounts((math.nan,) * 64, (0.0,) * 64)),
            "finite",
            id="NaN in control",
        ),
        pytest.param(
            replace(make_question(maximum=0.1), kind="quantile"),
            Evidence(BIG_CONTROL, BIG_CONTROL),
            "kind",
            id="an unknown kind",
        ),
    ],
)
def test_what_cannot_be_asked(question, evidence, message):
    with pytest.raises(ValueError, match=message):
        judge(question, evidence, BUDGET, Looks())


class TestBudget:
    def test_the_parts_add_up(self):
        budget = split_budget(0.01, 0.05, steps=4, enforced_slos=3)
        assert budget.alpha * 12 + 2e-4 == pytest.approx(0.01)
        assert budget.beta == 0.05

    @pytest.mark.parametrize(
        "rates",
        [
            pytest.param((0.0002, 0.05, 4, 3), id="nothing left after the guards"),
            pytest.param((0.01, 0.0, 4, 3), id="no false promotion allowed at all"),
            pytest.param((0.01, 0.05, 0, 3), id="no step"),
        ],
    )
    def test_impossible_promises_are_refused(self, rates):
        with pytest.raises(ValueError, match=r"false_|at least"):
            split_budget(*rates)


def test_at_full_share_the_holdback_stands_in_for_control():
    evidence = Evidence(make_arm(50_000, 500), EMPTY, holdback=make_arm(5_000, 50))
    question, shown = at_full_share(make_question(allowed_increase=0.02), evidence)
    assert question.allowed_increase is None
    assert question.allowed_from_baseline == 0.02
    assert judge(question, shown, BUDGET, Looks()).outcome is Outcome.PASS
    kept, _ = at_full_share(make_question(allowed_increase=0.02, allowed_from_baseline=0.03), evidence)
    assert kept.allowed_from_baseline == 0.03
