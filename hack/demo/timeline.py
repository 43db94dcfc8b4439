"""What was seen while the demo ran: the policy's changes, Events and instants, with the times at which they were seen.

Filled by the watcher and the stories; read by the live table and the report. Times are seconds since the epoch, of this
machine's one clock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from funicular.api.status import Status

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """One version of the policy."""

    at: float
    generation: int
    spec: Json
    status: Status

    @property
    def share(self) -> float:
        """Per cent that is ordered for the candidate's revision; 0 while nothing ramps."""
        traffic = self.status.traffic
        return traffic.share.desired / 100 if traffic and traffic.candidate else 0.0


@dataclass(frozen=True, slots=True)
class StepInEffect:
    """A stretch in which one share of one revision was in effect on all gateway pods."""

    revision: str
    share: float
    entered: float  # the share was ordered
    since: float  # all pods had confirmed it
    until: float


@dataclass
class Timeline:
    seen: list[Seen] = field(default_factory=list)
    marks: dict[str, float] = field(default_factory=dict)
    events: deque[Json] = field(default_factory=lambda: deque(maxlen=200))
    story: str = "set-up"

    def mark(self, name: str, at: float | None = None) -> float:
        """Remember an instant by name."""
        self.marks[name] = time.time() if at is None else at
        return self.marks[name]

    @property
    def last(self) -> Seen | None:
        return self.seen[-1] if self.seen else None

    def status(self) -> Status:
        return self.seen[-1].status if self.seen else Status()

    def steps(self, end: float) -> list[StepInEffect]:
        """From what the operator wrote: a step is in effect from the last pod's confirmation to the next decision."""
        found: list[StepInEffect] = []
        for at, (revision, share, entered, since) in _starts(self.seen):
            later = (_left(it, revision, share) for it in self.seen if it.at > at)
            until = next((left for left in later if left is not None), end)
            found.append(StepInEffect(revision, share, entered, since, max(since, min(end, until))))
        return found


def _left(it: Seen, revision: str, share: float) -> float | None:
    """When the share was taken from this revision, if this version of the policy shows that it was."""
    status = it.status
    step, candidate = status.step, status.candidate
    if candidate is not None and candidate.revision == revision and step is not None:
        return None if step.share / 100 == share else step.entered_at.timestamp()
    if status.stable is not None and status.stable.revision == revision and status.stable.since is not None:
        return status.stable.since.timestamp()
    if status.reverted_at is not None and any(r.revision == revision for r in status.rejected):
        return status.reverted_at.timestamp()
    return it.at


def _starts(seen: list[Seen]) -> Iterator[tuple[float, tuple[str, float, float, float]]]:
    known: set[tuple[str, int, datetime]] = set()
    for it in seen:
        step, candidate = it.status.step, it.status.candidate
        if step is None or candidate is None or step.started_at is None:
            continue
        key = (candidate.revision, step.share, step.started_at)
        if key not in known:
            known.add(key)
            times = step.entered_at.timestamp(), step.started_at.timestamp()
            yield it.at, (candidate.revision, step.share / 100, *times)
