from __future__ import annotations

import numpy as np
import pytest

from funicular.slo.model import REPLICATES, ArmCounts, Looks, Outcome, Verdict
from funicular.slo.ratio import sample_ratio
from tests.unit.slo.arms import make_arm


def split_users(
    seed: int, share: float, zipf: float, users: int = 5_000, requests: float = 100_000
) -> tuple[ArmCounts, ArmCounts]:
    """Requests of both arms by replicate when each user is treated with probability `share`."""
    random = np.random.default_rng(seed)
    activity = np.arange(1, users + 1, dtype=float) ** -zipf
    requests_of = random.poisson(activity / activity.sum() * requests)
    treated, replicate = random.random(users) < share, random.integers(0, REPLICATES, users)
    arms = [np.bincount(replicate[members], requests_of[members], REPLICATES) for members in (treated, ~treated)]
    return (ArmCounts(tuple(arms[0]), (0.0,) * 64), ArmCounts(tuple(arms[1]), (0.0,) * 64))


def check(seed: int, share: float, desired_bp: int, zipf: float, alpha: float = 1e-4) -> Verdict:
    return sample_ratio(*split_users(seed, share, zipf), desired_bp, Looks(), alpha)


@pytest.mark.parametrize(
    ("share", "zipf"),
    [
        pytest.param(share, zipf, id=f"{share:.0%} of users, Zipf {zipf}")
        for share in (0.01, 0.1, 0.3, 0.5, 0.9)
        for zipf in (0.0, 1.1, 1.5)
    ],
)
def test_a_correct_split_raises_no_alarm_whoever_is_heavy(share, zipf):
    # An alpha of 4 % at the first look: a test by requests fails half of these, a plain t test 5 to 50 %.
    failed = [
        check(seed, share, round(share * 10_000), zipf, alpha=0.08).outcome is Outcome.FAIL for seed in range(300)
    ]
    assert np.mean(failed) <= 0.04


@pytest.mark.parametrize(
    ("share", "desired_bp", "zipf"),
    [
        pytest.param(0.03, 100, 0.0, id="3 % instead of 1 %, uniform users"),
        pytest.param(0.07, 1000, 0.0, id="7 % instead of 10 %, uniform users"),
        pytest.param(0.43, 5000, 0.0, id="43 % instead of 50 %, uniform users"),
        pytest.param(0.5, 1000, 1.1, id="50 % instead of 10 %, Zipf 1.1"),
        pytest.param(0.15, 5000, 1.1, id="15 % instead of 50 %, Zipf 1.1"),
        pytest.param(0.0, 5000, 1.5, id="nobody instead of half, Zipf 1.5"),
        pytest.param(0.8, 5000, 1.5, id="80 % instead of 50 %, Zipf 1.5"),
        pytest.param(0.95, 10_000, 0.0, id="some left in control at 100 %"),
        pytest.param(0.5, 0, 1.1, id="treated users at 0 %"),
    ],
)
def test_a_broken_split_is_found(share, desired_bp, zipf):
    verdicts = [check(seed, share, desired_bp, zipf) for seed in range(40)]
    assert np.mean([verdict.outcome is Outcome.FAIL for verdict in verdicts]) >= 0.9


def test_arms_are_mirror_images():
    for seed in range(20):
        treatment, control = split_users(seed, 0.35, 1.1)
        one = sample_ratio(treatment, control, 2000, Looks(), 1e-3)
        other = sample_ratio(control, treatment, 8000, Looks(), 1e-3)
        assert one.outcome is other.outcome


def test_looks_are_paid_for_and_remembered():
    treatment, control = make_arm(1_000, 0), make_arm(9_000, 0)
    first = sample_ratio(treatment, control, 1000, Looks())
    assert first.outcome is Outcome.PASS
    assert first.looks.done == (10_000.0,)
    assert sample_ratio(treatment, control, 1000, first.looks) == first
    more = sample_ratio(make_arm(1_500, 0), make_arm(13_500, 0), 1000, first.looks)
    assert more.looks == first.looks
    twice = sample_ratio(make_arm(2_000, 0), make_arm(18_000, 0), 1000, first.looks)
    assert twice.looks.done == (10_000.0, 20_000.0)


def test_a_mismatch_is_final_within_the_step():
    failed = sample_ratio(make_arm(5_000, 0), make_arm(5_000, 0), 1000, Looks())
    assert failed.outcome is Outcome.FAIL
    assert failed.reason == "SampleRatioMismatch"
    again = sample_ratio(make_arm(5_001, 0), make_arm(45_000, 0), 1000, failed.looks)
    assert again.outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("treatment", "control", "reason"),
    [
        pytest.param(make_arm(0, 0), make_arm(0, 0), "NoData", id="no traffic"),
        pytest.param(make_arm(3, 0), make_arm(4, 0), "TooFewUsers", id="a handful of users"),
    ],
)
def test_without_users_nothing_is_said(treatment, control, reason):
    verdict = sample_ratio(treatment, control, 1000, Looks())
    assert (verdict.outcome, verdict.reason) == (Outcome.INCONCLUSIVE, reason)


def test_a_share_is_in_basis_points():
    with pytest.raises(ValueError, match="basis points"):
        sample_ratio(make_arm(1, 0), make_arm(1, 0), 10_001, Looks())
