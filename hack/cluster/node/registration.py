"""The Node object and its heartbeat.

Called by the node's main module. It must not know Pods.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import platform
from typing import Any

import aiohttp

from hack.cluster.binaries import KUBERNETES
from hack.cluster.node.api import STRATEGIC, Api, ApiError
from hack.cluster.node.containers import now

log = logging.getLogger(__name__)

Object = dict[str, Any]

LEASE_SECONDS = 15
_HEARTBEAT = 3.0
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_NO_PRESSURE = ("MemoryPressure", "DiskPressure", "PIDPressure")


async def register(api: Api, name: str, kubelet_port: int) -> None:
    """Create or revive the Node object and report it ready; retried until the API server takes it."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture,
        "node.kubernetes.io/instance-type": "process-node",
    }
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {}}
    while True:
        try:
            try:
                await api.post("/api/v1/nodes", node)
            except ApiError as error:
                if error.status != 409:
                    raise
            await api.patch(
                f"/api/v1/nodes/{name}/status", {"status": _status(name, architecture, kubelet_port)}, STRATEGIC
            )
            await _renew(api, name)
            return
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.warning("registration: %s", error)
            await asyncio.sleep(0.3)


async def beat(api: Api, name: str) -> None:
    """Renew the node's Lease for ever."""
    while True:
        await asyncio.sleep(_HEARTBEAT)
        try:
            await _renew(api, name)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.warning("heartbeat: %s", error)


async def _renew(api: Api, name: str) -> None:
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": stamp}
    try:
        await api.patch(f"{_LEASES}/{name}", {"spec": spec})
    except ApiError as error:
        if error.status != 404:
            raise
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": spec}
        await api.post(_LEASES, lease)


def _status(name: str, architecture: str, kubelet_port: int) -> Object:
    stamp = now()
    times = {"lastHeartbeatTime": stamp, "lastTransitionTime": stamp}
    conditions = [{"type": kind, "status": "False", "reason": "NoPressure", **times} for kind in _NO_PRESSURE]
    conditions.append({"type": "Ready", "status": "True", "reason": "ProcessNodeReady", "message": "", **times})
    resources = {"cpu": "1000", "memory": "1000Gi", "pods": "5000", "ephemeral-storage": "1000Gi"}
    return {
        "capacity": resources,
        "allocatable": resources,
        "conditions": conditions,
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": name}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet_port}},
        "nodeInfo": {
            "machineID": name,
            "systemUUID": name,
            "bootID": stamp,
            "kernelVersion": platform.release(),
            "osImage": "processes on this machine",
            "containerRuntimeVersion": "process://1",
            "kubeletVersion": KUBERNETES,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": architecture,
        },
    }
