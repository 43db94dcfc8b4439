"""A cluster as one object: start it, use it, hurt one of its parts, stop it.

Called by tests, the demo, the bench and the command line. It knows folders, processes and readiness; what a part is
started with stands in `controlplane.py`. Everything here is synchronous and may be called from any thread; on an event
loop use `start_async` and `stop_async`, and `asyncio.to_thread` for the rest.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from hack.cluster import binaries, controlplane, images, pki, slots, state
from hack.cluster.controlplane import Layout, PrometheusOptions
from hack.cluster.errors import AlreadyRunning
from hack.cluster.images import Image
from hack.cluster.processes import Component, Guard
from hack.cluster.surface import Surface

CHECKOUT = Path(__file__).resolve().parents[2]

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")

# What talks to the API server ends before it, and etcd last.
STOP_ORDER = (
    ("process-node", "prometheus", "kube-scheduler", "kube-controller-manager"),
    ("kube-apiserver",),
    ("etcd",),
)


@dataclass(frozen=True, slots=True)
class Options:
    """What to start. `external` names the kubeconfig of a cluster that is not ours: then no control plane starts."""

    name: str = "default"
    folder: Path | None = None
    images: Mapping[str, Image | Sequence[str]] = field(default_factory=dict)
    node: bool = True
    prometheus: bool = True
    prometheus_options: PrometheusOptions = field(default_factory=PrometheusOptions)
    probe_period: float | None = None
    keep: bool = False
    external: Path | None = None
    detached: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        control_plane = () if self.external else CONTROL_PLANE
        return (
            *control_plane,
            *(("prometheus",) if self.prometheus else ()),
            *(("process-node",) if self.node else ()),
        )

    @property
    def place(self) -> Path:
        return (self.folder or CHECKOUT / ".run" / self.name).resolve()


class Cluster(Surface):
    """A running cluster. Make one with `Cluster.start(...)`, end it with `stop()` or by leaving its `with` block."""

    def __init__(self, options: Options, report: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(options.place)
        self.options = options
        self._report = report
        self._slot: slots.Slot | None = None
        self._guard: Guard | None = None
        self._layout = Layout(self.folder, 0, 0)

    @classmethod
    def start(
        cls,
        name: str = "default",
        *,
        folder: Path | None = None,
        images: Mapping[str, Image | Sequence[str]] | None = None,
        node: bool = True,
        prometheus: bool = True,
        prometheus_options: PrometheusOptions | None = None,
        probe_period: float | None = None,
        keep: bool = False,
        external: Path | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> Self:
        """Start everything and return when it is ready.

        `images` says which container images exist and what they run (see `Image`); `probe_period` replaces the
        `periodSeconds` of all probes, in seconds; `keep` goes on with the objects of the last run in this folder.
        Raises BinaryMissing, BuildFailed, AlreadyRunning, NotReady.
        """
        cluster = cls(
            Options(
                name=name,
                folder=folder,
                images=images or {},
                node=node,
                prometheus=prometheus,
                prometheus_options=prometheus_options or PrometheusOptions(),
                probe_period=probe_period,
                keep=keep,
                external=external,
            ),
            report,
        )
        cluster.launch()
        return cluster

    @classmethod
    async def start_async(cls, name: str = "default", **options: Any) -> Self:
        """`start` for callers on an event loop."""
        return await asyncio.to_thread(cls.start, name, **options)

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig with all rights."""
        return self.options.external or self._layout.kubeconfig("admin")

    @property
    def api_url(self) -> str:
        if self.options.external:
            config = yaml.safe_load(self.options.external.read_text())
            return str(config["clusters"][0]["cluster"]["server"])
        return self._layout.api_url

    @property
    def prometheus_url(self) -> str:
        return f"{self.options.prometheus_options.scheme}://127.0.0.1:{self._layout.port('prometheus')}"

    @property
    def dns(self) -> str:
        """`127.0.0.1:PORT`, where the process node answers for Services, by UDP and TCP."""
        return f"127.0.0.1:{self._layout.port('dns')}"

    def launch(self) -> None:
        """Start the parts of `options`; anything already started is stopped again if one fails."""
        existing = state.read(self.folder)
        if existing is not None and existing.is_running:
            raise AlreadyRunning(f"a cluster is running in {self.folder} (process {existing.owner.pid})")
        needed = [part for part in self.options.parts if part != "process-node"]
        self._binaries = binaries.ensure([*needed, "kubectl"])
        atexit.register(self.stop)
        try:
            self._prepare()
            self._start_parts()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every part and remove its data, unless `keep`; logs stay. Safe to call twice and half started."""
        atexit.unregister(self.stop)
        for batch in STOP_ORDER:
            present = [self._components[name] for name in batch if name in self._components]
            for component in present:
                component.request_stop()
            for component in present:
                component.finish()
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if self._slot is not None:
            state.remove(self.folder)
            if not self.options.keep:
                wipe(self.folder)
            self._slot.release()
            self._slot = None

    def add_images(self, table: Mapping[str, Image | Sequence[str]]) -> None:
        """Make more container images exist; a Pod that waits for one starts at its next try, within 5 s."""
        path = self.folder / "images.json"
        images.save(images.load(path) | images.normalised(table), path)

    def _prepare(self) -> None:
        """Everything that parts find on disk when they start."""
        self._slot = slots.acquire()
        self._guard = Guard()
        self._layout = layout = Layout(self.folder, self._slot.ports[0], self._slot.network)
        if not self.options.keep:
            wipe(self.folder)
            shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The owner is known before the first child is: `down` finds us however early it comes.
        self._record(ready=False)
        if not self.options.external:
            if not layout.pki.ca.exists():
                pki.create(layout.pki.folder)
            for client in pki.CLIENTS:
                pki.write_kubeconfig(layout.kubeconfig(client), layout.pki, client, layout.api_url)
        options = self.options.prometheus_options
        prometheus_config = controlplane.prometheus_config(layout, options, self.options.external)
        (self.folder / "prometheus.yaml").write_text(prometheus_config)
        images.save(images.normalised(self.options.images), self.folder / "images.json")
        self._ready = controlplane.readiness(layout, options)
        for part in self.options.parts:
            log = self.logs / f"{part}.log"
            self._components[part] = Component(part, self._command(part), log, self._guard, cwd=CHECKOUT)

    def _command(self, part: str) -> list[str]:
        layout = self._layout
        if part == "process-node":
            return controlplane.process_node(
                layout,
                kubeconfig=self.options.external or layout.kubeconfig("node"),
                images=self.folder / "images.json",
                probe_period=self.options.probe_period,
            )
        binary = self._binaries[part]
        if part == "prometheus":
            return controlplane.prometheus(binary, layout, self.options.prometheus_options)
        commands = {
            "etcd": controlplane.etcd,
            "kube-apiserver": controlplane.kube_apiserver,
            "kube-controller-manager": controlplane.kube_controller_manager,
            "kube-scheduler": controlplane.kube_scheduler,
        }
        return commands[part](binary, layout)

    def _start_parts(self) -> None:
        """etcd, API server and Prometheus at once; the clients of the API server when it answers."""
        began = time.monotonic()
        parts = self.options.parts
        first = [part for part in parts if part in ("etcd", "kube-apiserver", "prometheus")]
        second = [part for part in parts if part not in first]
        for part in first:
            self._components[part].start()
        self._record(ready=False)
        self.wait_until_ready(*(part for part in first if part != "prometheus"))
        for part in second:
            self._components[part].start()
        self._record(ready=False)
        self.wait_until_ready(*parts)
        self._record(ready=True)
        self._report(f"{', '.join(parts)}: ready after {time.monotonic() - began:.1f} s, everything in {self.folder}")

    def _record(self, *, ready: bool) -> None:
        owner = state.current()
        pids = {name: it.pid for name, it in self._components.items() if it.pid is not None}
        recorded = {name: state.Recorded.of(pid) for name, pid in pids.items()}
        state.write(
            self.folder,
            state.State(
                owner=owner,
                detached=self.options.detached,
                ready=ready,
                processes={name: it for name, it in recorded.items() if it is not None},
                kubeconfig=str(self.kubeconfig),
                prometheus_url=self.prometheus_url if self.options.prometheus else "",
                dns=self.dns if self.options.node else "",
            ),
        )


def wipe(folder: Path) -> None:
    """Remove what a stopped cluster leaves in its folder, but the logs."""
    for name in ("etcd", "prometheus", "pki", "pods", "kubectl-cache"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (
        "kubeconfig",
        "prometheus.yaml",
        "images.json",
        "addresses",
        *(f"{it}.kubeconfig" for it in pki.CLIENTS),
    ):
        (folder / name).unlink(missing_ok=True)
