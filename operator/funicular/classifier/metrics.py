"""The reference server's own metrics.

Called by the server on its one thread. Counts are plain integers, because an increment through prometheus_client's locks
costs as much as a tenth of a classification; prometheus_client writes the page. No label ever comes from a request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from funicular.classifier.reading import Reason

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
SCORES = tuple(i / 20 for i in range(1, 21))


class Buckets:
    """A histogram on one thread."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        rows, so_far = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            rows.append((bound, float(so_far)))
        return rows


class ClassifierMetrics:
    """What is counted: `answers` by label and reason, `refused` by why, and two histograms."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, Reason]] = Counter()
        self.refused: Counter[str] = Counter()
        self.scores = Buckets(SCORES)
        self.durations = Buckets(SECONDS)
        self._about = {"version": "", "calibration_id": ""}
        self._queue = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.content_type = f"content-type: {CONTENT_TYPE_LATEST}\r\n".encode()

    def name_model(self, version: str, calibration_id: str) -> None:
        self._about = {"version": version, "calibration_id": calibration_id}

    def observe(self, label: str, reason: Reason, score: float) -> None:
        """One answer. Scores of texts that the model did not judge would only blur the histogram."""
        self.answers[label, reason] += 1
        if reason is Reason.MODEL:
            self.scores.observe(score)

    def observe_duration(self, seconds: float) -> None:
        """From the request's last byte to its answer, the wait in the queue included."""
        self.durations.observe(seconds)

    def render(self, queue: int) -> bytes:
        self._queue = queue
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client."""
        answers = CounterMetricFamily(
            "funicular_classifier_answers", "Answers by label and by what decided it.", labels=["label", "reason"]
        )
        for (label, reason), count in self.answers.items():
            answers.add_metric([label, reason], count)
        yield answers
        refused = CounterMetricFamily(
            "funicular_classifier_refused",
            "Requests without a label, by why; the gateway sends them to the baseline.",
            labels=["why"],
        )
        for why, count in self.refused.items():
            refused.add_metric([why], count)
        yield refused
        yield HistogramMetricFamily(
            "funicular_classifier_duration_seconds",
            "From a request's last byte to its answer.",
            buckets=self.durations.cumulative(),
            sum_value=self.durations.total,
        )
        yield HistogramMetricFamily(
            "funicular_classifier_score",
            "Scores that the model gave.",
            buckets=self.scores.cumulative(),
            sum_value=self.scores.total,
        )
        yield GaugeMetricFamily("funicular_classifier_queue_length", "Requests that wait.", value=self._queue)
        about = GaugeMetricFamily("funicular_classifier_info", "What runs.", labels=list(self._about))
        about.add_metric(list(self._about.values()), 1)
        yield about
