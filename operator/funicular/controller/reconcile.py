"""The handler of one policy: gather, decide, apply; nothing more. Called by the queue's workers, one at a time per key."""

from __future__ import annotations

from datetime import datetime

from funicular.api.policy import parse_status
from funicular.api.status import Status
from funicular.controller.apply import Applier
from funicular.controller.gather import Gatherer
from funicular.controller.wiring import Ports
from funicular.errors import Conflict, NotFound
from funicular.rollout.decide import decide


class Reconciler:
    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._gatherer = Gatherer(ports)
        self._applier = Applier(ports)

    async def reconcile(self, key: str) -> datetime | None:
        """When to look again, if nothing wakes the policy earlier. Raises RetryLater."""
        body = self._ports.store.get(key)
        if body is None:
            self._ports.telemetry.forget(key)
            return None
        observation = await self._gatherer.gather(body)
        decision = decide(observation)
        try:
            await self._applier.apply(observation.metadata, body, decision.actions)
        except Conflict:
            return None  # decided on a stale object: the newer one is on its way and wakes the key
        except NotFound:
            self.forget(key, observation.metadata.uid)
            return None
        self._tell(key, parse_status(body), decision.status)
        return decision.look_again_at

    def forget(self, key: str, uid: str) -> None:
        self._applier.forget(uid)
        self._ports.reports.forget(uid)
        self._ports.telemetry.forget(key)

    def _tell(self, key: str, before: Status, now: Status) -> None:
        telemetry, traffic = self._ports.telemetry, now.traffic
        telemetry.policy(
            key,
            revision=traffic.revision if traffic else "",
            phase=now.phase,
            desired=traffic.share.desired if traffic else 0,
            acked=traffic.share.acked if traffic else None,
            observed=traffic.share.observed if traffic else None,
            verdicts={v.slo: v.outcome for v in now.verdicts},
        )
        if len(now.rejected) > len(before.rejected) and now.rejected:
            telemetry.reverted(key, now.rejected[-1].reason)
        if now.timings is not None and before.timings is None and now.timings.decision_to_acked_ms is not None:
            telemetry.acknowledged(now.timings.decision_to_acked_ms / 1000)
