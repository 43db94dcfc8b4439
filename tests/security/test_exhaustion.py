"""One client against all others: headers, bodies, time, connections, memory. The others are served meanwhile."""

from __future__ import annotations

import asyncio
import json
import struct
from pathlib import Path

import pytest
from aiohttp import web

from funicular.compile.limits import Limits
from tests.security.gateway import Gateway, gateway_in
from tests.security.wire import Wire, request

MB = 1 << 20
QUICK = Limits(headers_within=1.0, request_within=2.0, idle_connection=1.0, idle_stream=1.5)
BODY = b'{"model":"support-chat"}'


# --- headers and bodies -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([b"x-a: " + b"a" * (64 << 10)], id="one of 64 KB"),
        pytest.param([b"x-%d: %s" % (i, b"a" * 1024) for i in range(70)], id="70 of 1 KB"),
        pytest.param([b"x-%d: a" % i for i in range(120)], id="120 small ones"),
        pytest.param([b"x-a: a"] * 20_000, id="20,000 of one name"),
        pytest.param([b"cookie: a=b"] * 5_000, id="5,000 cookies"),
    ],
)
async def test_too_much_header_is_431(gateway: Gateway, lines: list[bytes]) -> None:
    frontier = await gateway.serve_one()
    assert (await gateway.raw(request(BODY, *lines))).statuses == [431]
    assert not frontier.seen
    assert await gateway.is_serving()


async def test_an_endless_first_line_is_refused(gateway: Gateway) -> None:
    frontier = await gateway.serve_one()
    first = b"POST /v1/chat/completions?" + b"a" * (256 << 10) + b" HTTP/1.1"
    assert (await gateway.raw(request(BODY, first=first))).status in (414, 431)
    assert not frontier.seen


async def test_a_body_without_end_is_413_before_it_is_all_there(gateway: Gateway) -> None:
    frontier = await gateway.serve_one()
    async with await Wire.open(gateway.port) as wire:
        head = request(b"", b"transfer-encoding: chunked", length=False)
        await wire.send(head + b'6400000\r\n{"model":"support-chat","x":"')
        sent = 0
        while sent < 100 * MB and await wire.send(b"x" * MB):
            sent += MB
        reply = await wire.until_closed()
    assert reply.statuses in ([413], [])  # a reset may overtake the answer
    assert sent < 100 * MB
    assert gateway.memory < 400 * MB
    assert not frontier.seen
    assert await gateway.is_serving()


async def test_a_length_that_is_never_sent_takes_no_memory(gateway: Gateway) -> None:
    await gateway.serve_one()
    before = gateway.memory
    wires = [await Wire.open(gateway.port) for _ in range(200)]
    for wire in wires:
        await wire.send(request(b"", b"content-length: 8000000", length=False))
    assert await gateway.is_serving()
    assert gateway.memory - before < 50 * MB
    for wire in wires:
        await wire.__aexit__()


async def test_bodies_of_many_clients_at_once_are_refused_before_memory_is_gone(tmp_path: Path) -> None:
    """200 clients want to keep 7 MB each on the way: 1.4 GB. When they are gone, all is well."""
    heap, piece = 300 * MB, 16 << 10
    async with gateway_in(tmp_path, Limits(heap=heap)) as gateway:
        await gateway.serve_one()
        head = request(b'{"model":"support-chat","x":"', b"content-length: 8000000", length=False)
        wires = [await Wire.open(gateway.port) for _ in range(200)]
        alive = [wire for wire in wires if await wire.send(head)]
        most = sent = 0
        while alive and sent < 7 * MB:
            alive = [wire for wire in alive if await wire.offer(b"x" * piece)]
            sent += piece
            assert json.loads(await gateway.admin("/server_info"))["state"] == "LIVE"
            most = max(most, gateway.memory)
        for wire in wires:
            await wire.__aexit__()
        assert most < 1.5 * heap, f"{most / MB:.0f} MB"
        assert await gateway.counter("envoy_http_downstream_rq_overload_close") > 0
        await gateway.until_serving()


# --- time ---------------------------------------------------------------------------------------------------------------
async def test_headers_that_trickle_are_closed_and_others_are_served_meanwhile(tmp_path: Path) -> None:
    async with gateway_in(tmp_path, QUICK) as gateway:
        await gateway.serve_one()
        wires = [await Wire.open(gateway.port) for _ in range(300)]
        for wire in wires:
            await wire.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n")
        ends = [asyncio.ensure_future(wire.until_closed()) for wire in wires]
        served = 0
        while not all(end.done() for end in ends):
            for wire in wires:
                await wire.send(b"x-a: b\r\n")
            served += await gateway.is_serving()
        assert served
        assert {end.result().status for end in ends} <= {0, 408}
        assert await gateway.counter("envoy_http_downstream_rq_header_timeout") == 300


