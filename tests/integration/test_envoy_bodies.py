"""Bodies: what is refused, and that the rest arrives byte for byte but for the model's name."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from tests.integration.envoy_rig import Rig, Upstreamer, rig
from tests.unit.compile.builders import make_policy, make_route, make_traffic, make_upstream

LIMIT = 256 << 10
NAME = 'gpt "5" \\ ü/😀'
WRITTEN = json.dumps(NAME, ensure_ascii=False).encode()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path, body_limit=LIMIT) as one:
        frontier = await one.upstream("frontier")
        route = make_route("aaaa", make_upstream("frontier", frontier.url, model=NAME))
        await one.start(make_policy(make_traffic(route)))
        yield one


def provider(gateway: Rig) -> Upstreamer:
    return gateway.upstreams[0]


async def post(gateway: Rig, body: bytes, path: str = "/v1/chat/completions") -> Any:
    return await gateway.call("POST", path, body)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(b"", 400, "empty_body", id="nothing"),
        pytest.param(b"hello", 400, "invalid_json", id="text"),
        pytest.param(b"[1]", 400, "invalid_json", id="an array"),
        pytest.param(b'"support-chat"', 400, "invalid_json", id="a string"),
        pytest.param(b'{"model":"support-chat"', 400, "invalid_json", id="cut off"),
        pytest.param(b'{"model":"support-chat"} x', 400, "invalid_json", id="something behind it"),
        pytest.param(b'{"model":"support-chat",}', 400, "invalid_json", id="a comma too many"),
        pytest.param(b'{"model" "support-chat"}', 400, "invalid_json", id="no colon"),
        pytest.param(b'{"model":"support-chat', 400, "invalid_json", id="an open string"),
        pytest.param(b"{model:1}", 400, "invalid_json", id="a key without quotes"),
        pytest.param(b"{}", 400, "missing_model", id="no model"),
        pytest.param(b'{"model":7}', 400, "missing_model", id="a model that is a number"),
        pytest.param(b'{"model":null}', 400, "missing_model", id="a model that is null"),
        pytest.param(b'{"model":""}', 400, "missing_model", id="an empty model"),
        pytest.param(b'{"model":["support-chat"]}', 400, "missing_model", id="a model that is a list"),
        pytest.param(b'{"model":"support-chat","model":"x"}', 400, "duplicate_model", id="two models"),
        pytest.param(b'{"model":"support-chat","m\\u006fdel":"x"}', 400, "duplicate_model", id="two, one disguised"),
        pytest.param(b'{"model":"gpt-5"}', 404, "model_not_found", id="an unknown model"),
        pytest.param(b'{"model":"Support-Chat"}', 404, "model_not_found", id="case matters"),
        pytest.param(b'{"model":"support-chat","x":"' + b"y" * LIMIT + b'"}', 413, "request_too_large", id="too long"),
    ],
)
async def test_what_cannot_be_routed_is_refused_in_openais_style(
    gateway: Rig, body: bytes, status: int, code: str
) -> None:
    answer = await post(gateway, body)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["message"].endswith(".")
    assert "x-funicular-id" not in answer.headers
    assert not provider(gateway).seen


async def test_the_body_arrives_byte_for_byte_but_for_the_models_name(gateway: Rig) -> None:
    rng = random.Random(11)
    gate = asyncio.Semaphore(8)

    async def one(body: bytes, expected: bytes) -> None:
        async with gate:
            answer = await gateway.call("POST", "/v1/chat/completions", body, {"x-number": str(hash(body))})
            assert answer.status == 200, (body[:300], answer.body)
        seen = [s for s in provider(gateway).seen if s.headers["x-number"] == str(hash(body))]
        assert seen[-1].body == expected
        assert seen[-1].headers["content-length"] == str(len(expected))
        assert "transfer-encoding" not in seen[-1].headers

    await asyncio.gather(*(one(*made(rng)) for _ in range(400)))


def made(rng: random.Random) -> tuple[bytes, bytes]:
    """A body as no library would write it, and what must arrive."""
    members = [(f'"{key}"', value(rng, 0)) for key in rng.sample(["messages", "a", "b", "user", "stream_options"], 3)]
    if rng.random() < 0.3:
        members += [('"twice"', "1"), ('"twice"', "2")]
    if rng.random() < 0.3:
        members.append(('"modelx"', '"model"'))
    members.append((rng.choice(['"model"', '"m\\u006fdel"']), "@"))
    rng.shuffle(members)

    def space() -> str:
        return "".join(rng.choices(" \t\r\n", k=rng.choice((0, 0, 0, 1, 3))))

    inside = ",".join(f"{space()}{key}{space()}:{space()}{text}{space()}" for key, text in members)
    body = f"{space()}{{{inside}}}{space()}".encode("utf-8", "surrogatepass")
    before, _, after = body.partition(b"@")
    named = rng.choice([b'"support-chat"', b'"support\\u002dchat"', b'"\\u0073upport-chat"'])
    return before + named + after, before + WRITTEN + after


def value(rng: random.Random, depth: int) -> str:
    kind = rng.randrange(8 if depth < 4 else 5)
    if kind == 0:
        return rng.choice(["123456789012345678901234567890", "-0.0", "1e999", "1E-7", "0.1000", "9007199254740993"])
    if kind == 1:
        return rng.choice(["true", "false", "null"])
    if kind in (2, 3):
        return string(rng)
    if kind == 4:
        return "[" * 300 + "]" * 300
    items = [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 5:
        return "[" + ", ".join(items) + "]"
    return "{" + ",".join(f"{string(rng)}:{item}" for item in items) + "}"


def string(rng: random.Random) -> str:
    pieces = [
        "a",
        "ü",
        "日本",
        "😀",
        r"\"",
        r"\\",
        r"\/",
        r"\u00e9",
        r"\ud83d\ude00",
        r"\ud800",
        *"{}],:",
        r"\"model\":",
    ]
    return '"' + "".join(rng.choices(pieces, k=rng.randrange(12))) + '"'


async def test_long_bodies_arrive_whole(gateway: Rig) -> None:
    for size in (60_000, 65_500, 65_536, 131_000, 200_000):
        text = "x" * size
        body = json.dumps({"messages": [{"role": "user", "content": text}], "model": "support-chat"}).encode()
        assert (await post(gateway, body)).status == 200
        assert provider(gateway).seen[-1].body == body.replace(b'"support-chat"', WRITTEN)


async def test_a_chunked_body_arrives_with_a_length(gateway: Rig) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"model":"supp'
        await asyncio.sleep(0.01)
        yield b'ort-chat","x":1}'

    async with gateway.session.post(gateway.url + "/v1/chat/completions", data=pieces()) as answer:
        assert answer.status == 200
    seen = provider(gateway).seen[-1]
    assert seen.body == b'{"model":' + WRITTEN + b',"x":1}'
    assert seen.headers["content-length"] == str(len(seen.body))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(
            b'{ "model":"support-chat","stream":true}',
            b'{"stream_options":{"include_usage":true}, "model":@,"stream":true}',
            id="added",
        ),
        pytest.param(
            b'{"stream_options":null,"stream":true,"model":"support-chat"}',
            b'{"stream_options":{"include_usage":true},"stream":true,"model":@}',
            id="in the place of null, before the model",
        ),
        pytest.param(
            b'{"model":"support-chat","stream":true,"stream_options":{"include_usage":false}}',
            b'{"model":@,"stream":true,"stream_options":{"include_usage":true}}',
            id="in the place of false, behind the model",
        ),
        pytest.param(
            b'{"model":"support-chat","stream":true,"stream_options":{ "include_usage" : true}}',
            b'{"model":@,"stream":true,"stream_options":{ "include_usage" : true}}',
            id="there already",
        ),
        pytest.param(
            b'{"model":"support-chat","stream_options":{"x":1},"stream":true}',
            b'{"model":@,"stream_options":{"include_usage":true,"x":1},"stream":true}',
            id="beside another option",
        ),
        pytest.param(
            b'{"model":"support-chat","stream_options":{ },"stream":true}',
            b'{"model":@,"stream_options":{"include_usage":true},"stream":true}',
            id="in the place of none",
        ),
        pytest.param(
            b'{"model":"support-chat","stream":false}', b'{"model":@,"stream":false}', id="not without a stream"
        ),
    ],
)
async def test_streams_are_asked_for_their_usage(gateway: Rig, body: bytes, expected: bytes) -> None:
    await post(gateway, body)
    assert provider(gateway).seen[-1].body == expected.replace(b"@", WRITTEN)


# --- what the gateway answers itself ----------------------------------------------------------------------------------
async def test_endpoints_are_listed(gateway: Rig) -> None:
    listed = await gateway.get("/v1/models")
    assert listed.headers["content-type"] == "application/json"
    assert [m["id"] for m in listed.json()["data"]] == ["support-chat"]
    assert (await gateway.get("/v1/models/support-chat")).json()["id"] == "support-chat"
    assert (await gateway.get("/v1/models/other")).status == 404


async def test_paths_that_do_not_exist_are_named_so(gateway: Rig) -> None:
    for method, path in (
        ("GET", "/"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/chat/completions"),
        ("PUT", "/v1/x"),
    ):
        answer = await gateway.call(method, path)
        assert (answer.status, answer.json()["error"]["code"]) == (404, "unknown_path")


async def test_no_path_leads_out_of_a_providers_prefix(gateway: Rig) -> None:
    for path in ("/v1/../admin", "/v1/x/../../admin", "/v1/%2e%2e/admin", "/v1/x/%2E%2E/%2e%2e/admin"):
        async with gateway.session.post(
            URL(gateway.url + path, encoded=True), data=b'{"model":"support-chat"}'
        ) as answer:
            assert answer.status == 404
    assert not provider(gateway).seen


async def test_health_follows_the_drain(gateway: Rig) -> None:
    healthy = await gateway.get("/healthz")
    assert (healthy.status, healthy.body) == (200, b"ok\n")
    await gateway.admin("/healthcheck/fail", "POST")
    assert (await gateway.get("/healthz")).status == 503
    answer = await post(gateway, b'{"model":"support-chat"}')
    assert answer.status == 200
    assert answer.headers.get("connection") == "close"


async def test_feedback_goes_to_the_agent(gateway: Rig) -> None:
    agent = Upstreamer("agent", port=gateway.settings.agent_port)
    gateway.upstreams.append(await agent.start())
    answer = await gateway.call("POST", "/v1/feedback", b'{"id":"x","thumb":"up"}')
    assert answer.status == 200
    assert (agent.seen[0].path, agent.seen[0].body) == ("/v1/feedback", b'{"id":"x","thumb":"up"}')


async def test_envoys_own_metrics_are_on_a_port_of_their_own(gateway: Rig) -> None:
    await post(gateway, b'{"model":"support-chat"}')
    base = f"http://127.0.0.1:{gateway.settings.stats_port}"
    async with gateway.session.get(base + "/metrics") as answer:
        text = await answer.text()
    assert "envoy_http_downstream_rq_total" in text
    assert "envoy_funicular" not in text
    for path in ("/", "/config_dump", "/stats", "/quitquitquit"):
        async with gateway.session.get(base + path) as answer:
            assert answer.status == 404
