"""What a simulated provider can be told to do wrong, and the seeded dice that decide when it does.

Called by provider. Pure: draws come from a generator that is handed in, so that a seed tells the whole story.
"""

from __future__ import annotations

import math
import random
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Milliseconds = Annotated[float, Field(ge=0.0, le=600_000.0)]


class Faults(BaseModel):
    """The body of POST /admin/faults: fields that are left out stay as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    latency_ms: Milliseconds = Field(
        0.0, description="median time to a whole answer, or to a stream's first chunk if ttft_ms is 0"
    )
    latency_sigma: Annotated[float, Field(ge=0.0, le=3.0)] = Field(
        0.0, description="spread: sigma of the log-normal factor"
    )
    ttft_ms: Milliseconds = Field(0.0, description="median time to a stream's first chunk")
    chunk_ms: Milliseconds = Field(0.0, description="time between two chunks of a stream")
    error_rate: Share = Field(0.0, description="share of requests answered with error_code")
    error_code: Annotated[int, Field(ge=400, le=599)] = 500
    rate_limit_rps: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="answers beyond are 429 with retry-after; 0: no limit"
    )
    garbage_rate: Share = Field(0.0, description="share of requests answered 200 with rubbish")
    cut_stream_rate: Share = Field(0.0, description="share of streams whose connection is cut in the middle")
    hang_rate: Share = Field(0.0, description="share of requests that are never answered")
    refuse: bool = Field(False, description="every connection is cut before the first byte, as a dead pod would")
    quality: Share = Field(1.0, description="probability that an answer is good")
    quality_hard: Share | None = Field(
        None, description="the same for requests with metadata.difficulty hard; None: quality"
    )


class Fate(StrEnum):
    """What becomes of one request."""

    ANSWER = "answer"
    ERROR = "error"
    RATE_LIMITED = "rate-limited"
    GARBAGE = "garbage"
    CUT = "cut"
    HANG = "hang"
    REFUSED = "refused"


class Bucket:
    """A token bucket of one second's worth."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._rate = 0.0
        self._at = 0.0

    def admits(self, rate: float, now: float) -> bool:
        """`rate` in requests a second, 0 for no limit; `now` in seconds on any clock that does not go back."""
        if rate <= 0.0:
            return True
        if rate != self._rate:
            self._rate, self._tokens, self._at = rate, max(1.0, rate), now
        self._tokens = min(max(1.0, rate), self._tokens + (now - self._at) * rate)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def draw_fate(faults: Faults, rng: random.Random, *, stream: bool) -> Fate:
    """One throw for all faults, so that their rates add up as they are written."""
    if faults.refuse:
        return Fate.REFUSED
    throw = rng.random()
    for rate, fate in (
        (faults.error_rate, Fate.ERROR),
        (faults.hang_rate, Fate.HANG),
        (faults.garbage_rate, Fate.GARBAGE),
        (faults.cut_stream_rate if stream else 0.0, Fate.CUT),
    ):
        if throw < rate:
            return fate
        throw -= rate
    return Fate.ANSWER


def draw_delay(median_ms: float, sigma: float, rng: random.Random) -> float:
    """Seconds, log-normal around the median: real latencies have a long right tail."""
    if median_ms <= 0.0:
        return 0.0
    return median_ms / 1_000.0 * (math.exp(rng.gauss(0.0, sigma)) if sigma else 1.0)
