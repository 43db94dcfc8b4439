"""A small, strict HTTP/1.1 server protocol for one job: answer many short requests on kept connections, quickly.

Called by the reference classifier, which sits on the path of every treated request, and by the simulated provider. A
framework's request objects, routing and header maps take 28 microseconds of CPU for an empty answer where this file takes
12 (aiohttp's low-level server, both on uvloop), beside some 50 for the classification, and hide the queue. It knows nothing of
either caller and is no general server: no TLS, no HTTP/2, no compression. Whatever is not plain HTTP/1.1 is refused with
400 and the connection closed, so that two parsers never see two different requests.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

MAX_HEAD = 32 * 1024
LINGER = 1.0  # seconds
HEAD_END = b"\r\n\r\n"
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}

Headers = dict[bytes, bytes]
Handler = Callable[["Exchange"], None]


class MalformedRequest(Exception):
    """What the client sent is not a request that this server reads. `status` is the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def response_head(status: int, fields: bytes, length: int | None) -> bytes:
    """The head of a response. `fields` are complete header lines, each with its CRLF; `length` None means chunked."""
    framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    return b"HTTP/1.1 %d %s\r\n%s%s\r\n" % (status, REASONS.get(status, b"Unknown"), fields, framing)


class Exchange:
    """One request, and the way to answer it: `answer` once, or `start`, `write`..., `end`.

    `closed` is True as soon as the client has gone; whoever holds the exchange may then drop it. `on_close` is called at
    that moment, if set. Every method is harmless on a closed exchange.
    """

    __slots__ = ("_connection", "body", "closed", "headers", "method", "on_close", "started", "target")

    def __init__(self, connection: Connection, method: bytes, target: bytes, headers: Headers, body: bytes) -> None:
        self._connection = connection
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.closed = False
        self.started = False
        self.on_close: Callable[[], None] | None = None

    def answer(self, status: int, fields: bytes = b"", body: bytes = b"") -> None:
        """The whole response at once."""
        if self.closed:
            return
        head = response_head(status, fields, len(body)) + self._connection.closing_field()
        self.started = True
        self._connection.write(head + b"\r\n" + body if self.method != b"HEAD" else head + b"\r\n")
        self._connection.finish(self)

    def start(self, status: int, fields: bytes = b"") -> None:
        """The head of a chunked response."""
        if not self.closed:
            self.started = True
            self._connection.write(response_head(status, fields, None) + self._connection.closing_field() + b"\r\n")

    def write(self, data: bytes) -> None:
        """One chunk, sent at once."""
        if data and not self.closed:
            self._connection.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self) -> None:
        """The last chunk."""
        if not self.closed:
            self._connection.write(b"0\r\n\r\n")
            self._connection.finish(self)

    async def drain(self) -> None:
        """Returns when the client has room for more, or has gone."""
        await self._connection.writable.wait()

    def cut(self) -> None:
        """Closes the connection without finishing the answer."""
        self._connection.abort()


