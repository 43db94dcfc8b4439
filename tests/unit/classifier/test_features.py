"""The features against a plain, slow reading of their definition."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funicular.classifier.features import FOLD, LONGEST_WORD, POWERS, WORDS, extract

M = 0xFFFFFFFF


def mix(value: int) -> int:
    value ^= value >> 16
    value = value * 0x85EBCA6B & M
    value ^= value >> 13
    value = value * 0xC2B2AE35 & M
    return value ^ value >> 16


def slow_word_places(text: str) -> list[int]:
    words = re.findall(rb"[^\x00]+", text.encode("utf-8", "replace").translate(FOLD))
    hashes = (sum(b * int(POWERS[min(i, LONGEST_WORD)]) for i, b in enumerate(word)) & M for word in words)
    return [mix(h) & WORDS - 1 for h in hashes]


@given(st.text(max_size=200))
def test_words_are_hashed_as_defined(text: str) -> None:
    assert extract(text).words.tolist() == slow_word_places(text)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=80))
def test_pairs_are_one_fewer_than_words(text: str) -> None:
    features = extract(text)
    assert features.pairs.size == max(0, features.words.size - 1)
    assert np.isfinite(features.kinds).all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("Where IS it?", "where is it", id="case and punctuation do not change words"),
        pytest.param("order 48213", "order 70001", id="nor does a number's value"),
        pytest.param("  a\t\nb ", "a b", id="nor white space"),
    ],
)
def test_same_words(one: str, other: str) -> None:
    assert extract(one).words.tolist() == extract(other).words.tolist()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("order 482", "order 48213", id="a number's shape counts"),
        pytest.param("ab", "ba", id="the order of letters counts"),
    ],
)
def test_other_words(one: str, other: str) -> None:
    assert extract(one).words.tolist() != extract(other).words.tolist()


def test_length_is_no_feature() -> None:
    once, often = extract("where is it? "), extract("where is it? " * 50)
    assert np.allclose(once.kinds, often.kinds)
