from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from funicular.slo import sequential

fractions = st.lists(st.integers(1, 60), min_size=1, max_size=12).map(lambda steps: tuple(np.cumsum(steps) / 20.0))


@pytest.mark.parametrize(
    ("times", "spending", "published"),
    [
        pytest.param(
            (0.2, 0.4, 0.6, 0.8, 1.0),
            lambda t: 2 * special.ndtr(special.ndtri(0.0125) / math.sqrt(t)),
            (4.877, 3.357, 2.680, 2.290, 2.031),
            id="Lan-DeMets, O'Brien-Fleming type, one-sided 0.025, five looks",
        ),
        pytest.param(
            (0.2, 0.4, 0.6, 0.8, 1.0),
            lambda t: 0.025 * math.log(1 + (math.e - 1) * t),
            (2.438, 2.427, 2.410, 2.397, 2.386),
            id="Lan-DeMets, Pocock type, one-sided 0.025, five looks",
        ),
        pytest.param((1.0,), lambda t: 0.025, (1.960,), id="a single look is a fixed test"),
    ],
)
def test_bounds_are_those_in_the_tables(times, spending, published):
    spends = tuple(float(spending(t)) for t in times)
    found = [sequential.crossing_bound(times[:k], spends[:k]) for k in range(1, len(times) + 1)]
    assert found == pytest.approx(published, abs=2e-3)


def test_crossing_probability_is_what_was_spent():
    times = (0.1, 0.3, 0.35, 1.0, 2.0, 5.0)
    limits = [sequential.bound(times[:k], 0.1, 2.0) for k in range(1, 7)]
    increments = np.diff((0.0, *times))
    walks = np.random.default_rng(3).normal(size=(200_000, 6)) * np.sqrt(increments)
    crossed = (walks.cumsum(axis=1) / np.sqrt(times) >= limits).any(axis=1).mean()
    assert crossed == pytest.approx(0.1 * sequential.spent(5.0, 2.0), abs=0.002)


@given(fractions)
def test_never_more_is_spent_than_the_rate(done):
    spends = [sequential.spent(fraction, 2.0) for fraction in done]
    assert spends == sorted(spends)
    assert 0 < spends[0] <= spends[-1] < 1


@given(fractions, st.sampled_from([1e-4, 8e-4, 0.05]))
def test_a_bound_is_never_below_the_fixed_test(done, rate):
    assert sequential.bound(done, rate, 2.0) >= -special.ndtri(rate) - 1e-6


def test_without_a_look_or_without_alpha_nothing_can_be_crossed():
    assert sequential.bound((), 0.01, 2.0) == math.inf
    assert sequential.bound((1.0,), 0.0, 2.0) == math.inf


@pytest.mark.parametrize(
    ("fraction", "done", "due"),
    [
        pytest.param(0.04, (), False, id="too little for the first look"),
        pytest.param(0.05, (), True, id="the first look"),
        pytest.param(0.09, (0.05,), False, id="too soon after it"),
        pytest.param(0.10, (0.05,), True, id="the second look"),
        pytest.param(0.05, (0.05,), False, id="the same counts again"),
        pytest.param(2.1, (2.0,), False, id="late looks are further apart"),
        pytest.param(2.2, (2.0,), True, id="late looks grow by a tenth"),
        pytest.param(1.0, (2.0,), False, id="information that shrank"),
    ],
)
def test_looks_are_due_when_information_came_in(fraction, done, due):
    assert sequential.is_due(fraction, done) is due


def test_looks_must_increase():
    with pytest.raises(ValueError, match="increase"):
        sequential.bound((0.5, 0.5), 0.01, 2.0)
