"""The manifests of the two stories, and what each kind of regression does to the changed candidate's provider.

Called by the stories. Pure. The margins are wide and the steps short because a demo has minutes where production has weeks:
at 300 requests/s the 1 % step gets about 2.7 treated requests a second, and a margin of m needs about 4.5 / m of them. The
rules are the same: every step waits for its samples and for a Pass of each enforced SLO.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hack.demo.stack import CLASSIFIER_IMAGE, Provider

Json = dict[str, Any]

POLICY = "support-chat"
FRONTIER = Provider(
    "frontier",
    "gpt-frontier",
    {"latency_ms": 90, "latency_sigma": 0.25, "ttft_ms": 50, "chunk_ms": 2, "quality": 0.97, "error_rate": 0.003},
    seed=1,
)
MINI = Provider(
    "mini",
    "mini-1",
    {
        "latency_ms": 35,
        "latency_sigma": 0.25,
        "ttft_ms": 20,
        "chunk_ms": 1,
        "quality": 0.97,
        "quality_hard": 0.5,
        "error_rate": 0.003,
    },
    seed=2,
)
NEXT = Provider(
    "mini-next",
    "mini-2",
    {
        "latency_ms": 30,
        "latency_sigma": 0.25,
        "ttft_ms": 18,
        "chunk_ms": 1,
        "quality": 0.97,
        "quality_hard": 0.5,
        "error_rate": 0.003,
    },
    seed=3,
)
PROVIDERS = (FRONTIER, MINI, NEXT)
LATENCY_BOUND_MS = 500

STEPS = (
    {"share": 1, "minDuration": "5s", "minSamples": 50},
    {"share": 10, "minDuration": "15s", "minSamples": 250},
    {"share": 50, "minDuration": "8s", "minSamples": 500},
    {"share": 100, "minDuration": "8s", "minSamples": 1000, "bake": "4s"},
)


@dataclass(frozen=True, slots=True)
class Regression:
    """What goes wrong at the changed candidate's provider, and the SLO that has to notice."""

    kind: str
    faults: Mapping[str, Any]
    slo: str
    says: str


REGRESSIONS = {
    "errors": Regression("errors", {"error_rate": 0.5, "error_code": 503}, "errors", "every second answer is a 503"),
    "latency": Regression(
        "latency",
        {"latency_ms": 900, "ttft_ms": 900, "latency_sigma": 0.4},
        "p95",
        "answers take 0.9 s instead of 0.03 s",
    ),
    "thumbs": Regression(
        "thumbs",
        {"quality": 0.35, "quality_hard": 0.2},
        "thumbs-up",
        "two answers of three are of no use; codes and times stay as they were",
    ),
}


def good(url: Callable[[str], str], prometheus: str, scale: float = 1.0) -> Json:
    """The first story's manifest. `url`: provider name -> base URL; `scale` stretches the steps' shortest times."""
    steps = [
        {**step, **{k: _scaled(str(step[k]), scale) for k in ("minDuration", "bake") if k in step}} for step in STEPS
    ]
    return {
        "apiVersion": "routing.funicular.dev/v1alpha1",
        "kind": "RoutingPolicy",
        "metadata": {"name": POLICY},
        "spec": {
            "endpoint": {"model": "support-chat"},
            "candidates": [
                {
                    **_candidate(FRONTIER, url),
                    "name": "frontier",
                    "baseline": True,
                    "price": {"inputPerMillion": 1.25, "outputPerMillion": 10},
                },
                {**_candidate(MINI, url), "name": "mini", "price": {"inputPerMillion": 0.1, "outputPerMillion": 0.4}},
            ],
            "strategy": {
                "classifier": {
                    "image": CLASSIFIER_IMAGE,
                    "threshold": 0.6,
                    "timeout": "250ms",
                    "routes": {"easy": "mini", "hard": "frontier"},
                }
            },
            "assignment": {"minDuration": "0s"},
            "slos": [
                {"name": "errors", "indicator": "ErrorRate", "allowedIncrease": 0.05},
                {"name": "p95", "indicator": "LatencyP95", "bound": f"{LATENCY_BOUND_MS}ms"},
                {"name": "thumbs-up", "indicator": "ThumbsUpRate", "allowedDecrease": 0.15, "minSamples": 25},
                {"name": "cost", "indicator": "CostPerRequest", "allowedIncrease": 0, "mode": "Observe"},
            ],
            "rollout": {
                "steps": steps,
                "holdback": 10,
                "onRegression": "RevertSpec",
                "falseRevertRate": 0.01,
                "falsePromotionRate": 0.2,
            },
            "prometheus": {"url": prometheus, "interval": "1s"},
        },
    }


def changed(manifest: Json, url: Callable[[str], str]) -> Json:
    """The second story's manifest: a new revision of the cheap model at a URL of its own, and a braver threshold."""
    found = copy.deepcopy(manifest)
    spec = found["spec"]
    mini = spec["candidates"][1]
    mini.update(_candidate(NEXT, url))
    spec["strategy"]["classifier"]["threshold"] = 0.55
    return found


def _candidate(provider: Provider, url: Callable[[str], str]) -> Json:
    return {
        "url": url(provider.name),
        "model": provider.model,
        "credentials": {"secretRef": {"name": provider.secret, "key": "api-key"}},
        "timeout": "10s",
    }


def _scaled(duration: str, scale: float) -> str:
    return f"{max(0.0, float(duration.removesuffix('s')) * scale):.3g}s"
