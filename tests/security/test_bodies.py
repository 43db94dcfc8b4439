"""Bodies made to be read in two ways or to cost too much; classifiers and providers that answer with more than they should."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from funicular.agent.feedback import Refused, parse
from tests.integration.envoy_rig import KEY
from tests.security.gateway import Gateway, written
from tests.security.wire import request

MB = 1 << 20
MARKER = "marker-of-a-person-5f1c"
SIGNED = KEY.encode()


async def ask(gateway: Gateway, body: bytes) -> int:
    return (await gateway.raw(request(body))).status


# --- requests -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"model":"support-chat","model":"other"}', id="model twice"),
        pytest.param(b'{"model":"other","model":"support-chat"}', id="the other order"),
        pytest.param(b'{"model":"support-chat","\\u006dodel":"other"}', id="one in escapes"),
        pytest.param('{"model":"support-chat"}'.encode("utf-16"), id="UTF-16"),
        pytest.param('{"model":"support-chat"}'.encode("utf-16-le"), id="UTF-16 without a mark"),
        pytest.param('{"model":"support-chat"}'.encode("utf-32-le"), id="UTF-32"),
        pytest.param(b'\xef\xbb\xbf{"model":"support-chat"}', id="a byte order mark"),
        pytest.param(b'{"model":"support-chat"}{"model":"other"}', id="two objects"),
        pytest.param(b'[{"model":"support-chat"}]', id="an array"),
        pytest.param(b"model=support-chat", id="a form"),
        pytest.param(b"\x1f\x8b\x08\x00" + b"\0" * 20, id="gzip"),
        pytest.param(b'{"model":"support-chat"', id="cut off"),
        pytest.param(
            b'{"a":' + b"[" * 100_000 + b"]" * 99_999 + b',"model":"support-chat"}', id="brackets that do not close"
        ),
    ],
)
async def test_what_has_no_single_reading_reaches_no_provider(gateway: Gateway, body: bytes) -> None:
    frontier = await gateway.serve_one()
    assert await ask(gateway, body) in (400, 404)
    assert not frontier.seen
    assert await gateway.is_serving()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b',"model":"support-chat"}', id="100,000 deep"),
        pytest.param(b'{"a":' * 50_000 + b"1" + b"}" * 50_000, id="50,000 objects deep"),
        pytest.param(b'{"t":NaN,"model":"support-chat"}', id="NaN"),
        pytest.param(b'{"model":"support-chat","t":1e999999}', id="a number beyond all"),
        pytest.param(b'{"a":{"model":"other"},"model":"support-chat"}', id="a model within"),
        pytest.param(b'{"model":"support-chat","a":"\\",\\"model\\":\\"other"}', id="a model in a string"),
        pytest.param(b'{"Model":"other","model":"support-chat"}', id="another case"),
        pytest.param(b'{"model\\u0000":"other","model":"support-chat"}', id="NUL behind the key"),
        pytest.param(b'{"model":"support-chat","user":"' + b"u" * (7 * MB) + b'"}', id="7 MB of user"),
        pytest.param(
            b"{" + b",".join(b'"k%d":1' % i for i in range(200_000)) + b',"model":"support-chat"}', id="200,000 members"
        ),
    ],
)
async def test_the_model_that_routes_is_the_one_that_is_replaced(gateway: Gateway, body: bytes) -> None:
    """Refused, or sent on with our model's name in the place of the one that routed, and all else byte for byte."""
    frontier = await gateway.serve_one()
    status = await ask(gateway, body)
    assert status in (200, 400)
    assert len(frontier.seen) == (status == 200)
    for seen in frontier.seen:
        assert seen.body == body.replace(b'"support-chat"', b'"model-of-frontier"')
    assert await gateway.is_serving()


async def test_ten_megabytes_of_user_are_413(gateway: Gateway) -> None:
    frontier = await gateway.serve_one()
    assert await ask(gateway, b'{"model":"support-chat","user":"' + b"u" * (10 * MB) + b'"}') == 413
    assert not frontier.seen


