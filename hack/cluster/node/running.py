"""One running process of a container: start, wait for its end, end it, on the event loop.

Called by `containers.py` and `probes.py`. It must not know Kubernetes.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from hack.cluster.processes import Guard, signal_group, spawn


class Running:
    """A process group led by the container's process. When the leader ends, the rest of its group is killed."""

    def __init__(
        self, command: Sequence[str], guard: Guard, log: Path, cwd: Path | str, environment: Mapping[str, str]
    ) -> None:
        with log.open("ab") as output:
            self._process = spawn(command, guard=guard, output=output, cwd=cwd, env=environment)
        self._guard = guard
        self._ended = asyncio.Event()
        self._handle = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._handle, self._reap)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    async def wait(self) -> int:
        """Exit code as containers have it: 128 + N after signal N."""
        await self._ended.wait()
        code = self._process.returncode
        return code if code >= 0 else 128 - code

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """To the container's process alone, as a container runtime does: what it started is its business."""
        if not self.has_ended:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        if not self.has_ended:
            signal_group(self._process, signal.SIGKILL)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        os.close(self._handle)
        signal_group(self._process, signal.SIGKILL)
        self._process.wait()
        self._guard.forget(self._process.pid)
        self._ended.set()


async def spawn_and_wait(
    command: Sequence[str], guard: Guard, log: Path, cwd: Path | str, environment: Mapping[str, str]
) -> int:
    """Run a command to its end; it is killed if we are cancelled."""
    process = Running(command, guard, log, cwd, environment)
    try:
        return await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
