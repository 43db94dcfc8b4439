"""A file of Envoy's: a discovery response whose version is the hash of what it holds. Pure."""

from __future__ import annotations

from typing import Any

import orjson
import xxhash


def document(resources: list[Any]) -> tuple[bytes, str]:
    """A discovery response and its version: the hash of its content, so that the same content is the same version."""
    content = orjson.dumps(resources)
    version = xxhash.xxh3_64_hexdigest(content)
    return b'{"version_info":"' + version.encode() + b'","resources":' + content + b"}", version


def secret_value(content: bytes | None) -> str | None:
    """The value in a file of ours with one secret; None: there is none."""
    try:
        return str(orjson.loads(content or b"")["resources"][0]["generic_secret"]["secret"]["inline_string"])
    except (ValueError, KeyError, IndexError, TypeError):
        return None
