"""What can be done with a Kubernetes that runs here: use it, hurt one of its parts, stop it.

The common half of `Cluster` (pods are processes) and of hack/node's `Node` (pods are containers), and the type that whoever
can work with either takes. How the parts are started is the subclass's business.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hack.cluster.errors import CommandFailed, NotReady
from hack.cluster.processes import Component


class Surface(ABC):
    """Synchronous, and may be called from any thread; on an event loop use `stop_async` and `asyncio.to_thread`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._binaries: dict[str, Path] = {}
        self._components: dict[str, Component] = {}
        self._ready: Mapping[str, Callable[[], bool]] = {}

    @property
    @abstractmethod
    def kubeconfig(self) -> Path:
        """A kubeconfig with all rights."""

    @property
    @abstractmethod
    def api_url(self) -> str:
        """Of the API server."""

    @property
    @abstractmethod
    def prometheus_url(self) -> str:
        """Of Prometheus, for pods and for this machine."""

    @property
    @abstractmethod
    def dns(self) -> str:
        """`ADDRESS:PORT`, where Services' names are answered, by UDP and TCP."""

    @property
    def logs(self) -> Path:
        """A folder with one file for each part, and `pods/` with those of the containers."""
        return self.folder / "logs"

    @abstractmethod
    def stop(self) -> None:
        """End every part. Safe to call twice and half started."""

    async def stop_async(self) -> None:
        """`stop` for callers on an event loop."""
        await asyncio.to_thread(self.stop)

    def pid(self, name: str) -> int | None:
        """Process id of a part; None while it is killed."""
        return self._components[name].pid

    def kill(self, name: str) -> None:
        """SIGKILL a part; it stays dead until `restart`."""
        self._components[name].finish(grace=0)
        self._record(ready=True)

    def restart(self, name: str, timeout: float = 60) -> None:
        """Stop a part (if it is alive), start it with the same ports and data, wait until it is ready."""
        component = self._components[name]
        component.request_stop()
        component.finish()
        component.start()
        self._record(ready=True)
        self.wait_until_ready(name, timeout=timeout)

    def pause(self, name: str) -> None:
        """SIGSTOP: the part keeps its connections and does not answer."""
        self._components[name].signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT after `pause`."""
        self._components[name].signal(signal.SIGCONT)

    def wait_until_ready(self, *names: str, timeout: float = 60) -> None:
        """Poll until the parts are ready; raises NotReady with the end of the log of one that is not."""
        pending = list(names)
        deadline = time.monotonic() + timeout
        while pending := [name for name in pending if not self._ready[name]()]:
            for name in pending:
                component = self._components[name]
                if not component.is_running:
                    raise NotReady(f"{name} ended while starting. {component.log}:\n{component.last_lines()}")
            if time.monotonic() > deadline:
                component = self._components[pending[0]]
                raise NotReady(
                    f"{pending[0]} is not ready after {timeout:g} s. {component.log}:\n{component.last_lines()}"
                )
            time.sleep(0.03)

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = 60) -> str:
        """Run kubectl as admin; returns stdout. Raises CommandFailed with what it said on stderr."""
        command = [
            str(self._binaries["kubectl"]),
            f"--kubeconfig={self.kubeconfig}",
            f"--cache-dir={self.folder / 'kubectl-cache'}",
            *arguments,
        ]
        result = subprocess.run(command, input=input, capture_output=True, text=True, timeout=timeout, check=False)
        if result.returncode:
            raise CommandFailed(f"kubectl {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout

    def apply(self, manifest: str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
        """`kubectl apply` of YAML text, a file, an object or several objects; returns kubectl's output."""
        if isinstance(manifest, Path):
            text = manifest.read_text()
        elif isinstance(manifest, str):
            text = manifest
        else:
            several = [manifest] if isinstance(manifest, Mapping) else list(manifest)
            text = json.dumps({"apiVersion": "v1", "kind": "List", "items": several})
        return self.kubectl("apply", "-f", "-", input=text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _record(self, *, ready: bool) -> None:
        """Write down which processes there are, for the command line."""
