"""One queue of policies' keys, and a bounded number of workers: the only place where reconciles start.

Events, reports, measurements and deadlines all end in `add` or `add_after`; a reconcile looks at the world as it then is,
so ten reasons to look cost one look. A key never runs twice at a time, and a wake-up that comes while it runs makes it run
once more. It must not know what a policy is.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from time import perf_counter
from typing import Protocol

from funicular.controller.wiring import NotLeader
from funicular.errors import Conflict, RetryLater
from funicular.ports import Clock

log = logging.getLogger(__name__)

FIRST_DELAY = 0.2
LONGEST_DELAY = 10.0

Reconcile = Callable[[str], Awaitable[datetime | None]]


def back_off(failures: int) -> float:
    """0.2, 0.4, 0.8 ... 10 s, 10 s: seconds to wait after so many failures in a row (at least one)."""
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 16))


class Schedule:
    """The bookkeeping, without a loop or a clock: `now` comes as any rising number of seconds.

    A key is in at most one of `ready` and `running`; `dirty` are running keys that must run again.
    """

    def __init__(self) -> None:
        self.ready: deque[str] = deque()
        self._waiting: set[str] = set()  # what stands in `ready`
        self.running: set[str] = set()
        self.dirty: set[str] = set()
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def add(self, key: str, *, urgent: bool = False) -> None:
        if key in self.running:
            self.dirty.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            (self.ready.appendleft if urgent else self.ready.append)(key)
        elif urgent and self.ready[0] != key:
            self.ready.remove(key)
            self.ready.appendleft(key)

    def add_at(self, key: str, due: float) -> None:
        """Replaces the key's earlier appointment."""
        self._due[key] = due
        heapq.heappush(self._heap, (due, key))
        if len(self._heap) > 64 + 4 * len(self._due):  # replaced appointments must not pile up
            self._heap = [(at, key) for key, at in self._due.items()]
            heapq.heapify(self._heap)

    def cancel(self, key: str) -> None:
        self._due.pop(key, None)

    def next_due(self) -> float | None:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def promote(self, now: float) -> None:
        """What is due becomes ready."""
        while (due := self.next_due()) is not None and due <= now:
            key = heapq.heappop(self._heap)[1]
            del self._due[key]
            self.add(key)

    def take(self) -> str | None:
        """The next key, now running; None: nothing is ready."""
        if not self.ready:
            return None
        key = self.ready.popleft()
        self._waiting.discard(key)
        self.running.add(key)
        return key

    def done(self, key: str) -> None:
        self.running.discard(key)
        if key in self.dirty:
            self.dirty.discard(key)
            self.add(key)


class Observer(Protocol):
    """What the queue tells the operator's metrics."""

    def reconciled(self, seconds: float, result: str) -> None: ...

    def queue_depth(self, ready: int, running: int) -> None: ...


class WorkQueue:
    """Implements wiring.Queue. All of it lives on one event loop; other threads use `loop.call_soon_threadsafe`."""

    def __init__(self, clock: Clock, *, workers: int, observer: Observer) -> None:
        self._clock = clock
        self._workers = workers
        self._observer = observer
        self._schedule = Schedule()
        self._failures: dict[str, int] = {}
        self._ready = asyncio.Event()
        self._appointed = asyncio.Event()

    def add(self, key: str, *, urgent: bool = False) -> None:
        self._schedule.add(key, urgent=urgent)
        self._ready.set()

    def add_after(self, key: str, at: datetime) -> None:
        self._appoint(key, (at - self._clock.now()).total_seconds())

    def _appoint(self, key: str, delay: float) -> None:
        self._schedule.add_at(key, asyncio.get_running_loop().time() + max(0.0, delay))
        self._appointed.set()

    def forget(self, key: str) -> None:
        """The object is gone: no appointment is kept for it."""
        self._schedule.cancel(key)
        self._failures.pop(key, None)

    async def run(self, reconcile: Reconcile) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_appointments())
            for _ in range(self._workers):
                group.create_task(self._work(reconcile))

    async def _keep_appointments(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._appointed.clear()
            self._schedule.promote(loop.time())
            if self._schedule.ready:
                self._ready.set()
            due = self._schedule.next_due()
            try:
                async with asyncio.timeout_at(due):
                    await self._appointed.wait()
            except TimeoutError:
                pass

    async def _work(self, reconcile: Reconcile) -> None:
        while True:
            key = self._schedule.take()
            if key is None:
                self._ready.clear()
                await self._ready.wait()
                continue
            self._observer.queue_depth(len(self._schedule.ready), len(self._schedule.running))
            started = perf_counter()
            result = "cancelled"
            try:
                result = await self._once(key, reconcile)
            finally:
                self._schedule.done(key)
                if self._schedule.ready:
                    self._ready.set()
                self._observer.reconciled(perf_counter() - started, result)
                self._observer.queue_depth(len(self._schedule.ready), len(self._schedule.running))

    async def _once(self, key: str, reconcile: Reconcile) -> str:
        self._schedule.cancel(key)  # a run replaces the appointment it makes superfluous
        try:
            again = await reconcile(key)
        except NotLeader as exc:
            log.info("%s: left alone: %s", key, exc)
            return "not_leader"
        except RetryLater as exc:
            delay = self._retry(key)
            level = logging.DEBUG if isinstance(exc, Conflict) else logging.WARNING
            log.log(level, "%s: again in %.1f s: %s", key, delay, exc)
            return "retry"
        except Exception:
            delay = self._retry(key)
            log.exception("%s: unexpected; again in %.1f s", key, delay)
            return "error"
        self._failures.pop(key, None)
        if again is not None:
            self.add_after(key, again)
        return "ok"

    def _retry(self, key: str) -> float:
        self._failures[key] = failures = self._failures.get(key, 0) + 1
        delay = back_off(failures)
        self._appoint(key, delay)
        return delay
