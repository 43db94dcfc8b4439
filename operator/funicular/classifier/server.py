"""The reference server: the classifier contract (openapi.yaml) over HTTP, for Envoy's ext_authz filter.

Called by `python -m funicular.classifier serve` and by `funicular classifier serve`. It is on the path of every treated
request, so it answers quickly or not at all: requests wait in one bounded queue, who cannot be served in time is refused at
once, and every refusal sends the gateway to the baseline. Prompts are neither logged nor kept.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import signal
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import uvloop

from funicular.classifier.http1 import Exchange, Registry
from funicular.classifier.metrics import ClassifierMetrics
from funicular.classifier.model import LABELS, Model, ModelUnusable, load

log = logging.getLogger("funicular.classifier")

CLASSIFY = b"/v1/classify"
PLAIN = b"content-type: text/plain; charset=utf-8\r\n"
JSON = b"content-type: application/json\r\n"
GATEWAY_CUT = 65_536  # Envoy's with_request_body.max_request_bytes, as the gateway sets it
SLICE = 0.001  # seconds of classifying between two looks at the sockets


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Times in seconds. `deadline`: what has waited longer is refused, since the gateway has given up on it already."""

    host: str = "0.0.0.0"
    port: int = 8080
    model: Path | None = None
    queue: int = 512
    deadline: float = 0.25
    max_body: int = 1 << 20
    max_connections: int = 2048
    drain: float = 1.0
    grace: float = 5.0


class BadHeader(Exception):
    """A request header that this contract defines holds a value that it does not allow."""


class ClassifierServer:
    """Turns exchanges into answers. Knows no sockets; `run` binds it to one."""

    def __init__(self, settings: ServerSettings, model: Model | None, why_not: str = "") -> None:
        self.settings = settings
        self.model = model
        self.draining = False
        self.metrics = ClassifierMetrics()
        self._why_not = why_not
        self._queue: deque[tuple[Exchange, float]] = deque()
        self._loop = asyncio.get_running_loop()
        self._thresholds: dict[bytes, float] = {b"": 0.5}
        self._labels: dict[bytes, tuple[str, ...]] = {b"": LABELS}
        self._version_field = b""
        if model is not None:
            self._version_field = b"x-funicular-classifier-version: %s\r\n" % model.metadata.version.encode()
            self.metrics.name_model(model.metadata.version, model.metadata.calibration_id)
        self._pages: dict[bytes, Callable[[Exchange], None]] = {
            b"/healthz": lambda exchange: exchange.answer(200, PLAIN, b"ok\n"),
            b"/readyz": self._readyz,
            b"/v1/version": self._version,
            b"/metrics": lambda exchange: exchange.answer(
                200, self.metrics.content_type, self.metrics.render(len(self._queue))
            ),
        }

    def __call__(self, exchange: Exchange) -> None:
        """Takes one request: classification is queued, everything else answered at once."""
        path = exchange.target.partition(b"?")[0]
        # ext_authz appends the client's own path to the service's: whatever follows /v1/classify is accepted.
        if path.startswith(CLASSIFY) and path[len(CLASSIFY) : len(CLASSIFY) + 1] in (b"", b"/"):
            self._enqueue(exchange)
            return
        page = self._pages.get(path)
        if page is None:
            exchange.answer(404, PLAIN, b"there is /v1/classify, /v1/version, /healthz, /readyz and /metrics\n")
        elif exchange.method not in (b"GET", b"HEAD"):
            exchange.answer(405, PLAIN + b"allow: GET, HEAD\r\n")
        else:
            page(exchange)

    # --- classification -------------------------------------------------------------------------------------------
    def _enqueue(self, exchange: Exchange) -> None:
        if exchange.method != b"POST":
            exchange.answer(405, PLAIN + b"allow: POST\r\n")
        elif self.model is None:
            self.metrics.refused["not-ready"] += 1
            exchange.answer(503, PLAIN, b"not ready\n")
        elif len(self._queue) >= self.settings.queue:
            self.metrics.refused["queue-full"] += 1
            exchange.answer(503, PLAIN, b"queue full\n")
        else:
            if not self._queue:
                self._loop.call_soon(self._work)
            self._queue.append((exchange, perf_counter()))

    def _work(self) -> None:
        """Classifies for one slice, then lets the loop read: so the queue's length and every age in it are the truth."""
        queue, time = self._queue, perf_counter  # uvloop's own time stands still within one iteration
        start = now = time()
        while queue and now - start < SLICE:
            exchange, arrived = queue.popleft()
            if exchange.closed:
                self.metrics.refused["client-gone"] += 1
            elif now - arrived > self.settings.deadline:
                self.metrics.refused["too-late"] += 1
                exchange.answer(503, PLAIN, b"too late\n")
            else:
                self._classify(exchange)
            now = time()
            self.metrics.observe_duration(now - arrived)
        if queue:
            self._loop.call_soon(self._work)

    def _classify(self, exchange: Exchange) -> None:
        assert self.model is not None
        headers, body = exchange.headers, exchange.body
        try:
            threshold = self._threshold(headers.get(b"x-funicular-threshold", b""))
            labels = self._routed(headers.get(b"x-funicular-labels", b""))
        except BadHeader as error:
            self.metrics.refused["bad-header"] += 1
            exchange.answer(400, PLAIN, f"{error}\n".encode())
            return
        cut = headers.get(b"x-envoy-auth-partial-body") == b"true" or len(body) == GATEWAY_CUT
        try:
            answer = self.model.classify(body, threshold, labels, cut=cut)
        except Exception:
            # No prompt in the log: the exception's text may quote it, so only its type and place are written.
            self.metrics.refused["error"] += 1
            log.error("classification failed: %s", type(sys.exception()).__name__)
            exchange.answer(500, PLAIN, b"classification failed\n")
            return
        self.metrics.observe(answer.label, answer.reason, answer.score)
        fields = b"x-funicular-label: %s\r\nx-funicular-score: %.4f\r\nx-funicular-reason: %s\r\n" % (
            answer.label.encode(), answer.score, answer.reason.encode())  # fmt: skip
        exchange.answer(200, fields + self._version_field)

    def _threshold(self, value: bytes) -> float:
        """Parsed once per distinct value: a policy sends the same one with every request."""
        known = self._thresholds.get(value)
        if known is None:
            try:
                known = float(value)
            except ValueError:
                known = math.nan
            if not 0.0 <= known <= 1.0:
                raise BadHeader("x-funicular-threshold must be a number from 0 to 1, as in 0.70")
            if len(self._thresholds) < 1_000:
                self._thresholds[value] = known
        return known

    def _routed(self, value: bytes) -> tuple[str, ...]:
        known = self._labels.get(value)
        if known is None:
            known = tuple(label.strip().decode("latin-1") for label in value.split(b","))
            if not any(label in LABELS for label in known):
                raise BadHeader("x-funicular-labels names no label of this classifier: it knows easy and hard")
            if len(self._labels) < 1_000:
                self._labels[value] = known
        return known

    # --- the other pages ------------------------------------------------------------------------------------------
    def why_not_ready(self) -> str:
        """Empty when ready, else a sentence."""
        if self.draining:
            return "draining"
        if self.model is None:
            return self._why_not or "no model"
        return self.model.failed_golden() or ""

    def _readyz(self, exchange: Exchange) -> None:
        reason = self.why_not_ready()
        exchange.answer(503 if reason else 200, PLAIN, (reason or "ready").encode() + b"\n")

    def _version(self, exchange: Exchange) -> None:
        if self.model is None:
            exchange.answer(503, PLAIN, b"not ready\n")
            return
        metadata = self.model.metadata
        about = {"version": metadata.version, "labels": list(LABELS), "calibrationId": metadata.calibration_id,
                 "trainedOn": metadata.data_note, "dataHash": metadata.data_hash,
                 "heldOutAccuracy": metadata.held_out_accuracy}  # fmt: skip
        exchange.answer(200, JSON, json.dumps(about).encode())


