"""How the processes write logs: called once by each composition root.

A line is a line, and not longer than a person reads: names, annotations and answers of others end up in messages, and must
neither forge a second line nor fill a disk.
"""

from __future__ import annotations

import copy
import logging
import sys

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LONGEST_MESSAGE, LONGEST_TRACE = 2_000, 16_000  # characters


def cut(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """`text`, or its beginning and its end: the end of a trace says what happened."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"


class OneLine(logging.Formatter):
    """Messages on one line each; traces keep theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (its name in the library)
        shown = copy.copy(record)
        shown.message = "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut(record.message))
        return super().formatMessage(shown)

    def formatException(self, ei) -> str:  # type: ignore[no-untyped-def] # noqa: N802
        return cut(super().formatException(ei), LONGEST_TRACE)


def configure(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
