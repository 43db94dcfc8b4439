"""The simulated world on real sockets: the official client against the provider, the load generator against both."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import orjson
import pytest
import xxhash

from funicular.classifier.http1 import Exchange, Registry
from hack.sim.load import Load, provider_failures
from hack.sim.load_thread import LoadThread
from hack.sim.outcomes import Failure, Results, Step
from hack.sim.processes import Running, free_port, provider
from hack.sim.users import Habits, Population

KEY = "sk-simulated"
ASK: list[Any] = [{"role": "user", "content": "Where is my order 40017?"}]
NOTHING_WRONG: dict[str, Any] = {
    "latency_ms": 0, "latency_sigma": 0, "ttft_ms": 0, "chunk_ms": 0, "error_rate": 0, "error_code": 500,
    "rate_limit_rps": 0, "garbage_rate": 0, "cut_stream_rate": 0, "hang_rate": 0, "refuse": False, "quality": 1.0,
    "quality_hard": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def process() -> Iterator[Running]:
    with provider("--api-key", KEY, "--seed", "5", name="qwen-small") as server:
        yield server


@pytest.fixture
def model(process: Running) -> Running:
    """The provider, with a clean slate."""
    process.post("/admin/faults", NOTHING_WRONG)
    process.post("/admin/reset", {})
    return process


@pytest.fixture
def client(model: Running) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False, timeout=5.0)
    with openai.OpenAI(base_url=f"{model.url}/v1", api_key=KEY, max_retries=0, http_client=http) as made:
        yield made


def state(server: Running) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(server.get("/admin/state")[1])
    return found


# --- the official client --------------------------------------------------------------------------------------------------
def test_a_completion(client: openai.OpenAI, model: Running) -> None:
    answer = client.chat.completions.create(model="support-chat", messages=ASK)
    assert answer.model == "support-chat"
    text = answer.choices[0].message.content or ""
    assert "support-chat (qwen-small) says" in text
    assert text.endswith("[quality=good]")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 10
    assert state(model)["by_model"] == {"support-chat": 1}


def test_a_stream_says_the_same_as_the_whole_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="m", messages=ASK, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert len(chunks) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text.strip().endswith("[quality=good]")


def test_a_stream_has_no_usage_unless_asked(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="m", messages=ASK, stream=True) as stream:
        assert all(chunk.usage is None for chunk in stream)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["qwen-small"]


def test_a_foreign_key_and_our_headers_are_noticed(client: openai.OpenAI, model: Running) -> None:
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        client.with_options(api_key="sk-of-another").chat.completions.create(model="m", messages=ASK)
    client.chat.completions.create(model="m", messages=ASK, extra_headers={"x-funicular-label": "easy"})
    seen = state(model)
    assert seen["foreign_keys"] == {"sk-of-another": 1}
    assert seen["by_key"] == {"sk-of-another": 1, KEY: 1}
    assert seen["funicular_headers"] == {"x-funicular-label": 1}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param({"model": "m", "messages": []}, "messages", id="no messages"),
        pytest.param({"messages": ASK}, "model", id="no model"),
    ],
)
def test_a_bad_request_is_a_400(client: openai.OpenAI, body: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.post("/chat/completions", body=body, cast_to=object)


# --- faults ---------------------------------------------------------------------------------------------------------------
def ask_once(client: openai.OpenAI, number: str, *, stream: bool = False) -> None:
    body = {"model": "m", "messages": ASK, "metadata": {"request": number}}
    if stream:
        with client.chat.completions.create(stream=True, **body) as chunks:  # type: ignore[call-overload]
            list(chunks)
    else:
        client.chat.completions.create(**body)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("faults", "error", "fate"),
    [
        pytest.param({"error_rate": 1, "error_code": 503}, openai.InternalServerError, "error", id="an error"),
        pytest.param({"hang_rate": 1}, openai.APITimeoutError, "hang", id="no answer at all"),
        pytest.param({"refuse": True}, openai.APIConnectionError, "refused", id="a dead pod"),
    ],
)
def test_a_fault_reaches_the_client_and_is_recorded(
    client: openai.OpenAI, model: Running, faults: dict[str, Any], error: type[Exception], fate: str
) -> None:
    assert model.post("/admin/faults", faults)[0] == 200
    with pytest.raises(error):
        ask_once(client.with_options(timeout=0.3), "r1")
    assert orjson.loads(model.get("/admin/failures")[1]) == {"r1": [fate]}


def test_a_stream_is_cut_in_the_middle(client: openai.OpenAI, model: Running) -> None:
    model.post("/admin/faults", {"cut_stream_rate": 1})
    with pytest.raises(openai.APIConnectionError):
        ask_once(client, "r2", stream=True)
    assert orjson.loads(model.get("/admin/failures")[1]) == {"r2": ["cut"]}
    ask_once(client, "r3")


def test_garbage_is_no_completion(client: openai.OpenAI, model: Running) -> None:
    model.post("/admin/faults", {"garbage_rate": 1})
    raw = client.chat.completions.with_raw_response.create(model="m", messages=ASK)
    assert raw.status_code == 200
    assert raw.content.startswith(b"<html>")


def test_a_rate_limit_says_when_to_come_back(client: openai.OpenAI, model: Running) -> None:
    model.post("/admin/faults", {"rate_limit_rps": 1})
    ask_once(client, "r4")
    with pytest.raises(openai.RateLimitError) as caught:
        ask_once(client, "r5")
    assert caught.value.response.headers["retry-after"] == "1"


def test_a_wrong_fault_is_refused_and_changes_nothing(model: Running) -> None:
    status, message = model.post("/admin/faults", {"error_rate": 7})
    assert status == 422
    assert "error_rate" in message
    assert state(model)["faults"] == NOTHING_WRONG


def test_quality_is_as_told_and_belongs_to_the_request(client: openai.OpenAI, model: Running) -> None:
    def answer(number: int, difficulty: str = "easy") -> str:
        notes = {"request": str(number), "difficulty": difficulty}
        made = client.chat.completions.create(model="m", messages=ASK, metadata=notes)
        return made.choices[0].message.content or ""

    model.post("/admin/faults", {"quality": 0.5})
    texts = [answer(i) for i in range(200)]
    assert 60 <= sum("quality=good" in text for text in texts) <= 140
    assert [answer(i) for i in range(20)] == texts[:20]
    model.post("/admin/faults", {"quality": 1.0, "quality_hard": 0.0})
    assert "quality=good" in answer(1)
    assert "quality=bad" in answer(1, "hard")


def test_time_to_first_token_and_between_chunks(client: openai.OpenAI, model: Running) -> None:
    model.post("/admin/faults", {"ttft_ms": 60, "chunk_ms": 1})
    with client.chat.completions.create(model="m", messages=ASK, stream=True) as stream:
        assert len(list(stream)) > 5
    model.post("/admin/faults", {"latency_ms": 50})
    ask_once(client, "r6")
    assert state(model)["in_flight"] == 0


def test_sigterm_ends_it_with_0_even_while_it_streams() -> None:
    with provider("--faults", '{"chunk_ms": 10000, "hang_rate": 0.0}') as server, httpx.Client(trust_env=False) as http:
        body = {"model": "m", "messages": ASK, "stream": True}
        with http.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            assert server.terminate() == 0


# --- the load ---------------------------------------------------------------------------------------------------------------
class Gateway:
    """Stands in for a gateway pod: answers itself, with ids, and takes votes. `share` in basis points."""

    def __init__(self, share: int = 0) -> None:
        self.share = share
        self.votes: list[dict[str, str]] = []
        self.asked = 0

    def __call__(self, exchange: Exchange) -> None:
        if exchange.target == b"/v1/feedback":
            self.votes.append(orjson.loads(exchange.body))
            exchange.answer(202)
            return
        self.asked += 1
        body = orjson.loads(exchange.body)
        unit = exchange.headers.get(b"x-user-id", body.get("user", "").encode())
        treated = bool(unit) and xxhash.xxh64(unit, seed=7).intdigest() % 10_000 < self.share
        answer_id = f"shop/support-chat;r2;{'treatment' if treated else 'control'};mini;3;1700000000;c2ln"
        text = "fine [quality=good]" if self.asked % 10 else "hm [quality=bad]"
        fields = b"x-funicular-id: %s\r\n" % answer_id.encode()
        if body.get("stream"):
            exchange.start(200, fields)
            exchange.write(b'data: {"model":"m","choices":[{"delta":{"content":"%s"}}]}\n\n' % text.encode())
            exchange.write(b"data: [DONE]\n\n")
            exchange.end()
        else:
            exchange.answer(200, fields, orjson.dumps({"model": "m", "choices": [{"message": {"content": text}}]}))


@asynccontextmanager
async def pod(gateway: Gateway) -> AsyncIterator[str]:
    registry = Registry(gateway)
    server = await asyncio.get_running_loop().create_server(registry.connection, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await registry.close(0.0)


async def test_every_failure_is_attributed_to_the_provider_that_caused_it(model: Running) -> None:
    model.post("/admin/faults", {"error_rate": 0.1, "garbage_rate": 0.05, "cut_stream_rate": 0.1, "latency_ms": 3})
    load = Load(Population(seed=11, client_key=KEY), [model.url], rate=400.0)
    results = await load.run(requests=400)
    results.attribute(await provider_failures([model.url]))
    assert len(results.outcomes) == load.live.sent == 400
    assert {o.failure for o in results.failed} == {Failure.STATUS, Failure.GARBAGE, Failure.CUT}
    assert results.lost == []
    assert load.live.ok + load.live.failed == 400
    assert load.live.in_flight == 0
    assert state(model)["requests"] == 400


async def test_what_no_provider_failed_is_lost() -> None:
    load = Load(Population(), [f"http://127.0.0.1:{free_port()}"], rate=500.0)
    results = await load.run(requests=20)
    results.attribute([{}])
    assert [o.failure for o in results.lost] == [Failure.CONNECT] * 20
    assert "LOST" in results.lost[0].explain()


async def test_another_pod_is_tried_only_when_told_to() -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    async with pod(Gateway()) as alive:
        patient = Load(Population(), [dead, alive], rate=500.0, retry=True, votes=False)
        results = await patient.run(requests=40)
        assert results.failed == []
        assert len(results.retried) == patient.live.retried == 20
        assert results.retried[0].tried_before == (dead,)
        plain = await Load(Population(), [dead, alive], rate=500.0, votes=False).run(requests=40)
        assert len(plain.failed) == 20
        assert plain.retried == []


async def test_users_stay_and_shares_only_grow() -> None:
    gateway = Gateway()
    steps = []
    async with pod(gateway) as first, pod(gateway) as second:
        load = Load(Population(Habits(users=100), seed=2), [first, second], rate=1_000.0)
        running = asyncio.create_task(load.run())
        for share in (100, 3_000, 10_000):
            gateway.share = share
            before = len(load.results.outcomes)
            since = await _after(load, before + 1)
            until = await _after(load, before + 200)
            steps.append((share, since, until))
        load.stop()
        results = await running
    rows = results.per_step([Step(str(share), since + 0.02, until) for share, since, until in steps], "r2")
    assert all(row.contains_the_step_before for row in rows)
    assert not any(row.both for row in rows)
    assert len(rows[0].treated) <= len(rows[1].treated) < len(rows[2].treated)
    assert results.moved_back("r2", 0, float("inf")) == {}
    assert set(load.live.by_pod) == {first, second}


async def _until(fact: Callable[[], bool]) -> None:
    while not fact():  # noqa: ASYNC110 - the load has no event for it, and runs in this loop
        await asyncio.sleep(0.005)


async def _after(load: Load, count: int) -> float:
    await _until(lambda: len(load.results.outcomes) >= count)
    return load.results.outcomes[-1].at


async def test_votes_reach_the_gateway_and_follow_quality() -> None:
    gateway = Gateway()
    async with pod(gateway) as url:
        load = Load(Population(Habits(vote_share=0.5)), [url], rate=2_000.0)
        results = await load.run(requests=1_000)
    voted = [o for o in results.outcomes if o.vote]
    assert len(voted) == len(gateway.votes) == load.live.votes_up + load.live.votes_down
    assert 400 <= len(voted) <= 600
    assert {vote["thumb"] for vote in gateway.votes} == {"up", "down"}
    assert all(vote["id"].startswith("shop/support-chat;r2;") for vote in gateway.votes)
    ups = {good: [o.vote == "up" for o in voted if o.good is good] for good in (True, False)}
    assert sum(ups[True]) / len(ups[True]) > 0.8
    assert sum(ups[False]) / len(ups[False]) < 0.5


async def test_too_many_in_flight_is_the_load_generators_own_fault(model: Running) -> None:
    model.post("/admin/faults", {"latency_ms": 1500})
    load = Load(Population(client_key=KEY), [model.url], rate=2_000.0, most_in_flight=5)
    results = await load.run(requests=50)
    assert sum(o.failure is Failure.NOT_SENT for o in results.outcomes) == 45


async def test_a_hanging_provider_is_a_timeout(model: Running) -> None:
    model.post("/admin/faults", {"hang_rate": 1})
    load = Load(Population(client_key=KEY), [model.url], rate=500.0, timeout=0.2)
    results = await load.run(requests=10)
    results.attribute(await provider_failures([model.url]))
    assert {o.failure for o in results.outcomes} == {Failure.TIMEOUT}
    assert results.lost == []


async def test_a_killed_provider_loses_what_it_had() -> None:
    with provider("--faults", '{"ttft_ms": 20, "chunk_ms": 2000}') as server:
        load = Load(Population(Habits(stream_share=1.0)), [server.url], rate=200.0)
        running = asyncio.create_task(load.run(requests=30))
        await _until(lambda: load.live.in_flight == 30 and state(server)["by_status"].get("200") == 30)
        server.process.kill()
        results = await running
    assert {o.failure for o in results.lost} == {Failure.CUT}
    assert len(results.lost) == 30


def test_a_load_in_a_thread_stops_when_it_is_told_and_drains(model: Running) -> None:
    model.post("/admin/faults", {"latency_ms": 100, "chunk_ms": 1})
    with LoadThread(Population(seed=4, client_key=KEY), [model.url], rate=300.0) as load:
        while load.live.ok < 50:
            pass
        assert load.live.in_flight > 0
        assert load.live.rate(now=load.results.outcomes[-1].at + 0.2) > 0
        results = load.stop(timeout=20)
        assert load.live.in_flight == 0
    assert isinstance(results, Results)
    assert len(results.outcomes) == load.live.sent
    assert results.failed == []
    assert not load.running


def test_the_rate_and_the_pods_change_while_it_runs(model: Running) -> None:
    with LoadThread(Population(seed=4, client_key=KEY), [], rate=0.0) as load:
        assert load.live.sent == 0
        load.set_targets([model.url])
        load.set_rate(400.0)
        while load.live.ok < 40:
            pass
        load.set_rate(0.0)
    assert load.results.failed == []


def test_a_load_that_cannot_start_says_why() -> None:
    with pytest.raises(TypeError):
        LoadThread(Population(), [], speed=3).__enter__().stop()


def test_the_command(model: Running) -> None:
    command = [
        sys.executable,
        "-m",
        "hack.sim.load",
        "--url",
        model.url,
        "--seconds",
        "0.5",
        "--rate",
        "100",
        "--no-votes",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "status 401" in done.stdout
    assert done.returncode == 1
