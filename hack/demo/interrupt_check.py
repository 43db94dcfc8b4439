"""Whether Ctrl-C and SIGTERM at any moment leave nothing behind: starts the demo again and again, and interrupts it later
each time.

By hand, `python -m hack.demo.interrupt_check`, and by a test. After each end it looks for processes of that run (by a marker
in their environment, or by the cluster's folder in their environment, command line or working directory) and for the ports
on which they listened.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import psutil

from hack.cluster import state
from hack.cluster.cluster import CHECKOUT, Options

MARKER = "FUNICULAR_DEMO_RUN"
MOMENTS = (0.3, 1.0, 2.0, 3.5, 5.0, 7.0, 9.0, 12.0, 16.0, 25.0, 45.0)
GRACE = 30.0


def interrupted_after(seconds: float, number: signal.Signals, out: Path) -> tuple[int, float, int, list[str]]:
    """Exit code, seconds from the signal to the end, ports that had been open, and what was left behind."""
    mark = uuid.uuid4().hex
    name = f"interrupt-{mark[:6]}"
    command = [sys.executable, "-m", "hack.demo", "--out", str(out), "--name", name]
    environment = os.environ | {MARKER: mark, "PYTHONPATH": f"{CHECKOUT / 'operator'}:{CHECKOUT}"}
    log = out / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=CHECKOUT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    ports: set[tuple[str, int]] = set()
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        ports |= _listening(mark, name)
        time.sleep(0.2)
    process.send_signal(number)
    began = time.monotonic()
    try:
        code = process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    took = time.monotonic() - began
    # What the kernel is still tearing down counts after a moment only.
    deadline = time.monotonic() + 2.0
    while (left := _left(mark, ports, name)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return code, took, len(ports), left


def _ours(mark: str, name: str) -> list[psutil.Process]:
    folder = str(Options(name).place)
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            said = [*environment.values(), *process.cmdline(), process.cwd()]
            ours = environment.get(MARKER) == mark or any(folder in it for it in said)
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _listening(mark: str, name: str) -> set[tuple[str, int]]:
    pids = {it.pid for it in _ours(mark, name)}
    return {at for pid, at in _open_ports() if pid in pids}


def _open_ports() -> list[tuple[int | None, tuple[str, int]]]:
    found = psutil.net_connections("tcp")
    return [(it.pid, (it.laddr[0], it.laddr[1])) for it in found if it.status == psutil.CONN_LISTEN and it.laddr]


def _left(mark: str, ports: set[tuple[str, int]], name: str) -> list[str]:
    open_now = {at for _, at in _open_ports()}
    left = [f"process {it.pid} {' '.join(it.cmdline()[:4])}" for it in _ours(mark, name)]
    left += [f"port {ip}:{port}" for ip, port in sorted(ports & open_now)]
    found = state.read(Options(name).place)
    if found is not None and found.is_running:
        left.append(f"cluster {name}")
    return left


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hack.demo.interrupt_check", description=__doc__)
    parser.add_argument("--moments", type=float, nargs="+", default=MOMENTS, help="seconds after the start")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "out" / "interrupts")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for i, moment in enumerate(options.moments):
        number = (signal.SIGINT, signal.SIGTERM)[i % 2]
        code, took, ports, left = interrupted_after(moment, number, options.out)
        fine = not left and code in (128 + number, -number)  # the latter: nothing of ours ran yet
        failed += not fine
        end = f"exit {code}, gone {took:.1f} s later, {ports} ports had been open"
        print(f"{number.name} after {moment:5.1f} s: {end}, left behind: {left or 'nothing'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
