"""Funicular as its users have it: the chart, installed by Helm on a real node of `hack.node`.

Called by `make demo NODE=real` and by the e2e tests. Everything that looks at pods and providers it has from `Stack`; what
differs is how Funicular gets there and how a container dies.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from funicular.adapters.kube import path_of
from hack.cluster import binaries
from hack.cluster.errors import CommandFailed
from hack.demo.stack import CHECKOUT, Stack, filled
from hack.node import Node

Json = dict[str, Any]
CHART = CHECKOUT / "charts" / "funicular"
RELEASE = "funicular"
SIM_IMAGE = "funicular.local/sim:latest"


class Installed(Stack):
    """As `Stack`, on a `Node`. `values` go over those that fit the node."""

    def __init__(self, node: Node, *, values: Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__(node, **options)
        self.node = node
        self.notes = ""
        """What `helm install` said at the end."""
        self._own = dict(values or {})

    async def install(self) -> None:
        await self.apply(self.surroundings())
        self.notes = await self.upgrade()

    def values(self) -> Json:
        """Those that this node and these providers need, and the caller's."""
        monitoring = [{"ipBlock": {"cidr": f"{self.node.host_ip}/32"}}]  # Prometheus runs beside the node
        needed: Json = {
            "operator": {"replicas": self._operators, "leaseSeconds": self._lease},
            "gateway": {
                "replicas": self._gateways,
                "credentials": {"secretNames": [it.secret for it in self.providers.values()]},
            },
            "networkPolicy": {"metricsFrom": monitoring, "prometheusPorts": [_port(self.node.prometheus_url)]},
        }
        return _merged(needed, self._own)

    async def upgrade(self, chart: Path = CHART, **more: Any) -> str:
        """`helm upgrade --install --wait`. Returns what it printed; raises CommandFailed with what it said."""
        values = self.node.folder / f"values-{self.namespace}.yaml"
        values.write_text(yaml.safe_dump(_merged(self.values(), more)))
        return await self.helm(
            "upgrade", "--install", RELEASE, str(chart), "--values", str(values), "--wait", "--timeout", "180s"
        )

    async def helm(self, *arguments: str) -> str:
        """In the release's namespace."""
        binary = binaries.ensure(["helm"])["helm"]
        command = [str(binary), "--kubeconfig", str(self.node.kubeconfig), "--namespace", self.namespace, *arguments]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        if process.returncode:
            raise CommandFailed(f"helm {arguments[0]}: {err.decode().strip()}\n{out.decode()}")
        return out.decode() + err.decode()  # what a hook's Job says comes on stderr

    async def remove(self) -> None:
        await self.kubectl("delete", "routingpolicies", "--all", "--timeout=60s")
        await self.helm("uninstall", RELEASE, "--wait")
        await self.kubectl("delete", "namespace", self.namespace, "--wait=false")

    @property
    def service_url(self) -> str:
        """Where applications in pods reach the gateways."""
        return f"http://{RELEASE}-gateway.{self.namespace}.svc.cluster.local:8080"

    async def kill(self, pod: Json, container: str) -> float:
        await asyncio.to_thread(self.node.kill_container, pod["metadata"]["name"], container, namespace=self.namespace)
        return time.time()

    # --- applications -------------------------------------------------------------------------------------------------
    async def start_app(self, name: str, model: str, *arguments: str) -> str:
        """A pod that asks the gateways through their Service (hack/sim/app.py). Returns its URL, for this machine."""
        asked = ["app", "--url", f"{self.service_url}/v1", "--model", model, *arguments]
        for provider in self.providers:
            asked += ["--provider", self.provider_url(provider).removesuffix("/v1")]
        values = {"namespace": self.namespace, "name": name, "image": SIM_IMAGE, "arguments": json.dumps(asked)}
        await self.apply(filled("app.yaml", values))
        await self.kubectl("rollout", "status", f"deployment/{name}", "--timeout=60s")
        path = path_of("v1", "pods", self.namespace)
        items, _ = await self.kube.list_all(path, labelSelector=f"app.kubernetes.io/instance={name}")
        running = next(it for it in items if "deletionTimestamp" not in it["metadata"])
        return f"http://{running['status']['podIP']}:9100"


def _port(url: str) -> int:
    return int(url.rpartition(":")[2].strip("/"))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Json:
    """As Helm does: tables are merged, everything else is replaced."""
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        found[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]
