"""Two readings of one request: Envoy must have one, refuse the rest, and the provider must see what Envoy routed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from funicular.compile.limits import Limits
from tests.integration.envoy_rig import Upstreamer
from tests.security.gateway import Gateway, gateway_in
from tests.security.wire import request

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = b'{"model":"support-chat"}'
QUICK = Limits(headers_within=1.0, request_within=1.0)  # a request that never ends is waited for
HIDDEN = b"POST /v1/chat/completions HTTP/1.1\r\nhost: hidden\r\ncontent-length: 24\r\n\r\n" + BODY


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """One for the file: what it was sent before must not matter either."""
    async with gateway_in(tmp_path_factory.mktemp("gateway"), QUICK) as one:
        await one.serve_one()
        yield one


@pytest.fixture
def frontier(shared: Gateway) -> Upstreamer:
    """The provider, as if nothing had been sent yet."""
    found = shared.upstreams[0]
    found.seen.clear()
    return found


def chunked(body: bytes, *lines: bytes) -> bytes:
    return request(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), *lines, length=False)


AMBIGUOUS = [
    pytest.param(chunked(BODY, b"transfer-encoding: chunked", b"content-length: 4"), id="CL and TE"),
    pytest.param(chunked(BODY, b"content-length: 4", b"transfer-encoding: chunked"), id="CL and TE, the other order"),
    pytest.param(chunked(BODY, b"transfer-encoding: chunked", b"transfer-encoding: identity"), id="two TE"),
    pytest.param(chunked(BODY, b"transfer-encoding: identity, chunked"), id="TE identity, chunked"),
    pytest.param(chunked(BODY, b"transfer-encoding: chunked, gzip"), id="TE chunked, gzip"),
    pytest.param(chunked(BODY, b"transfer-encoding: xchunked"), id="TE xchunked"),
    pytest.param(chunked(BODY, b"transfer-encoding:\x0bchunked"), id="TE behind a vertical tab"),
    pytest.param(chunked(BODY, b"transfer-encoding : chunked"), id="TE, a space before the colon"),
    pytest.param(chunked(BODY, b'transfer-encoding: "chunked"'), id="TE in quotes"),
    pytest.param(chunked(BODY, b"transfer-encoding: chunked\x00"), id="TE with NUL"),
    pytest.param(request(BODY, b"content-length: 24", b"content-length: 4", length=False), id="two CL that differ"),
    pytest.param(request(BODY, b"content-length: 24, 4", length=False), id="a list of CL"),
    pytest.param(request(BODY, b"content-length: -24", length=False), id="a negative CL"),
    pytest.param(request(BODY, b"content-length: +24", length=False), id="CL with a plus"),
    pytest.param(request(BODY, b"content-length: 0x18", length=False), id="CL in hex"),
    pytest.param(request(BODY, b"content-length: 24 4", length=False), id="CL with a space"),
    pytest.param(request(BODY, b"content-length: 99999999999999999999999", length=False), id="CL beyond 64 bits"),
    pytest.param(request(BODY, b"x-a: b\x00c"), id="NUL in a value"),
    pytest.param(request(BODY, b"x-a\x00: b"), id="NUL in a name"),
    pytest.param(request(BODY, b"x a: b"), id="a space in a name"),
    pytest.param(request(BODY, b": b"), id="no name"),
    pytest.param(request(BODY, b"no colon"), id="a line without a colon"),
    pytest.param(request(BODY, host=b"x-no: host"), id="no Host"),
    pytest.param(request(BODY, host=b"host: a b/c"), id="a Host that is none"),
    pytest.param(request(BODY, first=b"POST /v1/chat/completions"), id="HTTP/0.9"),
    pytest.param(request(BODY, first=b"POST /v1/chat/completions HTTP/9.9"), id="HTTP/9.9"),
    pytest.param(request(BODY, first=b"P\x00ST /v1/chat/completions HTTP/1.1"), id="NUL in the method"),
    pytest.param(b"%s 1;x\r\nno\r\n" % chunked(BODY, b"transfer-encoding: chunked")[:-40], id="chunks cut off"),
    pytest.param(
        request(b"-18\r\n%s\r\n0\r\n\r\n" % BODY, b"transfer-encoding: chunked", length=False), id="a negative chunk"
    ),
    pytest.param(
        request(b"0x18\r\n%s\r\n0\r\n\r\n" % BODY, b"transfer-encoding: chunked", length=False), id="a chunk with 0x"
    ),
    pytest.param(
        request(b"ffffffffffffffffff\r\n%s" % BODY, b"transfer-encoding: chunked", length=False), id="an endless chunk"
    ),
    pytest.param(
        request(b"18\n%s\n0\n\n" % BODY, b"transfer-encoding: chunked", length=False), id="chunks with a bare LF"
    ),
]


@pytest.mark.parametrize("data", AMBIGUOUS)
async def test_a_request_with_two_readings_is_refused_and_the_connection_closed(
    shared: Gateway, frontier: Upstreamer, data: bytes
) -> None:
    """The hidden request behind it is not read as one."""
    reply = await shared.raw(data.replace(b"\r\nconnection: close", b"") + HIDDEN)
    assert reply.closed
    assert reply.statuses in ([400], [426], [501], []), reply.raw[:500]
    assert not frontier.seen
    assert await shared.is_serving()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(request(BODY, b"content-length: 24", b"content-length: 24", length=False), id="two equal CL"),
        pytest.param(request(BODY).replace(b"\r\n", b"\n"), id="bare LF"),
        pytest.param(request(BODY, b"x-a: b\nx-funicular-label: easy"), id="a bare LF between two lines"),
        pytest.param(
            request(
                b"18;%s=1\r\n%s\r\n0\r\nx-t: 1\r\n\r\n" % (b"x" * 99, BODY), b"transfer-encoding: chunked", length=False
            ),
            id="chunk extensions and trailers",
        ),
        pytest.param(chunked(BODY, b"transfer-encoding: Chunked"), id="TE in capitals"),
        pytest.param(request(BODY, b"x-a: b", b" c: d"), id="obs-fold"),
        pytest.param(request(BODY, b"\tx-a: b"), id="a line that begins with a tab"),
        pytest.param(request(BODY, b"x-a: b\rx-funicular-label: easy"), id="a bare CR"),
        pytest.param(request(BODY, host=b"host: a\r\nhost: b"), id="two Hosts"),
        pytest.param(request(BODY, first=b"POST  /v1/chat/completions  HTTP/1.1"), id="two spaces in the first line"),
    ],
)
async def test_what_is_tolerated_reaches_a_provider_in_one_reading(
    shared: Gateway, frontier: Upstreamer, data: bytes
) -> None:
    """Refused or normalised: at most one request arrives, with one length and our model."""
    reply = await shared.raw(data)
    assert len(reply.statuses) <= 1
    assert len(frontier.seen) == reply.statuses.count(200)
    for seen in frontier.seen:
        assert json.loads(seen.body) == {"model": "model-of-frontier"}
        assert seen.path == "/v1/chat/completions"
        assert seen.headers["host"] == f"127.0.0.1:{frontier.port}"
        assert seen.headers["content-length"] == str(len(seen.body))
        assert not set("\r\n\0") & set("".join(seen.headers.values()))
        assert not {"transfer-encoding", "trailer", "x-t", "x-funicular-label"} & seen.headers.keys()


async def test_pipelined_requests_are_routed_each_by_its_own_body(shared: Gateway, frontier: Upstreamer) -> None:
    bodies = [BODY, b'{"model":"unknown"}', b'{"model":"support-chat","n":3}', b"no json"]
    reply = await shared.raw(b"".join(request(b, close=b is bodies[-1]) for b in bodies))
    assert reply.statuses == [200, 404, 200, 400]
    assert [json.loads(seen.body).get("n") for seen in frontier.seen] == [None, 3]


async def test_a_body_longer_than_its_length_is_no_part_of_the_request(shared: Gateway, frontier: Upstreamer) -> None:
    reply = await shared.raw(request(BODY, close=False) + b'{"model":"support-chat","second":1}\r\n\r\n')
    assert reply.statuses == [200, 400]
    assert [seen.body for seen in frontier.seen] == [b'{"model":"model-of-frontier"}']


@pytest.mark.parametrize(
    ("first", "host", "status"),
    [
        (b"POST http://evil.example/v1/chat/completions HTTP/1.1", b"host: other.example", 200),
        (b"POST http://127.0.0.1:9901/v1/chat/completions HTTP/1.1", b"host: 127.0.0.1:9901", 200),
        (b"POST /v1/chat/completions HTTP/1.1", b"host: 169.254.169.254", 200),
        (b"POST //v1//chat///completions HTTP/1.1", b"host: g", 200),
        (b"POST /v1/./chat/x/../completions HTTP/1.1", b"host: g", 200),
        (b"POST /v1/chat/../../../quitquitquit HTTP/1.1", b"host: g", 404),
        (b"POST /v1/chat/completions/../../../admin HTTP/1.1", b"host: g", 404),
        (b"POST /v1/chat%2fcompletions HTTP/1.1", b"host: g", 400),
        (b"POST /v1/chat%5c..%5cadmin HTTP/1.1", b"host: g", 400),
        (b"POST /v1/chat\\completions HTTP/1.1", b"host: g", 200),
        (b"POST /v1/chat/completions;/../../admin HTTP/1.1", b"host: g", 404),
        (b"POST /v1;x/chat/completions HTTP/1.1", b"host: g", 404),
        (b"POST /v1/%63hat/completions HTTP/1.1", b"host: g", 200),
        (b"POST /v1/%252e%252e/admin HTTP/1.1", b"host: g", 404),
        (b"POST /v1/chat/completions%00 HTTP/1.1", b"host: g", 400),
        (b"POST /v1/chat/completions%0d%0ax-a:b HTTP/1.1", b"host: g", 404),
        (b"POST /v1/chat/completions#/../admin HTTP/1.1", b"host: g", 400),
        (b"POST * HTTP/1.1", b"host: g", 400),
        (b"CONNECT 127.0.0.1:9901 HTTP/1.1", b"host: 127.0.0.1:9901", 400),
        (b"GET /config_dump HTTP/1.1", b"host: 127.0.0.1:9901", 404),
        (b"TRACE /v1/chat/completions HTTP/1.1", b"host: g", 404),
        (b"POST /v1/chat/completions HTTP/1.0", b"host: g", 426),
    ],
)
async def test_no_spelling_of_path_or_host_leads_elsewhere(
    shared: Gateway, frontier: Upstreamer, first: bytes, host: bytes, status: int
) -> None:
    """Either the provider's own path and host with its key, or nothing."""
    reply = await shared.raw(request(BODY, first=first, host=host))
    assert reply.statuses == [status], reply.raw[:300]
    assert len(frontier.seen) == (status == 200)
    for seen in frontier.seen:
        assert seen.path == "/v1/chat/completions"
        assert seen.headers["host"] == f"127.0.0.1:{frontier.port}"
