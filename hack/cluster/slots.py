"""Gives each cluster on this machine its own ports and its own range of loopback addresses.

Called by `Cluster`. A slot is an flock held for the cluster's life, so a crash frees it and two starts never get the same.
The kernel's own choice (port 0) is not used: it could give a port away between choosing it and binding it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from hack.cluster.errors import ClusterError

FIRST_PORT = 20000
PORTS_PER_SLOT = 20
FIRST_NETWORK = 10
SLOTS = 200


@dataclass(slots=True)
class Slot:
    """Ports `FIRST_PORT + 20 * number ...` on 127.0.0.1, and the addresses 127.`network`.0.0/16 for pods."""

    number: int
    _lock: TextIO = field(repr=False)

    @property
    def network(self) -> int:
        return FIRST_NETWORK + self.number

    @property
    def ports(self) -> range:
        first = FIRST_PORT + PORTS_PER_SLOT * self.number
        return range(first, first + PORTS_PER_SLOT)

    def release(self) -> None:
        self._lock.close()


def acquire() -> Slot:
    """The first slot whose lock and ports are free."""
    folder = Path(tempfile.gettempdir()) / f"funicular-slots-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for number in range(SLOTS):
        slot = Slot(number, (folder / str(number)).open("w"))
        try:
            fcntl.flock(slot._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            slot.release()
            continue
        if all(_is_free(port) for port in slot.ports):
            return slot
        slot.release()
    raise ClusterError(f"all {SLOTS} slots for clusters are taken (ports from {FIRST_PORT}); `list` shows what runs")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
