"""Envoy as a child of the agent, where no sidecar runs it: started, adopted, restarted, drained.

Called by main when FUNICULAR_ENVOY names a binary. Envoy has a process group of its own and a pid file in the config
folder: an agent that was killed leaves it serving, and the next one finds and adopts it. (In a container whose first
process is the agent, the kernel ends Envoy with it: run the two as sidecars there.) SIGTERM drains first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from funicular.adapters.envoy_admin import EnvoyAdmin
from funicular.errors import GatewayUnavailable, UserMustFix

log = logging.getLogger(__name__)
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 5.0
STEADY = 30.0  # seconds after which a death is not a crash at start
STOP = 5.0


def command(binary: str, bootstrap: Path, concurrency: int, log_level: str) -> list[str]:
    """Hot restart is off: with it, Envoy asks the kernel to end it with its parent (and shares memory by base id)."""
    level = {"DEBUG": "debug", "INFO": "warning"}.get(log_level.upper(), "error")
    return [
        binary,
        "--config-path",
        str(bootstrap),
        "--disable-hot-restart",
        "--concurrency",
        str(concurrency),
        "--log-level",
        level,
    ]


def runs_with(pid: int, bootstrap: Path) -> bool:
    """Is `pid` an Envoy that was started with this file? Pids are used again, so its command line is read."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return str(bootstrap).encode() in arguments and b"--disable-hot-restart" in arguments


class Envoy:
    def __init__(
        self, arguments: Sequence[str], pid_file: Path, bootstrap: Path, on_restart: Callable[[], None]
    ) -> None:
        self._arguments, self._pid_file, self._bootstrap = arguments, pid_file, bootstrap
        self._on_restart = on_restart
        self._pid: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def check(self) -> None:
        if not os.access(self._arguments[0], os.X_OK):
            raise UserMustFix(
                f"{self._arguments[0]} cannot be executed", field="FUNICULAR_ENVOY", remedy="name Envoy's binary"
            )

    def _adoptable(self) -> int | None:
        try:
            pid = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if runs_with(pid, self._bootstrap) else None

    async def run(self) -> None:
        """Keeps one Envoy alive until `stop`."""
        loop = asyncio.get_running_loop()
        delay = FIRST_BACKOFF
        while not self._stopping:
            started = loop.time()
            pid = self._adoptable()
            if pid is None:
                try:
                    self._process = self._start()
                except OSError as exc:
                    log.error("Envoy does not start: %s", exc)
                    await asyncio.sleep(LONGEST_BACKOFF)
                    continue
                pid = self._process.pid
                self._pid_file.write_text(str(pid))
            else:
                log.info("adopted Envoy, pid %d", pid)
            self._pid = pid
            await self._ended(pid)
            self._pid = None
            if self._stopping:
                break
            self._on_restart()
            log.error("Envoy (pid %d) ended; starting it again", pid)
            if loop.time() - started > STEADY:
                delay = FIRST_BACKOFF
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_BACKOFF)

    def _start(self) -> subprocess.Popen[bytes]:
        """A process group of its own: Ctrl-C and the agent's end do not reach it."""
        return subprocess.Popen(self._arguments, process_group=0, stdin=subprocess.DEVNULL)

    async def _ended(self, pid: int) -> None:
        """Works for a child and for an adopted process alike."""
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        loop.add_reader(descriptor, done.set)
        try:
            await done.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        if self._process is not None and self._process.pid == pid:
            self._process.poll()  # reaps it

    async def stop(self) -> None:
        self._stopping = True
        pid = self._pid
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP):
                    await self._ended(pid)
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
        self._pid_file.unlink(missing_ok=True)


async def drain(admin: EnvoyAdmin, *, least: float, most: float) -> None:
    """Tells Envoy to close connections and waits, at least until endpoints are updated, until no request is open."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    with contextlib.suppress(GatewayUnavailable):
        await admin.fail_healthcheck()
        while (waited := loop.time() - start) < most:
            if waited >= least and await admin.active_requests() == 0:
                return
            await asyncio.sleep(0.1)


async def undrain(admin: EnvoyAdmin) -> None:
    """An agent that is restarted alone, by its liveness probe say, has drained an Envoy that lives on: it serves again."""
    while True:
        try:
            return await admin.pass_healthcheck()
        except GatewayUnavailable:
            await asyncio.sleep(0.5)
