"""What Envoy counted is what was sent, exactly; and how many series a policy costs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from funicular.adapters.envoy_admin import EnvoyAdmin
from funicular.api.spec import Price
from funicular.compile import arm_of, replicate_of
from funicular.compile.metrics import ARMS, SCRAPE, samples
from tests.integration.envoy_rig import Rig, rig, total
from tests.unit.compile.builders import make_classifier, make_policy, make_route, make_traffic, make_upstream


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path) as one:
        yield one


async def test_open_requests_are_those_of_applications(gateway: Rig) -> None:
    """A pod that drains waits for them: the question, by the admin interface, must not count itself."""
    frontier = await gateway.upstream("frontier")
    came, answer = asyncio.Event(), asyncio.Event()

    async def slowly(request: web.Request) -> web.Response:
        came.set()
        await answer.wait()
        return web.json_response({})

    frontier.handler = slowly
    await gateway.start(make_policy(make_traffic(make_route("aaaa", make_upstream("frontier", frontier.url)))))
    admin = EnvoyAdmin("127.0.0.1", gateway.settings.admin_port)
    try:
        assert await admin.active_requests() == 0
        asked = asyncio.create_task(gateway.chat("u1"))
        await came.wait()
        assert await admin.active_requests() == 1
        answer.set()
        await asked
        assert await admin.active_requests() == 0
    finally:
        await admin.close()


async def test_counts_are_exact(gateway: Rig) -> None:
    frontier, mini, classifier = [await gateway.upstream(name) for name in ("frontier", "mini", "classifier")]

    async def label(request: web.Request) -> web.Response:
        text = await request.text()
        return web.Response(headers={"x-funicular-label": "easy" if "please" in text else "hard"})

    async def answer(_: web.Request) -> web.Response:
        await asyncio.sleep(0.03)
        return web.json_response({"usage": {"prompt_tokens": 3, "completion_tokens": 2}})

    classifier.handler, mini.handler = label, answer
    price = Price(input_per_million=1.25, output_per_million=10)
    upstreams = (make_upstream("frontier", frontier.url), make_upstream("mini", mini.url, price=price))
    asked = make_classifier(f"http://127.0.0.1:{classifier.port}", timeout="2s")
    bounds = {"LatencyP50": "1h", "LatencyP95": "20ms", "LatencyP99": "15ms", "TimeToFirstToken": "20ms"}
    traffic = make_traffic(
        make_route("aaaa", upstreams[0]),
        make_route("bbbb", *upstreams, classifier=asked),
        5000,
        holdback=1000,
        latency_bounds=bounds,
    )
    await gateway.start(make_policy(traffic))
    units = [f"user-{i}" for i in range(120)]
    easy = [i % 3 == 0 for i in range(120)]
    for unit, is_easy in zip(units, easy, strict=True):
        assert (await gateway.chat(unit, note="please" if is_easy else "")).status == 200
    arms = [str(arm_of(unit, "shop", "support", traffic)) for unit in units]
    to_mini = [arm == "treatment" and is_easy for arm, is_easy in zip(arms, easy, strict=True)]
    await asyncio.sleep(1.1)  # histograms show after a flush
    found = await gateway.samples()

    base = {"namespace": "shop", "policy": "support", "revision": "bbbb"}
    for arm, count in Counter(arms).items():
        assert total(found, "funicular_requests_total", **base, arm=arm, code="2xx") == count
        assert total(found, "funicular_outcomes_total", **base, arm=arm, outcome="good") == count
        assert total(found, "funicular_request_duration_seconds_count", arm=arm) == count
        assert total(found, "funicular_time_to_first_token_seconds_count", arm=arm) == count
    for (arm, replicate), count in Counter(zip(arms, map(replicate_of, units), strict=True)).items():
        labels = {**base, "arm": arm, "replicate": str(replicate)}
        assert total(found, "funicular_outcomes_total", **labels) == count
    assert total(found, "funicular_decisions_total", decision="easy", reason="classified") == sum(to_mini)
    treated = Counter(arms)["treatment"]
    assert total(found, "funicular_decisions_total", decision="hard", reason="classified") == treated - sum(to_mini)
    assert total(found, "funicular_decisions_total", reason="not_asked") == 120 - treated
    assert total(found, "funicular_tokens_total", candidate="mini", kind="prompt") == 3 * sum(to_mini)
    assert total(found, "funicular_tokens_total", candidate="frontier", kind="completion") == 5 * (120 - sum(to_mini))
    for kind, mini_tokens, others in (("prompt", 3, 7), ("completion", 2, 5)):
        by_replicate = total(found, "funicular_replicate_tokens_total", kind=kind)
        assert by_replicate == mini_tokens * sum(to_mini) + others * (120 - sum(to_mini))
    assert total(found, "funicular_slow_total", indicator="LatencyP50") == 0
    for indicator in ("LatencyP95", "LatencyP99"):
        assert total(found, "funicular_slow_total", indicator=indicator) >= sum(to_mini)
    assert total(found, "funicular_slow_total", indicator="TimeToFirstToken") >= sum(to_mini)
    mini_replicates = {replicate_of(u) for u, m in zip(units, to_mini, strict=True) if m}
    for replicate in mini_replicates:
        labels = {"arm": "treatment", "replicate": str(replicate), "indicator": "TimeToFirstToken"}
        assert total(found, "funicular_slow_total", **labels) >= 1
    assert not [
        key for family in found.values() for key in family if not set(dict(key)) >= {"namespace", "policy", "arm"}
    ]


async def test_only_a_measured_policy_has_series_by_replicate(gateway: Rig) -> None:
    frontier = await gateway.upstream("frontier")
    upstream = make_upstream("frontier", frontier.url)
    idle = make_traffic(make_route("aaaa", upstream), latency_bounds={"LatencyP95": "0s"}, holdback=100)
    await gateway.start(make_policy(idle))
    for i in range(80):
        answer = await gateway.chat(f"u{i}")
        assert answer.identity[2:5] == ["control", "frontier", ""]
    await asyncio.sleep(1.1)
    found = samples(await gateway.admin(f"/stats/prometheus?usedonly&filter={SCRAPE}"))
    assert sum(len(family) for family in found.values()) < 50
    assert not {"funicular_outcomes_total", "funicular_slow_total", "funicular_replicate_tokens_total"} & found.keys()
    assert samples(await gateway.admin(f"/stats/prometheus?usedonly&filter={ARMS}")) == {}


async def test_a_client_cannot_choose_a_label(gateway: Rig) -> None:
    frontier = await gateway.upstream("frontier")
    upstream = make_upstream("frontier", frontier.url)
    ramp = make_traffic(make_route("aaaa", upstream), make_route("bbbb", upstream), 5000)
    await gateway.start(make_policy(ramp))
    for unit in ("evil-label", 'evil-"label\\', "evil-\u00fc"):
        await gateway.chat(None, user=unit, headers={"x-request-id": "evil", "user-agent": "evil"})
    await gateway.chat(None, model="evil-model")
    await gateway.call("POST", "/v1/evil", b'{"model":"support-chat"}')
    text = await gateway.admin("/stats/prometheus?usedonly")
    assert "evil" not in text
    assert "envoy_funicular_outcomes" in text
