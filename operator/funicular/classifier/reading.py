"""What the model looks at: the text of the last user message, or the reason why there is nothing it may judge.

Called by the model for every request. Nothing here decides on difficulty; a request that was not like those the model was
trained on gets a reason, and with it the label `hard`, because a wrong `hard` costs money and a wrong `easy` costs quality.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

MAX_TEXT = 8_000  # characters; the made prompts the reference was trained on end well before
MAX_MESSAGES = 40
SHORT = 24  # characters; below this a message ("why?") is read together with the user's message before it


class Reason(StrEnum):
    """Why the label is what it is; sent as `x-funicular-reason` and counted."""

    MODEL = "model"
    CUT = "cut"
    UNREADABLE = "unreadable"
    NO_MESSAGES = "no-messages"
    EMPTY = "empty"
    NOT_TEXT = "not-text"
    TOOLS = "tools"
    TOO_LONG = "too-long"
    UNKNOWN_WORDS = "unknown-words"
    NOT_ROUTED = "not-routed"


@dataclass(frozen=True, slots=True)
class Reading:
    """The text to judge when `reason` is MODEL; else empty."""

    text: str
    reason: Reason


UNREADABLE = Reading("", Reason.UNREADABLE)


def read(body: bytes, *, cut: bool = False) -> Reading:
    """Reads a chat-completions request. `cut`: the gateway said that the body is only the beginning."""
    if cut:
        # The last user message is probably behind the cut: whatever could be saved of the rest would judge another question.
        return Reading("", Reason.CUT)
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return UNREADABLE
    if not isinstance(request, dict):
        return UNREADABLE
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        return Reading("", Reason.NO_MESSAGES)
    if request.get("tools") or request.get("functions"):
        return Reading("", Reason.TOOLS)
    if len(messages) > MAX_MESSAGES:
        return Reading("", Reason.TOO_LONG)
    return _last_user_text(messages)


def _last_user_text(messages: list[Any]) -> Reading:
    text = ""
    for message in reversed(messages):
        if not isinstance(message, dict):
            return UNREADABLE
        role = message.get("role")
        if role == "tool" or message.get("tool_calls"):
            return Reading("", Reason.TOOLS)
        if role != "user":
            continue
        part = _content(message.get("content"))
        if part is None:
            return Reading("", Reason.NOT_TEXT)
        text = f"{part}\n{text}" if text else part
        if len(text) > MAX_TEXT:
            return Reading("", Reason.TOO_LONG)
        if len(text) >= SHORT:
            break
    return Reading(text, Reason.MODEL) if text.strip() else Reading("", Reason.EMPTY)


def _content(content: Any) -> str | None:
    """The text of a message's content, None when it holds anything but text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return "" if content is None else None
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            return None
        texts.append(part["text"])
    return "\n".join(texts)
