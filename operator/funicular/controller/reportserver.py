"""The agents' way in: `POST /v1/report`. Only the leader answers; others say 503 and the agent looks at the Lease again.

Started by main.py for the whole life of the process; `lead(book, tokens)` and `retire()` mark a term. Trust: the bearer
token must be meant for the operator, and the pod it is bound to must be the pod that reports.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

import orjson
from aiohttp import web
from pydantic import ValidationError

from funicular.adapters.http_server import http_logger
from funicular.api.report import AUDIENCE, REPORT_PATH, Report, ReportAnswer
from funicular.errors import FunicularError

log = logging.getLogger(__name__)

Json = dict[str, Any]
BODY_LIMIT = 16 << 20
TRUST_SECONDS = 300.0
DISTRUST_SECONDS = 10.0
CACHED = 10_000
_EXTRA = "authentication.kubernetes.io/"


class TokenApi(Protocol):
    async def create(self, path: str, body: Json, **params: str) -> Json: ...


class Book(Protocol):
    def take(self, report: Report) -> bool: ...


@dataclass(frozen=True, slots=True)
class Bearer:
    """The pod that a token is bound to; `why` says why it is nobody's."""

    namespace: str = ""
    pod: str = ""
    uid: str = ""
    why: str = ""


class Tokens:
    """TokenReviews, remembered by the token's hash: at most five minutes, never beyond the token's own end."""

    def __init__(self, kube: TokenApi, now: Callable[[], float], elapsed: Callable[[], float] = monotonic) -> None:
        self._kube = kube
        self._now = now  # seconds since the epoch, to compare with the token's `exp`
        self._elapsed = elapsed
        self._cache: dict[str, tuple[Bearer, float]] = {}

    async def bearer(self, token: str) -> Bearer:
        """Raises ApiUnavailable."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        known = self._cache.get(digest)
        if known and known[1] > self._elapsed():
            return known[0]
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [AUDIENCE]},
        }
        answer = await self._kube.create("/apis/authentication.k8s.io/v1/tokenreviews", review)
        bearer = _bearer(answer.get("status") or {})
        seconds = DISTRUST_SECONDS if bearer.why else min(TRUST_SECONDS, _expiry(token) - self._now())
        if len(self._cache) >= CACHED:
            self._cache.clear()
        self._cache[digest] = (bearer, self._elapsed() + seconds)
        return bearer


def _bearer(status: Json) -> Bearer:
    if not status.get("authenticated"):
        return Bearer(why="the token is not valid")
    if AUDIENCE not in (status.get("audiences") or ()):
        return Bearer(why=f"the token's audience is not {AUDIENCE}")
    user = status.get("user") or {}
    extra = user.get("extra") or {}
    pod, uid = (next(iter(extra.get(_EXTRA + name) or ()), "") for name in ("pod-name", "pod-uid"))
    parts = str(user.get("username", "")).split(":")
    if not pod or not uid or len(parts) != 4 or parts[:2] != ["system", "serviceaccount"]:
        return Bearer(why="the token is not bound to a pod: mount it as a projected serviceAccountToken")
    return Bearer(namespace=parts[2], pod=pod, uid=uid)


def _expiry(token: str) -> float:
    """The token's own end, without checking its signature: the API server did. Infinity if it says none."""
    try:
        payload = token.split(".")[1]
        return float(orjson.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])
    except (IndexError, ValueError, KeyError, TypeError):
        return float("inf")


class ReportServer:
    """`port` 0: any free one, then in `port` after start."""

    def __init__(self, *, host: str = "", port: int, check_tokens: bool = True) -> None:
        self._host = host or None
        self.port = port
        self._check = check_tokens
        self._book: Book | None = None
        self._tokens: Tokens | None = None
        self._runner: web.AppRunner | None = None

    def lead(self, book: Book, tokens: Tokens | None) -> None:
        self._book, self._tokens = book, tokens

    def retire(self) -> None:
        self._book = self._tokens = None

    async def start(self) -> None:
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_post(REPORT_PATH, self._report)
        self._runner = web.AppRunner(
            app, access_log=None, logger=http_logger(__name__), keepalive_timeout=75, handle_signals=False
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self.port, backlog=512)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    async def _report(self, request: web.Request) -> web.Response:
        book = self._book
        if book is None:
            return _refuse(503, "this replica does not lead; the Lease's annotation names the one that does")
        try:
            report = Report.model_validate_json(await request.read())
        except web.RequestPayloadError:
            refusal = _refuse(400, "the body is not what its headers say")
            refusal.force_close()
            return refusal
        except ValidationError as exc:
            first = exc.errors()[0]
            return _refuse(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        if self._check and (distrust := await self._distrust(request, report)) is not None:
            return distrust
        if self._book is not book:  # leadership ended while the token was reviewed
            return _refuse(503, "this replica does not lead any more")
        answer = ReportAnswer(resync=book.take(report))
        return web.Response(body=answer.model_dump_json().encode(), content_type="application/json")

    async def _distrust(self, request: web.Request, report: Report) -> web.Response | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return _refuse(401, f"a service account token with the audience {AUDIENCE} is needed as a bearer")
        tokens = self._tokens
        if tokens is None:
            return _refuse(503, "this replica does not lead any more")
        try:
            bearer = await tokens.bearer(token.strip())
        except FunicularError as exc:
            log.warning("a token could not be reviewed: %s", exc)
            return _refuse(503, "the token could not be reviewed; try again")
        if bearer.why:
            return _refuse(401, bearer.why)
        if (bearer.namespace, bearer.pod, bearer.uid) != (report.namespace, report.pod, report.uid):
            return _refuse(
                403, f"the token belongs to pod {bearer.namespace}/{bearer.pod}, not to the one that reports"
            )
        return None


def _refuse(status: int, error: str) -> web.Response:
    return web.Response(status=status, body=orjson.dumps({"error": error}), content_type="application/json")
