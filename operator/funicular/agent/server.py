"""The agent's HTTP server: metrics and probes for the cluster, feedback for users (Envoy passes it on).

Started by main. Thin: what it answers is decided in feedback.py, gauges.py and readiness. It must not know policies.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from funicular.adapters.http_server import http_logger
from funicular.agent.feedback import LIMIT, FeedbackBook, Refused, parse
from funicular.agent.identity import IdKeys
from funicular.agent.metrics import AgentMetrics
from funicular.errors import UserMustFix
from funicular.ports import Clock

log = logging.getLogger(__name__)
UNDECODABLE = "invalid_encoding"


class AgentServer:
    def __init__(
        self,
        *,
        feedback: FeedbackBook,
        keys: IdKeys,
        clock: Clock,
        metrics: AgentMetrics,
        render: Callable[[], Awaitable[str]],
        unready: Callable[[], dict[str, Any] | None],
    ) -> None:
        self._feedback, self._keys, self._clock, self._metrics = feedback, keys, clock, metrics
        self._render, self._unready = render, unready
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> None:
        app = web.Application(client_max_size=LIMIT + 1024)
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/healthz", self._get_healthz)
        app.router.add_get("/readyz", self._get_readyz)
        app.router.add_post("/v1/feedback", self._post_feedback)
        self._runner = web.AppRunner(
            app, access_log=None, logger=http_logger(__name__), handle_signals=False, shutdown_timeout=2.0
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as exc:
            raise UserMustFix(
                f"{host}:{port} cannot be listened on: {exc.strerror}",
                field="FUNICULAR_AGENT_PORT",
                remedy="free the port, or set another one",
            ) from exc

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    async def _get_metrics(self, _: web.Request) -> web.Response:
        """Compressed in a thread where it is large: an acknowledgement must not wait for a scrape."""
        answer = web.Response(
            body=(await self._render()).encode(),
            headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"},
            zlib_executor_size=16 << 10,
        )
        answer.enable_compression()
        return answer

    async def _get_healthz(self, _: web.Request) -> web.Response:
        """The event loop turns. Envoy's state is no reason to restart the agent."""
        return web.Response(text="ok")

    async def _get_readyz(self, _: web.Request) -> web.Response:
        reason = self._unready()
        return web.Response(
            status=200 if reason is None else 503,
            body=orjson.dumps({"ready": True} if reason is None else {"ready": False, **reason}),
            content_type="application/json",
        )

    async def _post_feedback(self, request: web.Request) -> web.Response:
        try:
            try:
                body = await request.read()
            except web.HTTPRequestEntityTooLarge:
                body = b" " * (LIMIT + 1)
            except web.RequestPayloadError:
                raise Refused(400, "The body is not what its headers say.", UNDECODABLE) from None
            text, of, votes = parse(body, self._keys.accepted, self._clock.now().timestamp())
        except Refused as refused:
            self._metrics.feedback_refused.inc()
            answer = web.Response(status=refused.status, body=refused.body(), content_type="application/json")
            if refused.code == UNDECODABLE:
                answer.force_close()  # aiohttp ends the connection, so whoever keeps it must know
            return answer
        news = self._feedback.take(text, of, votes, asyncio.get_running_loop().time())
        return web.Response(body=orjson.dumps({"received": len(votes), "new": news}), content_type="application/json")
