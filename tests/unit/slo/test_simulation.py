"""Whole rollouts of simulated users, seeded: the promise about false reverts, and that it is not bought with blindness.

`hack/simulate_verdicts.py` runs the same simulation at length and prints a table.
"""

from __future__ import annotations

import numpy as np
import pytest

from funicular.slo import comparisons
from funicular.slo.effective import CERTAIN, Spread, Worth
from funicular.slo.model import Question
from hack.simulate_verdicts import (
    BUDGET,
    CAPPED,
    Traffic,
    false_reverts,
    rollout_reverts,
    samples_to_fail,
    samples_to_pass,
    seconds_to_burn,
)

INDEPENDENT = Traffic()
CLUSTERED = Traffic(rho=0.05, zipf=1.1)


@pytest.mark.parametrize(
    ("traffic", "allowed", "factor", "runs"),
    [
        pytest.param(INDEPENDENT, 0.0, 1.0, 20, id="independent requests"),
        pytest.param(CLUSTERED, 0.0, 1.0, 30, id="clustered requests of users with Zipf activity"),
        pytest.param(CLUSTERED, 0.002, 1.2, 30, id="clustered, and worse by all that is allowed"),
    ],
)
def test_good_candidates_are_not_reverted(traffic, allowed, factor, runs):
    # Promised is 1 %: more than 2 of 30 have a probability of 0.3 %, and the seeds are fixed.
    assert sum(false_reverts(seed, traffic, allowed, factor) for seed in range(runs)) <= 2


def test_requests_taken_for_independent_revert_most_good_candidates(monkeypatch):
    def as_if_independent(arm: Spread, other: Spread | None) -> Worth:
        return Worth(1.0, CERTAIN)

    monkeypatch.setattr(comparisons, "compare", as_if_independent)
    question = Question("errors", allowed_increase=0.0)
    assert sum(rollout_reverts(seed, CLUSTERED, question, BUDGET) for seed in range(20)) >= 15


@pytest.mark.parametrize(
    ("traffic", "share", "horizon", "least"),
    [
        pytest.param(INDEPENDENT, 0.01, 1.5, 0.8, id="1 % share"),
        pytest.param(INDEPENDENT, 0.50, 1.5, 0.8, id="50 % share"),
        pytest.param(INDEPENDENT, 1.00, 1.5, 0.8, id="100 % against the holdback"),
        pytest.param(CAPPED, 0.50, 9.0, 0.35, id="50 % share, clustered, heavy users capped"),
    ],
)
def test_doubled_errors_are_found(traffic, share, horizon, least):
    found = [samples_to_fail(seed, traffic, share, horizon) <= horizon for seed in range(40)]
    assert np.mean(found) >= least


@pytest.mark.parametrize(
    ("factor", "low", "high"),
    [
        pytest.param(1.0, 0.9, 1.0, id="as good as control"),
        pytest.param(1.5, 0.0, 0.1, id="worse by the margin"),
        pytest.param(2.0, 0.0, 0.0, id="worse by twice the margin"),
    ],
)
def test_passes_are_earned(factor, low, high):
    question = Question("errors", allowed_increase=0.005)
    traffic = Traffic(requests=100_000)
    passed = [np.isfinite(samples_to_pass(seed, traffic, 0.1, factor, question)) for seed in range(40)]
    assert low <= np.mean(passed) <= high


def test_half_of_the_requests_failing_is_seen_within_two_minutes():
    seconds = [seconds_to_burn(seed, INDEPENDENT, treated_rate=0.2, failing=0.5, horizon=3_600) for seed in range(60)]
    assert np.median(seconds) <= 120
