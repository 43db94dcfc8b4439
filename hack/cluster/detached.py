"""A process that owns a cluster or a node, waits for SIGTERM, and so keeps it up when the terminal is free again.

Called by the command lines of hack/cluster and hack/node. `up` spawns the owner and waits for it; the owner calls `own`;
`down` calls `end`. They find each other by the file that state.py writes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from hack.cluster import state
from hack.cluster.cluster import CHECKOUT
from hack.cluster.errors import ClusterError
from hack.cluster.surface import Surface


def up(module: str, arguments: Sequence[str], folder: Path, console: Console) -> state.State | None:
    """Start an owner, `python -m MODULE ARGUMENTS --owner`, and wait until it is ready; None if it ended."""
    owner = _spawn(module, arguments, folder)
    try:
        ready = _wait_for(folder, owner)
    except BaseException:
        owner.terminate()
        owner.wait()
        raise
    console.print((folder / "owner.log").read_text().strip(), style="red" if ready is None else None, markup=False)
    return ready


def own(surface: Surface, launch: Callable[[], None], *, foreground: bool) -> int:
    """Run it until SIGTERM or SIGINT; in the foreground, with the line for the shell."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _interrupt(ended))
    try:
        launch()
        if foreground:
            print(f"export KUBECONFIG={surface.kubeconfig}", flush=True)
        ended.wait()
    except KeyboardInterrupt:
        pass
    finally:
        # A second signal must not cut the clean-up short.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        surface.stop()
    return 0


def end(folder: Path, parts: Sequence[str], wipe: Callable[[Path], None]) -> bool:
    """End the owner if it is a process of ours, then what is left of `parts`, in this order. Whether anything ran."""
    found = state.read(folder)
    if found is None:
        return False
    if found.is_running and found.detached:
        os.kill(found.owner.pid, signal.SIGTERM)
        _wait_while(lambda: found.owner.is_alive, 20)
        if found.owner.is_alive:
            os.kill(found.owner.pid, signal.SIGKILL)
            _wait_while(lambda: found.owner.is_alive, 5)
    latest = state.read(folder) or found
    for name in parts:
        if process := latest.survivors.get(name):
            os.killpg(process.pid, signal.SIGKILL)
    _wait_while(lambda: bool(latest.survivors), 10)
    if not found.is_running:
        state.remove(folder)
        wipe(folder)
    return True


def _spawn(module: str, arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "owner.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments, "--owner"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait_for(folder: Path, owner: subprocess.Popen[bytes], timeout: float = 120) -> state.State | None:
    """The state once ready; None if the owner ended."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = state.read(folder)
        if found is not None and found.ready and found.owner.pid == owner.pid:
            return found
        if owner.poll() is not None:
            return None
        time.sleep(0.03)
    raise ClusterError(f"not ready after {timeout:g} s; see {folder / 'owner.log'}")


def _interrupt(ended: threading.Event) -> None:
    """While starting there is nobody who waits for the event, so the start itself is interrupted."""
    if ended.is_set():
        return
    ended.set()
    raise KeyboardInterrupt


def _wait_while(condition: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while condition() and time.monotonic() < deadline:
        time.sleep(0.02)
