"""Durations as the resource writes them: `50ms`, `4s`, `1h30m`, `168h`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import StringConstraints

# At most six digits a part and twenty characters in all: no such text overflows Go's 292 years in a CEL rule.
PATTERN = r"^([0-9]{1,6}(\.[0-9]{1,6})?(ms|s|m|h))+$"
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

Duration = Annotated[str, StringConstraints(pattern=PATTERN, max_length=20)]


def seconds(text: str) -> float:
    """`1h30m` -> 5400.0. Raises ValueError for anything that does not match PATTERN."""
    if not re.match(PATTERN, text):
        raise ValueError(f"{text!r} is not a duration such as 50ms, 4s or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def delta(text: str) -> timedelta:
    return timedelta(seconds=seconds(text))


def readable(value: float) -> str:
    """Seconds for people: `9 s`, `12 min`, `3.5 h`, `6.2 d`."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if value < limit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 86400:.3g} d"
