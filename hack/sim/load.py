"""An open-loop load generator: a population's requests at a given rate over several gateway pods, every one accounted for.

Called by the demo (through load_thread), by tests and by hand (`python -m hack.sim.load --url http://127.0.0.1:8080`).
Open loop and Poisson, because users do not wait for one another: a slow gateway gets as many requests as a quick one, and
a request's time counts from when it was *due*. It knows nothing of Kubernetes: whoever runs it says which pods are ready
(`set_targets`).

aiohttp rather than httpx: the load shares its machine with what it loads, and a bare request takes 0.1 ms of CPU with
aiohttp on uvloop, 0.6 ms with httpx.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import orjson
import uvloop

from hack.sim.outcomes import AnswerId, Failure, Outcome, Results
from hack.sim.users import Ask, Habits, Place, Population

GOOD = b"[quality=good]"
BAD = b"[quality=bad]"
DETAIL = 300
BEFORE_THE_FIRST_BYTE = (Failure.CONNECT, Failure.DISCONNECTED)
SAME_AGAIN, PAUSE = 2, 0.5  # as OpenAI's own clients: two more attempts, the first after half a second


@dataclass(slots=True)
class Live:
    """Counters that may be read at any moment, from any thread. `recent` holds (when, latency, failed) of the last requests."""

    sent: int = 0
    in_flight: int = 0
    ok: int = 0
    failed: int = 0
    retried: int = 0
    votes_up: int = 0
    votes_down: int = 0
    votes_failed: int = 0
    by_arm: Counter[str] = field(default_factory=Counter)
    by_failure: Counter[str] = field(default_factory=Counter)
    by_pod: Counter[str] = field(default_factory=Counter)
    recent: deque[tuple[float, float, bool]] = field(default_factory=lambda: deque(maxlen=2_000))

    def rate(self, now: float, seconds: float = 5.0) -> float:
        """Answers a second over the last `seconds`."""
        return sum(1 for at, _, _ in tuple(self.recent) if at > now - seconds) / seconds

    def latency(self, quantile: float) -> float:
        """Seconds, over the recent requests."""
        values = sorted(latency for _, latency, _ in tuple(self.recent))
        return values[min(len(values) - 1, int(quantile * len(values)))] if values else 0.0


class Load:
    """One load. `run` until `stop`; then `results` is complete."""

    def __init__(self, population: Population, targets: Sequence[str], *, rate: float, retry: bool = False,
                 timeout: float = 60.0, most_in_flight: int = 2_000, seed: int = 0, votes: bool = True,
                 new_connections: float = 0.0,
                 on_outcome: Callable[[Outcome], None] | None = None) -> None:  # fmt: skip
        self.population = population
        self.results = Results()
        self.live = Live()
        self.retry = retry
        self.rate = rate
        self.votes = votes
        self.new_connections = new_connections  # the share of requests that do not use a kept connection
        self._targets = tuple(target.rstrip("/") for target in targets)
        self._turn = 0
        self._timeout = timeout
        self._most_in_flight = most_in_flight
        self._on_outcome = on_outcome
        self._arrivals = random.Random(seed)
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def set_targets(self, targets: Sequence[str]) -> None:
        """The pods that are ready now."""
        self._targets = tuple(target.rstrip("/") for target in targets)

    def set_rate(self, rate: float) -> None:
        """Requests a second from now on; 0 pauses."""
        self.rate = rate

    def stop(self) -> None:
        """No new requests; `run` returns when those in flight have ended. For the loop's own thread."""
        self._stopping.set()

    async def run(self, seconds: float | None = None, requests: int | None = None) -> Results:
        """Sends until `stop`, for `seconds`, or until `requests` are sent; drains; returns the results."""
        kept = aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0)
        async with (
            self._session(kept) as session,
            self._session(aiohttp.TCPConnector(limit=0, force_close=True)) as new,
        ):
            # Not the loop's own clock: uvloop's has a resolution of a millisecond.
            offset = time.time() - time.perf_counter()
            due = start = time.perf_counter()
            while requests is None or self.live.sent < requests:
                if self.rate <= 0.0:
                    due = time.perf_counter() + 0.05
                else:
                    due += self._arrivals.expovariate(self.rate)
                if seconds is not None and due - start > seconds:
                    break
                if due > time.perf_counter():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stopping.wait(), due - time.perf_counter())
                elif due < time.perf_counter() - 0.05:
                    await asyncio.sleep(0)  # behind: let answers in between two sends
                if self._stopping.is_set():
                    break
                if self.rate > 0.0:
                    self.live.sent += 1
                    is_new = self.new_connections > 0.0 and self._arrivals.random() < self.new_connections
                    self._spawn(self._one(new if is_new else session, self.population.ask(), due, offset))
            while self._tasks:
                await asyncio.wait(self._tasks)
        return self.results

    def _session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        limits = aiohttp.ClientTimeout(total=self._timeout, sock_connect=min(5.0, self._timeout))
        return aiohttp.ClientSession(connector=connector, timeout=limits, cookie_jar=aiohttp.DummyCookieJar())

    def _spawn(self, one: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(one)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _next_target(self) -> str:
        """The next ready pod in turn; empty when there is none."""
        self._turn += 1
        return self._targets[self._turn % len(self._targets)] if self._targets else ""

    def _another_target(self, but: Sequence[str]) -> str:
        """A ready pod that is not among `but`. Out of turn: a retry must not shift whose turn it is."""
        for offset in range(len(self._targets)):
            target = self._targets[(self._turn + offset) % len(self._targets)]
            if target not in but:
                return target
        return ""

    # --- one request ----------------------------------------------------------------------------------------------
    async def _one(self, session: aiohttp.ClientSession, ask: Ask, due: float, offset: float) -> None:
        live = self.live
        outcome = Outcome(
            number=ask.number, at=due + offset, late=max(0.0, time.perf_counter() - due), pod=self._next_target(),
            user="" if ask.user.place is Place.NOWHERE else ask.user.id, place=ask.user.place.value,
            difficulty=ask.difficulty, stream=ask.stream,
        )  # fmt: skip
        if live.in_flight >= self._most_in_flight:
            outcome.failure = Failure.NOT_SENT
            outcome.detail = f"{live.in_flight} requests in flight already"
        else:
            live.in_flight += 1
            live.by_pod[outcome.pod] += 1
            try:
                await self._attempts(session, ask, outcome)
            finally:
                live.in_flight -= 1
        outcome.latency = time.perf_counter() - due
        self._count(outcome, time.perf_counter() + offset)
        if self.votes and outcome.answer and outcome.good is not None:
            await self._vote(session, ask, outcome, good=outcome.good)
        if self._on_outcome:
            self._on_outcome(outcome)

    def _count(self, outcome: Outcome, now: float) -> None:
        live = self.live
        self.results.outcomes.append(outcome)
        live.recent.append((now, outcome.latency, not outcome.ok))
        if outcome.answer:
            live.by_arm[outcome.answer.arm] += 1
        if outcome.failure:
            live.failed += 1
            live.by_failure[outcome.failure.value] += 1
        else:
            live.ok += 1

    async def _attempts(self, session: aiohttp.ClientSession, ask: Ask, outcome: Outcome) -> None:
        await self._attempt(session, ask, outcome)
        while self.retry and outcome.failure in BEFORE_THE_FIRST_BYTE:
            another = self._another_target((outcome.pod, *outcome.tried_before))
            if not another and len(self._targets) == 1 and len(outcome.tried_before) < SAME_AGAIN:
                another = outcome.pod  # a Service: another connection may reach another pod
                await asyncio.sleep(PAUSE)
            if not another:
                break
            if not outcome.tried_before:
                self.live.retried += 1
            outcome.tried_before = (*outcome.tried_before, outcome.pod)
            outcome.pod, outcome.failure, outcome.detail, outcome.status = another, None, "", 0
            await self._attempt(session, ask, outcome)

    async def _attempt(self, session: aiohttp.ClientSession, ask: Ask, outcome: Outcome) -> None:
        started = time.perf_counter()
        if not outcome.pod:
            outcome.failure, outcome.detail = Failure.CONNECT, "no pod is ready"
            return
        url = f"{outcome.pod}/v1/chat/completions"
        try:
            async with session.post(url, data=ask.body, headers=ask.headers) as response:
                outcome.status = response.status
                outcome.answer = AnswerId.parse(response.headers.get("x-funicular-id"))
                pieces: list[bytes] = []
                async for piece in response.content.iter_any():
                    if not pieces:
                        outcome.first_byte = time.perf_counter() - started
                    pieces.append(piece)
            _judge(outcome, b"".join(pieces))
        except TimeoutError:
            outcome.failure, outcome.detail = Failure.TIMEOUT, f"no end after {self._timeout:g} s"
        except aiohttp.ClientConnectorError as error:
            outcome.failure, outcome.detail = Failure.CONNECT, str(error)[:DETAIL]
        except (aiohttp.ClientError, OSError) as error:
            outcome.failure = Failure.CUT if outcome.status else Failure.DISCONNECTED
            outcome.detail = f"{type(error).__name__}: {error}"[:DETAIL]

    async def _vote(self, session: aiohttp.ClientSession, ask: Ask, outcome: Outcome, *, good: bool) -> None:
        thumb = self.population.vote(ask.user, good=good)
        if thumb is None or outcome.answer is None:
            return
        outcome.vote = thumb
        target = self._next_target()
        try:
            async with session.post(
                f"{target}/v1/feedback", json={"id": outcome.answer.raw, "thumb": thumb}
            ) as response:
                outcome.vote_status = response.status
                await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError):
            outcome.vote_status = 0
        if not 200 <= outcome.vote_status < 300:
            self.live.votes_failed += 1
        elif thumb == "up":
            self.live.votes_up += 1
        else:
            self.live.votes_down += 1


