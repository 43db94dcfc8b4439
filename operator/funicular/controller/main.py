"""The operator's composition root: settings -> adapters -> wiring. `funicular operator` calls `main`.

The process has a Lease's elector, a health server and a report server for all its life. What needs leadership is built
anew for each term and thrown away with it: store, queue, evaluator, kopf's thread. Nothing else knows of terms.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import uvloop
from prometheus_client import disable_created_metrics

from funicular.adapters.clock import SystemClock
from funicular.adapters.events import EventWriter
from funicular.adapters.fenced import FencedClient
from funicular.adapters.history import ControllerRevisions
from funicular.adapters.kube import Access, KubeClient, discover
from funicular.adapters.prometheus import PrometheusClients
from funicular.adapters.prometheus_access import AccessResolver
from funicular.adapters.secrets import Secrets
from funicular.adapters.workloads import Classifiers
from funicular.api.tenancy import named
from funicular.controller.evaluator import BackgroundEvaluator
from funicular.controller.feeds import Feeds
from funicular.controller.lease import STOP_SECONDS, Elector, LeaseFence
from funicular.controller.queue import WorkQueue
from funicular.controller.reports import ReportBook
from funicular.controller.reportserver import ReportServer, Tokens
from funicular.controller.store import ClusterStore
from funicular.controller.telemetry import HealthServer, OperatorTelemetry
from funicular.controller.term import KopfThread
from funicular.controller.wiring import Ports
from funicular.logs import configure
from funicular.ports import Clock
from funicular.settings import OperatorSettings, operator_settings
from funicular.slo.fastburn import fast_burn

log = logging.getLogger(__name__)
HEARING_SECONDS = 2.5  # for a full report of each gateway pod, whose agent may be in its longest back-off

Json = dict[str, Any]


class Reconciles(Protocol):
    async def reconcile(self, key: str) -> datetime | None: ...


MakeReconciler = Callable[[Ports], Reconciles]


class Operator:
    """One process. `make_reconciler` is replaced by tests of the runtime alone; `exit_process` too."""

    def __init__(
        self,
        settings: OperatorSettings,
        access: Access,
        make_reconciler: MakeReconciler,
        *,
        clock: Clock | None = None,
        exit_process: Callable[[int], object] | None = None,
    ) -> None:
        self.settings = settings
        self._access = access
        self._make_reconciler = make_reconciler
        self._clock = clock or SystemClock()
        self.exit_process = exit_process or os._exit
        self.telemetry = OperatorTelemetry()
        self.fence = LeaseFence()
        self.reports = ReportServer(host=settings.pod_ip, port=settings.report_port, check_tokens=settings.check_tokens)
        self.health = HealthServer(
            self.telemetry, host=settings.pod_ip, port=settings.metrics_port, ready=lambda: self.started.is_set()
        )
        self.started = asyncio.Event()
        self.elector: Elector | None = None
        self.ports: Ports | None = None  # of the present term
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        self._stopped.set()
        if self.elector is not None:
            self.elector.stop()

    @property
    def is_stopping(self) -> bool:
        return self._stopped.is_set()

    async def run(self) -> None:
        """Until `stop`: then the Lease has been released."""
        settings = self.settings
        await self.reports.start()
        await self.health.start()
        host = f"[{settings.pod_ip}]" if ":" in settings.pod_ip else settings.pod_ip
        # The elector's own connections: a storm of the term's requests must not delay a renewal.
        async with KubeClient(self._access, limit=2, timeout=max(1.0, settings.lease_seconds / 3)) as kube:
            self.elector = Elector(
                kube,
                self.fence,
                self._clock,
                namespace=settings.pod_namespace,
                identity=f"{settings.pod_name or 'operator'}_{uuid.uuid4().hex[:12]}",
                report_url=f"http://{host}:{self.reports.port}",
                lease_seconds=settings.lease_seconds,
                renew_seconds=settings.renew_seconds,
                exit_process=self.exit_process,
            )
            self.started.set()
            if not self._stopped.is_set():
                await self.elector.run(self.lead)
        await self.health.stop()
        await self.reports.stop()

    async def lead(self) -> None:
        """One term, until it is cancelled or something in it fails."""
        self.telemetry.leading(True)
        kube = FencedClient(self._access, self.fence.check, timeout=max(1.0, self.settings.lease_seconds / 3))
        try:
            await _Term(self, kube).run()
        finally:
            self.reports.retire()
            self.telemetry.leading(False)
            self.ports = None
            await kube.close()

    def build_reconciler(self, ports: Ports) -> Reconciles:
        self.ports = ports
        return self._make_reconciler(ports)


class _Term:
    """Builds a term's parts and runs them together."""

    def __init__(self, operator: Operator, kube: FencedClient) -> None:
        settings, clock = operator.settings, operator._clock
        self._operator = operator
        self._clock = clock
        self._kube = kube
        self._namespaces = [n.strip() for n in settings.namespaces.split(",") if n.strip()]
        self.queue = WorkQueue(clock, workers=settings.workers, observer=operator.telemetry)
        self._workloads = Classifiers(kube)
        self.store = ClusterStore(
            self.queue.add,
            self._listen,
            self._workloads.vanished,
            self._gone,
            gateway_namespaces=named(settings.gateway_namespaces) or {settings.pod_namespace},
        )
        self.book = ReportBook(self.store, self._wake, clock, fast_burn)
        self._clients = PrometheusClients(
            AccessResolver(Secrets(kube), token_folder=Path(settings.tokens_dir)),
            observe=operator.telemetry.query_failed,
        )
        self.evaluator = BackgroundEvaluator(
            self.store, self._clients, self._wake, clock, idle_check_seconds=settings.idle_check_seconds
        )
        self._events = EventWriter(kube, clock, settings.pod_name or "operator")
        self._feeds = Feeds(kube, self.store, self._namespaces, relist_seconds=settings.relist_seconds)
        self._reconciler = operator.build_reconciler(
            Ports(
                settings=settings,
                clock=clock,
                fence=operator.fence,
                kube=kube,
                store=self.store,
                reports=self.book,
                evaluator=self.evaluator,
                history=ControllerRevisions(kube),
                events=self._events,
                workloads=self._workloads,
                telemetry=operator.telemetry,
                queue=self.queue,
            )
        )

    def _wake(self, key: str) -> None:
        """A report or a measurement may mean a revert: it goes before a thousand policies that were only listed again."""
        self.queue.add(key, urgent=True)

    def _gone(self, uid: str) -> None:
        self.book.forget(uid)
        self._workloads.forget(uid)

    def _listen(self, key: str, body: Json | None) -> None:
        self.evaluator.listen(key, body)
        if body is None:
            self.queue.forget(key)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()

        def deliver(kind: str | None, body: Json) -> None:
            loop.call_soon_threadsafe(self._see, kind, body)

        kopf = KopfThread(self._operator._access, self._namespaces, deliver)
        tokens = Tokens(self._kube, lambda: self._clock.now().timestamp())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feeds.run())
                kopf.start()
                group.create_task(kopf.watch())
                group.create_task(self._events.run())
                await self._feeds.synced.wait()
                log.info("%d policies", len(self.store.keys()))
                self._operator.reports.lead(self.book, tokens if self._operator.settings.check_tokens else None)
                group.create_task(self.evaluator.run())
                await self._hear_agents()
                group.create_task(self.queue.run(self._reconciler.reconcile))
        finally:
            self._operator.reports.retire()
            await self._clients.close()
            await self._end(kopf)

    async def _hear_agents(self) -> None:
        """A new leader knows of no confirmation: if it judged at once, every policy would lose its Ready for a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARING_SECONDS):
                while not self.book.has_heard_of(self.store.gateways()):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    async def _end(self, kopf: KopfThread) -> None:
        try:
            async with asyncio.timeout(STOP_SECONDS - 0.5):
                await kopf.stop()
        except TimeoutError:
            if self._operator.is_stopping:  # the thread ends with the process
                return
            log.critical("kopf did not end within %.1f s: leaving the process", STOP_SECONDS - 0.5)
            self._operator.exit_process(1)

    def _see(self, kind: str | None, body: Json) -> None:
        if self._operator.fence.is_open:
            self.store.see(kind, body)


def _reconciler(ports: Ports) -> Reconciles:
    from funicular.controller.reconcile import Reconciler

    return Reconciler(ports)


async def _run(settings: OperatorSettings) -> None:
    operator = Operator(settings, discover(), _reconciler)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, operator.stop)
    await operator.run()


def main(argv: list[str] | None = None) -> int:
    """`argv` is not used: everything comes from FUNICULAR_* variables (settings.py)."""
    settings = operator_settings()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    configure(settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
