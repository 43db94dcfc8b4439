"""How long a revert takes: from the operator's decision to the last gateway pod's confirmation of share 0, again and again.

Called by the bench's main, on a real cluster: three gateway pods with Envoy, and once more with 97 stand-ins without Envoy
beside them (hack/agents.py). Each round ramps a fresh revision to 50 % and aborts it: the decision is a person's here, the
way from there on is the one that every verdict takes. What is told is `status.timings.decisionToAckedMs`, of the operator's
clock; beside it the wall time from the abort's request to the confirmation, as the requester sees it.
"""

from __future__ import annotations

import asyncio
import copy
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from funicular.api.verbs import ANNOTATION, Request, Verb
from hack.demo.stack import CHECKOUT, GATEWAY_SELECTOR, Provider, Stack
from hack.demo.timeline import Seen, Timeline
from hack.demo.watching import Watcher

Json = dict[str, Any]
POLICY = "bench"
STAND_INS = 97
PROVIDERS = (Provider("frontier", "gpt-frontier"), Provider("mini", "mini-1"))


def manifest(stack: Stack, revision: int) -> Json:
    """Round `revision`'s spec: only the model's name differs; a new revision each, and no classifier to wait for."""
    return {
        "apiVersion": "routing.funicular.dev/v1alpha1",
        "kind": "RoutingPolicy",
        "metadata": {"name": POLICY},
        "spec": {
            "endpoint": {"model": "bench"},
            "candidates": [
                {"name": "frontier", "baseline": True, "url": stack.provider_url("frontier"), "model": "gpt-frontier"},
                {"name": "mini", "url": stack.provider_url("mini"), "model": f"mini-{revision}"},
            ],
            "strategy": {"single": {"candidate": "mini"}},
            "slos": [{"name": "thumbs-up", "indicator": "ThumbsUpRate", "allowedDecrease": 0.02}],
            "rollout": {
                "steps": [{"share": 50, "minDuration": "1h"}, {"share": 100}],
                "holdback": 1,
                "onRegression": "HoldSpec",
            },
            "prometheus": {"url": stack.cluster.prometheus_url, "interval": "5s"},
        },
    }


class Reverts:
    def __init__(self, stack: Stack, say: Callable[[str], None]) -> None:
        self._stack, self._say = stack, say
        self._round = 0

    async def measure(self, times: int, title: str) -> Json:
        """p50 and p95 in milliseconds over `times` reverts."""
        decided: list[float] = []
        requested: list[float] = []
        timeline = Timeline()
        watcher = Watcher(self._stack, POLICY, timeline, lambda _: None)
        watching = asyncio.create_task(watcher.run())
        try:
            for i in range(times):
                ms, wall = await self._one(watcher)
                decided.append(ms)
                requested.append(wall)
                if i % 20 == 19:
                    self._say(f"{title}: {i + 1} of {times} reverts, median {statistics.median(decided):.0f} ms")
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        return {
            "reverts": times,
            "p50_ms": round(statistics.median(decided), 1),
            "p95_ms": round(quantile(decided, 0.95), 1),
            "max_ms": round(max(decided), 1),
            "requested_to_acked_p50_ms": round(statistics.median(requested), 1),
            "requested_to_acked_p95_ms": round(quantile(requested, 0.95), 1),
        }

    async def _one(self, watcher: Watcher) -> tuple[float, float]:
        self._round += 1
        await self._apply(manifest(self._stack, self._round))

        def is_in_effect(it: Seen) -> bool:
            model = it.spec["candidates"][1]["model"]
            step = it.status.step
            return (
                model == f"mini-{self._round}" and it.share == 50 and step is not None and step.started_at is not None
            )

        before = await watcher.wait(is_in_effect, 30, f"revision {self._round} is at 50 %")
        assert before.status.candidate is not None
        request = Request(Verb.ABORT, before.status.candidate.revision, uuid.uuid4().hex[:8], "bench")
        began = time.time()
        await self._stack.kube.patch(
            self._stack.policy_path(POLICY), {"metadata": {"annotations": {ANNOTATION: request.annotation()}}}
        )
        rejected = before.status.candidate.revision

        def is_back(it: Seen) -> bool:
            latched = any(r.revision == rejected for r in it.status.rejected)
            return latched and it.status.timings is not None and it.status.timings.decision_to_acked_ms is not None

        after = await watcher.wait(is_back, 30, f"revision {self._round} is reverted")
        assert after.status.timings is not None
        return float(after.status.timings.decision_to_acked_ms or 0.0), 1000 * (after.at - began)

    async def _apply(self, wanted: Json) -> None:
        """As `kubectl apply` would, without the cost of starting it a hundred times."""
        body = copy.deepcopy(wanted)
        body["metadata"]["namespace"] = self._stack.namespace
        await self._stack.kube.patch(
            self._stack.policy_path(POLICY),
            body,
            content_type="application/apply-patch+yaml",
            fieldManager="bench",
            force="true",
        )


async def stand_ins(stack: Stack, count: int = STAND_INS) -> asyncio.subprocess.Process:
    """Starts them; returns when all watch. To be ended by `terminate` and `wait`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "hack.agents",
        "--count",
        str(count),
        "--kubeconfig",
        str(stack.cluster.kubeconfig),
        "--namespace",
        stack.namespace,
        "--operator-namespace",
        stack.namespace,
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONPATH": f"{CHECKOUT / 'operator'}:{CHECKOUT}"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(120):
        while (line := await process.stdout.readline()) and b"ready" not in line:
            continue
    if not line:
        raise RuntimeError("hack.agents ended before it was ready")
    return process


def quantile(values: Sequence[float], share: float) -> float:
    found = sorted(values)
    return found[min(len(found) - 1, int(share * len(found)))]


__all__ = ["GATEWAY_SELECTOR", "PROVIDERS", "Reverts", "manifest", "stand_ins"]
