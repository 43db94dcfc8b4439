"""The simulated provider's dice."""

from __future__ import annotations

import random

import pytest
from pydantic import ValidationError

from hack.sim.faults import Bucket, Fate, Faults, draw_delay, draw_fate


def shares(faults: Faults, *, stream: bool = False, n: int = 20_000) -> dict[Fate, float]:
    rng = random.Random(1)
    drawn = [draw_fate(faults, rng, stream=stream) for _ in range(n)]
    return {fate: drawn.count(fate) / n for fate in Fate}


def test_rates_add_up_as_they_are_written() -> None:
    seen = shares(Faults(error_rate=0.2, hang_rate=0.1, garbage_rate=0.3, cut_stream_rate=0.1), stream=True)
    assert seen[Fate.ERROR] == pytest.approx(0.2, abs=0.01)
    assert seen[Fate.HANG] == pytest.approx(0.1, abs=0.01)
    assert seen[Fate.GARBAGE] == pytest.approx(0.3, abs=0.01)
    assert seen[Fate.CUT] == pytest.approx(0.1, abs=0.01)
    assert seen[Fate.ANSWER] == pytest.approx(0.3, abs=0.01)


def test_only_streams_are_cut() -> None:
    assert shares(Faults(cut_stream_rate=1.0))[Fate.ANSWER] == 1.0


def test_the_same_seed_gives_the_same_fates() -> None:
    faults = Faults(error_rate=0.5)
    first, second = random.Random(7), random.Random(7)
    assert [draw_fate(faults, first, stream=False) for _ in range(50)] == [
        draw_fate(faults, second, stream=False) for _ in range(50)
    ]


@pytest.mark.parametrize(
    "wrong", [{"error_rate": 1.5}, {"error_code": 200}, {"latency_ms": -1}, {"latency": 3}, {"quality": "good"}]
)
def test_nonsense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Faults.model_validate(wrong)


def test_a_rate_limit_lets_its_rate_through() -> None:
    bucket = Bucket()
    admitted = sum(bucket.admits(10.0, now=i / 100) for i in range(1_000))
    assert 100 <= admitted <= 111


def test_no_limit_admits_everything() -> None:
    assert all(Bucket().admits(0.0, now=0.0) for _ in range(100))


def test_delays_have_the_median_they_are_given() -> None:
    rng = random.Random(2)
    delays = sorted(draw_delay(100.0, 0.5, rng) for _ in range(4_000))
    assert delays[2_000] == pytest.approx(0.1, rel=0.05)
    assert delays[3_960] > 0.2
    assert draw_delay(100.0, 0.0, rng) == 0.1
    assert draw_delay(0.0, 0.5, rng) == 0.0
