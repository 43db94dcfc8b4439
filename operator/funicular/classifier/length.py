"""Tells a classifier that looks only at a request's length from one that reads it. Pure; called by the conformance test.

Routing on token count alone is a pattern that does not work: a three-word question can be a proof, and a long one a request
for opening hours. The evidence are pairs of made prompts with the same number of bytes and words, one clearly easy and one
clearly hard: whoever scores by any function of length must give both the same score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from funicular.classifier.made_prompts import Prompt, make_prompts

MOSTLY_LENGTH = 0.9
SAME = 1e-6


@dataclass(frozen=True, slots=True)
class Pair:
    """Two prompts of equal length in bytes and in words."""

    easy: Prompt
    hard: Prompt


@dataclass(frozen=True, slots=True)
class LengthVerdict:
    """`explained`: the share of the scores' variance that equal length explains, 1 if length is all there is.

    `following`: the rank correlation of score and length. `separated`: the share of pairs whose easy prompt scored higher.
    """

    pairs: int
    equal: int
    explained: float
    following: float
    separated: float

    @property
    def length_decides(self) -> bool:
        return self.explained >= MOSTLY_LENGTH

    @property
    def constant(self) -> bool:
        return self.equal == self.pairs and self.explained == 0.0

    @property
    def sentence(self) -> str:
        if self.constant:
            return f"All {2 * self.pairs} prompts got the same score, whatever they ask."
        if self.length_decides:
            return (
                f"It looks at the length only: {self.equal} of {self.pairs} pairs of equally long prompts of clearly different "
                f"difficulty got equal scores, while length explains {self.explained:.0%} of the scores' variance "
                f"(rank correlation {self.following:+.2f}). Routing on length alone sends short hard questions to the cheap "
                f"model and long easy ones to the expensive one."
            )
        return (
            f"Of {self.pairs} pairs of equally long prompts the easy one scored higher in {self.separated:.0%}; "
            f"length explains {self.explained:.0%} of the scores' variance."
        )


def equal_length_pairs(count: int, seed: int = 7) -> list[Pair]:
    """`count` pairs, their lengths as different from pair to pair as the made prompts allow."""
    easy: dict[tuple[int, int], Prompt] = {}
    hard: dict[tuple[int, int], Prompt] = {}
    for prompt in make_prompts(seed, 6_000, "conformance"):
        size = (len(prompt.text.encode()), len(prompt.text.split()))
        (easy if prompt.label == "easy" else hard).setdefault(size, prompt)
    common = sorted(easy.keys() & hard.keys())
    # One pair per length in bytes, then evenly over the whole range.
    lengths = {size[0]: size for size in common}
    sizes = list(lengths.values())
    chosen = [sizes[i * len(sizes) // count] for i in range(min(count, len(sizes)))]
    return [Pair(easy[size], hard[size]) for size in dict.fromkeys(chosen)]


def judge_length(lengths: Sequence[int], easy: Sequence[float], hard: Sequence[float]) -> LengthVerdict:
    """One entry per pair: its length, the score of its easy prompt, the score of its hard one."""
    scores = np.array([easy, hard], float)
    total = float(((scores - scores.mean()) ** 2).sum())
    within = float(((scores - scores.mean(axis=0)) ** 2).sum())
    varies = total > SAME
    both = np.concatenate([scores[0], scores[1]])
    twice = np.concatenate([lengths, lengths])
    following = float(np.corrcoef(_ranks(twice), _ranks(both))[0, 1]) if varies and len(set(lengths)) > 1 else 0.0
    return LengthVerdict(
        pairs=scores.shape[1],
        equal=int((np.abs(scores[0] - scores[1]) <= 0.005).sum()),
        explained=1.0 - within / total if varies else 0.0,
        following=following,
        separated=float((scores[0] > scores[1]).mean()),
    )


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    """From 1, ties share their mean. scipy.stats.rankdata would bring 50 MB into the image for these two lines."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])
