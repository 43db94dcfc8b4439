"""The application that end-to-end tests run in pods: what its /state says is what happened on real sockets."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web

from hack.sim.processes import Running, free_port, provider, running

ANSWER = {"model": "gpt-frontier", "choices": [{"message": {"content": "Gladly. [quality=good]"}}]}


@contextmanager
def app(*options: str) -> Iterator[Running]:
    port = free_port()
    command = (sys.executable, "-m", "hack.sim", "app", "--host", "127.0.0.1", "--port", str(port), *options)
    with running(*command, port=port) as server:
        yield server


def state(server: Running) -> dict[str, Any]:
    status, body = server.get("/state")
    assert status == 200
    found: dict[str, Any] = orjson.loads(body)
    return found


def until(server: Running, seen: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 20.0
    while not seen(now := state(server)):
        assert time.monotonic() < deadline, now
        time.sleep(0.05)
    return now


def paused(server: Running) -> dict[str, Any]:
    """No more requests, and none under way."""
    assert server.post("/rate", {"rate": 0}) == (200, '{"rate": 0.0}')
    return until(server, lambda it: it["in_flight"] == 0 and it["ok"] + it["failed"] == it["sent"])


@asynccontextmanager
async def gateway(arm: Callable[[int], str]) -> AsyncIterator[tuple[str, set[int]]]:
    """Answers as a gateway would, with the arm that `arm` gives the n-th request; and every connection that it saw."""
    connections: set[int] = set()
    requests = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal requests
        requests += 1
        assert request.transport is not None
        connections.add(request.transport.get_extra_info("peername")[1])
        number = f"ns/policy;r1;{arm(requests)};frontier;7;1700000000.5;{requests:032x}"
        return web.json_response(ANSWER, headers={"x-funicular-id": number})

    served = web.Application()
    served.add_routes([web.post("/v1/chat/completions", answer)])
    runner = web.AppRunner(served)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}/v1", connections
    finally:
        await runner.cleanup()


def test_what_a_provider_failed_itself_is_failed_and_not_lost() -> None:
    with provider("--faults", '{"error_rate": 0.5, "error_code": 503}') as model:
        options = ("--url", f"{model.url}/v1", "--provider", model.url, "--rate", "200", "--no-votes")
        with app(*options) as it:
            until(it, lambda now: now["failed"] >= 20)
            last = paused(it)
            assert last["lost"] == 0
            assert last["failed_by_provider"] == last["failed"] == last["failed_by_reason"]["status"]
            assert last["ok"] > 0
            failures = orjson.loads(it.get("/failures")[1])
            assert len(failures) == last["failed"]
            assert {failure["status"] for failure in failures} == {503}
            assert not any("user" in failure for failure in failures)


def test_what_a_provider_said_outlives_its_restart() -> None:
    port = free_port()
    start = (sys.executable, "-m", "hack.sim.provider", "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    with app("--url", url, "--provider", url, "--rate", "0", "--no-votes") as it:
        with running(*start, "--faults", '{"error_rate": 1.0}', port=port):
            it.post("/rate", {"rate": 100})
            until(it, lambda now: now["failed_by_provider"] >= 10)
            before = paused(it)
        with running(*start, port=port):
            it.post("/rate", {"rate": 100})
            until(it, lambda now: now["ok"] >= 10)
            after = paused(it)
    assert before["failed_by_provider"] == after["failed_by_provider"] > 0
    assert after["lost"] == 0


def test_a_refused_connection_is_lost() -> None:
    with app("--url", f"http://127.0.0.1:{free_port()}/v1", "--rate", "100") as it:
        last = until(it, lambda now: now["lost"] >= 5)
        assert last["lost_by_reason"].keys() == {"connect"}
        assert last["arms"] == {"none": {"ok": 0, "failed": last["arms"]["none"]["failed"], "candidates": {}}}


def test_a_provider_that_cannot_be_asked_is_named() -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with app("--url", nobody, "--provider", nobody, "--rate", "100") as it:
        last = until(it, lambda now: now["lost"] >= 5)
        assert last["providers_unreachable"] == [nobody]


@pytest.mark.parametrize(("new", "is_kept"), [("0", True), ("1", False)])
async def test_arms_are_counted_and_connections_are_kept_or_not(new: str, is_kept: bool) -> None:
    def arm(number: int) -> str:
        return "treatment" if number % 2 else "control"

    def one() -> dict[str, Any]:
        options = ("--url", url, "--rate", "200", "--no-votes", "--stream-share", "0", "--new-connections", new)
        with app(*options) as it:
            until(it, lambda now: now["ok"] >= 60)
            return paused(it)

    async with gateway(arm) as (url, connections):
        last = await asyncio.to_thread(one)
    arms = last["arms"]
    assert arms["treatment"]["ok"] - arms["control"]["ok"] in (0, 1)
    assert last["revisions"] == {"r1": {name: arms[name]["ok"] for name in ("treatment", "control")}}
    assert last["models"] == {"gpt-frontier": last["ok"]}
    assert len(connections) < last["ok"] / 2 if is_kept else len(connections) == last["ok"]


def test_a_bad_rate_is_refused() -> None:
    with app("--url", "http://127.0.0.1:1", "--rate", "0") as it:
        assert it.post("/rate", {"rate": -1})[0] == 422
        assert it.post("/rate", {"rat": 1})[0] == 422
        assert state(it)["rate"] == 0


def test_sigterm_ends_it_when_all_are_answered() -> None:
    with provider("--faults", '{"latency_ms": 400}') as model:
        with app("--url", model.url, "--rate", "50", "--no-votes") as it:
            until(it, lambda now: now["in_flight"] > 0)
            assert it.terminate() == 0
        found = orjson.loads(model.get("/admin/state")[1])
        assert found["aborted_by_client"] == 0
        assert found["requests"] == found["by_status"]["200"] > 0
