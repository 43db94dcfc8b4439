"""When a policy that Envoy refused is offered to it again."""

from __future__ import annotations

from funicular.agent.ports import Compiled
from funicular.agent.refusals import FIRST, LONGEST, REFUSED, Refusals

KEY = ("n", "a")


def part(route: bytes = b"{}") -> Compiled:
    return Compiled("a", route, {}, {}, ())


def test_a_refused_policy_is_offered_again_after_ever_longer_waits() -> None:
    refusals, now, waits = Refusals(), 0.0, []
    for _ in range(8):
        refusals.refuse(KEY, part(), now)
        assert refusals.why(KEY, part()) == REFUSED
        due = refusals.next_due()
        assert due is not None
        assert refusals.due(due - 0.1) == set()
        assert refusals.due(due) == {KEY}
        assert refusals.why(KEY, part()) is None, "nothing hinders it now"
        assert refusals.next_due() is None, "once"
        waits.append(due - now)
        now = due
    assert waits == [FIRST, 60, 120, 240, 480, LONGEST, LONGEST, LONGEST]


def test_another_version_is_offered_at_once_and_waits_anew() -> None:
    refusals = Refusals()
    for now in (0.0, 100.0):
        refusals.refuse(KEY, part(), now)
    assert refusals.why(KEY, part(b"[]")) is None
    refusals.refuse(KEY, part(b"[]"), 200.0)
    assert refusals.next_due() == 200 + FIRST


def test_what_was_taken_in_between_waits_anew() -> None:
    refusals = Refusals()
    refusals.refuse(KEY, part(), 0.0)
    assert refusals.due(FIRST) == {KEY}
    refusals.taken({KEY: part()})
    refusals.refuse(KEY, part(), 100.0)
    assert refusals.next_due() == 100 + FIRST


def test_a_policy_that_is_gone_is_not_waited_for() -> None:
    refusals = Refusals()
    refusals.refuse(KEY, part(), 0.0)
    refusals.keep({})
    assert refusals.next_due() is None
