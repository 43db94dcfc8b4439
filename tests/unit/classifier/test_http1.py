"""The HTTP protocol without a socket: bytes in, bytes out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from funicular.classifier.http1 import Connection, Exchange, Registry


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = False
        self.aborted = False
        self.reading = True

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Line:
    """A connection to a handler that echoes, unless `hold` keeps its exchanges open."""

    def __init__(self, *, hold: bool = False, **limits: Any) -> None:
        self.seen: list[Exchange] = []
        self.hold = hold
        self.registry = Registry(self._handle, **limits)
        self.transport = Transport()
        self.connection = Connection(self.registry)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def _handle(self, exchange: Exchange) -> None:
        self.seen.append(exchange)
        if not self.hold:
            exchange.answer(200, b"x-path: %s\r\n" % exchange.target, exchange.body)

    async def feed(self, data: bytes, piece: int | None = None) -> bytes:
        step = piece or max(1, len(data))
        for start in range(0, len(data), step):
            self.connection.data_received(data[start : start + step])
        for _ in range(20):
            await asyncio.sleep(0)
        return self.transport.sent


POST = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;ext=1\r\nllo\r\n0\r\nTrailer: x\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nx-path: /a\r\ncontent-length: 5\r\n\r\nhello"


@pytest.mark.parametrize("request_bytes", [POST, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("piece", [None, 1, 7])
async def test_a_request_in_any_pieces(request_bytes: bytes, piece: int | None) -> None:
    line = Line()
    assert await line.feed(request_bytes, piece) == ANSWER
    assert not line.transport.closed


async def test_pipelined_requests_are_answered_in_order() -> None:
    assert await Line().feed(POST * 5) == ANSWER * 5


async def test_a_pipelined_request_waits_for_the_one_before() -> None:
    line = Line(hold=True)
    await line.feed(POST * 2)
    assert len(line.seen) == 1
    line.seen[0].answer(200)
    await line.feed(b"")
    assert len(line.seen) == 2


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(b"hello\r\n\r\n", 400, id="no request line"),
        pytest.param(b"GET / HTTP/2.0\r\n\r\n", 400, id="another version"),
        pytest.param(b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400, id="no header"),
        pytest.param(b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400, id="a space before the colon"),
        pytest.param(b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400, id="a folded header"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, id="two lengths"),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, id="length and chunked"
        ),
        pytest.param(b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400, id="an unknown coding"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, id="a negative length"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 101\r\n\r\n", 413, id="a body over the limit"),
        pytest.param(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, id="a bad chunk size"),
        pytest.param(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n", 413, id="a chunk over the limit"),
        pytest.param(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\naXX", 400, id="a chunk without end"),
        pytest.param(b"GET / HTTP/1.1\r\nA: " + b"a" * 40_000, 431, id="an endless head"),
    ],
)
async def test_what_is_refused_ends_the_connection(request_bytes: bytes, status: int) -> None:
    line = Line(max_body=100)
    sent = await line.feed(request_bytes)
    assert sent.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in sent
    assert not line.seen
    assert await line.feed(POST) == sent


async def test_connection_close_is_honoured() -> None:
    line = Line()
    assert b"connection: close" in await line.feed(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert line.transport.closed


@pytest.mark.parametrize("piece", [1, 60])
async def test_a_last_request_may_come_in_pieces_too(piece: int) -> None:
    line = Line()
    sent = await line.feed(POST.replace(b"\r\nHost", b"\r\nConnection: close\r\nHost"), piece)
    assert sent.endswith(b"hello")
    assert line.transport.closed


async def test_expect_continue_is_answered_before_the_body() -> None:
    line = Line()
    head, _, body = POST.replace(b"\r\nHost", b"\r\nExpect: 100-continue\r\nHost").partition(b"\r\n\r\n")
    assert await line.feed(head + b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await line.feed(body)).endswith(ANSWER)


async def test_chunks_are_sent_one_by_one() -> None:
    line = Line(hold=True)
    await line.feed(POST)
    exchange = line.seen[0]
    exchange.start(200, b"content-type: text/event-stream\r\n")
    exchange.write(b"one")
    assert line.transport.sent.endswith(b"3\r\none\r\n")
    exchange.end()
    assert line.transport.sent.endswith(b"0\r\n\r\n")
    assert exchange.closed


async def test_a_client_that_goes_is_told_to_the_holder() -> None:
    line = Line(hold=True)
    await line.feed(POST)
    gone: list[bool] = []
    line.seen[0].on_close = lambda: gone.append(True)
    line.connection.connection_lost(None)
    assert gone == [True]
    assert line.seen[0].closed
    line.seen[0].answer(200)
    assert line.transport.sent == b""


async def test_one_connection_too_many_is_turned_away() -> None:
    line = Line(max_connections=1)
    second = Transport()
    Connection(line.registry).connection_made(second)  # type: ignore[arg-type]
    assert second.sent.startswith(b"HTTP/1.1 503")
    assert second.closed


async def test_what_is_sent_ahead_is_bounded() -> None:
    line = Line(hold=True, max_body=100)
    await line.feed(POST)
    line.connection.data_received(b"x" * 100_000)
    assert not line.transport.reading


async def test_draining_closes_idle_connections_and_then_busy_ones() -> None:
    idle = Line()
    closing = asyncio.ensure_future(idle.registry.close(0.0))
    await closing
    assert idle.transport.aborted or idle.transport.closed
    busy = Line(hold=True)
    await busy.feed(POST)
    busy.registry.draining = True
    busy.seen[0].answer(200)
    assert b"connection: close" in busy.transport.sent
    assert busy.transport.closed
