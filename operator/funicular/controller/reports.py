"""What the agents said, and what follows from it at once: acknowledgements and the fast-burn guard. No I/O.

reportserver.py hands reports in, reconciles read facts out. Nothing is stored: a new leader starts empty and asks every
agent for a full report. Only gateway pods that may serve a policy's namespace and that it selects count for it, whatever
others may claim; what a pod says of policies that it can never serve is not even kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from funicular.api.report import Ack, ArmReport, Counts, Report
from funicular.controller.store import Current
from funicular.controller.wiring import GatewayPod, Pooled
from funicular.ports import Clock
from funicular.rollout.observation import Alarm, GatewayFacts
from funicular.slo.model import REPLICATES, Arm, ArmCounts, Verdict

FastBurn = Callable[[ArmCounts, ArmCounts | None, str], Verdict | None]
SILENCE = timedelta(minutes=5)  # after which a pod that is no gateway any more is forgotten
RECENT = timedelta(minutes=2)  # a failure that starts late is looked for in the last minutes alone, too
SNAPSHOT = timedelta(seconds=10)
NOTHING = ArmCounts((0.0,) * REPLICATES, (0.0,) * REPLICATES)


@dataclass(slots=True)
class _Confirmed:
    version: int
    error: str | None
    at: datetime


@dataclass(slots=True)
class _Pod:
    session: str
    seen: datetime
    acks: dict[str, _Confirmed] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)


class World(Protocol):
    """What of the store a report is compared with."""

    def current(self, uid: str) -> Current | None: ...

    def key_of(self, uid: str) -> str | None: ...

    def gateways_for(
        self, namespace: str, selector: Mapping[str, str], *, ready_only: bool = True
    ) -> Sequence[GatewayPod]: ...

    def may_confirm(self, namespace: str, uid: str) -> bool: ...

    def is_gateway(self, key: str, uid: str) -> bool: ...


class ReportBook:
    """Implements wiring.Reports; `take` is the server's end. `wake(key)` queues a policy before what waits."""

    def __init__(self, world: World, wake: Callable[[str], None], clock: Clock, fast_burn: FastBurn) -> None:
        self._world = world
        self._wake = wake
        self._clock = clock
        self._fast_burn = fast_burn
        self._pods: dict[tuple[str, str], _Pod] = {}  # by (namespace/name, uid)
        self._alarms: dict[str, Alarm] = {}
        self._snapshots: dict[str, deque[tuple[datetime, Pooled]]] = {}
        self._pruned = clock.now()

    def take(self, report: Report) -> bool:
        """True: this session is unknown and the report is not full, so a full one is wanted."""
        now = self._clock.now()
        self._prune(now)
        at = (f"{report.namespace}/{report.pod}", report.uid)
        pod = self._pods.get(at)
        if pod is None or pod.session != report.session:
            if not report.full:
                return True
            known = pod.acks if pod is not None else {}
            pod = self._pods[at] = _Pod(report.session, now, acks=known)
        pod.seen = now
        report = self._believed(report)
        for uid in self._merge_acks(pod, report, now):
            if (key := self._world.key_of(uid)) is not None:
                self._wake(key)
        changed = [uid for uid, counts in report.counts.items() if pod.counts.get(uid) != counts]
        pod.counts = dict(report.counts) if report.full else {**pod.counts, **report.counts}
        for uid in changed:
            self._guard(uid, now)
        return False

    def _believed(self, report: Report) -> Report:
        """Without what concerns policies of namespaces that a pod of this one never serves."""
        strange = {
            uid
            for uid in report.acks.keys() | report.counts.keys()
            if not self._world.may_confirm(report.namespace, uid)
        }
        if not strange:
            return report
        acks, counts = (
            {uid: said for uid, said in every.items() if uid not in strange} for every in (report.acks, report.counts)
        )
        return report.model_copy(update={"acks": acks, "counts": counts})

    @staticmethod
    def _merge_acks(pod: _Pod, report: Report, now: datetime) -> Iterable[str]:
        """The uids whose acknowledgement is news."""
        changed = [uid for uid, ack in report.acks.items() if _differs(pod.acks.get(uid), ack)]
        if report.full:
            gone = pod.acks.keys() - report.acks.keys()
            changed += gone
            for uid in gone:
                del pod.acks[uid]
        for uid in changed:
            if uid in report.acks:
                pod.acks[uid] = _Confirmed(report.acks[uid].version, report.acks[uid].error, now)
        return changed

    # --- facts ---------------------------------------------------------------------------------------------------
    def ack_facts(self, uid: str, version: int, pods: Sequence[GatewayPod]) -> GatewayFacts:
        confirmed, last, errors = 0, None, []
        for pod in pods:
            state = self._pods.get((pod.key, pod.uid))
            ack = state.acks.get(uid) if state else None
            if ack is None or ack.version < version:
                continue
            if ack.error is not None:
                errors.append(f"{pod.key}: {ack.error}")
                continue
            confirmed += 1
            last = ack.at if last is None or ack.at > last else last
        complete = bool(pods) and confirmed == len(pods)
        return GatewayFacts(len(pods), confirmed, last if complete else None, tuple(sorted(errors)))

    def has_heard_of(self, pods: Iterable[GatewayPod]) -> bool:
        """Whether each of them has reported to this leader."""
        return all((pod.key, pod.uid) in self._pods for pod in pods)

    def pooled(self, uid: str) -> Pooled | None:
        now = self._world.current(uid)
        if now is None or not now.ramping:
            return None
        found = []
        for gateway in self._world.gateways_for(now.namespace, now.selector, ready_only=False):
            pod = self._pods.get((gateway.key, gateway.uid))
            counts = pod.counts.get(uid) if pod else None
            if counts is not None and counts.version == now.version and counts.revision == now.revision:
                found.append(counts)
        if not found:
            return None
        arms = {arm for counts in found for arm in counts.arms}
        reports = {arm: [c.arms[arm] for c in found if arm in c.arms] for arm in arms}
        return Pooled(
            now.version,
            now.revision,
            bad={arm: _pool(some, "bad") for arm, some in reports.items()},
            slow={arm: _pool(some, "slow") for arm, some in reports.items()},
        )

    def alarm(self, uid: str) -> Alarm | None:
        found, now = self._alarms.get(uid), self._world.current(uid)
        if found is None or now is None or (found.version, found.revision) != (now.version, now.revision):
            return None
        return found

    def forget(self, uid: str) -> None:
        self._alarms.pop(uid, None)
        self._snapshots.pop(uid, None)
        for pod in self._pods.values():
            pod.acks.pop(uid, None)
            pod.counts.pop(uid, None)

    @property
    def pods(self) -> int:
        return len(self._pods)

    # --- the guard -----------------------------------------------------------------------------------------------
    def _guard(self, uid: str, now: datetime) -> None:
        """An alarm stands until the traffic's version changes: the revert it causes does that."""
        pooled = self.pooled(uid)
        if pooled is None or self.alarm(uid) is not None:
            return
        for stretch in (pooled, self._recent(uid, pooled, now)):
            for name, counts in (("errors", stretch.bad), ("latency", stretch.slow)) if stretch else ():
                verdict = self._burns(uid, name, counts)
                if verdict is not None:
                    self._alarms[uid] = Alarm(pooled.version, pooled.revision, now, verdict)
                    if (key := self._world.key_of(uid)) is not None:
                        self._wake(key)
                    return

    def _burns(self, uid: str, name: str, counts: Mapping[str, ArmCounts]) -> Verdict | None:
        """At a share of 100 % nobody is in control: the holdback stands beside the treatment, if there is one."""
        treatment, now = counts.get(Arm.TREATMENT), self._world.current(uid)
        if treatment is None or now is None:
            return None
        beside = (counts.get(arm) for arm in (Arm.CONTROL, Arm.HOLDBACK))
        reference = next((c for c in beside if c is not None and c.total > 0), None if now.alone else NOTHING)
        return self._fast_burn(treatment, reference, name)

    def _recent(self, uid: str, pooled: Pooled, now: datetime) -> Pooled | None:
        """What was counted in about the last two minutes; None: there is no older snapshot of this version."""
        kept = self._snapshots.setdefault(uid, deque())
        if kept and (kept[0][1].version, kept[0][1].revision) != (pooled.version, pooled.revision):
            kept.clear()
        while len(kept) > 1 and kept[1][0] <= now - RECENT:
            kept.popleft()
        before = kept[0] if kept and kept[0][0] <= now - RECENT else None
        if not kept or now - kept[-1][0] >= SNAPSHOT:
            kept.append((now, pooled))
        if before is None:
            return None
        older = before[1]
        return Pooled(pooled.version, pooled.revision, _since(pooled.bad, older.bad), _since(pooled.slow, older.slow))

    def _prune(self, now: datetime) -> None:
        """A pod that is gone takes its counts along; one that lives and is silent keeps what it confirmed."""
        if now - self._pruned < SILENCE / 5:
            return
        self._pruned = now
        self._pods = {at: p for at, p in self._pods.items() if self._world.is_gateway(*at) or now - p.seen < SILENCE}
        for pod in self._pods.values():
            pod.counts = {uid: counts for uid, counts in pod.counts.items() if self._is_ramping(uid)}
        self._snapshots = {uid: kept for uid, kept in self._snapshots.items() if self._is_ramping(uid)}

    def _is_ramping(self, uid: str) -> bool:
        now = self._world.current(uid)
        return now is not None and now.ramping


def _differs(known: _Confirmed | None, ack: Ack) -> bool:
    return known is None or known.version != ack.version or known.error != ack.error


def _since(now: Mapping[str, ArmCounts], before: Mapping[str, ArmCounts]) -> dict[str, ArmCounts]:
    """A pod that is gone took its counts along: never below zero."""
    found = {}
    for arm, counts in now.items():
        older = before.get(arm)
        if older is None:
            found[arm] = counts
            continue
        n, x = (
            tuple(max(0.0, a - b) for a, b in zip(new, old, strict=True))
            for new, old in ((counts.n, older.n), (counts.x, older.x))
        )
        found[arm] = ArmCounts(n, x)
    return found


def _pool(reports: Sequence[ArmReport], member: str) -> ArmCounts:
    """Sums over pods, replicate by replicate; a short vector ends in zeros, and a pod without `member` adds no trials."""
    n, x = [0.0] * REPLICATES, [0.0] * REPLICATES
    for report in reports:
        events = getattr(report, member)
        if not events:
            continue
        for sums, values in ((n, report.n), (x, events)):
            for i, value in enumerate(values[:REPLICATES]):
                sums[i] += value
    return ArmCounts(tuple(n), tuple(x))
