"""What reaches a provider and what comes back: fallback, credentials, paths, TLS, streams."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from multidict import CIMultiDict

from funicular.compile import policy_secrets
from tests.integration.envoy_rig import Rig, Upstreamer, rig, total
from tests.unit.compile.builders import make_credentials, make_policy, make_route, make_traffic, make_upstream

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path) as one:
        yield one


async def all_to_mini(gateway: Rig, url: str = "", path: str = "", **mini_fields: Any) -> tuple[Upstreamer, Upstreamer]:
    frontier, mini = await gateway.upstream("frontier"), await gateway.upstream("mini")
    first = make_upstream("frontier", frontier.url, credentials=make_credentials("first", "x-first-key", "Key "))
    second = make_upstream("mini", url or f"http://127.0.0.1:{mini.port}{path}", **{"timeout": "400ms", **mini_fields})
    stable, candidate = make_route("aaaa", first), make_route("bbbb", first, second, single="mini")
    await gateway.start(make_policy(make_traffic(stable, candidate, 10_000)))
    return frontier, mini


async def tells_passes(request: web.Request) -> web.Response:
    return web.json_response(",".join(request.headers.getall("cdn-loop")).replace(" ", "").split(","))


# --- loops ------------------------------------------------------------------------------------------------------------
async def test_a_candidate_whose_url_is_the_gateway_itself_is_cut_off_and_the_baseline_answers(gateway: Rig) -> None:
    """Its name may resolve to the gateway's own Service: each pass adds an entry, and from five on it is refused."""
    own = f"{gateway.url}/v1"
    frontier = await gateway.upstream("frontier")
    first = make_upstream("frontier", frontier.url)
    second = make_upstream("mini", own, model="support-chat", timeout="5s")
    stable, candidate = make_route("aaaa", first), make_route("bbbb", first, second, single="mini")
    await gateway.start(make_policy(make_traffic(stable, candidate, 10_000)))
    frontier.handler = tells_passes
    answer = await gateway.chat("alice")
    assert (answer.status, answer.json()) == (200, ["funicular"] * 5), (
        "the fifth pass was refused the sixth, and fell back"
    )
    assert len(frontier.seen) == 1


@pytest.mark.parametrize(
    ("entries", "status"),
    [
        pytest.param([], 200, id="nobody before"),
        pytest.param(["elsewhere; v=1, funicular", "funicular"], 200, id="a gateway behind two gateways"),
        pytest.param([", ".join(["funicular"] * 5)], 508, id="five in one line"),
        pytest.param(["funicular", "x, funicular", "funicular, y", "funicular,funicular"], 508, id="in several lines"),
        pytest.param(["notfunicular"] * 5, 200, id="others' names"),
    ],
)
async def test_a_request_that_passed_gateways_too_often_is_refused(
    gateway: Rig, entries: list[str], status: int
) -> None:
    _, mini = await all_to_mini(gateway)
    mini.handler = tells_passes
    headers = CIMultiDict([("cdn-loop", entry) for entry in entries] + [("x-user-id", "alice")])
    body = {"model": "support-chat", "messages": []}
    async with gateway.session.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status == status
        said = await answer.json()
    if status == 508:
        assert said["error"]["code"] == "loop_detected"
        assert not mini.seen
    else:
        assert said == [*",".join(entries).replace(" ", "").split(","), "funicular"][0 if entries else 1 :]


# --- fallback ---------------------------------------------------------------------------------------------------------
def says(status: int) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"error": status}, status=status)

    return handler


async def hangs(_: web.Request) -> web.Response:
    await asyncio.sleep(5)
    return web.Response()


async def aborts(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(says(500), id="500"),
        pytest.param(says(503), id="503"),
        pytest.param(says(429), id="429"),
        pytest.param(says(408), id="408"),
        pytest.param(hangs, id="no answer in time"),
        pytest.param(aborts, id="the connection breaks"),
    ],
)
async def test_the_baseline_rescues_what_the_candidate_fails(gateway: Rig, handler: Handler) -> None:
    frontier, mini = await all_to_mini(gateway)
    mini.handler = handler
    answer = await gateway.chat("alice")
    assert (answer.status, answer.arm, answer.candidate) == (200, "treatment", "frontier")
    assert answer.json()["from"] == "frontier"
    assert json.loads(mini.seen[0].body)["model"] == "model-of-mini"
    assert json.loads(frontier.seen[0].body)["model"] == "model-of-frontier"
    assert int(frontier.seen[0].headers["content-length"]) == len(frontier.seen[0].body)
    found = await gateway.samples()
    assert total(found, "funicular_outcomes_total", outcome="bad") == 1, "rescued is not good"
    assert total(found, "funicular_decisions_total", reason="fallback") == 1
    assert total(found, "funicular_requests_total", candidate="frontier", code="2xx") == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://nowhere.invalid/v1", "https://nowhere.invalid/v1"])
