"""Ctrl-C and SIGTERM at any moment: once they end the work, then they are ignored until everything is cleaned up.

Used by the demo's and the bench's main. Before the event loop runs they raise KeyboardInterrupt, so that a control plane
that is starting is taken down again by whoever starts it; on the loop they cancel the one task that everything hangs on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from types import FrameType
from typing import Any

import psutil


class Interrupts:
    """`number` is the signal that came, 0 for none."""

    def __init__(self) -> None:
        self.number = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle)

    def attach(self) -> None:
        """From the task that is to be cancelled, until `detach`."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self.number and self._task is not None:
            self._task.cancel()

    def detach(self) -> None:
        self._loop = self._task = None

    @property
    def exit_code(self) -> int:
        return 128 + self.number

    def ignore(self) -> None:
        """For the clean-up."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.number:
            return  # we are leaving: a second Ctrl-C must not cut the clean-up short
        self.number = number
        if self._loop is not None and self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
        else:
            raise KeyboardInterrupt


def kill_descendants() -> list[str]:
    """The last net: what is still a child of this process, with its own children, is killed. Returns what there was."""
    found = psutil.Process(os.getpid()).children(recursive=True)
    names = []
    for child in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(f"{child.name()} ({child.pid})")
            child.kill()
    psutil.wait_procs(found, timeout=5)
    return names
