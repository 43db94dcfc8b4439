"""Text to numbers: hashed words, hashed pairs of words, and shares of kinds of characters.

Pure, and the same in training and serving.

All of it is a handful of numpy calls over the bytes of the text, so that a prompt of 200 bytes costs about 30
microseconds and one of 8 kB not much more. Length is not a feature, on purpose: routing on token count alone is one of
the patterns that do not work.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WORD_BITS = 14
PAIR_BITS = 16
WORDS = 1 << WORD_BITS
PAIRS = 1 << PAIR_BITS
LONGEST_WORD = 31

# Kinds of characters whose share of the text is a feature. One row each.
KINDS: dict[str, bytes] = {
    "digits": b"0123456789",
    "code": b"{}[]<>=;_\\|`$#@^~",
    "brackets": b"()",
    "arithmetic": b"+-*/%",
    "questions": b"?",
    "exclamations": b"!",
    "commas": b",",
    "stops": b".:",
    "lines": b"\n",
    "capitals": bytes(range(ord("A"), ord("Z") + 1)),
}


def _folding() -> bytes:
    """Letters to lower case, every digit to 0 (the shape of a number, not its value), UTF-8 bytes kept, the rest a separator."""
    table = bytearray(256)
    for byte in range(256):
        char = chr(byte)
        if byte >= 0x80:
            table[byte] = byte
        elif char.isdigit():
            table[byte] = ord("0")
        elif char.isalpha():
            table[byte] = ord(char.lower())
    return bytes(table)


def _powers() -> NDArray[np.uint32]:
    powers, value = [], 1
    for _ in range(LONGEST_WORD + 1):
        powers.append(value)
        value = value * 0x01000193 & 0xFFFFFFFF
    return np.array(powers, np.uint32)


FOLD = _folding()
POWERS = _powers()
KIND_OF_BYTE = np.zeros((256, len(KINDS)), np.float32)
for _column, _bytes in enumerate(KINDS.values()):
    KIND_OF_BYTE[list(_bytes), _column] = 1.0


class Features(NamedTuple):
    """`words` index a table of WORDS weights, `pairs` one of PAIRS; `kinds` are log(1 + count per 100 bytes)."""

    words: NDArray[np.uint32]
    pairs: NDArray[np.uint32]
    kinds: NDArray[np.float32]


def _mix(hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Spreads the entropy of the high bits over the low ones (the finish of Murmur3)."""
    hashes ^= hashes >> np.uint32(16)
    hashes *= np.uint32(0x85EBCA6B)
    hashes ^= hashes >> np.uint32(13)
    hashes *= np.uint32(0xC2B2AE35)
    hashes ^= hashes >> np.uint32(16)
    return hashes


def extract(text: str) -> Features:
    """The features of a text. A text without a word gives empty `words` and `pairs`."""
    raw = text.encode("utf-8", "replace")
    folded = np.frombuffer(b"\0" + raw.translate(FOLD), np.uint8)
    inside = folded != 0
    starts = np.flatnonzero(inside[1:] & ~inside[:-1]) + 1
    histogram = np.bincount(np.frombuffer(raw, np.uint8), minlength=256).astype(np.float32)
    kinds = np.log1p(histogram @ KIND_OF_BYTE * np.float32(100.0 / max(len(raw), 1)))
    if not starts.size:
        nothing = np.empty(0, np.uint32)
        return Features(nothing, nothing, kinds)
    first = int(starts[0])
    tail = folded[first:]
    starts -= first
    bounds = np.empty(starts.size + 1, starts.dtype)
    bounds[:-1] = starts
    bounds[-1] = tail.size
    positions = np.arange(tail.size) - starts.repeat(bounds[1:] - bounds[:-1])
    terms = tail * POWERS.take(positions, mode="clip")  # separators are 0 and add nothing
    hashes = _mix(np.add.reduceat(terms, starts, dtype=np.uint32))
    pairs = _mix(hashes[:-1] * np.uint32(31) + hashes[1:])
    return Features(hashes & np.uint32(WORDS - 1), pairs & np.uint32(PAIRS - 1), kinds)
