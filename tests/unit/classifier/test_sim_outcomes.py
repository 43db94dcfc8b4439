"""What a load report says about users and failures, from outcomes written by hand."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from hack.sim.outcomes import AnswerId, Failure, Outcome, Results, Step


def outcome(
    at: float, user: str, arm: str = "", *, revision: str = "r2", failure: Failure | None = None, number: str = ""
) -> Outcome:
    raw = f"shop/support-chat;{revision};{arm};mini;7;{int(at)};c2ln"
    return Outcome(
        number or f"n{at}", at, 0.0, user, "x-user-id", "http://pod", "easy", stream=False, status=200,
        failure=failure, answer=AnswerId.parse(raw) if arm else None,
    )  # fmt: skip


STEPS = [Step("1 %", 0, 10), Step("10 %", 10, 20), Step("50 %", 20, 30)]


def test_an_id_is_taken_apart() -> None:
    answer = AnswerId.parse("shop/support-chat;r2;treatment;mini;7;1700000000;c2ln")
    assert answer is not None
    assert (answer.policy, answer.revision, answer.arm) == ("shop/support-chat", "r2", "treatment")
    assert (answer.candidate, answer.replicate, answer.time) == ("mini", "7", 1_700_000_000)


@pytest.mark.parametrize("raw", [None, "", "a;b", "p;r;a;c;1;later;s", "a;b;c;d;e;1;g;h"])
def test_what_is_no_id_is_none(raw: str | None) -> None:
    assert AnswerId.parse(raw) is None


def test_steps_that_contain_each_other() -> None:
    results = Results([
        outcome(1, "anna", "treatment"), outcome(2, "ben", "control"),
        outcome(11, "anna", "treatment"), outcome(12, "ben", "treatment"), outcome(13, "cem", "control"),
        outcome(21, "ben", "treatment"), outcome(22, "cem", "holdback"),
    ])  # fmt: skip
    rows = results.per_step(STEPS, "r2")
    assert [sorted(row.treated) for row in rows] == [["anna"], ["anna", "ben"], ["ben"]]
    assert [row.users for row in rows] == [2, 3, 2]
    assert rows[2].holdback == {"cem"}
    assert all(row.contains_the_step_before for row in rows)
    assert results.moved_back("r2", 0, 30) == {}


def test_a_user_that_falls_out_is_seen() -> None:
    results = Results([outcome(1, "anna", "treatment"), outcome(21, "anna", "control")])
    rows = results.per_step(STEPS, "r2")
    assert rows[2].left_out == {"anna"}
    assert results.moved_back("r2", 0, 30) == {"anna": 21}


def test_a_user_in_two_arms_within_a_step_is_seen() -> None:
    rows = Results([outcome(11, "anna", "control"), outcome(12, "anna", "treatment")]).per_step(STEPS, "r2")
    assert rows[1].both == {"anna"}


def test_another_revision_is_not_this_one() -> None:
    rows = Results([outcome(1, "anna", "treatment", revision="r1")]).per_step(STEPS, "r2")
    assert not rows[0].treated


def test_a_failure_is_lost_unless_a_provider_says_it_was_its_own() -> None:
    results = Results([
        outcome(1, "anna", failure=Failure.STATUS, number="a"), outcome(2, "ben", failure=Failure.CUT, number="b"),
        outcome(3, "cem", "control", number="c"),
    ])  # fmt: skip
    results.attribute([{"a": ["error"]}, {"a": ["hang"], "c": ["error"]}])
    assert [o.number for o in results.failed] == ["a", "b"]
    assert [o.number for o in results.lost] == ["b"]
    assert results.outcomes[0].provider_faults == ("error", "hang")
    assert "LOST" in results.outcomes[1].explain()
    assert "provider: error, hang" in results.outcomes[0].explain()


def test_outcomes_are_written_as_json_lines(tmp_path: Path) -> None:
    Results([outcome(1, "anna", "treatment"), outcome(2, "", failure=Failure.CONNECT)]).write(tmp_path / "o.jsonl")
    lines = [orjson.loads(line) for line in (tmp_path / "o.jsonl").read_bytes().splitlines()]
    assert lines[0]["answer"]["arm"] == "treatment"
    assert lines[1]["failure"] == "connect"