class Connection(asyncio.Protocol):
    """One client connection. Requests are handled one after another; what is pipelined behind them waits unread."""

    __slots__ = (
        "_buffer",
        "_busy",
        "_close",
        "_ended",
        "_head",
        "_limit",
        "_registry",
        "_transport",
        "since",
        "writable",
    )

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._limit = registry.max_body
        self._buffer = bytearray()
        self._head: tuple[bytes, bytes, Headers, int | None] | None = None
        self._busy: Exchange | None = None
        self._close = False  # the connection ends after the present answer
        self._ended = False  # nothing that arrives is read any more
        self._transport: asyncio.Transport | None = None
        self.since = 0.0
        self.writable = asyncio.Event()
        self.writable.set()

    # --- what the event loop calls --------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, since uvloop's transports have the methods of asyncio.Transport without being one.
        self._transport = cast(asyncio.Transport, transport)
        self.since = self._registry.loop.time()
        if not self._registry.admit(self):
            self._ended = True
            self._transport.write(response_head(503, b"connection: close\r\n", 0) + b"\r\n")
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._registry.connections.discard(self)
        self.writable.set()
        if self._busy is not None:
            exchange, self._busy = self._busy, None
            exchange.closed = True
            if exchange.on_close is not None:
                exchange.on_close()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._buffer += data
        if self._busy is not None:
            # A client that goes on sending before it has its answer may fill no more than one request's worth.
            if len(self._buffer) > self._limit + MAX_HEAD and self._transport is not None:
                self._transport.pause_reading()
            return
        self._advance()

    # --- reading --------------------------------------------------------------------------------------------------
    def _advance(self) -> None:
        try:
            exchange = self._next()
        except MalformedRequest as error:
            self._ended = True
            self.write(response_head(error.status, b"connection: close\r\n", 0) + b"\r\n")
            if self._transport is not None:
                # What is still arriving is read and dropped for a moment: closing over unread bytes resets the
                # connection, and the client would never see the answer.
                self._registry.loop.call_later(LINGER, self._transport.close)
            return
        if exchange is None:
            return
        self._busy = exchange
        self._registry.handler(exchange)

    def _next(self) -> Exchange | None:
        """The next whole request, or None while it is not there yet."""
        buffer = self._buffer
        if self._head is None:
            end = buffer.find(HEAD_END)
            if end < 0:
                if len(buffer) > MAX_HEAD:
                    raise MalformedRequest(431, "head too large")
                return None
            if end > MAX_HEAD:
                raise MalformedRequest(431, "head too large")
            self._head = self._read_head(bytes(buffer[:end]))
            del buffer[: end + 4]
            if self._head[2].get(b"expect", b"").lower() == b"100-continue":
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        method, target, headers, length = self._head
        if length is None:
            body = unchunk(buffer, self._limit)
            if body is None:
                return None
        else:
            if len(buffer) < length:
                return None
            body = bytes(buffer[:length])
            del buffer[:length]
        self._head = None
        return Exchange(self, method, target, headers, body)

    def _read_head(self, head: bytes) -> tuple[bytes, bytes, Headers, int | None]:
        first, *lines = head.lstrip(b"\r\n").split(b"\r\n")
        words = first.split(b" ")
        if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
            raise MalformedRequest(400, "request line")
        headers: Headers = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or TOKEN.match(name) is None:
                raise MalformedRequest(400, "header line")
            name = name.lower()
            if name in (b"content-length", b"transfer-encoding") and name in headers:
                raise MalformedRequest(400, "two lengths")
            headers[name] = value.strip(b" \t")
        connection = headers.get(b"connection", b"").lower()
        self._close = connection == b"close" or (words[2] == b"HTTP/1.0" and connection != b"keep-alive")
        return words[0], words[1], headers, self._body_length(headers)

    def _body_length(self, headers: Headers) -> int | None:
        """Bytes of body, None when chunked."""
        coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
        if coding is not None:
            if coding.lower() != b"chunked" or length is not None:
                raise MalformedRequest(400, "transfer coding")
            return None
        if length is None:
            return 0
        if not length.isdigit():
            raise MalformedRequest(400, "content length")
        if len(length) > 12 or int(length) > self._limit:
            raise MalformedRequest(413, "body too large")
        return int(length)

    # --- writing --------------------------------------------------------------------------------------------------
    def closing_field(self) -> bytes:
        """The header line that announces the end of this connection, when it ends after this answer."""
        if self._close or self._registry.draining:
            self._close = True
            return b"connection: close\r\n"
        return b""

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def finish(self, exchange: Exchange) -> None:
        """The exchange is answered: go on with what the client has sent meanwhile."""
        exchange.closed = True
        self._busy = None
        self.since = self._registry.loop.time()
        if self._transport is None:
            return
        if self._close:
            self._ended = True
            self._transport.close()
            return
        self._transport.resume_reading()
        if self._buffer:
            # Not by recursion: a thousand pipelined requests would be a thousand frames deep.
            self._registry.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._busy is None and not self._ended and self._transport is not None:
            self._advance()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @property
    def idle(self) -> bool:
        """No request under way, not even half received."""
        return self._busy is None and self._head is None and not self._buffer

    @property
    def receiving(self) -> bool:
        """A request has begun to arrive and is not complete."""
        return self._busy is None and (self._head is not None or bool(self._buffer))

    def close_when_idle(self) -> None:
        if self.idle and self._transport is not None:
            self._transport.close()


