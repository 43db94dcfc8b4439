"""Feedback: what is accepted, what is refused and how, and counters that never fall."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from funicular.agent.feedback import SETTLE, FeedbackBook, Refused, parse
from funicular.agent.identity import AHEAD, OLDEST, AnswerId, BadId, IdKeys, key_of, read_id, sign

KEY = b"a key"
NOW = 1_800_000_000.0


def made_id(text: str = "", *, at: float = NOW, key: bytes = KEY) -> str:
    text = text or f"team-a/support;r2;treatment;mini;7;{int(at)}"
    return f"{text};{sign(key, text)}"


def refusal(body: bytes, now: float = NOW) -> Refused:
    with pytest.raises(Refused) as caught:
        parse(body, (KEY,), now)
    return caught.value


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(400, b"{", id="no JSON"),
        pytest.param(400, b"[]", id="no object"),
        pytest.param(400, b"\xff\xfe", id="no UTF-8"),
        pytest.param(400, b'{"thumb": "up"}', id="no id"),
        pytest.param(400, b'{"id": 7, "thumb": "up"}', id="an id that is a number"),
        pytest.param(413, b" " * 70_000, id="too large"),
        pytest.param(422, json.dumps({"id": made_id()}).encode(), id="nothing to count"),
        pytest.param(422, json.dumps({"id": made_id(), "thumb": "sideways"}).encode(), id="a thumb that is neither"),
        pytest.param(422, json.dumps({"id": made_id(), "thumb": True}).encode(), id="a thumb that is true"),
        pytest.param(422, json.dumps({"id": made_id(), "rating": 5}).encode(), id="a rating in stars"),
        pytest.param(422, json.dumps({"id": made_id(), "rating": True}).encode(), id="a rating that is true"),
        pytest.param(422, json.dumps({"id": made_id(), "rating": "NaN"}).encode(), id="a rating in text"),
        pytest.param(422, json.dumps({"id": made_id(), "resolved": "yes"}).encode(), id="resolved in text"),
        pytest.param(401, json.dumps({"id": made_id(key=b"x"), "thumb": "up"}).encode(), id="another's signature"),
        pytest.param(
            401, json.dumps({"id": made_id(at=NOW + AHEAD + 1), "thumb": "up"}).encode(), id="from the future"
        ),
        pytest.param(401, json.dumps({"id": made_id(at=NOW - OLDEST - 1), "thumb": "up"}).encode(), id="too old"),
        pytest.param(401, b'{"id": "", "thumb": "up"}', id="an empty id"),
    ],
)
def test_what_cannot_be_counted_is_refused_in_openai_style(status: int, body: bytes) -> None:
    found = refusal(body)
    assert found.status == status
    error = json.loads(found.body())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]


@given(st.text(max_size=200))
def test_no_text_is_taken_for_an_id_and_none_crashes_the_parser(text: str) -> None:
    with pytest.raises(BadId):
        read_id(text, (KEY,), NOW)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(body: bytes) -> None:
    with pytest.raises(Refused):
        parse(body, (KEY,), NOW)


@given(st.integers(min_value=0), st.characters())
def test_an_id_with_one_character_changed_is_refused(where: int, what: str) -> None:
    good = made_id()
    at = where % len(good)
    changed = good[:at] + what + good[at + 1 :]
    if changed != good:
        with pytest.raises(BadId):
            read_id(changed, (KEY,), NOW)


NAME = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)


@given(NAME, NAME, NAME, st.sampled_from(["treatment", "control", "holdback"]), NAME, st.integers(0, 63) | st.none())
def test_what_was_signed_is_read_back(
    namespace: str, policy: str, revision: str, arm: str, candidate: str, replicate: int | None
) -> None:
    shown = "" if replicate is None else str(replicate)
    text = f"{namespace}/{policy};{revision};{arm};{candidate};{shown};{int(NOW)}"
    expected = AnswerId(namespace, policy, revision, arm, candidate, replicate, int(NOW))
    assert read_id(made_id(text), (b"other", KEY), NOW) == expected


@given(st.text(max_size=60))
def test_even_a_signed_id_must_have_the_shape(text: str) -> None:
    with pytest.raises(BadId):
        read_id(made_id("x" + text), (KEY,), NOW)


def test_a_replicate_beyond_63_is_refused() -> None:
    with pytest.raises(BadId):
        read_id(made_id(f"a/b;r;control;c;64;{int(NOW)}"), (KEY,), NOW)


# --- counters ---------------------------------------------------------------------------------------------------------
LABELS = ("team-a", "support", "r2", "treatment", "mini")


def take(book: FeedbackBook, at: float, **said: object) -> int:
    text, answer, votes = parse(json.dumps({"id": made_id(), **said}).encode(), (KEY,), NOW)
    return book.take(text, answer, votes, at)


def test_a_thumb_that_changes_in_time_moves() -> None:
    book = FeedbackBook()
    assert take(book, 0.0, thumb="up") == 1
    assert take(book, 0.1, thumb="up") == 0
    assert take(book, 0.2, thumb="down") == 1
    book.settle(SETTLE)
    assert book.kinds == {(LABELS, "thumbs_down"): 1}
    assert book.replicates == {((*LABELS[:4], ""), 7, "thumbs_down"): 1}


def test_a_late_change_counts_as_well_because_counters_never_fall() -> None:
    book = FeedbackBook()
    take(book, 0.0, thumb="up")
    take(book, SETTLE, thumb="down")
    take(book, SETTLE + 1, thumb="down")
    book.settle(3 * SETTLE)
    assert book.kinds == {(LABELS, "thumbs_up"): 1, (LABELS, "thumbs_down"): 1}


def test_one_id_cannot_vote_again_and_again() -> None:
    book, text = FeedbackBook(), made_id()
    for turn in range(10):
        for thumb in ("up", "down"):
            now = NOW + turn * 20 * SETTLE + (10 * SETTLE if thumb == "down" else 0)
            _, answer, votes = parse(json.dumps({"id": text, "thumb": thumb}).encode(), (KEY,), now)
            book.take(text, answer, votes, now)
    book.settle(NOW + 1_000 * SETTLE)
    assert sorted(book.kinds.values()) == [1, 1]


def test_each_topic_of_an_answer_is_counted_once() -> None:
    book = FeedbackBook()
    assert take(book, 0.0, thumb="up", rating=0.25, resolved=True, escalated=False) == 4
    assert take(book, 0.0, thumb="up", rating=0.25, resolved=True, escalated=False) == 0
    book.settle(SETTLE)
    take(book, SETTLE, rating=1)
    book.settle(3 * SETTLE)
    assert book.ratings == {LABELS: [0.25, 1]}
    assert {kind for _, kind in book.kinds} == {"thumbs_up", "resolved", "not_escalated"}


def test_votes_beyond_memory_are_counted_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funicular.agent.feedback.REMEMBERED", 10)
    book = FeedbackBook()
    for i in range(50):
        text = made_id(f"team-a/support;r2;treatment;mini;7;{int(NOW) - i}")
        _, answer, votes = parse(json.dumps({"id": text, "thumb": "up"}).encode(), (KEY,), NOW)
        book.take(text, answer, votes, 0.0)
    book.settle(SETTLE)
    assert book.kinds == {(LABELS, "thumbs_up"): 50}


# --- keys -------------------------------------------------------------------------------------------------------------
def test_a_rotated_key_still_verifies_what_the_former_signed(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text("first\n")
    keys = IdKeys(str(path))
    assert keys.current == "first"
    path.write_text("second")
    assert keys.refresh()
    assert not keys.refresh()
    assert keys.current == "second"
    assert read_id(made_id(key=b"first"), keys.accepted, NOW)
    path.unlink()
    assert not keys.refresh()
    assert keys.current == "second"


def test_without_a_file_the_key_is_random_or_that_of_the_process_before() -> None:
    assert IdKeys("").current != IdKeys("").current
    assert IdKeys("", "former").current == "former"
    assert IdKeys("").is_random


def test_a_key_that_is_no_text_is_used_by_its_digest() -> None:
    assert key_of(b"\x00\x01") == key_of(b"\x00\x01")
    assert key_of(b"\x00\x01").isalnum()
    assert key_of(b" text\n") == "text"
