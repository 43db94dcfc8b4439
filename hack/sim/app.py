"""An application as a pod: `python -m hack.sim app --url http://funicular-gateway.NAMESPACE:8080/v1 --model support-chat`.

Started in pods by end-to-end tests, which read GET /state from outside. It is the load of hack.sim.load with counters and a
rate that can be changed; it says nothing of users or of what they ask. A request is *lost* if it failed for its client and
no provider (`--provider`, a base URL of hack.sim.provider) says that it failed it itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import uvloop
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hack.sim.load import Load, provider_failures
from hack.sim.outcomes import Outcome, Results
from hack.sim.users import Habits, Population

ASK_PROVIDERS = 2.0  # seconds: a provider that is restarted forgets what it failed
MOST_FAILURES = 10_000
NO_ARM = "none"  # no answer, or one without x-funicular-id


class Rate(BaseModel):
    """The body of POST /rate."""

    model_config = ConfigDict(extra="forbid")
    rate: float = Field(ge=0.0, le=100_000.0, description="requests a second; 0 pauses")


class Account:
    """What became of the requests. Successes are counted; failures are kept, until a provider says that one was its own."""

    def __init__(self) -> None:
        self.failed = Results()
        self.by_arm: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.by_candidate: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.by_revision: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.by_model: Counter[str] = Counter()
        self.dropped_failures = 0
        self.unreachable: tuple[str, ...] = ()

    def add(self, outcome: Outcome) -> None:
        answer = outcome.answer
        arm = answer.arm if answer else NO_ARM
        self.by_arm[arm]["ok" if outcome.ok else "failed"] += 1
        if answer:
            self.by_candidate[arm][answer.candidate] += 1
            self.by_revision[answer.revision][arm] += 1
        if outcome.model:
            self.by_model[outcome.model] += 1
        if outcome.ok:
            return
        if len(self.failed.outcomes) >= MOST_FAILURES:
            self.dropped_failures += 1  # counted as lost: nobody will explain them
        else:
            self.failed.outcomes.append(outcome)

    async def ask(self, providers: Sequence[str]) -> None:
        """Asks every provider what it failed itself. One that does not answer is named in `unreachable`."""
        unexplained = self.failed.lost
        if not unexplained or not providers:
            self.unreachable = ()
            return
        answers = await asyncio.gather(*(provider_failures([url]) for url in providers), return_exceptions=True)
        unreachable: list[str] = []
        told: list[Mapping[str, Sequence[str]]] = []
        for url, answer in zip(providers, answers, strict=True):
            if isinstance(answer, BaseException):
                if not isinstance(answer, (aiohttp.ClientError, TimeoutError, OSError, ValueError)):
                    raise answer
                unreachable.append(url)
            else:
                told += answer
        # Only those without an explanation: what a provider said before it was restarted stays true.
        Results(unexplained).attribute(told)
        self.unreachable = tuple(unreachable)

    def snapshot(self) -> dict[str, Any]:
        lost = self.failed.lost
        return {
            "failed_by_provider": len(self.failed.outcomes) - len(lost),
            "lost": len(lost) + self.dropped_failures,
            "lost_by_reason": dict(Counter(it.failure.value for it in lost if it.failure)),
            "arms": {arm: {"ok": it["ok"], "failed": it["failed"], "candidates": dict(self.by_candidate[arm])}
                     for arm, it in sorted(self.by_arm.items())},
            "revisions": {revision: dict(arms) for revision, arms in sorted(self.by_revision.items())},
            "models": dict(self.by_model),
            "providers_unreachable": list(self.unreachable),
        }  # fmt: skip

    def failures(self) -> list[dict[str, Any]]:
        """The failed requests, without who asked and what."""
        return [{
            "number": it.number, "at": it.at, "seconds": round(it.latency, 4), "status": it.status,
            "reason": it.failure.value if it.failure else "", "lost": it.lost,
            "arm": it.answer.arm if it.answer else NO_ARM, "candidate": it.answer.candidate if it.answer else "",
            "provider": list(it.provider_faults), "detail": it.detail,
        } for it in self.failed.outcomes]  # fmt: skip


class App:
    """The load and the HTTP endpoint, on one loop."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._seed = options.seed if options.seed is not None else secrets.randbits(32)
        habits = Habits(users=options.users, stream_share=options.stream_share)
        urls = [base_url(url) for url in options.url]
        self.account = Account()
        self.load = Load(
            Population(habits, model=options.model, seed=self._seed), urls, rate=options.rate, seed=self._seed,
            timeout=options.timeout, votes=not options.no_votes, retry=options.retry,
            new_connections=options.new_connections,
            on_outcome=self._ended,
        )  # fmt: skip
        self._loading: asyncio.Task[Results] | None = None

    def _ended(self, outcome: Outcome) -> None:
        self.account.add(outcome)
        self.load.results.outcomes.clear()  # a pod may run for days; every outcome passes here

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then what is in flight ends. Raises what the load died of."""
        server = web.Application()
        server.add_routes([
            web.get("/state", self._state), web.get("/failures", self._failures), web.get("/healthz", self._healthz),
            web.post("/rate", self._set_rate),
        ])  # fmt: skip
        runner = web.AppRunner(server, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, self._options.host, self._options.port).start()
        self._loading = asyncio.create_task(self.load.run())
        asking = asyncio.create_task(self._ask_for_ever())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({self._loading, stopping, asking}, return_when=asyncio.FIRST_COMPLETED)
            self.load.stop()
            await self._loading
            if asking.done():
                asking.result()
            await self.account.ask(self._options.provider)
        finally:
            for task in (asking, stopping, self._loading):
                task.cancel()
            await asyncio.gather(asking, stopping, self._loading, return_exceptions=True)
            await runner.cleanup()

    async def _ask_for_ever(self) -> None:
        while True:
            await asyncio.sleep(ASK_PROVIDERS)
            await self.account.ask(self._options.provider)

    def state(self) -> dict[str, Any]:
        live = self.load.live
        return {
            "sent": live.sent, "in_flight": live.in_flight, "ok": live.ok, "failed": live.failed,
            "retried": live.retried, "failed_by_reason": dict(live.by_failure), **self.account.snapshot(),
            "votes": {"up": live.votes_up, "down": live.votes_down, "failed": live.votes_failed},
            "rate": self.load.rate, "requests_per_second": live.rate(time.time()),
            "seconds": {"p50": live.latency(0.5), "p95": live.latency(0.95), "p99": live.latency(0.99)},
            "seed": self._seed,
        }  # fmt: skip

    # --- HTTP ---------------------------------------------------------------------------------------------------------
    async def _state(self, request: web.Request) -> web.Response:
        await self.account.ask(self._options.provider)
        return web.json_response(self.state())

    async def _failures(self, request: web.Request) -> web.Response:
        await self.account.ask(self._options.provider)
        return web.json_response(self.account.failures())

    async def _healthz(self, request: web.Request) -> web.Response:
        is_alive = self._loading is not None and not self._loading.done()
        return web.Response(text="ok" if is_alive else "the load has ended", status=200 if is_alive else 503)

    async def _set_rate(self, request: web.Request) -> web.Response:
        try:
            wanted = Rate.model_validate_json(await request.read())
        except ValidationError as error:
            return web.json_response({"error": error.errors(include_url=False, include_context=False)}, status=422)
        self.load.set_rate(wanted.rate)
        return web.json_response({"rate": self.load.rate})


def base_url(url: str) -> str:
    """The load asks for /v1/... itself; users write the base URL as OpenAI's clients take it."""
    return url.rstrip("/").removesuffix("/v1")


def share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hack.sim app", description=__doc__)
    parser.add_argument("--url", action="append", required=True, help="base URL of the gateway; several: in turn")
    parser.add_argument("--model", default="support-chat", help="the policy's endpoint.model")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second; POST /rate changes it")
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--stream-share", type=share, default=0.4)
    parser.add_argument(
        "--new-connections", type=share, default=0.0, help="share of requests on a connection of their own"
    )
    parser.add_argument(
        "--provider", action="append", default=[], help="base URL of a simulated provider: whose failures"
    )
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--no-votes", action="store_true")
    parser.add_argument("--retry", action="store_true", help="ask again when a connection broke before the first byte")
    parser.add_argument("--seed", type=int, help="the same users and questions again; two apps need two seeds")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=9100)
    app_options = parser.parse_args(arguments)
    app: list[App] = []

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        app.append(App(app_options))
        await app[0].run(stop)

    try:
        uvloop.run(run())
    except OSError as error:
        print(f"cannot listen on {app_options.host}:{app_options.port}: {error}", file=sys.stderr)
        return 1
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(app[0].state()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
