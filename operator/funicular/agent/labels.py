"""The pod's labels, from the downward API's file: lines of `key="value"` with Go's escapes. Pure but for one read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def parse_labels(text: str) -> dict[str, str]:
    """Lines that cannot be read are left out: a label we do not understand matches nothing."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, quoted = line.strip().partition("=")
        if not key or not equals:
            continue
        try:
            value = json.loads(quoted) if quoted.startswith('"') else quoted
        except ValueError:
            continue
        found[key] = value
    return found


def read_labels(path: str) -> dict[str, str]:
    """No file: no labels, so no policy selects this pod."""
    try:
        return parse_labels(Path(path).read_text()) if path else {}
    except OSError:
        return {}


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """An empty selector selects nothing: better served by nobody than by everybody."""
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())
