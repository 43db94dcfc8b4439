"""The counters of ramping policies for the operator's fast-burn guard: since the share of a version took effect. Pure.

Called by the reporter with what Envoy counts now. A snapshot is taken when a version is acknowledged and subtracted from
then on; an Envoy that restarted counts from zero, and then its former counts are kept by the offsets in metrics.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from funicular.api.report import ArmReport, Counts

REPLICATES = 64
Cell = tuple[str, int, str]  # arm, replicate, what: n | bad | slow
Totals = Mapping[Cell, float]


@dataclass(slots=True)
class Snapshot:
    version: int
    revision: str
    base: dict[Cell, float] = field(default_factory=dict)
    last: Counts | None = None


class CountBook:
    """By the policy's uid."""

    def __init__(self) -> None:
        self._snapshots: dict[str, Snapshot] = {}

    def begin(self, uid: str, version: int, revision: str, totals: Totals) -> None:
        """The share of `version` took effect when Envoy had counted `totals`."""
        self._snapshots[uid] = Snapshot(version, revision, dict(totals))

    def keep(self, uids: Iterable[str]) -> None:
        for uid in self._snapshots.keys() - set(uids):
            del self._snapshots[uid]

    def forget_sent(self) -> None:
        """After a leader change everything is told again."""
        for snapshot in self._snapshots.values():
            snapshot.last = None

    def changed(self, uid: str, totals: Totals) -> Counts | None:
        """What to report, if it differs from last time."""
        snapshot = self._snapshots.get(uid)
        if snapshot is None:
            return None
        counts = Counts(version=snapshot.version, revision=snapshot.revision, arms=_arms(totals, snapshot.base))
        if counts == snapshot.last:
            return None
        snapshot.last = counts
        return counts


def _arms(totals: Totals, base: Totals) -> dict[str, ArmReport]:
    cells: dict[str, dict[str, list[int]]] = {}
    for (arm, replicate, what), value in totals.items():
        if not 0 <= replicate < REPLICATES:
            continue
        rows = cells.setdefault(arm, {name: [0] * REPLICATES for name in ("n", "bad", "slow")})
        rows[what][replicate] = max(0, round(value - base.get((arm, replicate, what), 0)))
    return {
        arm: ArmReport(n=tuple(rows["n"]), bad=tuple(rows["bad"]), slow=tuple(rows["slow"]))
        for arm, rows in sorted(cells.items())
    }
