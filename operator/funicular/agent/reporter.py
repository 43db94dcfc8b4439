"""Tells the operator's leader what this pod serves: finds it by the Lease, posts reports, tries for ever.

Called by main; ReportBook decides what is due, `counts` yields ramping policies' counters when they are wanted. The
operator may be away for hours: nothing piles up, and one full report afterwards tells all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import ValidationError

from funicular.adapters.kube import KubeClient, path_of
from funicular.agent.metrics import AgentMetrics
from funicular.agent.reports import ReportBook
from funicular.agent.watch import watch_for_ever
from funicular.api.report import LEASE, REPORT_PATH, REPORT_URL, Counts, Report, ReportAnswer
from funicular.errors import GatewayUnavailable

log = logging.getLogger(__name__)
COUNTS_EVERY = 1.0
TIMEOUT = aiohttp.ClientTimeout(total=5.0, sock_connect=1.0)


def address(lease: Mapping[str, Any]) -> str | None:
    """Where the leader takes reports. None: nobody leads."""
    annotations = (lease.get("metadata") or {}).get("annotations") or {}
    holder = (lease.get("spec") or {}).get("holderIdentity")
    url = str(annotations.get(REPORT_URL) or "").rstrip("/")
    if not url or not holder:
        return None
    return url if url.endswith(REPORT_PATH) else url + REPORT_PATH


class Reporter:
    def __init__(
        self,
        kube: KubeClient,
        namespace: str,
        book: ReportBook,
        token_file: str,
        counts: Callable[[bool], Awaitable[dict[str, Counts]]],
        has_ramps: Callable[[], bool],
        metrics: AgentMetrics,
    ) -> None:
        self._kube, self._namespace, self._book = kube, namespace, book
        self._token_file, self._counts, self._has_ramps = token_file, counts, has_ramps
        self._metrics = metrics
        self._leader: tuple[str, str] | None = None  # address, holder
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(
                watch_for_ever(
                    self._kube,
                    path_of("coordination.k8s.io/v1", "leases", self._namespace),
                    self._on_lease,
                    fieldSelector=f"metadata.name={LEASE}",
                )
            )
            group.create_task(self._report_for_ever())

    def _on_lease(self, kind: str, item: Any) -> None:
        lease = (item[0] if item else {}) if kind == "RESYNC" else ({} if kind == "DELETED" else item)
        url = address(lease)
        holder = str((lease.get("spec") or {}).get("holderIdentity") or "")
        leader = (url, holder) if url else None
        if leader != self._leader:
            self._leader = leader
            self._book.resync()
            self._wake.set()

    async def _report_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        counts: dict[str, Counts] = {}
        next_counts = 0.0
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=2), timeout=TIMEOUT) as session:
            while True:
                now = loop.time()
                wait = self._book.due(now) if self._leader else 60.0
                if self._leader and self._has_ramps() and not self._book.is_failing:
                    wait = min(wait, max(0.0, next_counts - now))
                if wait > 0:
                    try:
                        async with asyncio.timeout(wait):
                            await self._wake.wait()
                    except TimeoutError:
                        pass
                    self._wake.clear()
                    if not self._leader or (self._book.is_failing and self._book.due(loop.time()) > 0):
                        continue
                full = self._book.is_full
                if self._has_ramps() and (full or loop.time() >= next_counts):
                    next_counts = loop.time() + COUNTS_EVERY
                    try:
                        counts = await self._counts(full)
                    except GatewayUnavailable:
                        counts = {}
                if not counts and self._book.due(loop.time()) > 0:
                    continue
                await self._send(session, self._book.compose(counts))
                counts = {}

    def _headers(self) -> dict[str, str]:
        """The projected token is renewed in place, so its file is read each time."""
        token = Path(self._token_file).read_text().strip() if self._token_file else ""
        return {"content-type": "application/json", **({"authorization": f"Bearer {token}"} if token else {})}

    async def _send(self, session: aiohttp.ClientSession, report: Report) -> None:
        loop = asyncio.get_running_loop()
        leader = self._leader
        if leader is None:
            return
        try:
            headers = self._headers()
            body = report.model_dump_json(by_alias=True, exclude_none=True)
            async with session.post(leader[0], data=body, headers=headers) as answer:
                text = await answer.read()
                if answer.status != 200:
                    raise GatewayUnavailable(f"{answer.status} {text[:200].decode(errors='replace')}")
                resync = ReportAnswer.model_validate_json(text).resync
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError, GatewayUnavailable) as exc:
            if not self._book.is_failing:
                log.warning("report to %s: %s: %s", leader[0], type(exc).__name__, exc)
            self._metrics.reports_failed.inc()
            if leader == self._leader:
                self._book.failed(loop.time())
            return
        self._metrics.reports_sent.inc()
        if leader == self._leader:
            self._book.sent(report, resync=resync, now=loop.time())
