from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from funicular.slo.fastburn import fast_burn
from funicular.slo.model import ArmCounts, Outcome
from tests.unit.slo.arms import make_arm

HEALTHY = make_arm(1_000, 10)
counts = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=64, max_size=64).map(
    lambda rows: ArmCounts(tuple(float(n) for n, _ in rows), tuple(float(min(n, x)) for n, x in rows))
)


def one_user_fails(failing: int) -> ArmCounts:
    return ArmCounts((float(failing), *(1.0,) * 30, *(0.0,) * 33), (float(failing), *(0.0,) * 63))


@pytest.mark.parametrize(
    ("treatment", "control", "burns"),
    [
        pytest.param(make_arm(20, 10), HEALTHY, True, id="half of 20 requests fail"),
        pytest.param(make_arm(6, 6), HEALTHY, True, id="six of six fail"),
        pytest.param(make_arm(5, 5), HEALTHY, False, id="five of five are not enough"),
        pytest.param(make_arm(1_000, 100), HEALTHY, False, id="a tenth fails: for the sequential test"),
        pytest.param(make_arm(1_000, 500), make_arm(1_000, 500), False, id="control burns too"),
        pytest.param(make_arm(1_000, 500), make_arm(1_000, 200), False, id="control burns a little less"),
        pytest.param(make_arm(20, 10), make_arm(0, 0), False, id="control has not said anything yet"),
        pytest.param(make_arm(20, 10), make_arm(5, 0), False, id="control has said too little"),
        pytest.param(make_arm(20, 10), make_arm(6, 0), True, id="a small holdback is enough"),
        pytest.param(make_arm(20, 10), None, True, id="there is no other arm"),
        pytest.param(one_user_fails(10_000), HEALTHY, False, id="one user fails all day"),
        pytest.param(make_arm(0, 0), HEALTHY, False, id="no traffic"),
    ],
)
def test_gross_failures_are_told_from_all_else(treatment, control, burns):
    verdict = fast_burn(treatment, control)
    assert (verdict is not None) is burns
    if verdict is not None:
        assert verdict.outcome is Outcome.FAIL
        assert verdict.reason == "FastBurn"


def test_at_least_four_groups_of_users_must_fail():
    three = ArmCounts((3.0,) * 3 + (0.0,) * 61, (3.0,) * 3 + (0.0,) * 61)
    four = ArmCounts((3.0,) * 4 + (0.0,) * 60, (3.0,) * 4 + (0.0,) * 60)
    assert fast_burn(three, HEALTHY) is None
    assert fast_burn(four, HEALTHY) is not None


@given(counts, st.integers(0, 63))
def test_one_more_failure_never_clears_an_alarm(treatment, where):
    if fast_burn(treatment, HEALTHY) is None or treatment.x[where] >= treatment.n[where]:
        return
    worse = list(treatment.x)
    worse[where] += 1
    assert fast_burn(ArmCounts(treatment.n, tuple(worse)), HEALTHY) is not None


def test_the_message_has_the_figures():
    verdict = fast_burn(make_arm(20, 10), HEALTHY, slo="errors")
    assert verdict is not None
    assert verdict.message == "errors: 10 of 20 treated requests failed, in 10 of 64 groups of users; 1 % in control"
