"""Measures in the background: ramping policies at every interval, promoted ones together and rarely one by one.

The store tells it of every policy, it wakes a policy's reconcile when there is something new. A reconcile never waits for
it. Only the latest look of a policy is kept, bound to what it measured.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Protocol

import orjson
from pydantic import ValidationError

from funicular.api.duration import seconds
from funicular.api.policy import RoutingPolicy, parse_policy
from funicular.api.revision import revision_of
from funicular.api.spec import Prometheus, RoutingPolicySpec
from funicular.api.traffic import Traffic
from funicular.controller.measuring import look_at, measure
from funicular.controller.preflight import PreflightBook, ask
from funicular.controller.queue import WorkQueue
from funicular.controller.screening import IdlePolicy, bounds_of, grouped, prometheus_of, screen
from funicular.errors import FunicularError, InvalidPolicy
from funicular.ports import Clock, Metrics
from funicular.rollout.observation import Measurements, Problem
from funicular.slo.queries import Scope

log = logging.getLogger(__name__)

Json = dict[str, Any]
AT_ONCE = 8
WINDOW = timedelta(hours=24)  # of a promoted policy: then a new one begins
FRESH = timedelta(hours=1)  # a window older than this is begun anew when the policy looks suspicious
ROUTINE = timedelta(hours=1)  # how often a promoted policy is looked at closely without a suspicion
SUSPICION = timedelta(minutes=30)  # how long a suspicion keeps a policy under close watch


class Bodies(Protocol):
    def get(self, key: str) -> Json | None: ...


class Clients(Protocol):
    def at(self, namespace: str, settings: Prometheus) -> Metrics: ...

    def key(self, namespace: str, settings: Prometheus) -> str: ...


class _Silent:
    """The evaluator's own queues are not the reconcile queue of the metrics."""

    def reconciled(self, seconds: float, result: str) -> None: ...

    def queue_depth(self, ready: int, running: int) -> None: ...


