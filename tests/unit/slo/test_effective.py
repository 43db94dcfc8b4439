from __future__ import annotations

import numpy as np
import pytest

from funicular.slo.effective import compare, compare_means, design_effect, measure
from funicular.slo.model import ArmCounts
from tests.unit.slo.arms import lumpy_arm, make_arm, one_element, scattered_arm


def test_independent_requests_are_worth_one_each():
    effects = [measure(scattered_arm(20_000, 400, seed)).effect for seed in range(200)]
    assert np.mean(effects) == pytest.approx(1.0, abs=0.05)


def test_the_price_of_noise_is_small_for_independent_requests():
    pairs = [
        (measure(scattered_arm(2_000, 40, seed)), measure(scattered_arm(20_000, 400, seed + 999)))
        for seed in range(200)
    ]
    assert np.mean([compare(arm, other).effect for arm, other in pairs]) < 1.12


def test_events_of_few_users_are_worth_little():
    arm = measure(lumpy_arm(64_000, 640, lumps=4))
    # 4 of 64 groups at 16 % each: about sum (x_k - R n_k)^2 / (N R) = 4 * 150^2 + 60 * 10^2 over 634.
    assert compare(arm, None).effect == pytest.approx(151, rel=0.1)


def test_heaviness_is_requests_per_effective_user():
    random = np.random.default_rng(5)
    found = []
    for _ in range(300):
        users = random.integers(0, 64, 2_000)
        found.append(measure(ArmCounts(tuple(np.bincount(users, np.full(2_000, 10.0), 64)), (0.0,) * 64)).users)
    # The index is an estimate of 2,000 equal users from 64 groups; its harmonic mean is right.
    assert 1 / np.mean(1 / np.array(found)) == pytest.approx(2_000, rel=0.1)


def test_an_arm_without_events_borrows_from_the_other():
    quiet, clustered = measure(make_arm(6_400, 0)), measure(lumpy_arm(64_000, 640, lumps=4))
    heavy = measure(ArmCounts((6_000.0, *(400 / 63,) * 63), (0.0,) * 64))
    assert compare(quiet, None).effect == 1.0
    assert compare(heavy, clustered).effect > 10


def test_a_variance_that_is_mostly_estimated_has_few_degrees_of_freedom():
    worth = compare(measure(lumpy_arm(64_000, 640, lumps=4)), None)
    assert 50 < worth.freedom < 70
    assert compare(measure(scattered_arm(20_000, 400, 3)), None).freedom > 300


def test_a_borrowed_effect_stands_for_the_replicates():
    spread = measure(one_element(1_000, 10), borrowed_effect=2.5)
    assert spread.effect == 2.5
    assert compare(spread, None).effect == 2.5
    assert not spread.has_replicates


def test_the_variance_of_a_mean_has_a_floor_from_the_other_arm():
    random = np.random.default_rng(2)
    values = random.exponential(1.0, (64, 100)).sum(axis=1)
    control = measure(ArmCounts((100.0,) * 64, tuple(values.tolist())), proportion=False)
    constant = measure(ArmCounts((10.0,) * 64, (10.0,) * 64), proportion=False)
    variance, _ = compare_means(constant, control)
    assert variance == pytest.approx(control.variance * 10, rel=1e-6)


@pytest.mark.parametrize(
    "arm",
    [
        pytest.param(ArmCounts((0.0,) * 64, (0.0,) * 64), id="empty"),
        pytest.param(make_arm(640, 0), id="no event"),
        pytest.param(make_arm(640, 640), id="all of them events"),
        pytest.param(ArmCounts((5.0, *(0.0,) * 63), (1.0, *(0.0,) * 63)), id="one user"),
        pytest.param(ArmCounts((10.0,) * 64, (10.2,) * 64), id="extrapolated events beyond their total"),
    ],
)
def test_degenerate_arms_lend_one(arm):
    assert design_effect(arm) == 1.0
