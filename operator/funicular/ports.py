"""The seams between the controller and the world: Protocols of one to four methods. Adapters implement them, tests fake them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol

Json = dict[str, Any]


class Clock(Protocol):
    def now(self) -> datetime:
        """The time, aware, in UTC."""


class Metrics(Protocol):
    async def query(self, promql: str, at: datetime) -> list[tuple[dict[str, str], float]]:
        """The instant vector of `promql` at `at`: labels and value of each sample.

        Raises MetricsUnavailable, InvalidQuery, AccessDenied."""
