"""Loopback addresses for pods: 127.NETWORK.X.Y, each given out once before any is given out again.

Called by `pods.py`. The network is the cluster's own (`slots.py`), so clusters side by side never share an address. The
counter is kept in a file, so that a new node does not reuse an address that peers still have open connections to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_PER_THIRD_OCTET = 254
_ALL = 255 * _PER_THIRD_OCTET


@dataclass(slots=True)
class Addresses:
    network: int
    file: Path
    _used: set[str] = field(default_factory=set)

    def take(self) -> str:
        for number in self._numbers():
            address = f"127.{self.network}.{number // _PER_THIRD_OCTET}.{number % _PER_THIRD_OCTET + 1}"
            if address not in self._used:
                self._used.add(address)
                self.file.write_text(str((number + 1) % _ALL))
                return address
        raise RuntimeError(f"all {_ALL} addresses of 127.{self.network}.0.0/16 are in use")

    def give_back(self, address: str) -> None:
        self._used.discard(address)

    def _numbers(self) -> Iterator[int]:
        first = int(self.file.read_text() or 0) if self.file.exists() else 0
        return ((first + offset) % _ALL for offset in range(_ALL))
