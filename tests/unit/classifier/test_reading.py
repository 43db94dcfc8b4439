"""What the reference model may look at, and what it must not judge."""

from __future__ import annotations

import orjson
import pytest

from funicular.classifier.reading import MAX_MESSAGES, MAX_TEXT, Reason, read

ASK = {"role": "user", "content": "Where is my order, please, it is late?"}
SYSTEM = {"role": "system", "content": "Prove everything."}


def body(*messages: object, **fields: object) -> bytes:
    return orjson.dumps({"model": "m", "messages": list(messages), **fields})


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        pytest.param(body(ASK), ASK["content"], id="the user's message is read"),
        pytest.param(body(SYSTEM, ASK), ASK["content"], id="the system prompt is not"),
        pytest.param(
            body(ASK, {"role": "assistant", "content": "no"}), ASK["content"], id="nor is an answer that follows"
        ),
        pytest.param(
            body({"role": "user", "content": "First thing"}, {"role": "assistant", "content": "?"}, ASK),
            ASK["content"],
            id="only the last user message counts when it says enough",
        ),
        pytest.param(
            body(ASK, {"role": "assistant", "content": "?"}, {"role": "user", "content": "why?"}),
            f"{ASK['content']}\nwhy?",
            id="a short one is read with the one before",
        ),
        pytest.param(
            body({"role": "user", "content": [{"type": "text", "text": "a" * 30}, {"type": "text", "text": "b"}]}),
            "a" * 30 + "\nb",
            id="text in parts is joined",
        ),
        pytest.param(body(ASK, tools=[], functions=None), ASK["content"], id="an empty list of tools is no tools"),
    ],
)
def test_text_that_is_judged(sent: bytes, text: str) -> None:
    reading = read(sent)
    assert (reading.text, reading.reason) == (text, Reason.MODEL)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        pytest.param(b"", Reason.UNREADABLE, id="nothing"),
        pytest.param(b"[]", Reason.UNREADABLE, id="no object"),
        pytest.param(body(ASK)[:-9], Reason.UNREADABLE, id="JSON that ends in the middle"),
        pytest.param(b'{"messages":' + b"[" * 5_000, Reason.UNREADABLE, id="deep nesting"),
        pytest.param(b'{"messages":[{"role":"user","content":"\\ud800"}]}', Reason.UNREADABLE, id="a lone surrogate"),
        pytest.param(body(1, 2), Reason.UNREADABLE, id="messages that are no objects"),
        pytest.param(b"{}", Reason.NO_MESSAGES, id="no messages"),
        pytest.param(b'{"messages":[]}', Reason.NO_MESSAGES, id="empty messages"),
        pytest.param(body({"role": "user", "content": " \n"}), Reason.EMPTY, id="a blank message"),
        pytest.param(body({"role": "user", "content": None}), Reason.EMPTY, id="content null"),
        pytest.param(body(SYSTEM), Reason.EMPTY, id="only a system prompt"),
        pytest.param(body({"role": "user", "content": 3}), Reason.NOT_TEXT, id="content of a wrong type"),
        pytest.param(body({"role": "user", "content": [{"type": "image_url"}]}), Reason.NOT_TEXT, id="an image"),
        pytest.param(body(ASK, tools=[{"type": "function"}]), Reason.TOOLS, id="tools on offer"),
        pytest.param(body(ASK, {"role": "tool", "content": "42"}), Reason.TOOLS, id="a tool's result"),
        pytest.param(
            body({"role": "user", "content": "a" * (MAX_TEXT + 1)}), Reason.TOO_LONG, id="a very long message"
        ),
        pytest.param(body(*[ASK] * (MAX_MESSAGES + 1)), Reason.TOO_LONG, id="a very long conversation"),
    ],
)
def test_what_is_not_judged_has_a_reason(sent: bytes, reason: Reason) -> None:
    reading = read(sent)
    assert (reading.text, reading.reason) == ("", reason)


def test_a_body_that_the_gateway_cut_is_not_judged_even_if_it_parses() -> None:
    assert read(body(ASK), cut=True).reason is Reason.CUT
