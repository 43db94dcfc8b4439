"""The one place that reads the wall clock. Composition roots pass it on; tests pass a fake."""

from __future__ import annotations

from datetime import UTC, datetime


class SystemClock:
    """Implements ports.Clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)