class Registry:
    """What the connections of one server share: the handler, the limits, and the list of who is connected."""

    def __init__(self, handler: Handler, *, max_body: int = 1 << 20, max_connections: int = 2048,
                 idle_timeout: float = 300.0, receive_timeout: float = 10.0) -> None:  # fmt: skip
        self.handler = handler
        self.max_body = max_body
        self.max_connections = max_connections
        self.idle_timeout = idle_timeout
        self.receive_timeout = receive_timeout
        self.draining = False
        self.connections: set[Connection] = set()
        self.loop = asyncio.get_running_loop()
        self._sweeper = self.loop.call_later(1.0, self._sweep)

    def connection(self) -> Connection:
        """The protocol factory for `loop.create_server`."""
        return Connection(self)

    def admit(self, connection: Connection) -> bool:
        if len(self.connections) >= self.max_connections:
            return False
        self.connections.add(connection)
        return True

    def _sweep(self) -> None:
        """Closes whoever sends a request too slowly, or nothing at all for a long time."""
        now = self.loop.time()
        for connection in tuple(self.connections):
            if connection.receiving:
                if now - connection.since > self.receive_timeout:
                    connection.abort()
            elif connection.idle and now - connection.since > self.idle_timeout:
                connection.close_when_idle()
        self._sweeper = self.loop.call_later(1.0, self._sweep)

    async def close(self, grace: float) -> None:
        """Ends idle connections now, busy ones after their answer, and whatever is left after `grace` seconds."""
        self.draining = True
        self._sweeper.cancel()
        deadline = self.loop.time() + grace
        while self.connections and self.loop.time() < deadline:
            for connection in tuple(self.connections):
                connection.close_when_idle()
            await asyncio.sleep(0.01)
        for connection in tuple(self.connections):
            connection.abort()
        await asyncio.sleep(0)


def unchunk(buffer: bytearray, limit: int) -> bytes | None:
    """Takes a whole chunked body off the front of `buffer`; None while it is not all there."""
    parts: list[bytes] = []
    at = total = 0
    while True:
        end = buffer.find(b"\r\n", at)
        if end < 0:
            if len(buffer) - at > 1024:
                raise MalformedRequest(400, "chunk size")
            return None
        size_text = bytes(buffer[at:end]).split(b";", 1)[0].strip()
        if not size_text or len(size_text) > 8 or not all(c in b"0123456789abcdefABCDEF" for c in size_text):
            raise MalformedRequest(400, "chunk size")
        size = int(size_text, 16)
        total += size
        if total > limit:
            raise MalformedRequest(413, "body too large")
        at = end + 2
        if size == 0:
            break
        if len(buffer) < at + size + 2:
            return None
        if buffer[at + size : at + size + 2] != b"\r\n":
            raise MalformedRequest(400, "chunk end")
        parts.append(bytes(buffer[at : at + size]))
        at += size + 2
    # Trailers are read and dropped.
    while True:
        end = buffer.find(b"\r\n", at)
        if end < 0:
            if len(buffer) - at > MAX_HEAD:
                raise MalformedRequest(431, "trailers too large")
            return None
        line_is_empty = end == at
        at = end + 2
        if line_is_empty:
            del buffer[:at]
            return b"".join(parts)
