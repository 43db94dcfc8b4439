"""Whose key goes where, and what a client or a provider may say in headers."""

from __future__ import annotations

import json

import pytest
from aiohttp import web
from yarl import URL

from tests.security.gateway import FRONTIER_KEY, MINI_KEY, Gateway, written
from tests.security.wire import request

CLIENT = "of-the-client"
KEYS = (FRONTIER_KEY, MINI_KEY)
TREATED = {"x-user-id": "alice"}


async def fails(_: web.Request) -> web.StreamResponse:
    return web.json_response({"error": "no"}, status=500)


# --- provider keys ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0, 10_000])
async def test_each_provider_gets_its_own_key_and_nothing_of_the_client(gateway: Gateway, share: int) -> None:
    """Also when the baseline rescues what the candidate failed: both attempts share one header map."""
    frontier, mini = await gateway.serve_two(share)
    mini.handler = fails
    names = ("authorization", "Authorization", "x-api-key", "api-key", "api_key", "X_Api_Key", "proxy-authorization")
    names += ("cookie", "x-goog-api-key", "openai-organization", "openai-project")
    for name in names:
        await gateway.chat("alice", headers={name: CLIENT})
    lines = [b"authorization: Bearer of-the-client"] * 3
    body = b'{"model":"support-chat","user":"alice"}'
    await gateway.raw(request(body, *lines))
    assert len(frontier.seen) == len(names) + 1
    assert len(mini.seen) == (len(names) + 1 if share else 0)
    for provider, key in ((frontier, FRONTIER_KEY), (mini, MINI_KEY)):
        for seen in provider.seen:
            assert seen.headers["authorization"] == f"Bearer {key}"
            assert CLIENT not in str(seen.headers)
            assert not [other for other in KEYS if other != key and other in str(seen)]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_of_a_provider_is_not_followed(gateway: Gateway, status: int) -> None:
    """Neither with its key nor without."""
    frontier, mini = await gateway.serve_two()
    thief = await gateway.upstream("thief")

    async def elsewhere(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"location": f"{thief.url}/chat/completions"})

    mini.handler = elsewhere
    async with gateway.session.post(
        gateway.url + "/v1/chat/completions", data=b'{"model":"support-chat","user":"alice"}', allow_redirects=False
    ) as answer:
        assert answer.status == status
    assert not thief.seen
    assert not frontier.seen


async def test_no_key_is_in_an_answer_a_metric_the_admin_interface_a_log_or_a_file(gateway: Gateway) -> None:
    """Every page of the admin interface; every file but those that hold the keys."""
    frontier, mini = await gateway.serve_two()
    answers = [await gateway.chat(f"user-{i}") for i in range(20)]
    mini.handler = fails
    answers += [await gateway.chat(f"user-{i}") for i in range(20)]
    frontier.handler = fails
    answers += [await gateway.chat("alice"), await gateway.call("POST", "/v1/nowhere", b"{}")]
    assert any(FRONTIER_KEY in str(seen.headers) for seen in frontier.seen), "the keys were in use"
    assert any(MINI_KEY in str(seen.headers) for seen in mini.seen)
    pages = [
        await gateway.admin(path) for path in ("/config_dump?include_eds", "/config_dump?mask=", "/clusters", "/stats")
    ]
    pages += [await gateway.admin(path) for path in ("/server_info", "/listeners", "/certs", "/runtime", "/init_dump")]
    pages += [await gateway.admin("/stats/prometheus"), written(gateway.folder).decode("utf-8", "replace")]
    pages += [str(answer.headers) + answer.body.decode() for answer in answers]
    assert "generic_secret" in pages[0], "the Secrets are listed, without their content"
    for page in pages:
        for key in KEYS:
            assert key not in page