def _judge(outcome: Outcome, body: bytes) -> None:
    """Whether a complete HTTP answer is a complete completion."""
    if outcome.status >= 400:
        outcome.failure = Failure.STATUS
        outcome.detail = body[:DETAIL].decode("utf-8", "replace")
        return
    try:
        outcome.model = _streamed_model(body) if outcome.stream else _model(body)
    except (orjson.JSONDecodeError, LookupError, TypeError, ValueError) as error:
        broken = outcome.stream and body.startswith(b"data:")
        outcome.failure = Failure.CUT if broken else Failure.GARBAGE
        outcome.detail = f"{error}: {body[-DETAIL:].decode('utf-8', 'replace')}"[:DETAIL]
        outcome.good = False
        return
    outcome.good = True if GOOD in body else False if BAD in body else None


def _model(body: bytes) -> str:
    completion = orjson.loads(body)
    if not isinstance(completion["choices"][0]["message"]["content"], str):
        raise TypeError("no content")
    return str(completion["model"])


def _streamed_model(body: bytes) -> str:
    events = [line[5:].strip() for line in body.split(b"\n") if line.startswith(b"data:")]
    if not events or events[-1] != b"[DONE]":
        raise ValueError("the stream ended without [DONE]")
    model = ""
    for event in events[:-1]:
        model = orjson.loads(event)["model"]
    return str(model)


