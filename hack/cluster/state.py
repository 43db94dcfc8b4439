"""The file `cluster.json` in a cluster's folder: which processes belong to it, for `down`, `list` and `env`.

Written by `Cluster`, read by the command line, possibly after a crash: a process counts only if its start time fits too,
because process ids are used again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

FILE = "cluster.json"


@dataclass(frozen=True, slots=True)
class Recorded:
    """One process by id and start time."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Recorded | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            return cls(pid, psutil.Process(pid).create_time())
        return None

    @property
    def is_alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a cluster from outside. `detached`: its owner is a process of ours that `down` may end."""

    owner: Recorded
    detached: bool
    ready: bool
    processes: Mapping[str, Recorded] = field(default_factory=dict)
    kubeconfig: str = ""
    prometheus_url: str = ""
    dns: str = ""

    @property
    def is_running(self) -> bool:
        return self.owner.is_alive

    @property
    def survivors(self) -> dict[str, Recorded]:
        return {name: it for name, it in self.processes.items() if it.is_alive}


def current() -> Recorded:
    """This process."""
    return Recorded(os.getpid(), psutil.Process().create_time())


def write(folder: Path, state: State) -> None:
    """Atomically: a reader sees the old or the new one."""
    draft = folder / f".{FILE}.{os.getpid()}"
    draft.write_text(json.dumps(asdict(state), indent=1))
    draft.replace(folder / FILE)


def read(folder: Path) -> State | None:
    try:
        raw = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        return None
    raw["owner"] = Recorded(**raw["owner"])
    raw["processes"] = {name: Recorded(**it) for name, it in raw["processes"].items()}
    return State(**raw)


def remove(folder: Path) -> None:
    (folder / FILE).unlink(missing_ok=True)