async def test_the_admin_interface_is_on_loopback_and_no_route_leads_there(gateway: Gateway) -> None:
    await gateway.serve_one()
    config = json.loads((gateway.folder / "bootstrap.json").read_text())
    assert config["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    base = f"http://127.0.0.1:{gateway.settings.stats_port}"
    pages = ("/config_dump", "/stats", "/metrics/../config_dump", "/metrics%2f..%2fconfig_dump", "/metrics?x&filter=.*")
    for path in pages:
        async with gateway.session.get(URL(base + path, encoded=True)) as answer:
            assert answer.status == 404, path
    for method in ("POST", "PUT", "DELETE"):
        async with gateway.session.request(method, f"{base}/metrics") as answer:
            assert answer.status == 404


# --- what a client claims -----------------------------------------------------------------------------------------------
CLAIMS = {
    "x-funicular-label": "easy",
    "x-funicular-candidate": "mini",
    "x-funicular-arm": "treatment",
    "x-funicular-to": "shop/support/mini",
    "x-funicular-edits": "0 0 0 -1 -1 /",
    "x-funicular-threshold": "0",
    "x-funicular-id": "shop/support;bbbb;treatment;mini;1;1.000000;0000",
    "X-Funicular-Replicate": "1",
    "x_funicular_label": "easy",
}


async def test_no_header_of_a_client_chooses_arm_candidate_or_label(gateway: Gateway) -> None:
    frontier, mini, classifier = await gateway.serve_classified(share=0)
    for unit in ("u1", "u2", None):
        answer = await gateway.chat(unit, headers=CLAIMS)
        assert (answer.arm, answer.candidate) == ("control", "frontier")
    assert not mini.seen
    assert not classifier.seen
    for seen in frontier.seen:
        assert not [name for name in seen.headers if name.replace("_", "-").startswith("x-funicular")]


async def test_a_client_cannot_answer_in_the_classifiers_place(gateway: Gateway) -> None:
    """Treated, and the classifier says nothing: the baseline, whatever the client claims."""
    _, mini, classifier = await gateway.serve_classified()
    answer = await gateway.chat("alice", headers=CLAIMS)
    assert (answer.arm, answer.candidate) == ("treatment", "frontier")
    assert not mini.seen
    (asked,) = classifier.seen
    assert asked.headers["x-funicular-threshold"] == "0.7"
    assert "x-funicular-label" not in asked.headers
    assert not [key for key in KEYS if key in str(asked.headers)]


async def test_no_header_of_a_client_changes_retries_or_time(gateway: Gateway) -> None:
    """Once to the candidate, once to the baseline, in the policy's time."""
    frontier, mini = await gateway.serve_two()
    mini.handler = frontier.handler = fails
    claims = {
        "x-envoy-max-retries": "50",
        "x-envoy-retry-on": "5xx,gateway-error,retriable-4xx",
        "x-envoy-retry-grpc-on": "internal",
        "x-envoy-retriable-status-codes": "200,500",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-upstream-rq-per-try-timeout-ms": "1",
        "x-envoy-hedge-on-per-try-timeout": "true",
        "x-envoy-expected-rq-timeout-ms": "1",
        "x-envoy-original-path": "/v1/files",
        "x-envoy-decorator-operation": "x",
        "x-envoy-upstream-alt-stat-name": "x",
        "x-envoy-internal": "true",
        "x-envoy-force-trace": "true",
        "x-forwarded-for": "10.0.0.1",
        "x-forwarded-proto": "https",
    }
    answer = await gateway.chat("alice", headers=claims)
    assert answer.status == 500
    assert answer.json() == {"error": "no"}
    assert (len(mini.seen), len(frontier.seen)) == (1, 1)
    for seen in (*mini.seen, *frontier.seen):
        assert not [name for name in seen.headers if name.startswith("x-envoy") or name == "x-forwarded-for"]


async def test_no_header_of_a_client_gives_a_provider_another_path_or_method(gateway: Gateway) -> None:
    frontier = await gateway.serve_one()
    names = ("X-Original-URL", "x-rewrite-url", "x-original-uri", "x-http-method-override", "x-forwarded-prefix")
    await gateway.chat(headers={**dict.fromkeys(names, "/v1/files"), "x-forwarded-host": "evil.example"})
    (seen,) = frontier.seen
    assert (seen.method, seen.path) == ("POST", "/v1/chat/completions")
    assert "/v1/files" not in str(seen.headers)
    assert "evil.example" not in str(seen.headers)


# --- what a provider claims ---------------------------------------------------------------------------------------------
async def test_a_provider_cannot_forge_the_answers_id(gateway: Gateway) -> None:
    frontier = await gateway.serve_one()
    forged = "shop/support;aaaa;treatment;mini;1;1.000000;00000000000000000000000000000000"

    async def forges(_: web.Request) -> web.StreamResponse:
        answer = web.json_response({})
        answer.headers.add("x-funicular-id", forged)
        answer.headers.add("X-Funicular-Id", forged)
        return answer

    frontier.handler = forges
    data = request(b'{"model":"support-chat"}')
    reply = await gateway.raw(data)
    assert reply.raw.lower().count(b"x-funicular-id:") == 1
    assert forged.encode() not in reply.raw
    assert b"x-funicular-id: shop/support;aaaa;control;frontier;" in reply.raw
    other = await gateway.raw(data.replace(b"/chat/completions", b"/embeddings"))
    assert forged.encode() not in other.raw
