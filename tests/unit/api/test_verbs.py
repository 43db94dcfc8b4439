"""Verb annotations: what is understood, and what is too long to be kept in status."""

from __future__ import annotations

import pytest

from funicular.api.verbs import LONGEST, Request, Verb, parse


def test_a_request_is_read_as_it_was_written() -> None:
    asked = Request(Verb.PAUSE, "abc", "id-1", "ada")
    assert parse(asked.annotation()) == asked


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("dance abc id-1", id="no verb of ours"),
        pytest.param("pause abc", id="no id"),
        pytest.param("pause abc id-1 ada b", id="a name of two words"),
        pytest.param(f"pause abc {'x' * (LONGEST + 1)}", id="an id too long"),
        pytest.param(f"pause abc id-1 {'x' * 200_000}", id="a name too long"),
    ],
)
def test_what_is_no_request(text: str) -> None:
    assert parse(text) is None
