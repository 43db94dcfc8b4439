"""A load in a thread of its own, for callers that are busy with something else, such as drawing the demo's live table.

Called by the demo and by tests. `stop` is synchronous: when it returns, every request has ended and `results` are complete.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import uvloop

from hack.sim.load import Live, Load
from hack.sim.outcomes import Outcome, Results
from hack.sim.users import Population


class LoadThread:
    """Takes what Load takes. Use it as a context manager, or `start` and `stop`."""

    def __init__(self, population: Population, targets: Sequence[str], **options: Any) -> None:
        self._arguments = (population, tuple(targets), options)
        self._load: Load | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="load", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._started.wait()

    def stop(self, timeout: float | None = None) -> Results:
        """Ends the load, waits for what is in flight, returns the results. Raises what the load died of. May be called twice."""
        self._call("stop")
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"{self.live.in_flight} requests are still in flight after {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self.results

    def set_targets(self, targets: Sequence[str]) -> None:
        self._call("set_targets", tuple(targets))

    def set_rate(self, rate: float) -> None:
        self._call("set_rate", rate)

    @property
    def live(self) -> Live:
        """Live counters; plain reads are safe from any thread."""
        return self._running.live

    @property
    def results(self) -> Results:
        """Complete after `stop`; before, a list that grows (copy its `outcomes` before you walk over it)."""
        return self._running.results

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def _running(self) -> Load:
        if self._load is None:
            raise RuntimeError("the load was not started") from self._error
        return self._load

    def _call(self, method: str, *arguments: object) -> None:
        load, loop = self._load, self._loop
        if load is None or loop is None or not self._thread.is_alive():
            return
        try:
            loop.call_soon_threadsafe(getattr(load, method), *arguments)
        except RuntimeError:  # the loop closed in between: the load has ended by itself
            return

    def _main(self) -> None:
        try:
            uvloop.run(self._run())
        except BaseException as error:
            self._error = error
        finally:
            self._started.set()

    async def _run(self) -> None:
        population, targets, options = self._arguments
        self._loop = asyncio.get_running_loop()
        self._load = Load(population, targets, **options)
        self._started.set()
        await self._load.run()

    def __enter__(self) -> LoadThread:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


__all__ = ["LoadThread", "Outcome", "Results"]
