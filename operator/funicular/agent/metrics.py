"""The agent's own metrics. Held by main, moved by applier, reporter and server, rendered by the exposition."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60)


class AgentMetrics:
    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        counter, gauge = self._counter, self._gauge
        self.policies = gauge("policies", "Policies that select this pod.")
        self.rejected = gauge("policies_with_errors", "Of them, those whose newest traffic could not be taken.")
        self.envoy_up = gauge("envoy_up", "1: Envoy answers and serves by the newest files.")
        self.envoy_restarts = counter("envoy_restarts", "Envoys that this agent had to start again.")
        self.reports_sent = counter("reports_sent", "Reports that the operator took.")
        self.reports_failed = counter("reports_failed", "Reports that the operator did not take.")
        self.id_key_is_random = gauge("id_key_is_random", "1: no signing key is configured; ids end with this pod.")
        self.feedback_refused = counter("feedback_refused", "Feedback that was not counted.")
        self.ack_seconds = Histogram(
            "funicular_agent_ack_seconds",
            "From the watch event until Envoy served by it.",
            registry=self.registry,
            buckets=SECONDS,
        )

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"funicular_agent_{name}", text, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"funicular_agent_{name}", text, registry=self.registry)

    def render(self) -> str:
        return generate_latest(self.registry).decode()
