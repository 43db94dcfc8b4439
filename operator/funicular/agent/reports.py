"""What the operator has been told, and what is due: a pure state machine. Driven by reporter.py.

Deltas at once, a heartbeat every 5 s, everything after a resync, a change of leader, a failure, or a start.
"""

from __future__ import annotations

from collections.abc import Mapping

from funicular.api.report import Ack, Counts, Report

HEARTBEAT = 5.0
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 2.0


class ReportBook:
    def __init__(self, *, pod: str, namespace: str, uid: str, session: str) -> None:
        self._who = {"pod": pod, "namespace": namespace, "uid": uid, "session": session}
        self._acks: dict[str, Ack] = {}
        self._unsent: set[str] = set()
        self._full = True
        self._failures = 0
        self._next = 0.0  # no report before, after a failure; else a heartbeat then

    def acked(self, uid: str, ack: Ack) -> bool:
        """False: the operator knows."""
        if self._acks.get(uid) == ack:
            return False
        self._acks[uid] = ack
        self._unsent.add(uid)
        return True

    def gone(self, uid: str) -> None:
        self._acks.pop(uid, None)
        self._unsent.discard(uid)

    def ack(self, uid: str) -> Ack | None:
        return self._acks.get(uid)

    def resync(self) -> None:
        """The operator does not know us: another leader, or a new process."""
        self._full = True
        self._failures = 0
        self._next = 0.0

    def due(self, now: float) -> float:
        """Seconds until a report must go; 0: now."""
        if self._failures:
            return max(0.0, self._next - now)
        if self._unsent or self._full:
            return 0.0
        return max(0.0, self._next - now)

    def compose(self, counts: Mapping[str, Counts]) -> Report:
        acks = self._acks if self._full else {uid: self._acks[uid] for uid in self._unsent if uid in self._acks}
        return Report(**self._who, full=self._full, acks=dict(acks), counts=dict(counts))

    def sent(self, report: Report, *, resync: bool, now: float) -> None:
        """What changed while the report travelled stays unsent."""
        self._unsent = {uid for uid in self._unsent if self._acks.get(uid) != report.acks.get(uid)}
        self._full = resync
        self._failures = 0
        self._next = now + HEARTBEAT

    def failed(self, now: float) -> None:
        self._full = True
        self._next = now + min(LONGEST_BACKOFF, FIRST_BACKOFF * 2**self._failures)
        self._failures = min(self._failures + 1, 10)

    @property
    def is_full(self) -> bool:
        """The next report tells everything."""
        return self._full

    @property
    def is_failing(self) -> bool:
        return self._failures > 0
