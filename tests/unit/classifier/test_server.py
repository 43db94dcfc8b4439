"""The reference server under overload, without sockets."""

from __future__ import annotations

import asyncio

import orjson

from funicular.classifier.http1 import Exchange
from funicular.classifier.model import load
from funicular.classifier.server import ClassifierServer, ServerSettings

EASY = {"messages": [{"role": "user", "content": "Where is my order 70211?"}]}


class Line:
    """Stands in for a connection: keeps what the server answers."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def closing_field(self) -> bytes:
        return b""

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def finish(self, exchange: Exchange) -> None:
        exchange.closed = True


def post(line: Line) -> Exchange:
    return Exchange(line, b"POST", b"/v1/classify", {}, orjson.dumps(EASY))  # type: ignore[arg-type]


async def turns() -> None:
    """A few turns of the loop: the queue is worked off by callbacks."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_full_queue_refuses_at_once_and_serves_what_it_took() -> None:
    app = ClassifierServer(ServerSettings(queue=3), load())
    lines = [Line() for _ in range(5)]
    for line in lines:
        app(post(line))
    assert [bool(line.sent) for line in lines] == [False, False, False, True, True]
    assert lines[3].sent[0].startswith(b"HTTP/1.1 503")
    await turns()
    assert all(line.sent[0].startswith(b"HTTP/1.1 200") for line in lines[:3])
    assert app.metrics.refused == {"queue-full": 2}


async def test_what_has_waited_too_long_is_refused_and_who_left_is_not_served() -> None:
    app = ClassifierServer(ServerSettings(deadline=-1.0), load())
    late, gone = Line(), Line()
    app(post(late))
    exchange = post(gone)
    app(exchange)
    exchange.closed = True
    await turns()
    assert late.sent[0].startswith(b"HTTP/1.1 503")
    assert gone.sent == []
    assert app.metrics.refused == {"too-late": 1, "client-gone": 1}
