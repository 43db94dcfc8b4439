"""A node as one object: start it, use it, hurt one of its parts or containers, stop it.

Called by tests, the demo and the command line. It knows the order of things and when they are ready; what a part is started
with stands in `parts.py`, where it runs in `sandbox.py`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import re
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Self

from hack.cluster import binaries, controlplane, pki, slots, state
from hack.cluster.cluster import CHECKOUT
from hack.cluster.controlplane import PrometheusOptions
from hack.cluster.errors import AlreadyRunning, ClusterError
from hack.cluster.processes import Component, Guard
from hack.cluster.surface import Surface
from hack.node import archives, packages, parts, sandbox
from hack.node.layout import NodeLayout
from hack.node.sandbox import Inside, Sandbox

METRICS_API = "v1beta1.metrics.k8s.io"
MANIFESTS = Path(__file__).parent / "manifests"
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?")

# Everything a node writes but its logs.
DATA = (
    *("etcd", "containerd", "cni", "kubelet", "pki", "images", "prometheus", "kubectl-cache"),
    *("containerd.toml", "kubelet.yaml", "prometheus.yaml", "resolv.conf", "kubeconfig"),
    *("kubelet.kubeconfig", *(f"{it}.kubeconfig" for it in parts.CLIENTS)),
)


@dataclass(frozen=True, slots=True)
class Options:
    """What to start. `images` are archives (OCI or docker) that the node has from the beginning."""

    name: str = "default"
    folder: Path | None = None
    images: Sequence[Path] = ()
    metrics_server: bool = True
    network_policy: bool = True
    prometheus: bool = True
    prometheus_options: PrometheusOptions = field(default_factory=PrometheusOptions)
    detached: bool = False

    @property
    def inside(self) -> tuple[str, ...]:
        """The processes that run in the node's namespaces; what starts first is first."""
        firewall = ("kube-router",) if self.network_policy else ()
        control_plane = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
        return ("containerd", *control_plane, "kubelet", "kube-proxy", *firewall)

    @property
    def add_ons(self) -> tuple[str, ...]:
        """What runs as pods from the beginning."""
        return ("coredns", *(("metrics-server",) if self.metrics_server else ()))

    @property
    def binaries(self) -> tuple[str, ...]:
        prometheus = ("prometheus",) if self.prometheus else ()
        return (*(it for it in self.inside if it != "containerd"), *self.add_ons, *prometheus, "kubectl")

    @property
    def place(self) -> Path:
        return (self.folder or CHECKOUT / ".run" / "nodes" / self.name).resolve()


