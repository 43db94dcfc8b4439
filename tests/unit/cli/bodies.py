"""A policy in mid-ramp as the API server would return it; `status_body(...)` changes parts of its status."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from funicular.api.policy import parse_policy
from funicular.api.revision import revision_of
from tests.unit.api.bad_policies import example

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def ago(**passed: float) -> str:
    return (NOW - timedelta(**passed)).isoformat().replace("+00:00", "Z")


def bare() -> dict[str, Any]:
    body = example()
    body["metadata"] |= {"namespace": "shop", "uid": "uid-1", "resourceVersion": "7", "creationTimestamp": ago(days=3)}
    return body


REVISION = revision_of(parse_policy(bare()).spec)


def policy_body(**status: Any) -> dict[str, Any]:
    """Step 2 of 4 at 10 %; a value of None takes a part of the status away."""
    route = {"revision": REVISION, "upstreams": [], "baseline": "frontier"}
    whole: dict[str, Any] = {
        "observedGeneration": 1,
        "phase": "Ramping",
        "message": "step 2/4 at 10 %: errors inconclusive, 412 of 1000 samples, about 9 min",
        "revision": REVISION,
        "stable": {"revision": "baseline-0123456789", "since": ago(days=2)},
        "candidate": {"revision": REVISION, "since": ago(hours=5)},
        "traffic": {
            "version": 4,
            "revision": REVISION,
            "share": {"desired": 1000, "acked": 1000, "observed": 994},
            "endpoint": "support-chat",
            "selector": {},
            "units": [],
            "holdback": 100,
            "stable": route,
            "candidate": route,
        },
        "step": {
            "index": 1,
            "of": 4,
            "share": 1000,
            "enteredAt": ago(hours=2),
            "minUntil": (NOW + timedelta(minutes=40)).isoformat(),
            "samples": 412,
            "minSamples": 1000,
        },
        "verdicts": [
            {"slo": "errors", "outcome": "Inconclusive", "reason": "TooFewSamples", "message": "412 of 1000 samples",
             "estimate": 0.0123, "reference": 0.011, "low": -0.004, "high": 0.0066, "samples": 412, "needed": 1000},
            {"slo": "thumbs-up", "outcome": "Pass", "reason": "NonInferior", "estimate": 0.91, "samples": 300},
            {"slo": "p95", "outcome": "Fail", "reason": "Regressed", "estimate": 0.09, "samples": 412},
            {"slo": "cost", "outcome": "Pass", "reason": "WithinBound", "mode": "Observe", "estimate": 0.0012},
        ],
        "tightest": "errors",
        "rejected": [{"revision": "badbadbad0", "at": ago(days=1), "reason": "Regressed", "message": "errors rose"}],
        "history": [
            {"at": ago(hours=5), "revision": REVISION, "event": "Ramped", "share": 100},
            {"at": ago(hours=2), "revision": REVISION, "event": "StepStarted", "share": 1000, "by": "ann"},
        ],
        "gateways": "3/3",
        "conditions": [
            {"type": "Ready", "status": "True", "observedGeneration": 1, "lastTransitionTime": ago(hours=2), "reason": "Ok"},
            {"type": "MetricsAvailable", "status": "False", "observedGeneration": 1, "lastTransitionTime": ago(minutes=3),
             "reason": "Unreachable", "message": "spec.prometheus.url: connection refused"},
        ],
    }  # fmt: skip
    kept = {key: value for key, value in {**whole, **status}.items() if value is not None}
    return {**bare(), "status": kept}
