"""The official client against the gateway; a provider that speaks HTTP/2."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import openai
import pytest
from aiohttp import web

from tests.integration.envoy_rig import ENVOY, Rig, free_ports, rig
from tests.integration.test_envoy_providers import USAGE, authority, event
from tests.unit.compile.builders import make_policy, make_route, make_traffic, make_upstream


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path) as one:
        yield one


async def test_the_official_client_works(gateway: Rig) -> None:
    frontier = await gateway.upstream("frontier")
    await gateway.start(make_policy(make_traffic(make_route("aaaa", make_upstream("frontier", frontier.url)))))

    async def answers(request: web.Request) -> web.StreamResponse:
        if not (await request.json()).get("stream"):
            message = {"role": "assistant", "content": "hello"}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            return web.json_response({**whole, "usage": usage})
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        for piece in (event("he"), event("llo"), USAGE, b"data: [DONE]\n\n"):
            await answer.write(piece)
            await asyncio.sleep(0.01)
        return answer

    frontier.handler = answers
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["support-chat"]
        assert (await client.models.retrieve("support-chat")).id == "support-chat"
        raw = await client.chat.completions.with_raw_response.create(
            model="support-chat", messages=[{"role": "user", "content": "hi"}]
        )
        assert raw.parse().choices[0].message.content == "hello"
        assert raw.headers["x-funicular-id"].startswith("shop/support;aaaa;control;frontier;")
        stream = await client.chat.completions.create(
            model="support-chat", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "hello"
        with pytest.raises(openai.NotFoundError, match="not an endpoint of this gateway"):
            await client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "hi"}])


async def test_a_provider_that_speaks_http2(tmp_path: Path) -> None:
    """Another Envoy is the provider; it tells the protocol, path, host and length that it got."""
    authority(tmp_path, "localhost")
    port, admin = free_ports(2)
    pem = {"filename": str(tmp_path / "server.pem")}
    kinds = "type.googleapis.com/envoy.extensions."
    told = {
        "protocol": "%PROTOCOL%",
        "path": "%REQ(:PATH)%",
        "host": "%REQ(:AUTHORITY)%",
        "length": "%REQ(CONTENT-LENGTH)%",
    }
    manager = {
        "@type": kinds + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "x",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "direct_response": {"status": 200, "body": {"inline_string": "{}"}},
                            "response_headers_to_add": [
                                {"header": {"key": f"x-{name}", "value": value}} for name, value in told.items()
                            ],
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": kinds + "filters.http.router.v3.Router"},
            }
        ],
    }
    context = {"alpn_protocols": ["h2"], "tls_certificates": [{"certificate_chain": pem, "private_key": pem}]}
    tls = {"@type": kinds + "transport_sockets.tls.v3.DownstreamTlsContext", "common_tls_context": context}
    chain = {
        "filters": [{"name": "hcm", "typed_config": manager}],
        "transport_socket": {"name": "tls", "typed_config": tls},
    }
    config = {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
        "static_resources": {
            "listeners": [
                {
                    "name": "x",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [chain],
                }
            ]
        },
    }
    (tmp_path / "provider.json").write_text(json.dumps(config))
    assert ENVOY
    provider = subprocess.Popen(  # noqa: ASYNC220
        [ENVOY, "-c", str(tmp_path / "provider.json"), "--use-dynamic-base-id", "-l", "off", "--concurrency", "1"]
    )
    try:
        async with rig(tmp_path / "envoy", ca_file=str(tmp_path / "ca.pem")) as gateway:
            upstream = make_upstream("frontier", f"https://localhost:{port}/openai/v1")
            await gateway.start(make_policy(make_traffic(make_route("aaaa", upstream))))
            for _ in range(500):
                try:
                    async with gateway.session.get(f"http://127.0.0.1:{admin}/ready") as ready:
                        if ready.status == 200:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.02)
            answer = await gateway.chat("alice")
            body = b'{"messages": [{"role": "user", "content": "hello"}], "model": "model-of-frontier"}'
            assert answer.status == 200
            assert answer.headers["x-protocol"] == "HTTP/2"
            assert answer.headers["x-path"] == "/openai/v1/chat/completions"
            assert answer.headers["x-host"] == f"localhost:{port}"
            assert answer.headers["x-length"] == str(len(body))
    finally:
        provider.terminate()
        await asyncio.to_thread(provider.wait, 10)
