from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from funicular.controller.telemetry import HealthServer, OperatorTelemetry


@pytest.fixture
def telemetry() -> OperatorTelemetry:
    found = OperatorTelemetry()
    found.leading(True)
    state: dict[str, Any] = {"revision": "r2", "phase": "Ramping", "desired": 1000, "acked": None, "observed": 980}
    found.policy("shop/chat", **state, verdicts={"errors": "Pass"})
    return found


async def read(telemetry: OperatorTelemetry, path: str, ready: bool = True) -> tuple[int, str]:
    server = HealthServer(telemetry, port=0, host="127.0.0.1", ready=lambda: ready)
    await server.start()
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{server.port}{path}") as answer:
        found = answer.status, await answer.text()
    await server.stop()
    return found


async def test_a_policy_shows_what_is_wanted_confirmed_and_seen(telemetry: OperatorTelemetry) -> None:
    _, text = await read(telemetry, "/metrics")
    at = 'namespace="shop",policy="chat"'
    assert f"funicular_operator_share_desired{{{at}}} 1000.0" in text
    assert f"funicular_operator_share_observed{{{at}}} 980.0" in text
    assert f"funicular_operator_share_acked{{{at}}}" not in text  # not all have confirmed
    assert 'phase="Ramping"' in text
    assert 'outcome="Pass"' in text
    assert "funicular_operator_leader 1.0" in text


async def test_what_is_gone_and_who_does_not_lead_shows_nothing(telemetry: OperatorTelemetry) -> None:
    telemetry.forget("shop/chat")
    assert "share_desired{" not in (await read(telemetry, "/metrics"))[1]
    telemetry.policy("shop/a", revision="", phase="", desired=0, acked=0, observed=None, verdicts={})
    telemetry.leading(False)
    assert "share_desired{" not in (await read(telemetry, "/metrics"))[1]


async def test_reverts_and_their_speed_are_counted(telemetry: OperatorTelemetry) -> None:
    telemetry.reverted("shop/chat", "Regressed")
    telemetry.acknowledged(0.2)
    telemetry.query_failed("AccessDenied")
    _, text = await read(telemetry, "/metrics")
    assert 'funicular_operator_reverts_total{namespace="shop",policy="chat",reason="Regressed"} 1.0' in text
    assert 'funicular_operator_decision_to_acked_seconds_bucket{le="0.25"} 1.0' in text
    assert 'funicular_operator_prometheus_errors_total{error="AccessDenied"} 1.0' in text


async def test_health(telemetry: OperatorTelemetry) -> None:
    assert (await read(telemetry, "/healthz"))[0] == 200
    assert (await read(telemetry, "/readyz"))[0] == 200
    assert (await read(telemetry, "/readyz", ready=False))[0] == 503