async def test_the_baseline_answers_when_the_candidate_cannot_be_reached(gateway: Rig, url: str) -> None:
    await all_to_mini(gateway, url)
    answer = await gateway.chat("alice")
    assert (answer.status, answer.candidate) == (200, "frontier")


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_a_mistake_of_the_client_is_not_rescued(gateway: Rig, status: int) -> None:
    frontier, mini = await all_to_mini(gateway)
    mini.handler = says(status)
    answer = await gateway.chat("alice")
    assert (answer.status, answer.json()) == (status, {"error": status})
    assert not frontier.seen
    assert total(await gateway.samples(), "funicular_outcomes_total", outcome="good") == 1


async def test_the_baseline_has_its_own_time_when_the_candidate_had_less(gateway: Rig) -> None:
    frontier, mini = await all_to_mini(gateway, timeout="200ms", credentials=make_credentials("second"))

    async def thinks(_: web.Request) -> web.Response:
        await asyncio.sleep(0.6)
        return web.json_response({"from": "frontier"})

    mini.handler, frontier.handler = hangs, thinks
    headers = {"x-forwarded-for": "8.8.8.8", "x-funicular-edits": "0 0 0 -1 -1 /"}
    answer = await gateway.chat("alice", headers=headers, text="ü" * 2000)
    assert (answer.status, answer.candidate) == (200, "frontier")
    for seen in (mini.seen[0], frontier.seen[0]):
        assert not [h for h in seen.headers if h.startswith(("x-funicular", "x-envoy", "x-forwarded-for"))]
        assert json.loads(seen.body)["text"] == "ü" * 2000
    assert mini.seen[0].headers["authorization"] == "Bearer key-of-second"
    assert "authorization" not in frontier.seen[0].headers


async def test_stream_options_of_any_shape_reach_a_candidate_with_less_time(gateway: Rig) -> None:
    _, mini = await all_to_mini(gateway, timeout="2s")
    body = b'{"stream":true,"stream_options":\n{\r\n\t"x":"\xc3\xbc"\n},"user":"alice","model":"support-chat"}'
    assert (await gateway.call("POST", "/v1/chat/completions", body)).candidate == "mini"
    sent = json.loads(mini.seen[0].body)
    assert sent["stream_options"] == {"include_usage": True, "x": "ü"}
    assert sent["model"] == "model-of-mini"


async def test_the_baselines_time_ends_too(gateway: Rig) -> None:
    frontier, mini = await gateway.upstream("frontier"), await gateway.upstream("mini")
    frontier.handler = mini.handler = hangs
    first = make_upstream("frontier", frontier.url, timeout="300ms")
    second = make_upstream("mini", mini.url, timeout="100ms")
    route = make_route("bbbb", first, second, single="mini")
    await gateway.start(make_policy(make_traffic(make_route("aaaa", first), route, 10_000)))
    answer = await gateway.chat("alice")
    assert (answer.status, answer.json()["error"]["code"]) == (504, "upstream_timeout")


async def test_many_failures_at_once_are_all_rescued(gateway: Rig) -> None:
    _, mini = await all_to_mini(gateway)
    mini.handler = says(503)
    answers = await asyncio.gather(*(gateway.chat(f"u{i}") for i in range(60)))
    assert {(a.status, a.candidate) for a in answers} == {(200, "frontier")}


async def test_when_both_fail_the_client_gets_json(gateway: Rig) -> None:
    frontier, mini = await all_to_mini(gateway)
    await frontier.stop()
    await mini.stop()
    answer = await gateway.chat("alice")
    assert answer.status == 503
    assert answer.json()["error"]["code"] == "upstream_unavailable"
    assert total(await gateway.samples(), "funicular_outcomes_total", outcome="bad") == 1


# --- credentials ------------------------------------------------------------------------------------------------------
CLIENT = {
    "authorization": "Bearer of-the-client",
    "x-api-key": "of-the-client",
    "api-key": "of-the-client",
    "x-first-key": "of-the-client",
    "cookie": "session=of-the-client",
}