async def test_a_body_that_trickles_is_closed_though_it_never_pauses(tmp_path: Path) -> None:
    """Each byte is in time for the idle timeout; the whole is not."""
    async with gateway_in(tmp_path, QUICK) as gateway:
        frontier = await gateway.serve_one()
        async with await Wire.open(gateway.port) as wire:
            await wire.send(request(b"{", b"content-length: 100000", length=False))
            end = asyncio.ensure_future(wire.until_closed())
            while not end.done():
                await wire.send(b" ")
                assert await gateway.is_serving()
                await asyncio.sleep(0.02)
        assert end.result().status == 408
        assert not [seen for seen in frontier.seen if seen.body.startswith(b"{ ")]


async def test_connections_without_a_request_are_closed(tmp_path: Path) -> None:
    """At once or after a request."""
    async with gateway_in(tmp_path, QUICK) as gateway:
        await gateway.serve_one()
        async with await Wire.open(gateway.port) as silent, await Wire.open(gateway.port) as kept:
            await kept.send(request(BODY, close=False))
            assert (await kept.until(1)).statuses == [200]
            assert (await silent.until_closed()).closed
            assert (await kept.until_closed()).closed


async def test_a_client_that_does_not_read_its_answer_is_closed_and_the_provider_let_go(tmp_path: Path) -> None:
    async with gateway_in(tmp_path, QUICK) as gateway:
        frontier = await gateway.serve_one()
        gone = asyncio.Event()

        async def endless(request: web.Request) -> web.StreamResponse:
            answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await answer.prepare(request)
            try:
                while True:
                    await answer.write(b"data: {}\n\n" * 10_000)
            except (ConnectionError, asyncio.CancelledError):
                gone.set()
                raise

        frontier.handler = endless
        async with await Wire.open(gateway.port) as wire:
            await wire.send(request(BODY))
            async with asyncio.timeout(20):
                await gone.wait()
        assert gateway.memory < 300 * MB


# --- connections --------------------------------------------------------------------------------------------------------
async def test_connections_beyond_the_limit_are_closed_and_metrics_and_admin_are_still_there(tmp_path: Path) -> None:
    async with gateway_in(tmp_path, Limits(connections=50)) as gateway:
        await gateway.serve_one()
        wires = [await Wire.open(gateway.port) for _ in range(80)]
        beyond = [asyncio.ensure_future(wire.until_closed()) for wire in wires]
        await asyncio.wait(beyond, return_when=asyncio.FIRST_COMPLETED)
        assert await gateway.counter("envoy_listener_downstream_cx_total") >= 1
        assert json.loads(await gateway.admin("/server_info"))["state"] == "LIVE"
        for end in beyond:
            end.cancel()
        await asyncio.gather(*beyond, return_exceptions=True)
        for wire in wires:
            await wire.__aexit__()
        await gateway.until_serving()


# --- HTTP/2 without TLS -------------------------------------------------------------------------------------------------
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


SETTINGS = frame(4, 0, 0)
# :method POST, :scheme http, :path /, :authority g (HPACK, literals without indexing)
HEADERS = b"\x83\x86\x84\x01\x01g"


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(b"", id="nothing more"),
        pytest.param(
            b"".join(frame(1, 4, i, HEADERS) + frame(3, 0, i, b"\0\0\0\x08") for i in range(1, 20_001, 2)),
            id="rapid reset",
        ),
        pytest.param(frame(1, 0, 1, HEADERS) + frame(9, 0, 1, b"\0" * 64) * 20_000, id="CONTINUATION flood"),
        pytest.param(b"".join(frame(1, 4, i, HEADERS) for i in range(1, 20_001, 2)), id="10,000 streams"),
        pytest.param(SETTINGS * 50_000, id="SETTINGS flood"),
        pytest.param(frame(6, 0, 0, b"\0" * 8) * 50_000, id="PING flood"),
        pytest.param(frame(1, 4, 1, HEADERS) + frame(0, 0, 1) * 50_000, id="empty DATA frames"),
    ],
)
async def test_http2_is_refused_before_any_frame_is_read(gateway: Gateway, frames: bytes) -> None:
    frontier = await gateway.serve_one()
    before = gateway.memory
    async with await Wire.open(gateway.port) as wire:
        await wire.send(PREFACE + SETTINGS + frames)
        reply = await wire.until_closed()
    assert reply.statuses in ([400], [426], [505], [])
    assert frame(4, 1, 0) not in reply.raw, "no acknowledgement of our SETTINGS"
    assert gateway.memory - before < 20 * MB
    assert not frontier.seen
    assert await gateway.is_serving()


async def test_an_upgrade_to_http2_or_a_websocket_is_no_upgrade(gateway: Gateway) -> None:
    await gateway.serve_one()
    for token in (b"h2c", b"websocket"):
        lines = [
            b"upgrade: " + token,
            b"connection: upgrade, http2-settings",
            b"http2-settings: AAMAAABkAAQAoAAAAAIAAAAA",
        ]
        reply = await gateway.raw(request(BODY, *lines))
        assert 101 not in reply.statuses
        assert reply.closed
