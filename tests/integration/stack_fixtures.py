"""One Funicular for several files of tests: operators, gateway pods and providers on the session's cluster.

`stack` lives on the session's event loop, so tests that use it say `pytestmark = pytest.mark.asyncio(loop_scope="session")`.
Each test has a policy and an endpoint of its own: `async with on_stage(stack, "name") as scene`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import pytest
import pytest_asyncio

from funicular.adapters.kube import path_of
from funicular.api.revision import revision_of
from funicular.api.spec import RoutingPolicySpec
from funicular.errors import FunicularError, NotFound
from hack.cluster import Cluster
from hack.demo.stack import CLASSIFIER_IMAGE, Provider, Stack, images
from hack.demo.timeline import Seen, Timeline
from hack.demo.watching import Watcher
from hack.sim.load import provider_failures
from hack.sim.load_thread import LoadThread
from hack.sim.outcomes import Outcome, Results, Step, StepUsers
from hack.sim.users import Habits, Population

Json = dict[str, Any]
T = TypeVar("T")
LEASE_SECONDS = 6.0
PATIENCE = 120.0  # for what takes seconds on a quiet machine
EDGE = 0.2  # seconds at a step's end: what was due then may have been decided after it
FRONTIER = Provider("frontier", "gpt-frontier", {"latency_ms": 15, "chunk_ms": 1, "quality": 0.97}, seed=1)
MINI = Provider("mini", "mini-1", {"latency_ms": 10, "chunk_ms": 1, "quality": 0.97}, seed=2)
NEXT = Provider("next", "mini-2", {"latency_ms": 10, "chunk_ms": 1, "quality": 0.97}, seed=3)
STEPS = (
    {"share": 20, "minDuration": "3s", "minSamples": 40},
    {"share": 60, "minDuration": "2s", "minSamples": 80},
    {"share": 100, "minDuration": "2s", "minSamples": 120, "bake": "1s"},
)
_seeds = itertools.count(1)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(cluster: Cluster) -> AsyncIterator[Stack]:
    """Three gateway pods, two operators, a baseline and two cheap providers."""
    cluster.add_images(images())
    it = Stack(
        cluster,
        namespace="stack",
        gateways=3,
        operators=2,
        providers=(FRONTIER, MINI, NEXT),
        lease_seconds=LEASE_SECONDS,
    )
    try:
        await it.start(timeout=PATIENCE)
        yield it
        await it.remove()
    finally:
        await it.stop()


def manifest(
    stack: Stack,
    name: str,
    *,
    candidate: Provider = MINI,
    classifier: bool = False,
    steps: Sequence[Mapping[str, Any]] = STEPS,
    **rollout: Any,
) -> Json:
    """A policy whose endpoint has its name: wide margins and short steps, for a load of 100 requests a second."""
    single = {"single": {"candidate": "cheap"}}
    asks = {
        "image": CLASSIFIER_IMAGE,
        "threshold": 0.55,
        "timeout": "250ms",
        "routes": {"easy": "cheap", "hard": "frontier"},
    }
    return {
        "apiVersion": "routing.funicular.dev/v1alpha1",
        "kind": "RoutingPolicy",
        "metadata": {"name": name},
        "spec": {
            "endpoint": {"model": name},
            "candidates": [
                {**_candidate(stack, FRONTIER), "name": "frontier", "baseline": True, "price": _price(1.25, 10)},
                {**_candidate(stack, candidate), "name": "cheap", "price": _price(0.1, 0.4)},
            ],
            "strategy": {"classifier": asks} if classifier else single,
            "assignment": {"minDuration": "0s"},
            "slos": [
                {"name": "errors", "indicator": "ErrorRate", "allowedIncrease": 0.25},
                {"name": "thumbs-up", "indicator": "ThumbsUpRate", "allowedDecrease": 0.4, "minSamples": 20},
            ],
            "rollout": {"steps": list(steps), "holdback": 10, "falsePromotionRate": 0.2, **rollout},
            "prometheus": {"url": stack.cluster.prometheus_url, "interval": "1s"},
        },
    }


def _candidate(stack: Stack, provider: Provider) -> Json:
    return {
        "url": stack.provider_url(provider.name),
        "model": provider.model,
        "credentials": {"secretRef": {"name": provider.secret, "key": "api-key"}},
        "timeout": "10s",
    }


def _price(prompt: float, completion: float) -> Json:
    return {"inputPerMillion": prompt, "outputPerMillion": completion}


def revision(policy: Mapping[str, Any]) -> str:
    """Of a manifest, as the operator computes it."""
    return revision_of(RoutingPolicySpec.model_validate(policy["spec"]))


@dataclass
class Scene:
    """One policy, who looks on, and users of its endpoint, if `rate` is above 0."""

    stack: Stack
    name: str
    timeline: Timeline
    watcher: Watcher
    load: LoadThread
    manifests: list[Json] = field(default_factory=list)
    _results: Results | None = None

    async def apply(self, policy: Json) -> str:
        """Returns the revision."""
        self.manifests.append(policy)
        await self.stack.apply_policy(policy)
        return revision(policy)

    async def start(self, policy: Json, rate: float = 100.0) -> str:
        """Applies it, and lets the users come as soon as all pods serve the endpoint. Returns the revision."""
        ramps = await self.apply(policy)
        await self.wait(
            lambda it: bool(it.status.traffic and it.status.traffic.share.acked is not None), "it is served"
        )
        await self.stack.look()
        self.load.set_targets(self.stack.gateways())
        self.load.set_rate(rate)
        return ramps

    async def wait(self, condition: Callable[[Seen], bool], what: str, timeout: float = PATIENCE) -> Seen:
        return await self.watcher.wait(condition, timeout, what)

    async def step(self, index: int, *, started: bool = True) -> Seen:
        """The step with this index is in effect (or at least ordered)."""

        def there(it: Seen) -> bool:
            step = it.status.step
            return step is not None and step.index == index and (step.started_at is not None or not started)

        return await self.wait(there, f"step {index + 1} of {self.name}")

    async def promoted(self, of: str) -> Seen:
        found = await self.wait(
            lambda it: is_stable(it, of) or bool(it.status.rejected), f"{self.name} is promoted", 2 * PATIENCE
        )
        assert is_stable(found, of), found.status.message
        return await self.wait(lambda it: is_stable(it, of) and is_true(it, "Ready"), f"{self.name} is ready")

    async def confirmed(self) -> Seen:
        """All ready pods confirmed what is ordered."""
        return await self.wait(lambda it: is_true(it, "GatewaysSynced"), f"all pods confirm {self.name}")

    async def body(self) -> Json:
        return await self.stack.policy(self.name)

    async def treats(self, of: str, at_least: int = 20) -> None:
        """Users are being answered by this revision."""

        async def are_treated() -> bool:
            answers = [
                o.answer for o in list(self.load.results.outcomes)[-500:] if o.answer and o.answer.revision == of
            ]
            return sum(answer.arm == "treatment" for answer in answers) >= at_least

        await until(are_treated, f"{of} treats users")

    async def events(self) -> list[tuple[str, str]]:
        """(reason, note) of the Events about it, the oldest first."""
        found, _ = await self.stack.kube.list_all(path_of("events.k8s.io/v1", "events", self.stack.namespace))
        own = [it for it in found if (it.get("regarding") or {}).get("name") == self.name]
        return [(it["reason"], it["note"]) for it in sorted(own, key=lambda it: str(it["eventTime"]))]

    async def results(self) -> Results:
        """Ends the load; every request is accounted for, and what providers failed themselves is written into it."""
        if self._results is None:
            self._results = await asyncio.to_thread(self.load.stop, 60.0)
            admins = [self.stack.provider_admin(name) for name in self.stack.providers]
            self._results.attribute(await provider_failures(admins))
        return self._results

    def users(self, results: Results, of: str) -> list[StepUsers]:
        """Who was treated, step by step."""
        own = [it for it in self.timeline.steps(time.time()) if it.revision == of]
        named = [Step(f"{it.share:g} %", it.since, max(it.since, it.until - EDGE)) for it in own]
        return results.per_step(named, of)


@contextlib.asynccontextmanager
async def on_stage(stack: Stack, name: str, *, users: int = 400) -> AsyncIterator[Scene]:
    """The policy is deleted at the end, and gone."""
    seed = next(_seeds)
    habits = Habits(users=users, zipf=0.5, vote_share=0.6, up_if_good=0.95, spread=0.04, nowhere_share=0.0)
    people = Population(habits, model=name, seed=seed)
    load = LoadThread(people, (), rate=0.0, seed=seed, timeout=30.0, retry=True, on_outcome=_time_by_sending)
    timeline = Timeline()
    watcher = Watcher(stack, name, timeline, lambda event: None)
    scene = Scene(stack, name, timeline, watcher, load)
    load.start()
    tasks = [asyncio.ensure_future(watcher.run()), asyncio.ensure_future(_keep_targets(stack, load))]
    try:
        yield scene
    finally:
        load.set_rate(0.0)
        await asyncio.to_thread(load.stop, 60.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(NotFound):
            await stack.kube.delete(stack.policy_path(name))
        await until(lambda: is_gone(stack, name), f"{name} is gone")


async def is_gone(stack: Stack, name: str) -> bool:
    try:
        await stack.policy(name)
    except NotFound:
        return True
    return False


def _time_by_sending(outcome: Outcome) -> None:
    """Who answers is decided when a request is sent; on a busy machine that is later than it was due."""
    outcome.at, outcome.latency, outcome.late = outcome.at + outcome.late, outcome.latency - outcome.late, 0.0


async def _keep_targets(stack: Stack, load: LoadThread) -> None:
    """Users come through a Service: to the pods that are ready."""
    before: tuple[str, ...] = ()
    while True:
        await asyncio.sleep(0.5)
        with contextlib.suppress(FunicularError, OSError, TimeoutError):
            await stack.look()
            now = stack.gateways()
            if now and now != before:
                before = now
                load.set_targets(now)


def is_stable(it: Seen, of: str) -> bool:
    return it.status.candidate is None and it.status.stable is not None and it.status.stable.revision == of


def condition(it: Seen, kind: str) -> tuple[str, str]:
    """(status, reason)."""
    found = it.status.condition(kind)
    return (found.status, found.reason) if found else ("", "")


def is_true(it: Seen, kind: str) -> bool:
    return condition(it, kind)[0] == "True"


async def until(look: Callable[[], Awaitable[T]], what: str, timeout: float = PATIENCE) -> T:
    """The first truthy answer."""
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(FunicularError, OSError):
            if found := await look():
                return found
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout:g} s")
        await asyncio.sleep(0.1)


async def scrape(url: str) -> dict[str, float]:
    """A /metrics page: series -> value."""
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        text = await answer.text()
    lines = [line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#"]
    return {series: float(value) for series, _, value in lines}