def load_or_explain(path: Path | None) -> tuple[Model | None, str]:
    """A server without a usable model lives on, not ready, and says why: a crash loop would hide the sentence."""
    try:
        return load(path), ""
    except ModelUnusable as error:
        return None, f"{error}; {error.remedy}"


async def run(
    settings: ServerSettings, *, stop: asyncio.Event | None = None, ready: Callable[[int], None] | None = None
) -> None:
    """Serves until SIGTERM, SIGINT or `stop`. `ready` is called with the port once it is bound."""
    loop = asyncio.get_running_loop()
    stopping = stop or asyncio.Event()
    model, why_not = load_or_explain(settings.model)
    if why_not:
        log.error("not ready: %s", why_not)
    app = ClassifierServer(settings, model, why_not)
    registry = Registry(app, max_body=settings.max_body, max_connections=settings.max_connections)
    server = await loop.create_server(registry.connection, settings.host, settings.port, backlog=1024)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    # What is loaded now stays; without this every full collection would walk it and add milliseconds to some request.
    gc.collect()
    gc.freeze()
    port = server.sockets[0].getsockname()[1]
    log.info("classifier %s listens on %s:%d", model.metadata.version if model else "(no model)", settings.host, port)
    if ready is not None:
        ready(port)
    await stopping.wait()
    # Still serving, but not ready and with `connection: close`: gateways move away before the port is gone.
    app.draining = registry.draining = True
    myself = asyncio.current_task()
    assert myself is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, myself.cancel)  # a second signal ends it at once
    if settings.drain:
        await asyncio.sleep(settings.drain)
    server.close()
    await registry.close(settings.grace)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    gc.unfreeze()


def serve(host: str = "0.0.0.0", port: int = 8080, model: str | Path | None = None, *, drain: float = 1.0) -> int:
    """Runs the reference server until a signal; blocking. Returns the process's exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = ServerSettings(host=host, port=port, model=Path(model) if model else None, drain=drain)
    try:
        uvloop.run(run(settings))
    except OSError as error:
        log.error("cannot listen on %s:%d: %s", host, port, error.strerror or error)
        return 1
    except asyncio.CancelledError:
        log.warning("ended before every request was answered: a second signal came")
        return 1
    return 0
