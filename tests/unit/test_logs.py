"""Logs: one line for a message, not longer than a person reads, and no forged second one."""

from __future__ import annotations

import logging
import sys

from aiohttp.http_exceptions import BadHttpMessage

from funicular.adapters.http_server import PAUSE, UnreadableRequests
from funicular.logs import FORMAT, LONGEST_MESSAGE, LONGEST_TRACE, OneLine, cut


def record(message: str, *args: object, error: BaseException | None = None, at: float = 0.0) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error is not None else None
    made = logging.LogRecord("funicular.x", logging.ERROR, __file__, 1, message, args, info)
    made.created = at
    return made


def test_a_message_is_one_line_whatever_is_in_it() -> None:
    line = OneLine(FORMAT).format(record("policy %s", "a\nERROR funicular: forged\x1b[2J\u2028é"))
    assert line.splitlines() == [line]
    assert line.endswith(r"policy a\nERROR funicular: forged\x1b[2J\u2028é")


def test_a_huge_annotation_makes_no_huge_line() -> None:
    assert len(OneLine(FORMAT).format(record("verb %s", "x" * 1_000_000))) < LONGEST_MESSAGE + 200


def test_a_trace_keeps_its_lines_and_its_end() -> None:
    try:
        raise ValueError("x" * 1_000_000 + " the end")
    except ValueError:
        made = logging.LogRecord("funicular.x", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    text = OneLine(FORMAT).format(made)
    assert "Traceback" in text
    assert text.endswith("the end")
    assert len(text) < LONGEST_TRACE + 500


def test_what_is_cut_says_how_much() -> None:
    assert cut("short") == "short"
    assert cut("a" * 50 + "b" * 50, 20) == "a" * 10 + " [... 80 characters ...] " + "b" * 10


def test_unreadable_requests_are_counted_and_told_of_once_in_a_while() -> None:
    only = UnreadableRequests()
    times = (0.0, 1.0, PAUSE - 0.1, PAUSE + 0.1)
    seen = [record("Error handling request from %s", "10.0.0.1", error=BadHttpMessage("secret"), at=t) for t in times]
    assert [only.filter(it) for it in seen] == [True, False, False, True]
    assert [seen[0].getMessage(), seen[3].getMessage()] == [
        "1 requests could not be read, the last: BadHttpMessage",
        "3 requests could not be read, the last: BadHttpMessage",
    ]
    assert seen[0].exc_info is None


def test_our_own_failures_keep_their_trace() -> None:
    only, own = UnreadableRequests(), record("Error handling request", error=KeyError("x"))
    assert all(only.filter(own) for _ in range(3))
    assert own.exc_info is not None
