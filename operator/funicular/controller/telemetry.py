"""The operator's own metrics and health endpoints, on metrics_port of every replica.

Policies' gauges are made at the scrape from one small row each: a gauge object for every policy and label would cost more
memory than the policy itself. A replica that does not lead shows no policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from funicular.adapters.http_server import http_logger

PREFIX = "funicular_operator"
LABELS = ("namespace", "policy")


@dataclass(frozen=True, slots=True)
class _Row:
    revision: str
    phase: str
    desired: int
    acked: int | None
    observed: int | None
    verdicts: tuple[tuple[str, str], ...] = field(default=())


class _Policies(Collector):
    def __init__(self, rows: Mapping[str, _Row]) -> None:
        self._rows = rows

    def collect(self) -> Iterable[Metric]:
        text = "Basis points of the users outside the holdback that are treated"
        shares = {
            "desired": GaugeMetricFamily(f"{PREFIX}_share_desired", f"{text}: what is wanted.", labels=LABELS),
            "acked": GaugeMetricFamily(f"{PREFIX}_share_acked", f"{text}: what all gateways confirmed.", labels=LABELS),
            "observed": GaugeMetricFamily(f"{PREFIX}_share_observed", f"{text}: what metrics show.", labels=LABELS),
        }
        phase = GaugeMetricFamily(
            f"{PREFIX}_phase", "1 for the phase that a policy is in.", labels=(*LABELS, "phase", "revision")
        )
        verdict = GaugeMetricFamily(
            f"{PREFIX}_verdict", "1 for the latest outcome of an SLO.", labels=(*LABELS, "slo", "outcome")
        )
        for key, row in list(self._rows.items()):
            at = key.split("/", 1)
            for name, value in (("desired", row.desired), ("acked", row.acked), ("observed", row.observed)):
                if value is not None:
                    shares[name].add_metric(at, value)
            phase.add_metric([*at, row.phase, row.revision], 1)
            for slo, outcome in row.verdicts:
                verdict.add_metric([*at, slo, outcome], 1)
        yield from (*shares.values(), phase, verdict)


class OperatorTelemetry:
    """Implements wiring.Telemetry and queue.Observer."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._rows: dict[str, _Row] = {}
        PlatformCollector(registry=self.registry)
        ProcessCollector(registry=self.registry)
        self.registry.register(_Policies(self._rows))
        self._reverts = self._counter("reverts", "Rejected revisions, by reason.", *LABELS, "reason")
        self._reconciles = self._counter("reconciles", "Reconciles, by result.", "result")
        self._errors = self._counter("prometheus_errors", "Queries that failed, by the class of error.", "error")
        self._duration = Histogram(
            f"{PREFIX}_reconcile_seconds",
            "Duration of a reconcile.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self._acked = Histogram(
            f"{PREFIX}_decision_to_acked_seconds",
            "From the decision to revert until the last gateway pod confirmed it.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )
        self._ready = self._gauge("queue_ready", "Policies that wait for a worker.")
        self._running = self._gauge("queue_running", "Policies that are being reconciled.")
        self._leader = self._gauge("leader", "1 if this replica leads.")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, registry=self.registry)

    def policy(
        self,
        key: str,
        *,
        revision: str,
        phase: str,
        desired: int,
        acked: int | None,
        observed: int | None,
        verdicts: Mapping[str, str],
    ) -> None:
        self._rows[key] = _Row(revision, phase, desired, acked, observed, tuple(verdicts.items()))

    def forget(self, key: str) -> None:
        self._rows.pop(key, None)

    def reverted(self, key: str, reason: str) -> None:
        self._reverts.labels(*key.split("/", 1), reason).inc()

    def acknowledged(self, seconds: float) -> None:
        self._acked.observe(seconds)

    def reconciled(self, seconds: float, result: str) -> None:
        self._duration.observe(seconds)
        self._reconciles.labels(result).inc()

    def queue_depth(self, ready: int, running: int) -> None:
        self._ready.set(ready)
        self._running.set(running)

    def query_failed(self, error: str) -> None:
        self._errors.labels(error).inc()

    def leading(self, leads: bool) -> None:
        self._leader.set(int(leads))
        if not leads:
            self._rows.clear()


class HealthServer:
    """/metrics, /healthz (the process works) and /readyz (it leads, or stands by for it). `port` 0: any free one."""

    def __init__(self, telemetry: OperatorTelemetry, *, port: int, host: str = "", ready: Callable[[], bool]) -> None:
        self._telemetry = telemetry
        self._host = host or None
        self.port = port
        self._is_ready = ready
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None, logger=http_logger(__name__), handle_signals=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self._telemetry.registry)
        return web.Response(body=body, headers={"content-type": CONTENT_TYPE_LATEST})

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n") if self._is_ready() else web.Response(status=503, text="starting\n")
