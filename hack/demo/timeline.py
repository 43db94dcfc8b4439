"""What was seen while the demo ran: the policy's changes, Events and instants, with the times at which they were seen.

Filled by the watcher and the stories; read by the live table and the report. Times are seconds since the epoch, of this
machine's one clock.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from funicular.api.status import Rejected, Status, VerdictStatus

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


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the operator last said of each SLO. `of` names the revision if it is one that was reverted since."""

    rows: tuple[VerdictStatus, ...]
    of: str = ""


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

    def verdicts(self) -> Verdicts:
        """The present ones; the operator clears those of a revision that it reverts, so after a revert the last ones
        that it wrote, and for the SLO that failed what it gave as its reason for the rejection."""
        status = self.status()
        if status.candidate is not None or not status.rejected:
            return Verdicts(status.verdicts)
        rejected = status.rejected[-1]
        of_it = (
            it.status.verdicts
            for it in reversed(self.seen)
            if it.status.verdicts and it.status.candidate and it.status.candidate.revision == rejected.revision
        )
        rows = tuple(_with_reason(it, rejected) for it in next(of_it, ()))
        return Verdicts(tuple(sorted(rows, key=lambda it: it.outcome != "Fail")), rejected.revision)

    def steps(self, end: float) -> list[StepInEffect]:
        """From what the operator wrote: a step is in effect from the last pod's confirmation to the next decision."""
        found: list[StepInEffect] = []
        for at, (revision, share, entered, since) in _starts(self.seen):
            later = (_left(it, revision, share) for it in self.seen if it.at > at)
            until = next((left for left in later if left is not None), end)
            found.append(StepInEffect(revision, share, entered, since, max(since, min(end, until))))
        return found


def _with_reason(verdict: VerdictStatus, rejected: Rejected) -> VerdictStatus:
    """The verdict for which the revision was rejected, with the numbers of the sentence that says so."""
    if not rejected.message.startswith(f"{verdict.slo}: "):
        return verdict
    sentence = without_name(rejected.message, verdict.slo)
    changed: Json = {"outcome": "Fail", "reason": rejected.reason, "message": rejected.message}
    if found := re.match(r"([\d.]+) %", sentence):
        changed["estimate"] = float(found[1]) / 100
    if found := re.search(r" against ([\d.]+) %", sentence):
        changed["reference"] = float(found[1]) / 100
    if found := re.search(r" over ([\d,]+) (?:requests|votes)", sentence):
        changed["samples"] = float(found[1].replace(",", ""))
    if found := re.match(r"([\d,]+) of ([\d,]+) treated requests failed", sentence):
        failed, requests = (float(it.replace(",", "")) for it in found.groups())
        changed |= {"estimate": failed / max(1.0, requests), "samples": requests}
        if found := re.search(r"([\d.e-]+) % in control", sentence):
            changed["reference"] = float(found[1]) / 100
    return verdict.model_copy(update=changed)


def without_name(message: str, name: str) -> str:
    """A verdict's sentence without the SLO's name at its front."""
    while message.startswith(f"{name}: "):
        message = message.removeprefix(f"{name}: ")
    return message


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
