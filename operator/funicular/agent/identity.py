"""`x-funicular-id`: who signs it (the key), and how it is read back. Pure but for the key's file.

namespace/policy;revision;arm;candidate;replicate;unix-seconds;signature (the seconds to the microsecond, so that no two answers
share an id), where the signature is the first 16 bytes of
HMAC-SHA256 over what stands before it, in hex. A request without a unit has no replicate.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

OLDEST = 30 * 86400  # seconds that an answer can be judged
AHEAD = 60  # seconds that another pod's clock may be ahead
LONGEST = 1024
KEPT = 4  # former keys that still verify: answers outlive a rotation
ARMS = ("treatment", "control", "holdback")
_NAME = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
_SHAPE = re.compile(
    rf"(?P<namespace>{_NAME})/(?P<policy>{_NAME});(?P<revision>[A-Za-z0-9][-A-Za-z0-9._]{{0,62}});(?P<arm>{'|'.join(ARMS)})"
    rf";(?P<candidate>{_NAME}|-?);(?P<replicate>[0-9]{{1,2}}|-?);(?P<at>[0-9]{{1,12}}(?:\.[0-9]{{1,9}})?);(?P<mac>[0-9a-f]{{32}})"
)


@dataclass(frozen=True, slots=True)
class AnswerId:
    namespace: str
    policy: str
    revision: str
    arm: str
    candidate: str
    replicate: int | None
    at: float


class BadId(ValueError):
    """Not an id of ours; the message is for the client."""


def sign(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()[:16].hex()


def read_id(text: str, keys: tuple[bytes, ...], now: float) -> AnswerId:
    """Raises BadId. The signature is compared in constant time, and before anything else is believed."""
    if len(text) > LONGEST or (found := _SHAPE.fullmatch(text)) is None:
        raise BadId("'id' is not a value of the x-funicular-id header.")
    signed = text[: -len(found["mac"]) - 1]
    valid = False
    for key in keys:
        valid |= hmac.compare_digest(sign(key, signed), found["mac"])
    if not valid:
        raise BadId("'id' is not signed by this gateway.")
    at = float(found["at"])
    if at > now + AHEAD:
        raise BadId("'id' is from the future.")
    if now - at > OLDEST:
        raise BadId("'id' is older than 30 days.")
    replicate = found["replicate"]
    number = int(replicate) if replicate not in ("", "-") else None
    if number is not None and number > 63:
        raise BadId("'id' is not a value of the x-funicular-id header.")
    return AnswerId(
        found["namespace"], found["policy"], found["revision"], found["arm"], found["candidate"], number, at
    )


def key_of(content: bytes) -> str:
    """What both Envoy (SDS, text) and this process sign with: the file's text, or a digest where it is not text."""
    text = content.strip()
    if text and all(33 <= byte < 127 for byte in text):
        return text.decode()
    return hashlib.sha256(content).hexdigest()


class IdKeys:
    """The signing key and those before it. Without a file: random, so ids are good for this process's lifetime only."""

    def __init__(self, path: str, fallback: str | None = None) -> None:
        """`fallback`: the random key of an earlier process in this pod."""
        self._path = path
        self._fallback = fallback
        self.is_random = False
        self._keys: list[str] = []
        self.refresh()

    def refresh(self) -> bool:
        """True: the key has changed. A file that cannot be read, or is empty, keeps the present one."""
        try:
            content = Path(self._path).read_bytes() if self._path else b""
        except OSError:
            content = b""
        if not content.strip():
            if self._keys:
                return False
            self.is_random = True
            self._keys = [self._fallback or secrets.token_hex(32)]
            return True
        key = key_of(content)
        self.is_random = False
        if self._keys and self._keys[0] == key:
            return False
        self._keys = [key, *(k for k in self._keys if k != key)][: KEPT + 1]
        return True

    @property
    def current(self) -> str:
        return self._keys[0]

    @property
    def accepted(self) -> tuple[bytes, ...]:
        return tuple(key.encode() for key in self._keys)
