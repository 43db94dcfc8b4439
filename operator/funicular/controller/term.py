"""kopf for one term of leadership, in a thread and event loop of its own.

Started by main.py. kopf only tells what happened to policies (`on.event`): it writes nothing, no finalizer, no annotation,
no Event. It ends by cancelling every task of its loop, therefore it may not share the loop of the elector. Its HTTP
session is ours: limited, and with a token that is read anew.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import aiohttp
import kopf
import uvloop

from funicular.adapters.kube import Access
from funicular.api.base import GROUP, PLURAL, VERSION

log = logging.getLogger(__name__)

Json = dict[str, Any]
Deliver = Callable[[str | None, Json], object]


class TermEnded(Exception):
    """kopf ended although the Lease is held: its login failed, or it broke."""


class KopfThread:
    """`deliver(kind, body)` is called in kopf's thread: kind None at start and after each list, else ADDED, MODIFIED, DELETED."""

    def __init__(self, access: Access, namespaces: Sequence[str], deliver: Deliver) -> None:
        self._access = access
        self._namespaces = tuple(namespaces)
        self._deliver = deliver
        self._stop = threading.Event()
        self.ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._cancel: Callable[[], object] | None = None
        self._sessions: list[aiohttp.ClientSession] = []
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    def start(self) -> None:
        """On the caller's loop, which hears of the end."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    async def watch(self) -> None:
        """Returns never while kopf lives; raises TermEnded when it does not."""
        await self._ended.wait()
        raise TermEnded("kopf ended by itself") from self._failure

    async def stop(self) -> None:
        """Returns when the thread has ended: the caller sets the limit. kopf that is told to stop while it still logs in, or
        while the API server is away, would go on trying for seconds: it is first given a moment, and then cancelled."""
        if not await self._ends_within(0.0) and not self.ready.is_set():
            await self._ends_within(0.5)
        self._stop.set()
        if not await self._ends_within(2.0) and self._cancel is not None:
            self._cancel()
        if self.is_alive:
            await self._ended.wait()

    async def _ends_within(self, seconds: float) -> bool:
        if not self.is_alive:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._operate())
        except BaseException as exc:  # CancelledError of our own too: this is the thread's end
            self._failure = exc
            if not self._stop.is_set():
                log.exception("kopf failed")
        finally:
            with suppress(RuntimeError):  # the caller's loop is closed: nobody listens any more
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._ended.set)

    async def _operate(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        await kopf.operator(
            registry=self._registry(),
            settings=_settings(),
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=self._stop,
            ready_flag=self.ready,
        )
        for session in self._sessions:
            await session.close()
        await asyncio.sleep(0.1)  # TLS says goodbye after close() has returned; the loop must still be there

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry, errors=kopf.ErrorsMode.TEMPORARY, backoff=1.0)
        async def login(**_: Any) -> kopf.AiohttpSession:
            self._sessions.append(_session(self._access))
            return kopf.AiohttpSession(server=self._access.server, aiohttp_session=self._sessions[-1])

        @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
        async def see(event: Any, **_: Any) -> None:
            self._deliver(event["type"], cast("Json", event["object"]))

        return registry


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.networking.error_backoffs = (0.2, 0.5, 1, 1, 2, 2, 3, 5)
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.watching.connect_timeout = 5
    settings.watching.server_timeout = 290
    settings.queueing.idle_timeout = 1.0
    for noisy in ("kopf.objects", "kopf.activities"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return settings


def _session(access: Access) -> aiohttp.ClientSession:
    async def authorise(
        request: aiohttp.ClientRequest,
        handler: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]],
    ) -> aiohttp.ClientResponse:
        bearer = access.bearer()  # read anew: projected tokens are renewed in place
        if bearer:
            request.headers["Authorization"] = f"Bearer {bearer}"
        return await handler(request)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=access.ssl(), limit=16),
        middlewares=(authorise,),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=120),
    )
