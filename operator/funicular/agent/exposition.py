"""`/metrics` in Prometheus' text format, under the names of 0001: from Envoy's series, feedback and prices. Pure.

Called by the server through gauges.py. Labels of a series are turned into text once, so a scrape of 1,000 idle policies is a
walk over numbers. Families are written together, as the format wants it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

HELP = {
    "funicular_requests_total": ("counter", "Requests by what answered."),
    "funicular_outcomes_total": ("counter", "Good and bad answers by hash replicate of the unit, while measured."),
    "funicular_slow_total": ("counter", "Answers over the policy's latency bound, by replicate."),
    "funicular_replicate_feedback_total": ("counter", "Feedback by replicate, while measured."),
    "funicular_replicate_cost_dollars_total": ("counter", "Cost at the policy's prices, by replicate."),
    "funicular_request_duration_seconds": ("histogram", "From the request's first byte to the answer's last."),
    "funicular_time_to_first_token_seconds": (
        "histogram",
        "From the request's first byte to the answer's first body byte.",
    ),
    "funicular_tokens_total": ("counter", "Tokens as the providers report them."),
    "funicular_cost_dollars_total": ("counter", "Tokens at the policy's prices."),
    "funicular_baseline_cost_dollars_total": (
        "counter",
        "What the same tokens would have cost at the baseline's prices.",
    ),
    "funicular_decisions_total": ("counter", "What the classifier's answer came to, and why."),
    "funicular_feedback_total": ("counter", "Feedback by candidate."),
    "funicular_rating": ("summary", "Ratings from 0 to 1: their sum and number."),
    "funicular_agent_traffic_version": ("gauge", "The version of a policy's traffic that this pod acknowledged."),
    "funicular_agent_share": ("gauge", "The acknowledged share, in basis points."),
}

PARTS = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}


def label_text(labels: Mapping[str, str]) -> str:
    return ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


@dataclass(slots=True)
class Families:
    """Samples by family. `add` takes the text of the labels; a sample that was set before is summed with."""

    samples: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, name: str, labels: str, value: float) -> None:
        family = self.samples.setdefault(name, {})
        family[labels] = family.get(labels, 0.0) + value

    def zero(self, name: str, labels: Iterable[str]) -> None:
        family = self.samples.setdefault(name, {})
        for text in labels:
            family.setdefault(text, 0.0)

    def render(self) -> str:
        lines: list[str] = []
        for name, (kind, text) in HELP.items():
            parts = [name + part for part in PARTS.get(kind, ("",))]
            if not any(part in self.samples for part in parts):
                continue
            lines.append(f"# HELP {name} {text}\n# TYPE {name} {kind}\n")
            for part in parts:
                lines += [
                    f"{part}{{{labels}}} {number(value)}\n" for labels, value in self.samples.get(part, {}).items()
                ]
        return "".join(lines)
