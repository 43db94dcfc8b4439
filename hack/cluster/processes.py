"""Children that cannot outlive us: start, stop, and a guard for the case that we are killed.

Called by `Cluster` for the control plane and by the process node for containers. Each child leads a process group (and
session) of its own, so that its descendants go with it. Two nets catch a death of ours: the guard (a tiny process that
kills the groups when our end of its pipe closes) and, where `setpriv` exists, the kernel's parent-death signal in case
the guard is killed too. The kernel ties that signal to the *thread* that forked: it is only used from the main thread.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_GUARD_SCRIPT = Path(__file__).with_name("guard.py")


class Guard:
    """The owner's side of `guard.py`; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )

    def watch(self, group: int) -> None:
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        self._tell(f"-{group}\n")

    def remove_at_end(self, cgroup: Path) -> None:
        """A control group that must not outlive the owner."""
        self._tell(f"{cgroup}\n")

    def close(self) -> None:
        """Kill what is still watched and end the guard."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(timeout=20)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with self._lock, contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def spawn(
    command: Sequence[str],
    *,
    guard: Guard,
    output: IO[bytes] | int,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` as the leader of a new session, watched by `guard`. Raises OSError if it cannot be executed."""
    program = shutil.which(command[0], path=(env or os.environ).get("PATH"))
    if program is None:
        raise FileNotFoundError(f"{command[0]}: no such program, or not executable")
    setpriv = shutil.which("setpriv")
    mortal = setpriv is not None and threading.current_thread() is threading.main_thread()
    prefix = [setpriv, "--pdeathsig", "KILL", "--"] if mortal and setpriv else []
    process = subprocess.Popen(
        [*prefix, program, *command[1:]],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    guard.watch(process.pid)
    return process


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the whole group; its leader may be gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class Component:
    """One long-running part of the control plane: a command, its log, and the process while it runs."""

    def __init__(self, name: str, command: Sequence[str], log: Path, guard: Guard, *, cwd: Path) -> None:
        self.name = name
        self.command = tuple(command)
        self.log = log
        self._cwd = cwd
        self._guard = guard
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = spawn(self.command, guard=self._guard, output=output, cwd=self._cwd)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            signal_group(self._process, number)

    def request_stop(self) -> None:
        """SIGTERM, without waiting; a paused process is woken, or it would not hear it."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)

    def finish(self, grace: float = 3.0) -> None:
        """Wait for the end, then kill what is left of the group."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace)
        self.signal(signal.SIGKILL)
        self._process.wait(timeout=10)
        self._guard.forget(self._process.pid)
        self._process = None

    def last_lines(self, count: int = 15) -> str:
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])