class BackgroundEvaluator:
    """Implements wiring.Evaluator. `wake(key)` queues a reconcile."""

    def __init__(
        self,
        bodies: Bodies,
        clients: Clients,
        wake: Callable[[str], None],
        clock: Clock,
        *,
        idle_check_seconds: float = 60.0,
    ) -> None:
        self._bodies = bodies
        self._clients = clients
        self._wake = wake
        self._clock = clock
        self._check = idle_check_seconds
        self._looks = WorkQueue(clock, workers=AT_ONCE, observer=_Silent())
        self._asks = WorkQueue(clock, workers=AT_ONCE // 2, observer=_Silent())
        self._preflights = PreflightBook(self._asks.add, clock)
        self._latest: dict[str, Measurements] = {}
        self._bound: dict[str, tuple[str, tuple[Any, ...]]] = {}  # key -> uid, what its looks are bound to
        self._idle: dict[str, IdlePolicy] = {}
        self._windows: dict[str, tuple[str, datetime]] = {}  # uid -> revision, begin
        self._suspects: dict[str, datetime] = {}  # key -> until when

    # --- what reconciles ask -------------------------------------------------------------------------------------
    def latest(self, uid: str) -> Measurements | None:
        return self._latest.get(uid)

    def preflight(
        self, key: str, spec: RoutingPolicySpec, traffic: Traffic | None = None
    ) -> tuple[Problem, ...] | None:
        return self._preflights.of(key, spec)

    # --- what the store tells ------------------------------------------------------------------------------------
    def listen(self, key: str, body: Json | None) -> None:
        """Reads the few facts that matter without parsing the whole: this runs for every event of every policy."""
        if body is None:
            self._forget(key)
            return
        status = body.get("status") or {}
        traffic, step = status.get("traffic") or {}, status.get("step") or {}
        uid = body["metadata"]["uid"]
        if traffic.get("candidate"):
            binding: tuple[Any, ...] = (traffic.get("version"), traffic.get("revision"), step.get("startedAt"))
            self._idle.pop(key, None)
            wanted = step.get("startedAt") is not None
        else:
            binding = (traffic.get("revision"), traffic.get("holdback"), body["metadata"].get("generation"))
            wanted = self._note_idle(key, body, traffic)
        if self._bound.get(key) == (uid, binding):
            return
        self._bound[key] = (uid, binding)
        if not wanted:
            return
        if key in self._idle:
            self._looks.add_after(key, self._clock.now() + ROUTINE + timedelta(seconds=zlib.crc32(key.encode()) % 600))
        else:
            self._looks.add(key)

    def _note_idle(self, key: str, body: Json, traffic: Json) -> bool:
        """Whether it is served by a promoted revision that a holdback can be compared with."""
        stable, spec = traffic.get("stable") or {}, body["spec"]
        since = ((body["status"].get("stable") or {}).get("since")) if traffic else None
        if not traffic.get("holdback") or not (stable.get("classifier") or stable.get("single")) or not since:
            self._idle.pop(key, None)
            return False
        try:
            prometheus = prometheus_of(orjson.dumps(spec.get("prometheus")))
            bounds = bounds_of(orjson.dumps(spec.get("slos") or []))
        except (ValidationError, InvalidPolicy):
            self._idle.pop(key, None)
            return False
        namespace = body["metadata"]["namespace"]
        self._idle[key] = IdlePolicy(
            key=key,
            uid=body["metadata"]["uid"],
            version=traffic["version"],
            revision=traffic["revision"],
            since=datetime.fromisoformat(since),
            group=self._clients.key(namespace, prometheus),
            namespace=namespace,
            prometheus=prometheus,
            bounds=bounds,
        )
        return True

    def _forget(self, key: str) -> None:
        bound = self._bound.pop(key, None)
        if bound is not None:
            self._latest.pop(bound[0], None)
            self._windows.pop(bound[0], None)
        self._idle.pop(key, None)
        self._suspects.pop(key, None)
        self._preflights.forget(key)
        for queue in (self._looks, self._asks):
            queue.forget(key)

    # --- the work ------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._looks.run(self._look))
            group.create_task(self._asks.run(self._ask))
            group.create_task(self._screen_for_ever())

    def _policy(self, key: str) -> RoutingPolicy | None:
        body = self._bodies.get(key)
        try:
            return parse_policy(body) if body is not None else None
        except InvalidPolicy:  # the reconcile says so
            return None

    async def _ask(self, key: str) -> None:
        policy = self._policy(key)
        if policy is None:
            return
        scope = Scope(policy.metadata.namespace, policy.metadata.name, revision_of(policy.spec))
        metrics = self._clients.at(policy.metadata.namespace, policy.spec.prometheus)
        problems = await ask(metrics, policy.spec, scope, self._clock.now())
        self._preflights.answer(key, policy.spec, problems)
        self._wake(key)

    async def _look(self, key: str) -> datetime | None:
        """When to look again."""
        policy = self._policy(key)
        if policy is None or policy.status.traffic is None or not policy.status.traffic.is_measured:
            return None
        now, interval = self._clock.now(), timedelta(seconds=seconds(policy.spec.prometheus.interval))
        begin = self._begin(policy, now)
        if begin is None:
            return None
        if now < begin + 2 * interval:
            return begin + 2 * interval
        metrics = self._clients.at(policy.metadata.namespace, policy.spec.prometheus)
        found = await measure(metrics, policy.spec, look_at(policy, begin, now))
        self._latest[policy.metadata.uid] = found
        self._wake(key)
        is_suspect = self._suspects.get(key, now) > now
        return now + (interval if policy.status.traffic.candidate is not None or is_suspect else ROUTINE)

    def _begin(self, policy: RoutingPolicy, now: datetime) -> datetime | None:
        """The instant at which the present window begins; None: there is nothing to measure yet."""
        status, uid = policy.status, policy.metadata.uid
        assert status.traffic is not None
        if status.traffic.candidate is not None:
            return status.step.started_at if status.step else None
        if status.stable is None or status.stable.since is None:
            return None
        revision, since = status.traffic.revision, status.stable.since
        known = self._windows.get(uid)
        begin = known[1] if known and known[0] == revision else status.drift_since or since
        if begin < since or now - begin > WINDOW:
            begin = max(since, now - FRESH)
        self._windows[uid] = (revision, begin)
        return begin

    # --- drift ---------------------------------------------------------------------------------------------------
    async def _screen_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._check)
            for policies in grouped(self._idle.values()).values():
                try:
                    await self._screen(policies)
                except FunicularError as exc:
                    log.warning("drift of %d policies cannot be watched: %s", len(policies), exc)
                except Exception:
                    log.exception("drift of %d policies cannot be watched", len(policies))

    async def _screen(self, policies: list[IdlePolicy]) -> None:
        """A suspicion begins a fresh window rather than pick the one that looks bad: that would not be evidence."""
        metrics = self._clients.at(policies[0].namespace, policies[0].prometheus)
        now = self._clock.now()
        found: set[str] = set()
        for window in (5 * self._check, 60 * self._check):
            found |= await screen(metrics, policies, round(window), now)
        for policy in policies:
            if policy.key not in found:
                continue
            if policy.key not in self._suspects or self._suspects[policy.key] < now:
                log.info("%s looks worse than its holdback: watched closely", policy.key)
                known = self._windows.get(policy.uid)
                if known is None or now - known[1] > FRESH:
                    self._windows[policy.uid] = (policy.revision, now)
                self._looks.add(policy.key)
            self._suspects[policy.key] = now + SUSPICION
