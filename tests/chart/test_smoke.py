"""`funicular smoke`, which `helm test` runs: against an API that is played and gateways that are real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from funicular.cli.smoke import checks, healthy, leader_of, run
from funicular.errors import FunicularError, GatewayUnavailable, NotFound, RetryLater, UserMustFix

Json = dict[str, Any]
NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


class FixedClock:
    def now(self) -> datetime:
        return NOW


class PlayedApi:
    """Answers by path; what is not there is not found."""

    def __init__(self, **missing: bool) -> None:
        self.knows_policies = not missing.get("policies", False)
        self.lease: Json | None = lease()

    async def get(self, path: str, **_: str) -> Json:
        if path == "/version":
            return {"gitVersion": "v1.37.2"}
        if path.endswith("/namespaces/platform/leases/funicular-operator") and self.lease is not None:
            return self.lease
        raise NotFound(path)

    async def list_all(self, path: str, **_: str) -> tuple[list[Json], str]:
        if self.knows_policies:
            return [{"metadata": {"name": "chat"}}], "1"
        raise NotFound(path)


def lease(**spec: Any) -> Json:
    renewed = (NOW - timedelta(seconds=2)).isoformat()
    return {"spec": {"holderIdentity": "pod_1", "renewTime": renewed, "leaseDurationSeconds": 15, **spec}}


@pytest_asyncio.fixture
async def gateway() -> AsyncIterator[tuple[str, list[int]]]:
    """Its URL, and the statuses of its next answers; the last one stays."""
    statuses = [200]

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=statuses.pop(0) if len(statuses) > 1 else statuses[0])

    app = web.Application()
    app.router.add_get("/healthz", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", statuses
    await runner.cleanup()


async def said(api: PlayedApi, *urls: str, timeout: float = 0.0) -> list[str]:
    lines: list[str] = []
    await run(checks(api, "shop", "platform", urls, FixedClock()), timeout, lines.append)  # type: ignore[arg-type]
    return lines


async def test_everything_that_holds_is_said(gateway: tuple[str, list[int]]) -> None:
    assert await said(PlayedApi(), gateway[0]) == [
        "ok: the API server answers: v1.37.2",
        "ok: RoutingPolicies are served: 1 in namespace shop",
        "ok: an operator leads: pod_1",
        f"ok: the gateway answers: {gateway[0]}",
    ]


async def test_a_check_is_asked_until_it_holds(gateway: tuple[str, list[int]]) -> None:
    url, statuses = gateway
    statuses[:] = [503, 503, 200]
    assert (await said(PlayedApi(), url, timeout=20))[-1] == f"ok: the gateway answers: {url}"
    assert statuses == [200]


async def test_a_cluster_without_the_crd_is_said() -> None:
    with pytest.raises(UserMustFix, match="does not know RoutingPolicies"):
        await said(PlayedApi(policies=True))


async def test_an_operator_that_never_led_is_said() -> None:
    api = PlayedApi()
    api.lease = None
    with pytest.raises(NotFound, match="no operator has ever led in namespace platform"):
        await said(api)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        pytest.param({"holderIdentity": ""}, "the Lease is free", id="nobody holds it"),
        pytest.param({"renewTime": None}, "the Lease is free", id="it was never renewed"),
        pytest.param(
            {"renewTime": (NOW - timedelta(seconds=16)).isoformat()},
            "has not renewed its Lease",
            id="its holder is gone",
        ),
    ],
)
def test_a_lease_that_nobody_renews_is_no_leader(spec: Json, sentence: str) -> None:
    with pytest.raises(RetryLater, match=sentence):
        leader_of(lease(**spec), NOW)


def test_the_last_moment_of_a_lease_still_counts() -> None:
    assert leader_of(lease(renewTime=(NOW - timedelta(seconds=15)).isoformat()), NOW) == "pod_1"


async def test_a_gateway_that_is_not_healthy_is_said(gateway: tuple[str, list[int]]) -> None:
    url, statuses = gateway
    statuses[:] = [503]
    with pytest.raises(GatewayUnavailable, match="/healthz answers 503"):
        await healthy(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "not a url", "http://no.such.name.invalid"])
async def test_a_gateway_that_is_not_there_is_one_of_our_errors(url: str) -> None:
    with pytest.raises(GatewayUnavailable):
        await asyncio.wait_for(healthy(url), 30)


async def test_the_first_check_that_fails_ends_it() -> None:
    api = PlayedApi(policies=True)
    api.lease = None
    lines: list[str] = []
    with pytest.raises(FunicularError, match="RoutingPolicies"):
        await run(checks(api, "shop", "platform", (), FixedClock()), 0.0, lines.append)  # type: ignore[arg-type]
    assert len(lines) == 1