class Node(Surface):
    """A running node. Make one with `Node.start(...)`, end it with `stop()` or by leaving its `with` block."""

    def __init__(self, options: Options, report: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(options.place)
        if not NAME.fullmatch(options.name):
            raise ClusterError(f"{options.name!r} cannot be a node's name: lower-case letters, digits and dashes")
        self.options = options
        self._report = report
        self._open = contextlib.ExitStack()
        self._sandbox: Sandbox | None = None
        self._layout = NodeLayout(options.name, self.folder, 0)

    @classmethod
    def start(
        cls,
        name: str = "default",
        *,
        folder: Path | None = None,
        images: Sequence[Path] = (),
        metrics_server: bool = True,
        network_policy: bool = True,
        prometheus: bool = True,
        prometheus_options: PrometheusOptions | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> Self:
        """Start everything and return when it is ready, with all `images` (archives) on the node.

        Raises NotPossibleHere, NodeFailed, BinaryMissing, BuildFailed, AlreadyRunning, NotReady.
        """
        node = cls(
            Options(
                name=name,
                folder=folder,
                images=tuple(images),
                metrics_server=metrics_server,
                network_policy=network_policy,
                prometheus=prometheus,
                prometheus_options=prometheus_options or PrometheusOptions(),
            ),
            report,
        )
        node.launch()
        return node

    @classmethod
    async def start_async(cls, name: str = "default", **options: Any) -> Self:
        """`start` for callers on an event loop."""
        return await asyncio.to_thread(cls.start, name, **options)

    # --- what it is ---------------------------------------------------------------------------------------------------
    @property
    def kubeconfig(self) -> Path:
        return self._layout.control_plane.kubeconfig("admin")

    @property
    def api_url(self) -> str:
        return self._layout.control_plane.api_url

    @property
    def prometheus_url(self) -> str:
        """The same for pods and for this machine."""
        port = self._layout.control_plane.port("prometheus")
        return f"{self.options.prometheus_options.scheme}://{self.host_ip}:{port}"

    @property
    def dns(self) -> str:
        """CoreDNS's Service."""
        return f"{self._layout.dns_ip}:53"

    @property
    def name(self) -> str:
        """Of the Node object."""
        return self.options.name

    @property
    def node_ip(self) -> str:
        """Of the node: NodePorts are here."""
        return str(self._layout.node_ip)

    @property
    def host_ip(self) -> str:
        """Of this machine, as pods reach it: a server that listens here serves them."""
        return str(self._layout.host_ip)

    @property
    def pod_cidr(self) -> str:
        return str(self._layout.pods)

    @property
    def service_cidr(self) -> str:
        return str(self._layout.services)

    # --- life ---------------------------------------------------------------------------------------------------------
    def launch(self) -> None:
        """Start the parts of `options`; anything already started is stopped again if one fails."""
        existing = state.read(self.folder)
        if existing is not None and existing.is_running:
            raise AlreadyRunning(f"a node is running in {self.folder} (process {existing.owner.pid})")
        sandbox.check()
        missing = [str(path) for path in self.options.images if not path.is_file()]
        if missing:
            raise ClusterError(f"no such image archive: {', '.join(missing)}")
        programs = packages.ensure(self._report)
        self._binaries = binaries.ensure(self.options.binaries)
        for name in ("containerd", "catatonit"):
            self._binaries[name] = programs.program(name)
        atexit.register(self.stop)
        try:
            self._prepare(programs)
            self._start_parts()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the node with everything on it and remove its data; logs stay. Safe to call twice and half started."""
        atexit.unregister(self.stop)
        self._sandbox = None
        self._open.close()

    # --- images and containers ----------------------------------------------------------------------------------------
    def load_image(self, archive: Path) -> None:
        """Make the images of an archive exist on the node, under the names that it gives them."""
        self._ctr("images", "import", str(archive.resolve()))

    def kill_container(self, pod: str, container: str, *, namespace: str = "default") -> float:
        """SIGKILL of a container's first process, as when memory is short. Returns when, in seconds since the epoch."""
        found = json.loads(self.kubectl("get", "pod", pod, "--namespace", namespace, "--output=json"))
        listed = found["status"].get("containerStatuses", []) + found["status"].get("initContainerStatuses", [])
        ids = {it["name"]: it.get("containerID", "") for it in listed}
        if not ids.get(container):
            raise ClusterError(f"pod {namespace}/{pod} has no running container {container!r}: {sorted(ids)}")
        self._ctr("tasks", "kill", "--signal=SIGKILL", ids[container].removeprefix("containerd://"))
        return time.time()

    def _ctr(self, *arguments: str) -> None:
        assert self._sandbox is not None, "the node is not running"
        self._sandbox.run("ctr", f"--address={parts.RUNTIME_SOCKET}", "--namespace=k8s.io", *arguments)

    # --- starting -----------------------------------------------------------------------------------------------------
    def _prepare(self, programs: packages.Programs) -> None:
        """Everything that the parts find when they start, and the place they start in."""
        slot = _free_slot(self.options.name, self.folder)
        self._open.callback(slot.release)
        self._layout = layout = NodeLayout(self.options.name, self.folder, slot.number)
        guard = Guard()
        self._open.callback(wipe, self.folder)
        self._open.callback(state.remove, self.folder)
        self._open.callback(guard.close)
        wipe(self.folder)
        shutil.rmtree(layout.logs, ignore_errors=True)
        (layout.logs / "pods").mkdir(mode=0o700, parents=True)
        for name in ("cni", "images", "containerd"):
            (self.folder / name).mkdir()
        # The owner is known before the first child is: `down` finds us however early it comes.
        self._record(ready=False)
        _write_identities(layout)
        options = self.options.prometheus_options
        for name, text in {
            "containerd.toml": parts.containerd_config(layout, programs.cni),
            "cni/10-pods.conflist": parts.cni_config(layout),
            "kubelet.yaml": parts.kubelet_config(layout),
            "resolv.conf": "# A node without a name server of its own: pods know the cluster's names only.\n",
            "prometheus.yaml": controlplane.prometheus_config(layout.control_plane, options),
        }.items():
            (self.folder / name).write_text(text)
        self._open.callback(self._end_components)
        self._sandbox = Sandbox(layout, guard, programs.environment)
        self._open.callback(self._sandbox.close)
        self._sandbox.open(self._binaries["catatonit"])
        for part in self.options.inside:
            command = _COMMANDS[part](self._binaries[part], layout)
            log = layout.logs / f"{part}.log"
            self._components[part] = Inside(part, command, log, guard, self._sandbox)
        if self.options.prometheus:
            command = controlplane.prometheus(self._binaries["prometheus"], layout.control_plane, options)
            log = layout.logs / "prometheus.log"
            self._components["prometheus"] = Component("prometheus", command, log, guard, cwd=self.folder)
        self._ready = self._readiness()

    def _end_components(self) -> None:
        """Prometheus; and nsenter's remains of what ended with the sandbox."""
        for component in self._components.values():
            component.request_stop()
        for component in self._components.values():
            component.finish()

    def _start_parts(self) -> None:
        """The runtime imports images while the control plane comes up; pods begin when both are there."""
        began = time.monotonic()
        first = [it for it in ("containerd", "etcd", "kube-apiserver", "prometheus") if it in self._components]
        for part in first:
            self._components[part].start()
        self._record(ready=False)
        importer = ThreadPoolExecutor(max_workers=1)
        # An interrupted start does not wait for it: what it runs ends with the sandbox.
        self._open.callback(importer.shutdown, wait=False, cancel_futures=True)
        own, given = self._import_images(importer)
        self.wait_until_ready("kube-apiserver")
        for name, component in self._components.items():
            if name not in (*first, "kube-router"):
                component.start()
        self._record(ready=False)
        self.wait_until_ready("kube-controller-manager")
        own.result()
        for add_on in self.options.add_ons:
            self.apply(Template((MANIFESTS / f"{add_on}.yaml").read_text()).substitute(dns_ip=self._layout.dns_ip))
        self.wait_until_ready("kubelet")
        if "kube-router" in self._components:
            # It looks for its Node object once, and ends if there is none.
            self._components["kube-router"].start()
            self._record(ready=False)
        self.wait_until_ready(*self._components)
        self.kubectl("wait", "--for=condition=Ready", f"node/{self.name}", "--timeout=60s")
        for add_on in self.options.add_ons:
            self.kubectl("--namespace=kube-system", "rollout", "status", f"deployment/{add_on}", "--timeout=60s")
        if self.options.metrics_server:
            # Until then every client that asks which kinds there are gets an error with its answer, or instead of it.
            self.kubectl("wait", "--for=condition=Available", f"apiservice/{METRICS_API}", "--timeout=60s")
        given.result()
        self._record(ready=True)
        self._report(f"node {self.name}: ready after {time.monotonic() - began:.1f} s, everything in {self.folder}")

    def _import_images(self, importer: ThreadPoolExecutor) -> tuple[Future[None], Future[None]]:
        """The node's own images, then those it was given."""

        def own() -> None:
            self.wait_until_ready("containerd")
            pause = self._layout.images / "pause.tar"
            archives.write(pause, parts.PAUSE_IMAGE, self._binaries["catatonit"], arguments=("-P",))
            self.load_image(pause)
            for name in self.options.add_ons:
                archive = self._layout.images / f"{name}.tar"
                archives.write(archive, f"funicular.local/{name}:1", self._binaries[name])
                self.load_image(archive)

        def given() -> None:
            for archive in self.options.images:
                self.load_image(archive)

        return importer.submit(own), importer.submit(given)

    def _readiness(self) -> Mapping[str, Callable[[], bool]]:
        """For each part, a question that is answered at once: is it ready?"""
        layout, options = self._layout, self.options.prometheus_options
        known = controlplane.readiness(layout.control_plane, options)
        admin = controlplane.admin_context(layout.control_plane)

        def answers(url: str) -> bool:
            return controlplane.status_of(url, admin) == 200

        assert self._sandbox is not None
        runtime = self._sandbox.files / parts.RUNTIME_SOCKET.lstrip("/")
        scheduler_port = layout.control_plane.port("scheduler")
        return {
            **known,
            "etcd": lambda: answers(f"{self.api_url}/readyz/etcd"),
            "kube-scheduler": lambda: _is_listening(self.node_ip, scheduler_port),
            "containerd": lambda: _listens(runtime),
            "kubelet": lambda: answers(f"{self.api_url}/api/v1/nodes/{self.name}/proxy/healthz"),
            "kube-proxy": lambda: answers(f"http://{self.node_ip}:10256/healthz"),
            "kube-router": lambda: answers(f"http://{self.node_ip}:20244/healthz"),
        }

    def _record(self, *, ready: bool) -> None:
        pids = {name: it.pid for name, it in self._components.items() if it.pid is not None}
        if self._sandbox is not None:
            pids["sandbox"] = self._sandbox.pid
        recorded = {name: state.Recorded.of(pid) for name, pid in pids.items()}
        state.write(
            self.folder,
            state.State(
                owner=state.current(),
                detached=self.options.detached,
                ready=ready,
                processes={name: it for name, it in recorded.items() if it is not None},
                kubeconfig=str(self.kubeconfig),
                prometheus_url=self.prometheus_url if self.options.prometheus else "",
                dns=self.dns,
            ),
        )


_COMMANDS: Mapping[str, Callable[[Path, NodeLayout], list[str]]] = {
    "containerd": parts.containerd,
    "etcd": parts.etcd,
    "kube-apiserver": parts.kube_apiserver,
    "kube-controller-manager": parts.kube_controller_manager,
    "kube-scheduler": parts.kube_scheduler,
    "kubelet": parts.kubelet,
    "kube-proxy": parts.kube_proxy,
    "kube-router": parts.kube_router,
}


def wipe(folder: Path) -> None:
    """Remove what a node leaves in its folder, but the logs."""
    for name in DATA:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _free_slot(name: str, folder: Path) -> slots.Slot:
    """One whose addresses this machine does not use otherwise; the ones that were tried are given back."""
    taken: list[slots.Slot] = []
    try:
        while True:
            slot = slots.acquire()
            if sandbox.is_free(NodeLayout(name, folder, slot.number).network):
                return slot
            taken.append(slot)
    finally:
        for other in taken:
            other.release()


def _write_identities(layout: NodeLayout) -> None:
    """Certificates and kubeconfig files of all parts."""
    control_plane = layout.control_plane
    user = f"system:node:{layout.name}"
    clients = {**parts.CLIENTS, "kubelet": (user, "system:nodes")}
    pki.create(
        control_plane.pki.folder,
        clients=clients,
        servers={**pki.SERVERS, "kubelet-server": (user, (layout.name,))},
        addresses=[str(it) for it in ("127.0.0.1", layout.node_ip, layout.api_service_ip)],
    )
    front_proxy = {parts.FRONT_PROXY: (parts.FRONT_PROXY, None)}
    pki.create(control_plane.pki.folder / "front-proxy", clients=front_proxy, servers={})
    for client in clients:
        pki.write_kubeconfig(control_plane.kubeconfig(client), control_plane.pki, client, layout.control_plane.api_url)


def _is_listening(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(str(path))
        except OSError:
            return False
        return True