async def provider_failures(urls: Sequence[str]) -> list[dict[str, list[str]]]:
    """What simulated providers say they failed: for Results.attribute."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10.0)) as session:
        found = []
        for url in urls:
            async with session.get(f"{url.rstrip('/')}/admin/failures") as response:
                found.append(await response.json())
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hack.sim.load", description=__doc__)
    parser.add_argument("--url", action="append", required=True, help="a gateway pod; several times for several pods")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--model", default="support-chat")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retry", action="store_true", help="try another pod when one failed before the first byte")
    parser.add_argument("--no-votes", action="store_true")
    parser.add_argument(
        "--provider", action="append", default=[], help="a simulated provider, to ask what it failed itself"
    )
    parser.add_argument("--jsonl", type=Path, help="write every outcome here, one a line")
    options = parser.parse_args(arguments)
    population = Population(Habits(users=options.users), model=options.model, seed=options.seed)
    load = Load(
        population, options.url, rate=options.rate, retry=options.retry, seed=options.seed, votes=not options.no_votes
    )

    async def run() -> Results:
        results = await load.run(seconds=options.seconds)
        results.attribute(await provider_failures(options.provider))
        return results

    used = time.process_time()
    results = uvloop.run(run())
    used = time.process_time() - used
    if options.jsonl:
        results.write(options.jsonl)
    live, sent = load.live, max(1, load.live.sent)
    print(
        f"sent {live.sent} ({live.sent / options.seconds:.0f}/s), ok {live.ok}, failed {live.failed}, lost {len(results.lost)}"
    )
    print(f"retried {live.retried}; votes: {live.votes_up} up, {live.votes_down} down, {live.votes_failed} failed")
    print(f"p50 {live.latency(0.5) * 1e3:.1f} ms, p99 {live.latency(0.99) * 1e3:.1f} ms; arms {dict(results.by_arm())}")
    print(f"{used / sent * 1e6:.0f} us of CPU a request")
    for outcome in results.failed[:20]:
        print(outcome.explain())
    return 1 if results.lost else 0


if __name__ == "__main__":
    sys.exit(main())
