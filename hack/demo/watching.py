"""Looks on: the policy's changes and the Events about it, by watches of the API server, into the timeline.

Started by the demo beside the stories. It writes nothing to the cluster.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from funicular.adapters.kube import path_of
from funicular.api.policy import parse_status
from funicular.errors import FunicularError
from hack.demo.stack import Stack
from hack.demo.timeline import Seen, Timeline

Json = dict[str, Any]


class Watcher:
    """`wait` wakes at every change, so that nobody has to poll."""

    def __init__(self, stack: Stack, policy: str, timeline: Timeline, on_event: Callable[[Json], None]) -> None:
        self._stack, self._policy, self.timeline, self._on_event = stack, policy, timeline, on_event
        self._changed = asyncio.Condition()
        self._known: set[str] = set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(self._stack.policy_path(), self._see_policy))
            group.create_task(
                self._watch(path_of("events.k8s.io/v1", "events", self._stack.namespace), self._see_event)
            )

    async def wait(self, condition: Callable[[Seen], bool], timeout: float, what: str) -> Seen:
        """The first version of the policy that fulfils the condition, from the present one on. Raises TimeoutError."""
        try:
            async with asyncio.timeout(timeout), self._changed:
                while (last := self.timeline.last) is None or not condition(last):
                    await self._changed.wait()
                return last
        except TimeoutError:
            last = self.timeline.last
            says = last.status.message if last else "there is no policy"
            raise TimeoutError(f"{what}: not within {timeout:.0f} s. The policy says: {says}") from None

    async def _watch(self, path: str, see: Callable[[str, Json, float], None]) -> None:
        while True:
            try:
                async with aclosing(self._stack.kube.watch(path)) as found:  # type: ignore[type-var]
                    async for kind, item in found:
                        now = time.time()
                        for one in item if kind == "RESYNC" else [item]:
                            see(kind, one, now)
                        async with self._changed:
                            self._changed.notify_all()
            except FunicularError:
                await asyncio.sleep(0.5)

    def _see_policy(self, kind: str, body: Json, now: float) -> None:
        if body["metadata"]["name"] != self._policy or kind == "DELETED":
            return
        self.timeline.seen.append(Seen(now, body["metadata"]["generation"], body["spec"], parse_status(body)))

    def _see_event(self, kind: str, event: Json, now: float) -> None:
        if (event.get("regarding") or {}).get("kind") != "RoutingPolicy" or kind == "DELETED":
            return
        uid = event["metadata"]["uid"]
        if uid not in self._known:
            self._known.add(uid)
            self.timeline.events.append({**event, "seenAt": now})
            self._on_event(event)