# --- classifiers --------------------------------------------------------------------------------------------------------
def bytes_of(
    *pieces: bytes, endless: bytes = b""
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A server that says these, byte for byte, and then `endless` again and again."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.writelines(pieces)
            await writer.drain()
            while endless:
                writer.write(endless)
                await writer.drain()
                await asyncio.sleep(0)  # drain does not let others run while there is room
            await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return serve


OK = b"HTTP/1.1 200 OK\r\nx-funicular-label: easy"
EASY_BUT = [
    pytest.param((OK + b"\r\nx-funicular-label: hard\r\ncontent-length: 0\r\n\r\n",), b"", id="two labels"),
    pytest.param((OK + b"\r\n x: y\r\ncontent-length: 0\r\n\r\n",), b"", id="a folded label"),
    pytest.param((OK + b"\x00\r\ncontent-length: 0\r\n\r\n",), b"", id="NUL in the label"),
    pytest.param((OK + b"\r\nx-a: " + b"a" * (10 * MB) + b"\r\n\r\n",), b"", id="10 MB of header"),
    pytest.param((OK + b"\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",), b"", id="CL and TE"),
    pytest.param(
        (OK + b"\r\ntransfer-encoding: chunked\r\n\r\n",), b"1000\r\n" + b"x" * 4096 + b"\r\n", id="an endless body"
    ),
    pytest.param(
        (b"HTTP/1.1 500 No\r\nx-funicular-label: easy\r\ncontent-length: 0\r\n\r\n",), b"", id="500 with a label"
    ),
    pytest.param((b"no http at all\r\n\r\n",), b"", id="no HTTP"),
]


@pytest.mark.parametrize(("pieces", "endless"), EASY_BUT)
async def test_a_classifier_that_breaks_the_protocol_is_not_believed(
    gateway: Gateway, pieces: tuple[bytes, ...], endless: bytes
) -> None:
    frontier, mini, classifier = await gateway.serve_classified()
    await classifier.stop()
    server = await asyncio.start_server(bytes_of(*pieces, endless=endless), "127.0.0.1", classifier.port)
    before = gateway.memory
    answer = await gateway.chat("alice")
    server.close()
    assert (answer.status, answer.candidate) == (200, "frontier")
    assert len(frontier.seen) == 1
    assert not mini.seen
    assert gateway.memory - before < 60 * MB


async def test_a_classifiers_other_headers_go_nowhere(gateway: Gateway) -> None:
    _, mini, classifier = await gateway.serve_classified()

    async def injects(_: web.Request) -> web.StreamResponse:
        named = {"x-funicular-label": "easy", "authorization": "Bearer forged", "x-injected": "1", "set-cookie": "a=b"}
        return web.Response(headers={**named, "x-envoy-auth-headers-to-remove": "authorization"})

    classifier.handler = injects
    answer = await gateway.chat("alice")
    assert (answer.status, answer.candidate) == (200, "mini")
    (seen,) = mini.seen
    assert "forged" not in str(seen.headers)
    assert "x-injected" not in seen.headers
    assert not {"x-injected", "set-cookie"} & answer.headers.keys()


# --- providers ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pieces", "endless"),
    [
        pytest.param(
            (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n",),
            b"",
            id="chunks that are none",
        ),
        pytest.param((b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 9\r\n\r\n{}",), b"", id="two lengths"),
        pytest.param((b"HTTP/1.1 200 OK\r\nx-a: " + b"a" * MB + b"\r\n\r\n",), b"", id="1 MB of header"),
        pytest.param((b"HTTP/1.1 200 OK\r\nx\x00: 1\r\ncontent-length: 2\r\n\r\n{}",), b"", id="NUL in a header"),
    ],
)
async def test_a_provider_that_breaks_the_protocol_harms_its_own_request_alone(
    gateway: Gateway, pieces: tuple[bytes, ...], endless: bytes
) -> None:
    frontier, mini = await gateway.serve_two()
    await mini.stop()
    server = await asyncio.start_server(bytes_of(*pieces, endless=endless), "127.0.0.1", mini.port)
    before = gateway.memory
    reply = await gateway.raw(request(b'{"model":"support-chat","user":"alice"}'))
    server.close()
    assert len(reply.statuses) == 1, "one answer, whatever the provider wrote"
    assert reply.status in (200, 502, 503, 504)
    assert len(frontier.seen) <= 1
    assert gateway.memory - before < 60 * MB
    assert await gateway.is_serving()


@pytest.mark.parametrize("kind", [b"application/json", b"text/event-stream", b"text/plain"])
async def test_a_gigabyte_of_answer_passes_or_breaks_off_without_being_kept(gateway: Gateway, kind: bytes) -> None:
    _, mini = await gateway.serve_two()
    await mini.stop()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (kind, 1 << 30)
    server = await asyncio.start_server(bytes_of(head, endless=b'{"x":"' + b"y" * MB), "127.0.0.1", mini.port)
    most = size = 0
    async with gateway.session.post(
        gateway.url + "/v1/chat/completions", data=b'{"model":"support-chat","user":"alice"}'
    ) as answer:
        async for piece in answer.content.iter_any():
            size += len(piece)
            if size // MB % 16 == 0:
                most = max(most, gateway.memory)
            if size > 128 * MB:
                break
        answer.close()
    server.close()
    assert most < 300 * MB
    assert await gateway.is_serving()


# --- feedback -----------------------------------------------------------------------------------------------------------
async def test_feedback_with_an_id_that_was_not_signed_here_is_refused(gateway: Gateway) -> None:
    """Another key, another policy's or arm's name under an old signature, none at all."""
    await gateway.serve_two()
    answer = await gateway.chat("alice")
    text = answer.headers["x-funicular-id"]
    vote = {"id": text, "thumb": "up"}
    now = float(answer.identity[5])
    taken, read, votes = parse(json.dumps(vote).encode(), (SIGNED,), now)
    assert (taken, read.policy, len(votes)) == (text, "support", 1)
    forged = [
        text.replace("shop/support", "shop/another"),
        text.replace(";treatment;", ";control;"),
        text[:-1],
        text + "0",
    ]
    forged += [text.replace(";mini;", ";frontier;"), text.rpartition(";")[0], text.rpartition(";")[0] + ";", ""]
    for wrong in forged:
        with pytest.raises(Refused) as refused:
            parse(json.dumps({**vote, "id": wrong}).encode(), (SIGNED,), now)
        assert refused.value.status in (400, 401)
    with pytest.raises(Refused):
        parse(json.dumps(vote).encode(), (b"another gateway's key",), now)
    with pytest.raises(Refused):
        parse(json.dumps(vote).encode(), (SIGNED,), now + 365 * 86400)


# --- personal data ------------------------------------------------------------------------------------------------------
async def test_no_prompt_answer_or_user_is_in_a_log_a_metric_or_a_file(gateway: Gateway) -> None:
    """Also when everything fails."""
    frontier, mini, classifier = await gateway.serve_classified()

    async def echoes(_: web.Request) -> web.StreamResponse:
        return web.json_response({"choices": [{"message": {"content": MARKER}}]}, headers={"x-funicular-label": "easy"})

    async def breaks(call: web.Request) -> web.StreamResponse:
        assert call.transport is not None
        call.transport.abort()
        return web.Response()

    said = {"messages": [{"role": "user", "content": MARKER}], "user": MARKER, "metadata": {"name": MARKER}}
    headers = {"authorization": f"Bearer {MARKER}", "x-session-id": MARKER, "x-name": MARKER, "cookie": MARKER}
    for frontier.handler, mini.handler, classifier.handler in (
        (echoes, echoes, echoes),
        (echoes, breaks, echoes),
        (breaks, breaks, breaks),
        (None, None, breaks),
    ):
        for unit in (MARKER, None):
            await gateway.chat(unit, headers=headers, **said)
            await gateway.chat(unit, headers=headers, stream=True, **said)
    await gateway.chat(MARKER, model=MARKER, headers=headers)
    for body in (
        MARKER.encode(),
        b'{"model":"support-chat","x":"%s' % MARKER.encode(),
        b'{"model":"%s"}' % MARKER.encode(),
    ):
        await gateway.call("POST", f"/v1/chat/completions?q={MARKER}", body, headers)
    await gateway.call("POST", f"/v1/{MARKER}", b"{}", headers)
    await gateway.raw(request(b"{}", b"x-%s\x00: 1" % MARKER.encode()))
    assert any(MARKER in str(seen.body) for seen in mini.seen)
    pages = [written(gateway.folder).decode("utf-8", "replace")]
    for path in ("/stats", "/stats/prometheus", "/clusters", "/config_dump", "/runtime", "/listeners"):
        pages.append(await gateway.admin(path))
    for page in pages:
        assert MARKER not in page
