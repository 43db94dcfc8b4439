"""Keeps the store up to date: our own periodic list of policies, and watches of gateway pods and classifiers.

One term's tasks, started by main.py. The list exists because a deletion in a gap of kopf's watch is never delivered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from funicular.adapters.kube import path_of
from funicular.adapters.manifests import CLASSIFIER_LABEL, MANAGED
from funicular.api.base import API_VERSION, GATEWAY_LABEL, PLURAL
from funicular.controller.store import ClusterStore
from funicular.controller.wiring import Kube
from funicular.errors import FunicularError

log = logging.getLogger(__name__)

Json = dict[str, Any]
EXPLAIN_SECONDS = 3.0
PATIENCE_SECONDS = 10.0  # after a list or a watch that was refused


class Feeds:
    """`namespaces`: empty for all."""

    def __init__(self, kube: Kube, store: ClusterStore, namespaces: Sequence[str], *, relist_seconds: float) -> None:
        self._kube = kube
        self._store = store
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._relist = relist_seconds
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._list_policies())
            pods, deployments = _Scopes(self._store.see_pods), _Scopes(self._store.see_deployments)
            for namespace in self._namespaces:
                selector = f"{GATEWAY_LABEL}=true"
                group.create_task(self._watch(path_of("v1", "pods", namespace), selector, pods.scope(namespace)))
                path = path_of("apps/v1", "deployments", namespace)
                group.create_task(self._watch(path, MANAGED, deployments.scope(namespace)))
            group.create_task(self._explain())

    def _notice(self) -> None:
        if self._store.synced:
            self.synced.set()

    async def _list_policies(self) -> None:
        while True:
            try:
                found: list[Json] = []
                version = ""
                for namespace in self._namespaces:
                    items, newest = await self._kube.list_all(path_of(API_VERSION, PLURAL, namespace))
                    found += items
                    version = version or newest  # the oldest of several: what came later must not look vanished
                for item in found:  # items of a list come without their kind
                    item.setdefault("apiVersion", API_VERSION)
                    item.setdefault("kind", "RoutingPolicy")
                self._store.relisted(found, version)
                self._notice()
                await asyncio.sleep(self._relist)
            except FunicularError as exc:
                log.warning("policies could not be listed: %s", exc)
                await asyncio.sleep(min(self._relist, PATIENCE_SECONDS))

    async def _watch(self, path: str, selector: str, see: Callable[[str, Any], None]) -> None:
        while True:
            try:
                async for kind, found in self._kube.watch(path, labelSelector=selector):
                    see(kind, found)
                    self._notice()
            except FunicularError as exc:
                log.warning("%s cannot be watched: %s", path, exc)
            await asyncio.sleep(PATIENCE_SECONDS)

    async def _explain(self) -> None:
        """Asks the pods of classifiers that are not available, and only those, why."""
        while True:
            for at in self._store.unavailable():
                try:
                    pods, _ = await self._kube.list_all(
                        path_of("v1", "pods", at[0]), labelSelector=f"{CLASSIFIER_LABEL}={at[1]}"
                    )
                except FunicularError as exc:
                    log.debug("pods of %s: %s", at, exc)
                    continue
                why = reason_of(pods)
                if why:
                    self._store.explain(at, *why)
            await asyncio.sleep(EXPLAIN_SECONDS)


class _Scopes:
    """Several namespaces' watches as one: a RESYNC is passed on with what the others have, once all have spoken."""

    def __init__(self, see: Callable[[str, Any], None]) -> None:
        self._see = see
        self._known: dict[str | None, dict[str, Json] | None] = {}

    def scope(self, namespace: str | None) -> Callable[[str, Any], None]:
        self._known[namespace] = None

        def see(kind: str, found: Any) -> None:
            if len(self._known) == 1:
                self._see(kind, found)
                return
            if kind == "RESYNC":
                self._known[namespace] = {o["metadata"]["uid"]: o for o in found}
                if all(known is not None for known in self._known.values()):
                    self._see("RESYNC", [o for known in self._known.values() for o in (known or {}).values()])
                return
            known = self._known[namespace]
            if known is not None:
                known.pop(found["metadata"]["uid"], None)
                if kind != "DELETED":
                    known[found["metadata"]["uid"]] = found
            if all(k is not None for k in self._known.values()):
                self._see(kind, found)

        return see


def reason_of(pods: Sequence[Json]) -> tuple[str, str] | None:
    """Why pods do not become ready, in the words of the kubelet or the scheduler: (reason, message)."""
    for pod in pods:
        status = pod.get("status") or {}
        for container in status.get("containerStatuses") or ():
            state = container.get("state") or {}
            waiting, terminated = state.get("waiting") or {}, state.get("terminated") or {}
            if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
                last = (container.get("lastState") or {}).get("terminated") or {}
                ended = f" (exit code {last['exitCode']})" if "exitCode" in last else ""
                # kubelet's two words for the same take turns every few seconds
                reason = "ImagePullBackOff" if waiting["reason"] == "ErrImagePull" else waiting["reason"]
                return reason, (waiting.get("message") or f"pod {pod['metadata']['name']}") + ended
            if terminated:
                text = terminated.get("message") or f"exit code {terminated.get('exitCode')}"
                return terminated.get("reason") or "Terminated", text
        for condition in status.get("conditions") or ():
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return condition.get("reason") or "Unschedulable", condition.get("message", "")
    for pod in pods:
        status = pod.get("status") or {}
        if status.get("phase") == "Running":
            return "Unready", f"pod {pod['metadata']['name']} runs but its readiness probe (/readyz) does not succeed"
    return None
