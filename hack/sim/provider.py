"""A simulated OpenAI-compatible model provider: `python -m hack.sim.provider --port 9001 --name gpt-frontier`.

Started by the demo, by benchmarks and by tests, one process per candidate model. It answers chat completions, streamed or
not, with text that carries its own quality, misbehaves as POST /admin/faults tells it to, and keeps count of everything in GET
/admin/state. GET /admin/failures names the requests (by `metadata.request`) that it failed itself, so that a load report
can tell those from requests that the gateway lost. What an
answer says depends on the seed and the request alone; which requests fail, on the seed and their order.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import signal
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson
import uvloop
from pydantic import ValidationError

from funicular.classifier.http1 import Exchange, Registry
from hack.sim.faults import Bucket, Fate, Faults, draw_delay, draw_fate

JSON = b"content-type: application/json\r\n"
SSE = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
MOST_FAILURES = 200_000
CREATED = 1_700_000_000  # a constant: answers depend on seed and request alone
GOOD = "quality=good"
BAD = "quality=bad"
FILLER = (
    "your request was received and handled with care we looked at the order and the parcel is on its way to you "
    "please let us know if there is anything else that we can do for you today and have a good time"
)
WORDS = tuple(re.findall("[a-z]+", FILLER))


class Question(NamedTuple):
    """A request that was understood."""

    model: str
    stream: bool
    include_usage: bool
    prompt_tokens: int
    hard: bool
    number: str
    body: bytes


class Refusal(Exception):
    """An OpenAI-style error answer."""

    def __init__(self, status: int, message: str, kind: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


class State:
    """What GET /admin/state shows."""

    def __init__(self) -> None:
        self.requests = 0
        self.by_status: Counter[str] = Counter()
        self.by_model: Counter[str] = Counter()
        self.by_key: Counter[str] = Counter()
        self.by_fate: Counter[str] = Counter()
        self.foreign_keys: Counter[str] = Counter()
        self.funicular_headers: Counter[str] = Counter()
        self.good = 0
        self.bad = 0
        self.streams = 0
        self.aborted_by_client = 0
        self.in_flight = 0
        self.tokens = {"prompt": 0, "completion": 0}

    def snapshot(self) -> dict[str, Any]:
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}


class Provider:
    """Turns exchanges into answers, on one thread."""

    def __init__(self, name: str, *, api_key: str = "", seed: int = 0, answer_words: int = 24) -> None:
        self.name = name
        self.api_key = api_key
        self.seed = seed
        self.answer_words = answer_words
        self.faults = Faults()
        self.state = State()
        self.failures: dict[str, list[str]] = {}  # by metadata.request: what was done to it, once per attempt
        self._rng = random.Random(seed)
        self._bucket = Bucket()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._hanging: set[Exchange] = set()

    def __call__(self, exchange: Exchange) -> None:
        path = exchange.target.partition(b"?")[0].rstrip(b"/")
        try:
            if path in (b"/v1/chat/completions", b"/chat/completions"):
                self._completion(exchange)
            elif path in (b"/v1/models", b"/models"):
                self._authorize(exchange)
                model = {"id": self.name, "object": "model", "created": CREATED, "owned_by": "simulated"}
                self._answer(exchange, 200, orjson.dumps({"object": "list", "data": [model]}))
            elif path.startswith(b"/admin/") or path == b"/healthz":
                self._admin(exchange, path)
            else:
                raise Refusal(404, f"there is no {path.decode('latin-1')} here", "invalid_request_error", "not_found")
        except Refusal as refusal:
            self._answer(exchange, refusal.status, refusal.body)

    # --- administration -------------------------------------------------------------------------------------------
    def _admin(self, exchange: Exchange, path: bytes) -> None:
        if path == b"/admin/faults" and exchange.method in (b"POST", b"PUT"):
            try:
                changes = orjson.loads(exchange.body or b"{}")
                base = Faults() if exchange.method == b"PUT" else self.faults
                self.faults = Faults.model_validate({**base.model_dump(), **changes})
            except (ValidationError, orjson.JSONDecodeError, TypeError) as error:
                exchange.answer(422, JSON, orjson.dumps({"error": {"message": str(error)}}))
                return
        elif path == b"/admin/reset":
            in_flight = self.state.in_flight
            self.state = State()
            self.state.in_flight = in_flight
            self.failures = {}
        pages: dict[bytes, Callable[[], Any]] = {
            b"/admin/faults": self.faults.model_dump,
            b"/admin/state": lambda: {"name": self.name, **self.state.snapshot(), "faults": self.faults.model_dump()},
            b"/admin/failures": lambda: self.failures,
            b"/admin/reset": lambda: {"ok": True},
            b"/healthz": lambda: {"ok": True},
        }
        page = pages.get(path)
        exchange.answer(200 if page else 404, JSON, orjson.dumps(page() if page else {"error": {"message": "unknown"}}))

    # --- one completion -------------------------------------------------------------------------------------------
    def _completion(self, exchange: Exchange) -> None:
        state = self.state
        state.requests += 1
        for name in exchange.headers:
            if name.startswith(b"x-funicular-"):
                state.funicular_headers[name.decode("latin-1")] += 1
        self._authorize(exchange)
        if exchange.method != b"POST":
            raise Refusal(405, "use POST", "invalid_request_error")
        question = understand(exchange.body)
        state.by_model[question.model] += 1
        if not self._bucket.admits(self.faults.rate_limit_rps, self._loop.time()):
            fate = Fate.RATE_LIMITED
        else:
            fate = draw_fate(self.faults, self._rng, stream=question.stream)
        state.by_fate[fate.value] += 1
        if fate is not Fate.ANSWER and question.number and len(self.failures) < MOST_FAILURES:
            self.failures.setdefault(question.number, []).append(fate.value)
        if fate is Fate.RATE_LIMITED:
            self._answer(exchange, 429, RATE_LIMITED, b"retry-after: 1\r\n")
        elif fate is Fate.REFUSED:
            state.by_status["refused"] += 1
            exchange.cut()
        elif fate is Fate.HANG:
            state.by_status["hung"] += 1
            # Held, or the last reference would go and with it the connection's reason to stay open.
            self._hanging.add(exchange)
            exchange.on_close = lambda: self._hanging.discard(exchange)
        else:
            self._later(exchange, question, fate)

    def _later(self, exchange: Exchange, question: Question, fate: Fate) -> None:
        faults = self.faults
        first = (faults.ttft_ms or faults.latency_ms) if question.stream else faults.latency_ms
        delay = draw_delay(first, faults.latency_sigma, self._rng)
        if question.stream and fate in (Fate.ANSWER, Fate.CUT):
            self.state.streams += 1
            task = self._loop.create_task(self._stream(exchange, question, delay, cut=fate is Fate.CUT))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

            def stop() -> None:
                task.cancel()

            exchange.on_close = stop
        elif delay:
            timer = self._loop.call_later(delay, self._whole, exchange, question, fate)
            self.state.in_flight += 1

            def gone() -> None:
                timer.cancel()
                self.state.in_flight -= 1
                self.state.aborted_by_client += 1

            exchange.on_close = gone
        else:
            self.state.in_flight += 1
            self._whole(exchange, question, fate)

    def _whole(self, exchange: Exchange, question: Question, fate: Fate) -> None:
        self.state.in_flight -= 1
        exchange.on_close = None
        if fate is Fate.ERROR:
            refusal = Refusal(self.faults.error_code, "simulated failure", "server_error", "simulated")
            self._answer(exchange, refusal.status, refusal.body)
            return
        if fate is Fate.GARBAGE:
            self._answer(exchange, 200, b"<html><body>It works!</body></html>", b"content-type: text/html\r\n")
            return
        text, words = self.compose(question)
        usage = self._count_tokens(question, words)
        answer = {
            "id": completion_id(question), "object": "chat.completion", "created": CREATED, "model": question.model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "refusal": None},
                         "logprobs": None, "finish_reason": "stop"}],
            "usage": usage, "system_fingerprint": self.name,
        }  # fmt: skip
        self._answer(exchange, 200, orjson.dumps(answer))

    async def _stream(self, exchange: Exchange, question: Question, delay: float, *, cut: bool) -> None:
        state = self.state
        state.in_flight += 1
        try:
            if delay:
                await asyncio.sleep(delay)
            text, words = self.compose(question)
            pieces = [piece + " " for piece in text.split(" ")]
            state.by_status["200"] += 1
            exchange.start(200, SSE)
            exchange.write(self._chunk(question, {"role": "assistant", "content": ""}))
            gap = self.faults.chunk_ms / 1_000.0
            for index, piece in enumerate(pieces):
                if cut and index >= len(pieces) // 2:
                    exchange.cut()
                    return
                if gap:
                    await asyncio.sleep(gap)
                await exchange.drain()
                exchange.write(self._chunk(question, {"content": piece}))
            usage = self._count_tokens(question, words)
            exchange.write(self._chunk(question, {}, finish="stop"))
            if question.include_usage:
                exchange.write(self._chunk(question, None, usage=usage))
            exchange.write(b"data: [DONE]\n\n")
            exchange.end()
        except asyncio.CancelledError:
            state.aborted_by_client += 1
            raise
        finally:
            state.in_flight -= 1

    def _chunk(self, question: Question, delta: dict[str, str] | None, *, finish: str | None = None,
               usage: dict[str, int] | None = None) -> bytes:  # fmt: skip
        choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        chunk: dict[str, Any] = {
            "id": completion_id(question), "object": "chat.completion.chunk", "created": CREATED,
            "model": question.model, "system_fingerprint": self.name, "choices": choices,
        }  # fmt: skip
        if question.include_usage:
            chunk["usage"] = usage
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def compose(self, question: Question) -> tuple[str, int]:
        """The answer's text and number of words: of a length and quality that depend on seed and request alone."""
        throw = zlib.crc32(question.body, zlib.crc32(b"%d:%s" % (self.seed, self.name.encode())))
        faults = self.faults
        quality = faults.quality_hard if question.hard and faults.quality_hard is not None else faults.quality
        # The low bits decide the length, the whole number the quality: they must not go together.
        good = (throw * 2_654_435_761 & 0xFFFFFFFF) / 2**32 < quality
        count = max(1, self.answer_words // 2 + throw % (self.answer_words + 1))
        start = throw % len(WORDS)
        words = [WORDS[(start + i) % len(WORDS)] for i in range(count)]
        if good:
            self.state.good += 1
        else:
            self.state.bad += 1
        return f"{question.model} ({self.name}) says: {' '.join(words)} [{GOOD if good else BAD}]", count

    def _count_tokens(self, question: Question, words: int) -> dict[str, int]:
        completion = words * 4 // 3 + 8
        self.state.tokens["prompt"] += question.prompt_tokens
        self.state.tokens["completion"] += completion
        return {"prompt_tokens": question.prompt_tokens, "completion_tokens": completion,
                "total_tokens": question.prompt_tokens + completion}  # fmt: skip

    def _authorize(self, exchange: Exchange) -> None:
        scheme, _, key = exchange.headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        shown = key if scheme.lower() == "bearer" else ""
        self.state.by_key[shown] += 1
        if self.api_key and shown != self.api_key:
            if shown:
                self.state.foreign_keys[shown] += 1
            raise Refusal(401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key")

    def _answer(self, exchange: Exchange, status: int, body: bytes, fields: bytes = b"") -> None:
        self.state.by_status[str(status)] += 1
        exchange.answer(status, fields if b"content-type" in fields else JSON + fields, body)

    async def close(self) -> None:
        """Cancels what is still being streamed or hangs."""
        for exchange in tuple(self._hanging):
            exchange.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


RATE_LIMITED = Refusal(429, "Rate limit reached.", "requests", "rate_limit_exceeded").body


def understand(body: bytes) -> Question:
    """Reads a chat-completions request; raises a 400 like the real thing."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "We could not parse the JSON body of your request.", "invalid_request_error") from error
    if not isinstance(request, dict) or not isinstance(request.get("model"), str):
        raise Refusal(400, "you must provide a model parameter", "invalid_request_error")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(
            400, "Missing required parameter: 'messages'.", "invalid_request_error", "missing_required_parameter"
        )
    options = request.get("stream_options")
    metadata = request.get("metadata")
    notes = metadata if isinstance(metadata, dict) else {}
    return Question(
        model=request["model"], stream=request.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        prompt_tokens=3 + len(body) // 4,
        hard=notes.get("difficulty") == "hard", number=str(notes.get("request", "")), body=body,
    )  # fmt: skip


def completion_id(question: Question) -> str:
    return f"chatcmpl-{zlib.crc32(question.body):08x}{len(question.body):08x}"


async def run(host: str, port: int, make: Callable[[], Provider], *, stop: asyncio.Event | None = None,
              ready: Callable[[int], None] | None = None) -> None:  # fmt: skip
    """Serves until SIGTERM, SIGINT or `stop`. `ready` is called with the port once it is bound."""
    loop = asyncio.get_running_loop()
    stopping = stop or asyncio.Event()
    provider = make()
    registry = Registry(provider, max_body=64 << 20, max_connections=20_000, receive_timeout=60.0)
    server = await loop.create_server(registry.connection, host, port, backlog=4096)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if ready is not None:
        ready(server.sockets[0].getsockname()[1])
    await stopping.wait()
    server.close()
    await provider.close()
    await registry.close(1.0)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hack.sim.provider", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--name", default="gpt-frontier", help="shown in every answer and by /v1/models")
    parser.add_argument("--api-key", default="", help="the only key that is let in; empty: everyone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--answer-words", type=int, default=24, help="mean length of an answer")
    parser.add_argument("--faults", default="{}", help="faults from the start, as JSON")
    options = parser.parse_args(arguments)
    faults = Faults.model_validate_json(options.faults)

    def make() -> Provider:
        provider = Provider(options.name, api_key=options.api_key, seed=options.seed, answer_words=options.answer_words)
        provider.faults = faults
        return provider

    try:
        uvloop.run(run(options.host, options.port, make))
    except OSError as error:
        print(f"cannot listen on {options.host}:{options.port}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