async def test_no_key_reaches_a_provider_that_it_is_not_for(gateway: Rig) -> None:
    frontier, mini = await all_to_mini(gateway, credentials=make_credentials("second", "x-second-key", ""))
    mini.handler = says(500)
    await gateway.chat("alice", headers=CLIENT)
    sent_to_mini, sent_to_frontier = mini.seen[0].headers, frontier.seen[0].headers
    assert sent_to_mini["x-second-key"] == "key-of-second"
    assert sent_to_frontier["x-first-key"] == "Key key-of-first"
    assert "x-second-key" not in sent_to_frontier
    for headers in (sent_to_mini, sent_to_frontier):
        assert "of-the-client" not in str(headers)
        assert not {"authorization", "x-api-key", "api-key", "cookie"} & headers.keys()


async def test_a_candidate_without_credentials_gets_none(gateway: Rig) -> None:
    _, mini = await all_to_mini(gateway)
    await gateway.chat("alice", headers=CLIENT)
    assert "of-the-client" not in str(mini.seen[0].headers)
    assert not (CLIENT.keys() | {"x-second-key"}) & mini.seen[0].headers.keys()


async def test_a_key_is_rotated_without_a_restart(gateway: Rig) -> None:
    frontier, _ = await all_to_mini(gateway)
    await gateway.share(0)
    await gateway.chat("alice")
    gateway.write_secret(policy_secrets(gateway.policies[0])[0].sds, "rotated")
    for _ in range(200):
        await gateway.chat("alice")
        if frontier.seen[-1].headers["x-first-key"] == "Key rotated":
            break
        await asyncio.sleep(0.01)
    assert frontier.seen[0].headers["x-first-key"] == "Key key-of-first"
    assert frontier.seen[-1].headers["x-first-key"] == "Key rotated"


# --- paths ------------------------------------------------------------------------------------------------------------
async def test_each_attempt_has_its_own_path_and_host(gateway: Rig) -> None:
    frontier, mini = await all_to_mini(gateway, path="/openai/deployments/x")
    mini.handler = says(500)
    await gateway.call("POST", "/v1/chat/completions?a=b", b'{"model":"support-chat"}', {"x-user-id": "alice"})
    assert mini.seen[0].path == "/openai/deployments/x/chat/completions?a=b"
    assert frontier.seen[0].path == "/v1/chat/completions?a=b"
    assert mini.seen[0].headers["host"] == f"127.0.0.1:{mini.port}"
    assert frontier.seen[0].headers["host"] == f"127.0.0.1:{frontier.port}"


async def test_other_paths_go_to_the_baseline_and_are_compared_with_nothing(gateway: Rig) -> None:
    frontier, mini = await all_to_mini(gateway)
    answer = await gateway.call("POST", "/v1/embeddings", b'{"model":"support-chat","input":"x"}', {"x-user-id": "a"})
    assert (answer.status, answer.arm, answer.candidate) == (200, "control", "frontier")
    assert frontier.seen[0].path == "/v1/embeddings"
    assert json.loads(frontier.seen[0].body)["model"] == "model-of-frontier"
    assert not mini.seen
    found = await gateway.samples()
    assert total(found, "funicular_requests_total", arm="control") == 1
    assert total(found, "funicular_outcomes_total") == 0
    assert total(found, "funicular_decisions_total") == 0


# --- TLS --------------------------------------------------------------------------------------------------------------
def authority(folder: Path, *names: str) -> ssl.SSLContext:
    """A private CA (folder/ca.pem) and a server certificate for `names`."""
    now = datetime.now(UTC)

    def certificate(
        subject: str, key: Any, issuer: str, signer: Any, *extensions: tuple[Any, bool]
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]),
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - timedelta(days=1),
            not_valid_after=now + timedelta(days=1),
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(signer, hashes.SHA256())

    root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = certificate("root", root, "root", root, (x509.BasicConstraints(ca=True, path_length=None), True))
    alternatives = [x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names]
    leaf = certificate("server", key, "root", root, (x509.SubjectAlternativeName(alternatives), False))
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


@pytest.mark.parametrize(
    ("names", "host", "answers"),
    [
        pytest.param(("127.0.0.1",), "127.0.0.1", "mini", id="an address in the certificate"),
        pytest.param(("localhost",), "localhost", "mini", id="a name in the certificate"),
        pytest.param(("elsewhere.example",), "localhost", "frontier", id="a certificate for another name"),
        pytest.param(("127.0.0.2",), "127.0.0.1", "frontier", id="a certificate for another address"),
    ],
)
async def test_providers_behind_tls_are_verified(
    tmp_path: Path, names: tuple[str, ...], host: str, answers: str
) -> None:
    context = authority(tmp_path, *names)
    async with rig(tmp_path / "envoy", ca_file=str(tmp_path / "ca.pem")) as gateway:
        secure = await gateway.upstream("mini", context)
        await all_to_mini(gateway, f"https://{host}:{secure.port}/v1")
        answer = await gateway.chat("alice")
        assert (answer.status, answer.json()["from"]) == (200, answers)
        if answers == "mini":
            assert secure.seen[0].headers["host"] == f"{host}:{secure.port}"


