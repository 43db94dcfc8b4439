"""A classifier that looks only at the length is found out, however it uses it; one that reads is not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from funicular.classifier.length import Pair, equal_length_pairs, judge_length
from funicular.classifier.made_prompts import Prompt

Scorer = Callable[[Prompt], float]
DICE = random.Random(1)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return equal_length_pairs(40)


def judged(pairs: list[Pair], score: Scorer) -> object:
    lengths = [len(pair.easy.text.encode()) for pair in pairs]
    return judge_length(lengths, [score(p.easy) for p in pairs], [score(p.hard) for p in pairs])


def test_pairs_are_equally_long_and_of_many_lengths(pairs: list[Pair]) -> None:
    assert len(pairs) >= 30
    for pair in pairs:
        assert len(pair.easy.text.encode()) == len(pair.hard.text.encode())
        assert len(pair.easy.text.split()) == len(pair.hard.text.split())
        assert (pair.easy.label, pair.hard.label) == ("easy", "hard")
    lengths = [len(pair.easy.text) for pair in pairs]
    assert max(lengths) > 2 * min(lengths)


@pytest.mark.parametrize(
    "score",
    [
        pytest.param(lambda p: math.exp(-len(p.text) / 200), id="the longer, the harder"),
        pytest.param(lambda p: 0.9 if len(p.text) < 250 else 0.1, id="a step"),
        pytest.param(lambda p: len(p.text.split()) % 7 / 7, id="an odd function of the number of words"),
        pytest.param(lambda p: math.exp(-len(p.text) / 200) + DICE.gauss(0, 0.02), id="length with a little noise"),
    ],
)
def test_length_alone_is_found_out(pairs: list[Pair], score: Scorer) -> None:
    verdict = judged(pairs, score)
    assert verdict.length_decides  # type: ignore[attr-defined]
    assert "looks at the length only" in verdict.sentence  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "score",
    [
        pytest.param(lambda p: 0.9 if p.label == "easy" else 0.1, id="reads perfectly"),
        pytest.param(lambda p: (0.7 if p.label == "easy" else 0.4) + DICE.gauss(0, 0.1), id="reads a little"),
        pytest.param(
            lambda p: math.exp(-len(p.text) / 200) * (1.0 if p.label == "easy" else 0.3),
            id="reads, and looks at the length too",
        ),
        pytest.param(lambda p: DICE.random(), id="throws dice"),
        pytest.param(lambda p: 0.3, id="always says the same"),
    ],
)
def test_everything_else_is_not_accused_of_it(pairs: list[Pair], score: Scorer) -> None:
    assert not judged(pairs, score).length_decides  # type: ignore[attr-defined]


def test_a_constant_is_named() -> None:
    verdict = judge_length([10, 20], [0.5, 0.5], [0.5, 0.5])
    assert verdict.constant
    assert "same score" in verdict.sentence
