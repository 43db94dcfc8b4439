"""Kubernetes Events, written in the background. Called by the controller's apply: `kubectl describe rp` shows them.

An Event must never hold up or fail a reconcile, nor flood the API server: the same again within ten minutes counts the
first one up, each policy and reason has a budget, and what does not fit the buffer is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from funicular.adapters.kube import KubeClient, path_of
from funicular.api.base import API_VERSION, GROUP, KIND
from funicular.api.policy import Metadata
from funicular.errors import FunicularError, NotFound
from funicular.ports import Clock

log = logging.getLogger(__name__)

Json = dict[str, Any]
API = "events.k8s.io/v1"
SAME = timedelta(minutes=10)  # within which the same again is counted up
BURST, REFILL = 10, timedelta(seconds=30)  # by policy and reason
BUFFER = 2000
REMEMBERED = 5000
NOTE_LIMIT = 1024  # bytes


@dataclass(slots=True)
class _Series:
    name: str
    namespace: str
    first: datetime
    count: int = 1


@dataclass(slots=True)
class _Budget:
    left: float
    at: datetime


class EventWriter:
    """Implements wiring.Events; `run` writes until it is cancelled."""

    def __init__(self, kube: KubeClient, clock: Clock, instance: str) -> None:
        self._kube = kube
        self._clock = clock
        self._instance = instance
        self._buffer: asyncio.Queue[tuple[Metadata, str, str, str, datetime]] = asyncio.Queue(BUFFER)
        self._series: OrderedDict[tuple[str, str, str, str], _Series] = OrderedDict()
        self._budgets: OrderedDict[tuple[str, str], _Budget] = OrderedDict()
        self.dropped = 0

    def record(self, policy: Metadata, kind: str, reason: str, message: str) -> None:
        now = self._clock.now()
        log.info("%s: %s: %s", policy.key, reason, message)
        if not self._is_affordable((policy.uid, reason), now):
            self.dropped += 1
            return
        try:
            self._buffer.put_nowait((policy, kind, reason, message.encode()[:NOTE_LIMIT].decode(errors="ignore"), now))
        except asyncio.QueueFull:
            self.dropped += 1

    def _is_affordable(self, at: tuple[str, str], now: datetime) -> bool:
        budget = self._budgets.pop(at, None) or _Budget(BURST, now)
        budget.left = min(BURST, budget.left + (now - budget.at) / REFILL)
        budget.at = now
        self._budgets[at] = budget
        while len(self._budgets) > REMEMBERED:
            self._budgets.popitem(last=False)
        if budget.left < 1:
            return False
        budget.left -= 1
        return True

    async def run(self) -> None:
        while True:
            policy, kind, reason, message, now = await self._buffer.get()
            try:
                await self._write(policy, kind, reason, message, now)
            except FunicularError as exc:
                log.warning("an Event could not be written: %s", exc)

    async def _write(self, policy: Metadata, kind: str, reason: str, message: str, now: datetime) -> None:
        at = (policy.uid, kind, reason, message)
        series = self._series.get(at)
        if series is not None and now - series.first < SAME:
            series.count += 1
            patch = {"series": {"count": series.count, "lastObservedTime": _micro(now)}}
            try:
                await self._kube.patch(path_of(API, "events", series.namespace, series.name), patch)
                return
            except NotFound:  # the API server forgets Events after an hour
                pass
        name = f"{policy.name[:200]}.{int(now.timestamp() * 1e6):x}{zlib.crc32(repr(at).encode()):08x}"
        await self._kube.create(
            path_of(API, "events", policy.namespace), self._event(policy, name, kind, reason, message, now)
        )
        self._series[at] = _Series(name, policy.namespace, now)
        while len(self._series) > REMEMBERED:
            self._series.popitem(last=False)

    def _event(self, policy: Metadata, name: str, kind: str, reason: str, message: str, now: datetime) -> Json:
        return {
            "apiVersion": API,
            "kind": "Event",
            "metadata": {"name": name, "namespace": policy.namespace},
            "eventTime": _micro(now),
            "reportingController": f"{GROUP}/operator",
            "reportingInstance": self._instance[:128],
            "action": reason,
            "reason": reason,
            "type": kind,
            "note": message,
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "namespace": policy.namespace,
                "name": policy.name,
                "uid": policy.uid,
                "resourceVersion": policy.resource_version,
            },
        }


def _micro(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