# --- streams ----------------------------------------------------------------------------------------------------------
def stream(gate: asyncio.Event, pieces: list[bytes], *, breaks: bool = False) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await answer.prepare(request)
        for piece in pieces:
            await answer.write(piece)
            await gate.wait()
            gate.clear()
        if breaks:
            assert request.transport is not None
            request.transport.abort()
        return answer

    return handler


def event(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"' + text.encode() + b'"}}]}\n\n'


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14}}\n\n'


async def test_streams_come_through_piece_by_piece_and_their_tokens_are_counted(gateway: Rig) -> None:
    _, mini = await all_to_mini(gateway)
    gate = asyncio.Event()
    pieces = [event("a"), event("b"), event("c"), USAGE + b"data: [DONE]\n\n"]
    mini.handler = stream(gate, pieces)
    body = json.dumps(
        {"model": "support-chat", "stream": True, "user": "alice", "stream_options": {"include_usage": True}}
    )
    found = []
    async with gateway.session.post(gateway.url + "/v1/chat/completions", data=body.encode()) as answer:
        assert answer.headers["x-funicular-id"].split(";")[3] == "mini"
        async for piece in answer.content.iter_any():
            found.append(piece)  # the next piece is written only when this one is here
            gate.set()
    assert found == pieces
    found_samples = await gateway.samples()
    assert total(found_samples, "funicular_tokens_total", candidate="mini", kind="prompt") == 11
    assert total(found_samples, "funicular_tokens_total", candidate="mini", kind="completion") == 3
    assert total(found_samples, "funicular_outcomes_total", outcome="good") == 1


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([event("a"), USAGE + b"data: [DONE]\n\n"], id="with the end"),
        pytest.param([event("a"), USAGE, b"data: [DONE]\n\n"], id="in a piece of its own"),
        pytest.param([event("a"), event("b") + USAGE, b"data: [DONE]\n\n"], id="with an answer before it"),
        pytest.param([event("a") + USAGE.replace(b"\n", b"\r\n") + b"data: [DONE]\n\n"], id="with other line ends"),
    ],
)
async def test_who_did_not_ask_for_usage_does_not_see_it_but_it_is_counted(gateway: Rig, pieces: list[bytes]) -> None:
    _, mini = await all_to_mini(gateway)
    gate = asyncio.Event()
    mini.handler = stream(gate, pieces)
    tick = asyncio.create_task(opens(gate))
    answer = await gateway.chat("alice", stream=True)
    tick.cancel()
    whole = b"".join(pieces)
    assert answer.body == whole.replace(USAGE, b"").replace(USAGE.replace(b"\n", b"\r\n"), b"")
    assert total(await gateway.samples(), "funicular_tokens_total", candidate="mini", kind="completion") == 3


async def opens(gate: asyncio.Event) -> None:
    while True:
        await asyncio.sleep(0.02)
        gate.set()


async def test_a_stream_that_breaks_off_is_bad_and_not_begun_anew(gateway: Rig) -> None:
    frontier, mini = await all_to_mini(gateway)
    gate = asyncio.Event()
    gate.set()
    mini.handler = stream(gate, [event("a")], breaks=True)
    with pytest.raises(aiohttp.ClientError):
        await gateway.chat("alice", stream=True)
    assert not frontier.seen
    found = await gateway.samples()
    assert total(found, "funicular_outcomes_total", outcome="bad") == 1
    assert total(found, "funicular_requests_total", code="2xx") == 1


async def test_a_client_that_goes_away_is_not_bad(gateway: Rig) -> None:
    _, mini = await all_to_mini(gateway)
    gate = asyncio.Event()
    mini.handler = stream(gate, [event("a"), event("b")])
    body = json.dumps({"model": "support-chat", "stream": True, "user": "alice"}).encode()
    async with gateway.session.post(gateway.url + "/v1/chat/completions", data=body) as answer:
        await answer.content.readany()
        answer.close()
    for _ in range(100):
        found = await gateway.samples()
        if total(found, "funicular_outcomes_total"):
            break
        await asyncio.sleep(0.02)
    gate.set()
    assert total(found, "funicular_outcomes_total", outcome="good") == 1
    assert total(found, "funicular_outcomes_total", outcome="bad") == 0
