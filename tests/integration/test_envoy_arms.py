"""The arm, the replicate and the unit that Envoy chooses are those that Python computes; shares and classifier answers."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from funicular.api.spec import UnitSource
from funicular.api.traffic import Route, Traffic
from funicular.compile import Arm, arm_of, replicate_of, share_layer
from funicular.compile.ack import SHARES
from tests.integration.envoy_rig import KEY, Rig, Upstreamer, rig, total
from tests.unit.compile.builders import make_classifier, make_policy, make_route, make_traffic, make_upstream

FAST = 16  # requests under way at once


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path) as one:
        yield one


async def ramp(gateway: Rig, share: int = 0, **fields: Any) -> tuple[Traffic, Upstreamer, Upstreamer]:
    """One policy, `mini` for all treated requests."""
    frontier, mini = await gateway.upstream("frontier"), await gateway.upstream("mini")
    upstreams = (make_upstream("frontier", frontier.url), make_upstream("mini", mini.url))
    stable, candidate = make_route("aaaa", upstreams[0]), make_route("bbbb", *upstreams, single="mini")
    traffic = make_traffic(stable, candidate, share, **{"holdback": 1000, **fields})
    await gateway.start(make_policy(traffic))
    return traffic, frontier, mini


async def arms_of(gateway: Rig, units: list[str], **members: Any) -> list[tuple[str, str]]:
    """Arm and replicate of each, as the signed id says."""
    gate = asyncio.Semaphore(FAST)

    async def one(unit: str) -> tuple[str, str]:
        async with gate:
            answer = await gateway.chat(unit, **members)
            assert answer.status == 200, answer.body
            return answer.arm, answer.identity[4]

    return await asyncio.gather(*(one(unit) for unit in units))


async def test_arm_and_replicate_are_what_python_computes_at_every_share(gateway: Rig) -> None:
    traffic, _, mini = await ramp(gateway)
    rng = random.Random(7)
    units = [f"user-{i}" for i in range(600)]
    units += ["".join(rng.choices("abcXYZ0189-_.@ /", k=rng.randint(1, 70))).strip() or "x" for _ in range(300)]
    treated: set[str] = set()
    for share in (0, 100, 1000, 5000, 10_000):
        await gateway.share(share)
        found = await arms_of(gateway, units)
        expected = [(str(arm_of(unit, "shop", "support", traffic, share)), str(replicate_of(unit))) for unit in units]
        assert found == expected
        now = {unit for unit, (arm, _) in zip(units, found, strict=True) if arm == Arm.TREATMENT}
        assert treated <= now, "nobody leaves the treatment on the way up"
        treated = now
    assert mini.seen
    await gateway.share(0)
    assert {arm for arm, _ in await arms_of(gateway, units[:200])} == {"control", "holdback"}


async def test_a_share_of_another_revision_treats_nobody(gateway: Rig) -> None:
    await ramp(gateway, 10_000)
    policy = gateway.policies[0]
    layer = {policy.share_key + "x": 10_000}
    await gateway.taken({SHARES: gateway.write("runtime/runtime", [share_layer(layer)])})
    assert "treatment" not in {arm for arm, _ in await arms_of(gateway, [f"u{i}" for i in range(100)])}


async def test_units_come_from_the_policys_own_places_in_its_order(gateway: Rig) -> None:
    units = (
        UnitSource(body="session"),
        UnitSource(header="x-tenant"),
        UnitSource(api_key=True),
        UnitSource(body="user"),
    )
    await ramp(gateway, 5000, units=units)
    everything: dict[str, Any] = {"headers": {"x-tenant": "tenant", "authorization": "Bearer key"}, "user": "last"}

    async def replicate(**parts: Any) -> str:
        return (await gateway.chat(None, **parts)).identity[4]

    assert await replicate(session="first", **everything) == str(replicate_of("first"))
    assert await replicate(session="", **everything) == str(replicate_of("tenant"))
    assert await replicate(session=None, **everything) == str(replicate_of("tenant"))
    assert await replicate(session={"a": 1}, **everything) == str(replicate_of("tenant"))
    assert await replicate(session=42, **everything) == str(replicate_of("42"))
    without = {**everything, "headers": {"authorization": "Bearer key", "x-tenant": ""}}
    assert await replicate(**without) == str(replicate_of("Bearer key"))
    assert await replicate(user="last") == str(replicate_of("last"))
    assert await replicate(headers={"x-user-id": "not asked for"}) == ""


async def test_a_unit_is_one_unit_however_json_writes_it(gateway: Rig) -> None:
    await ramp(gateway, 5000, units=(UnitSource(body="user"),))
    for unit in ("Zoë", "日本", "😀x", 'a"b\\c/d\n\t', "\\u0041", "A", "a", " a "):
        for ascii_only in (True, False):
            body = json.dumps({"model": "support-chat", "user": unit}, ensure_ascii=ascii_only).encode()
            answer = await gateway.call("POST", "/v1/chat/completions", body)
            assert answer.identity[4] == str(replicate_of(unit)), (unit, ascii_only)
    escaped = b'{"model":"support-chat","\\u0075ser":"\\u0061\\/b"}'
    answer = await gateway.call("POST", "/v1/chat/completions", escaped)
    assert answer.identity[4] == str(replicate_of("a/b"))


async def test_without_a_unit_control_answers_and_it_is_counted(gateway: Rig) -> None:
    await ramp(gateway, 10_000)
    answers = [await gateway.chat() for _ in range(5)]
    assert {a.arm for a in answers} == {"control"}
    found = await gateway.samples()
    assert total(found, "funicular_decisions_total", reason="no_unit", arm="control") == 5
    assert total(found, "funicular_outcomes_total") == 0
    assert total(found, "funicular_requests_total", arm="control", code="2xx") == 5


async def test_an_answers_id_can_be_verified_and_names_who_answered(gateway: Rig) -> None:
    await ramp(gateway, 10_000, holdback=0)
    answer = await gateway.chat("alice")
    signed, _, signature = answer.headers["x-funicular-id"].rpartition(";")
    assert signature == hmac.new(KEY.encode(), signed.encode(), hashlib.sha256).digest()[:16].hex()
    assert signed.startswith(f"shop/support;bbbb;treatment;mini;{replicate_of('alice')};")
    assert re.fullmatch(r"\d+\.\d{6}", signed.rpartition(";")[2])


async def test_no_two_answers_share_an_id(gateway: Rig) -> None:
    await ramp(gateway)
    answers = [await gateway.chat(None) for _ in range(50)]
    assert len({answer.headers["x-funicular-id"] for answer in answers}) == 50


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fine_tuning/jobs",
        "/v1/config_dump",
        "/v1/quitquitquit",
        "/v1/chat/completions/",
        "/v1/feedback/",
        "/v1/%2e%2e%2fadmin/state",
        "/v1/chat%2fcompletions",
    ],
)
async def test_a_path_that_is_not_of_the_api_reaches_no_provider(gateway: Rig, path: str) -> None:
    await ramp(gateway)
    answer = await gateway.call("POST", path, b'{"model": "support-chat"}')
    assert answer.status in (400, 404)
    assert not gateway.upstreams[0].seen


async def test_what_a_client_claims_in_our_headers_is_ignored(gateway: Rig) -> None:
    traffic, _, mini = await ramp(gateway)
    spoofed = {
        "x-funicular-label": "easy",
        "X-Funicular-Candidate": "mini",
        "x-funicular-id": "a/b;c;d",
        "x-funicular-x": "y",
    }
    for unit in ("u1", "u2", "u3", None):
        answer = await gateway.chat(unit, headers=spoofed)
        assert answer.arm == str(arm_of(unit, "shop", "support", traffic, 0))
        assert answer.candidate == "frontier"
        assert len(answer.headers["x-funicular-id"].split(";")) == 7
    assert not mini.seen
    assert not [h for seen in gateway.upstreams[0].seen for h in seen.headers if h.startswith("x-funicular")]


# --- classifier -------------------------------------------------------------------------------------------------------
async def classified(gateway: Rig, stable_classifies: bool = False) -> tuple[Upstreamer, Upstreamer, Upstreamer]:
    frontier, mini, classifier = [await gateway.upstream(name) for name in ("frontier", "mini", "classifier")]
    upstreams = (make_upstream("frontier", frontier.url), make_upstream("mini", mini.url))
    asked = make_classifier(f"http://127.0.0.1:{classifier.port}/base", timeout="150ms", threshold=0.25)
    route: Route = make_route("bbbb", *upstreams, classifier=asked)
    if stable_classifies:
        stable, candidate = route, make_route("cccc", *upstreams)
    else:
        stable, candidate = make_route("aaaa", upstreams[0]), route
    await gateway.start(make_policy(make_traffic(stable, candidate, 0 if stable_classifies else 10_000)))
    return frontier, mini, classifier


def labelled(label: str, status: int = 200) -> Any:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"x-funicular-label": label, "x-funicular-score": "0.9"})

    return handler


async def test_the_classifier_decides_and_sees_the_body_but_no_key(gateway: Rig) -> None:
    frontier, mini, classifier = await classified(gateway)
    classifier.handler = labelled("easy")
    answer = await gateway.chat(
        "alice", headers={"authorization": "Bearer client", "cookie": "a=b"}, secret_number=2**70
    )
    assert (answer.arm, answer.candidate) == ("treatment", "mini")
    asked = classifier.seen[0]
    assert (asked.method, asked.path) == ("POST", "/base/v1/classify")
    assert asked.headers["x-funicular-threshold"] == "0.25"
    assert asked.headers["content-type"] == "application/json"
    assert not {"authorization", "cookie", "x-user-id"} & asked.headers.keys()
    assert json.loads(asked.body)["model"] == "support-chat"
    classifier.handler = labelled("hard")
    assert (await gateway.chat("alice")).candidate == "frontier"
    assert (len(frontier.seen), len(mini.seen), len(classifier.seen)) == (1, 1, 2)
    assert not [h for seen in (*frontier.seen, *mini.seen) for h in seen.headers if h.startswith("x-funicular")]


async def hangs(_: web.Request) -> web.Response:
    await asyncio.sleep(2)
    return web.Response(headers={"x-funicular-label": "easy"})


async def aborts(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        pytest.param(labelled("EASY"), "unknown_label", id="a label is compared exactly"),
        pytest.param(labelled("easy,hard"), "unknown_label", id="two labels in one"),
        pytest.param(labelled("\u00e9\u00e8"), "unknown_label", id="a label that is not ASCII"),
        pytest.param(labelled("easy", 500), "no_answer", id="an error with a label"),
        pytest.param(labelled("easy", 403), "no_answer", id="a refusal"),
        pytest.param(hangs, "no_answer", id="too slow"),
        pytest.param(aborts, "no_answer", id="the connection breaks"),
        pytest.param(None, "no_answer", id="no label"),
        pytest.param("refused", "no_answer", id="nobody listens"),
    ],
)
async def test_whatever_is_wrong_with_the_classifier_the_baseline_answers(
    gateway: Rig, handler: Any, reason: str
) -> None:
    _, mini, classifier = await classified(gateway)
    if handler == "refused":
        await classifier.stop()
    else:
        classifier.handler = handler
    answer = await gateway.chat("alice")
    assert (answer.status, answer.arm, answer.candidate) == (200, "treatment", "frontier")
    assert not mini.seen
    found = await gateway.samples()
    assert total(found, "funicular_decisions_total", reason=reason) == 1
    assert total(found, "funicular_decisions_total") == 1
    assert total(found, "funicular_outcomes_total", outcome="good") == 1


async def test_control_keeps_the_stable_revisions_classifier(gateway: Rig) -> None:
    _, mini, classifier = await classified(gateway, stable_classifies=True)
    classifier.handler = labelled("easy")
    answer = await gateway.chat("alice")
    assert (answer.arm, answer.candidate) == ("control", "mini")
    assert answer.identity[1] == "cccc", "every arm is counted for the revision under comparison"
    assert mini.seen


async def test_who_is_not_treated_is_not_classified(gateway: Rig) -> None:
    _, _, classifier = await classified(gateway)
    await gateway.share(0)
    await arms_of(gateway, [f"u{i}" for i in range(30)])
    assert not classifier.seen
