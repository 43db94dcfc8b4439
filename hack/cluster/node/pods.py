"""One Pod bound to this node, from its binding to its removal, and the set of all of them.

Called by the node's main module, which feeds `Pods` from an informer. The order of a Pod's life stands in `Worker._live`,
its end in `Worker._wind_down`.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from hack.cluster.node.addresses import Addresses
from hack.cluster.node.api import STRATEGIC, Api, ApiError, Informer
from hack.cluster.node.containers import Container, Surroundings, now
from hack.cluster.node.environment import ConfigMissing, PodFacts
from hack.cluster.node.kubeconfigs import write_pod_kubeconfig
from hack.cluster.node.status import PodView, pod_status
from hack.cluster.node.volumes import PodVolumes
from hack.cluster.processes import Guard

log = logging.getLogger(__name__)

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Node:
    """What all Pods of a node share."""

    name: str
    folder: Path
    images: Path
    api: Api
    addresses: Addresses
    configs: Mapping[str, Informer]
    """Informers of "secrets" and "configmaps"."""
    guard: Guard
    session: aiohttp.ClientSession
    probe_period: float | None
    environment: Mapping[str, str]

    def log_of(self, pod: Object, container: str) -> Path:
        metadata = pod["metadata"]
        name = f"{metadata['namespace']}_{metadata['name']}_{metadata['uid'][:8]}_{container}.log"
        return self.folder / "logs" / "pods" / name


class Worker:
    """Runs one Pod."""

    def __init__(self, node: Node, pod: Object) -> None:
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.ip = node.addresses.take()
        self._node = node
        self._folder = node.folder / "pods" / self.uid
        self._path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        self._started_at = now()
        self._finished = False
        self._changed = asyncio.Event()
        self._leaving = asyncio.Event()
        self._gone = asyncio.Event()
        known = (pod.get("status") or {}).get("conditions") or ()
        self._conditions: dict[str, Object] = {it["type"]: it for it in known}
        self._volumes = PodVolumes(node.api, self._facts, self._lookup, self._folder / "volumes")
        self._init, self._main = self._containers()

    def update(self, pod: Object) -> None:
        """The Pod has changed in the API."""
        labels_before = self.pod["metadata"].get("labels"), self.pod["metadata"].get("annotations")
        self.pod = pod
        if "deletionTimestamp" in pod["metadata"]:
            self._leaving.set()
        elif labels_before != (pod["metadata"].get("labels"), pod["metadata"].get("annotations")):
            self._volumes.refresh()
        self._changed.set()

    def vanish(self) -> None:
        """The Pod is gone from the API: no grace, nothing to report."""
        self._gone.set()
        self._leaving.set()

    def refresh_volumes(self, kind: str, name: str) -> None:
        """A Secret or ConfigMap of the Pod's namespace has changed."""
        if self._volumes.uses(kind, name):
            self._volumes.refresh()

    async def run(self) -> None:
        """The Pod's whole life; returns when nothing is left of it, or raises CancelledError when the node stops."""
        publishing = asyncio.create_task(self._publish())
        living = asyncio.create_task(self._live())
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            await asyncio.wait({living, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if living.done() and living.exception():
                log.error("pod %s", self.pod["metadata"]["name"], exc_info=living.exception())
            await leaving
            await self._wind_down(living)
        finally:
            for task in (publishing, living, leaving):
                task.cancel()
            await asyncio.gather(publishing, living, leaving, return_exceptions=True)
        await self._remove()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._node.addresses.give_back(self.ip)

    async def _live(self) -> None:
        """Volumes, then init containers in order, then the others; returns when the Pod has completed."""
        if self._leaving.is_set():
            return
        self._changed.set()
        await self._set_up_volumes()
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(self._volumes.keep_tokens())]
            for container in self._init:
                if container.sidecar:
                    beside.append(group.create_task(container.run()))  # type: ignore[arg-type]
                    await container.until_started()
                elif await container.run() != 0:
                    await self._complete(beside)
                    return
            await asyncio.gather(*(group.create_task(container.run()) for container in self._main))
            await self._complete(beside)

    async def _complete(self, beside: list[asyncio.Task[None]]) -> None:
        """No container runs again: sidecars end, in reverse order; the last status is Succeeded or Failed."""
        for container in reversed([it for it in self._init if it.sidecar]):
            await container.stop(self._grace())
        for task in beside:
            task.cancel()
        if not self._leaving.is_set():
            self._finished = True
        self._changed.set()

    async def _set_up_volumes(self) -> None:
        while True:
            try:
                await self._volumes.set_up()
                break
            except ConfigMissing as missing:
                log.info("pod %s: %s", self.pod["metadata"]["name"], missing)
            except (aiohttp.ClientError, TimeoutError) as error:
                log.warning("pod %s: %s", self.pod["metadata"]["name"], error)
            await asyncio.sleep(0.2)

    async def _wind_down(self, living: asyncio.Task[None]) -> None:
        """End the containers within the Pod's grace, the sidecars after the others."""
        grace = 0.0 if self._gone.is_set() else self._grace()
        clock = asyncio.get_running_loop().time
        deadline = clock() + grace
        vanishing = asyncio.create_task(self._gone.wait())
        stopping = asyncio.create_task(self._stop_all(grace))
        await asyncio.wait({vanishing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            # Deleted by force in the meantime.
            for container in (*self._main, *self._init):
                await container.stop(0)
        await stopping
        vanishing.cancel()
        # What is left is a Pod that waits for a volume, or an init container that would be next.
        living.cancel()
        await asyncio.gather(living, vanishing, return_exceptions=True)
        log.info("pod %s ended %.1f s before its deadline", self.pod["metadata"]["name"], deadline - clock())

    async def _stop_all(self, grace: float) -> None:
        clock = asyncio.get_running_loop().time
        deadline = clock() + grace
        plain = [it for it in self._init if not it.sidecar]
        await asyncio.gather(*(container.stop(grace) for container in (*self._main, *plain)))
        for container in reversed([it for it in self._init if it.sidecar]):
            await container.stop(max(0.0, deadline - clock()) if grace else 0)

    async def _remove(self) -> None:
        """Delete the API object, as the node that has nothing left of it."""
        while not self._gone.is_set():
            try:
                await self._node.api.delete(self._path, {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}})
                return
            except ApiError as error:
                if error.status in (404, 409):
                    return
                log.warning("delete %s: %s", self._path, error)
            except (aiohttp.ClientError, TimeoutError) as error:
                log.warning("delete %s: %s", self._path, error)
            await asyncio.sleep(0.3)

    async def _publish(self) -> None:
        """Write the status whenever it differs from the last one written."""
        written: Object | None = None
        while True:
            await self._changed.wait()
            self._changed.clear()
            status = pod_status(self._view(), self._conditions, now())
            if status == written or self._gone.is_set():
                continue
            try:
                # A merge would keep the address that the Pod had on an earlier node.
                replaced = {"podIPs": [*status["podIPs"], {"$patch": "replace"}]}
                body = {"metadata": {"uid": self.uid}, "status": status | replaced}
                await self._node.api.patch(f"{self._path}/status", body, STRATEGIC)
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                if isinstance(error, ApiError) and error.status in (404, 409):
                    continue
                log.warning("status of %s: %s", self._path, error)
                await asyncio.sleep(0.3)
                self._changed.set()
                continue
            written = status
            self._conditions = {it["type"]: it for it in status["conditions"]}

    def _view(self) -> PodView:
        return PodView(
            self.pod,
            self.ip,
            self._started_at,
            [it.view() for it in self._init],
            [it.view() for it in self._main],
            self._finished,
        )

    def _containers(self) -> tuple[list[Container], list[Container]]:
        spec, status = self.pod["spec"], self.pod.get("status") or {}
        before = {
            it["name"]: it for field in ("initContainerStatuses", "containerStatuses") for it in status.get(field) or ()
        }
        restart = spec.get("restartPolicy", "Always")
        init = [
            Container(it, self._around(it["name"]), restart=restart, init=True, before=before.get(it["name"]))
            for it in spec.get("initContainers") or ()
        ]
        main = [
            Container(it, self._around(it["name"]), restart=restart, before=before.get(it["name"]))
            for it in spec["containers"]
        ]
        return init, main

    def _around(self, container: str) -> Surroundings:
        folder = self._folder / "containers" / container
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kubeconfig = folder / "kubeconfig"
        spec = next(
            it
            for it in (*self.pod["spec"].get("initContainers", ()), *self.pod["spec"]["containers"])
            if it["name"] == container
        )
        has_account = write_pod_kubeconfig(kubeconfig, self._volumes.mounts(spec), self.pod, self._node.api.url)
        environment = dict(self._node.environment) | ({"KUBECONFIG": str(kubeconfig)} if has_account else {})
        return Surroundings(
            facts=self._facts,
            lookup=self._lookup,
            mounts=self._volumes.mounts,
            folder=folder,
            log=self._node.log_of(self.pod, container),
            images=self._node.images,
            base_environment=environment,
            guard=self._node.guard,
            session=self._node.session,
            probe_period=self._node.probe_period,
            changed=self._changed.set,
        )

    def _facts(self) -> PodFacts:
        return PodFacts(self.pod, self.ip)

    def _lookup(self, kind: str, name: str) -> Object | None:
        return self._node.configs[kind].get(self.pod["metadata"]["namespace"], name)

    def _grace(self) -> float:
        metadata, spec = self.pod["metadata"], self.pod["spec"]
        asked = metadata.get("deletionGracePeriodSeconds")
        return float(spec.get("terminationGracePeriodSeconds", 30) if asked is None else asked)


@dataclass(slots=True)
class Pods:
    """All Pods of this node."""

    node: Node
    _workers: dict[str, Worker] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def notice(self, pod: Object, present: bool) -> None:
        """Listener of the informer of Pods."""
        if pod["spec"].get("nodeName") != self.node.name:
            return
        uid = pod["metadata"]["uid"]
        worker = self._workers.get(uid)
        if worker is not None:
            worker.update(pod) if present else worker.vanish()
        elif present and self._is_to_run(pod):
            self._start(pod)

    def notice_config(self, kind: str, item: Object, present: bool) -> None:
        """Listener of the informers of Secrets and ConfigMaps; one that is deleted changes no files."""
        for worker in self._workers.values():
            if present and worker.pod["metadata"]["namespace"] == item["metadata"]["namespace"]:
                worker.refresh_volumes(kind, item["metadata"]["name"])

    def find(self, namespace: str, name: str) -> Object | None:
        """The Pod object, if it runs here."""
        for worker in self._workers.values():
            metadata = worker.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, name):
                return worker.pod
        return None

    async def stop(self) -> None:
        """The node stops: the workers end, their processes are killed, the API keeps the Pods as they were."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    @staticmethod
    def _is_to_run(pod: Object) -> bool:
        over = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        return not over or "deletionTimestamp" in pod["metadata"]

    def _start(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        worker = self._workers[uid] = Worker(self.node, pod)
        task = self._tasks[uid] = asyncio.create_task(worker.run())
        task.add_done_callback(lambda done: self._forget(uid, done))
        if "deletionTimestamp" in pod["metadata"]:
            worker.update(pod)

    def _forget(self, uid: str, done: asyncio.Task[None]) -> None:
        self._workers.pop(uid, None)
        self._tasks.pop(uid, None)
        if not done.cancelled() and done.exception():
            log.error("a pod's worker failed", exc_info=done.exception())
