"""Who leads: a coordination.k8s.io Lease, and the fence that keeps a former leader from writing.

Only main.py builds these. The elector owns the main event loop and starts one term of work while it holds the Lease.
A local deadline, counted from before each renewal was sent, ends a third earlier than the Lease does for the others, so
that nobody else leads while a write of ours may still be under way. Times are of CLOCK_BOOTTIME: a machine that was
suspended must find its deadline passed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC
from typing import Any, Protocol

from funicular.api.report import LEASE, REPORT_URL
from funicular.controller.wiring import NotLeader
from funicular.errors import Conflict, FunicularError, NotFound
from funicular.ports import Clock

log = logging.getLogger(__name__)

Json = dict[str, Any]
STOP_SECONDS = 5.0


def monotonic() -> float:
    """Seconds that also pass while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseFence:
    """Implements wiring.Fence: open until the deadline of the last renewal, closed for good by `drop`."""

    def __init__(self, monotonic: Callable[[], float] = monotonic) -> None:
        self._monotonic = monotonic
        self._until = float("-inf")

    def extend(self, until: float) -> None:
        self._until = until

    def drop(self) -> None:
        self._until = float("-inf")

    @property
    def remaining(self) -> float:
        return self._until - self._monotonic()

    @property
    def is_open(self) -> bool:
        return self.remaining > 0

    def check(self) -> None:
        if not self.is_open:
            raise NotLeader("the Lease is not held (any more): nothing may be written")


class LeaseApi(Protocol):
    """The three calls of a KubeClient that an elector needs."""

    async def get(self, path: str, **params: str) -> Json: ...
    async def create(self, path: str, body: Json, **params: str) -> Json: ...
    async def replace(self, path: str, body: Json) -> Json: ...


class Elector:
    """Runs `lead` whenever this process holds the Lease, until `stop`. `lead` ends when cancelled, or when it failed."""

    def __init__(
        self,
        kube: LeaseApi,
        fence: LeaseFence,
        clock: Clock,
        *,
        namespace: str,
        identity: str,
        report_url: str,
        lease_seconds: float = 15.0,
        renew_seconds: float = 2.0,
        monotonic: Callable[[], float] = monotonic,
        exit_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._kube = kube
        self._fence = fence
        self._clock = clock
        self._folder = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace = namespace
        self.identity = identity
        self._report_url = report_url
        self._lease = lease_seconds
        self._deadline = lease_seconds * 2 / 3
        self._renew = renew_seconds
        self._monotonic = monotonic
        self._exit = exit_process
        self._stop = asyncio.Event()
        self._seen: tuple[str, float] = ("", 0.0)  # resourceVersion, since when it stands
        self._complaint = ""
        self._is_taken = False

    def stop(self) -> None:
        self._stop.set()

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        while not self._stop.is_set():
            if await self._try():
                await self._term(lead)
            else:
                await self._pause(self._renew)

    async def _term(self, lead: Callable[[], Awaitable[None]]) -> None:
        log.info("leading as %s", self.identity)
        term = asyncio.ensure_future(lead())
        try:
            await self._hold(term)
        finally:
            self._fence.drop()  # first: whatever still runs may not write
            await self._end(term)
        await self._release()
        if not self._stop.is_set():  # lost, or the term failed: let another replica have it
            await self._pause(2 * self._renew)

    async def _hold(self, term: asyncio.Future[None]) -> None:
        """Returns when the Lease is lost, the term ended by itself, or a stop is wanted."""
        while not self._stop.is_set() and not term.done():
            await self._pause(min(self._renew, max(0.0, self._fence.remaining)), term)
            if self._stop.is_set() or term.done():
                return
            if not self._fence.is_open:
                log.error("the Lease could not be renewed for %.0f s: no longer leading", self._deadline)
                return
            try:
                async with asyncio.timeout(max(0.05, self._fence.remaining)):
                    if not await self._try() and self._is_taken:
                        log.error("the Lease is held by another replica: no longer leading")
                        return
            except TimeoutError:
                continue

    async def _end(self, term: asyncio.Future[None]) -> None:
        term.cancel()
        done, _ = await asyncio.wait({term}, timeout=STOP_SECONDS)
        if not done:
            log.critical("the term did not end within %.0f s: leaving the process", STOP_SECONDS)
            self._exit(1)
        elif not term.cancelled() and (failure := term.exception()) is not None:
            log.error("the term failed", exc_info=failure)

    async def _try(self) -> bool:
        """Takes or renews the Lease; True: it is held. Conflicts and outages are False, and told once."""
        sent = self._monotonic()
        self._is_taken = False
        try:
            await self._take_or_renew(sent)
        except _HeldByAnother:
            self._is_taken = True
            return False
        except Conflict:
            return False
        except FunicularError as exc:
            if str(exc) != self._complaint:
                log.warning("Lease: %s", exc)
            self._complaint = str(exc)
            return False
        self._complaint = ""
        self._fence.extend(sent + self._deadline)
        return True

    async def _take_or_renew(self, sent: float) -> None:
        try:
            lease = await self._kube.get(f"{self._folder}/{LEASE}")
        except NotFound:
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": LEASE, "namespace": self._namespace},
            }
            await self._kube.create(self._folder, self._signed(body, transitions=0))
            return
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        mine = holder == self.identity
        if holder and not mine:
            version = lease["metadata"]["resourceVersion"]
            if version != self._seen[0]:
                self._seen = (version, sent)
            # The holder's clock is not ours: what counts is how long the Lease has not moved before our eyes.
            if sent - self._seen[1] < float(spec.get("leaseDurationSeconds") or self._lease):
                raise _HeldByAnother
        transitions = int(spec.get("leaseTransitions") or 0) + (0 if mine else 1)
        await self._kube.replace(f"{self._folder}/{LEASE}", self._signed(lease, transitions=transitions, renewal=mine))

    def _signed(self, lease: Json, *, transitions: int, renewal: bool = False) -> Json:
        now = self._clock.now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {
            **(lease.get("spec") or {}),
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._lease)),
            "renewTime": now,
            "leaseTransitions": transitions,
        }
        if not renewal:
            spec["acquireTime"] = now
        annotations = {**(lease["metadata"].get("annotations") or {}), REPORT_URL: self._report_url}
        return {**lease, "metadata": {**lease["metadata"], "annotations": annotations}, "spec": spec}

    async def _release(self) -> None:
        """Nobody has to wait for the Lease to run out. Only ever our own."""
        with suppress(FunicularError, TimeoutError):
            async with asyncio.timeout(2):
                lease = await self._kube.get(f"{self._folder}/{LEASE}")
                if lease["spec"].get("holderIdentity") != self.identity:
                    return
                lease["spec"]["holderIdentity"] = ""
                lease["spec"]["leaseDurationSeconds"] = 1
                lease["metadata"].get("annotations", {}).pop(REPORT_URL, None)
                await self._kube.replace(f"{self._folder}/{LEASE}", lease)
                log.info("Lease released")

    async def _pause(self, seconds: float, *others: asyncio.Future[None]) -> None:
        stop = asyncio.ensure_future(self._stop.wait())
        waiting: set[asyncio.Future[Any]] = {stop, *others}
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()


class _HeldByAnother(Exception):
    """Told by the Lease, and no failure."""
