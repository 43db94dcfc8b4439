"""`python -m hack.soak --requests 20000`: two full ramps under load, with an agent, an Envoy and the operator each killed once.

Real parts, as in the demo: API server, Prometheus, two operators, three gateway pods, a classifier, three providers. The
first ramp goes to a cheap model, the second to its next version; both are good. Every request is accounted for, by the
load generator and by what the providers say they failed themselves. Prints a table; exit code 1 unless no request was
lost, no user moved backwards on the way up, and each step's users contain those of the step before.

A process that is killed takes its own connections along. A client of a Service tries another pod when a connection was
refused or ended before the first byte: these are counted as "retried". An answer that broke off in the middle, on the
killed Envoy and within the second of its death, is counted as "cut": nothing outside the client could have saved it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from funicular.api.revision import revision_of
from funicular.api.spec import RoutingPolicySpec
from funicular.errors import FunicularError
from hack.cluster.cluster import Cluster, Options
from hack.cluster.errors import ClusterError
from hack.demo import policies, stack
from hack.demo.interrupts import Interrupts, kill_descendants
from hack.demo.live import beside
from hack.demo.stack import Json, Stack
from hack.demo.timeline import Seen, Timeline
from hack.demo.watching import Watcher
from hack.sim.load import provider_failures
from hack.sim.load_thread import LoadThread
from hack.sim.outcomes import Failure, Outcome, Results, Step, StepUsers
from hack.sim.users import Habits, Population

LONGEST = 400.0  # seconds for a ramp
RECOVERS = 120.0
DEATH = 1.5  # seconds around a kill within which its connections end
EDGE = 0.2  # at a step's end: a request that was due then may have been decided after it
FASTER_BELOW = 10.0  # per cent: a small share gets its samples in time


@dataclass(frozen=True, slots=True)
class Kill:
    """A process that was killed: which, at what share of which ramp, and when."""

    what: str
    pod: str
    address: str
    share: float
    at: float


@dataclass
class Soak:
    """One run. `run` returns when both ramps are over and the requests are sent."""

    it: Stack
    watcher: Watcher
    load: LoadThread
    requests: int
    rate: float
    say: Callable[[str], None]
    kills: list[Kill] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)
    began: list[float] = field(default_factory=list)

    async def run(self) -> None:
        url, prometheus = self.it.provider_url, self.it.cluster.prometheus_url
        first = patient(policies.good(url, prometheus))
        await self._ramp(first, {10.0: self._kill_agent, 50.0: self._kill_envoy})
        await self._ramp(policies.changed(first, url), {10.0: self._kill_operator})
        while (missing := self.requests - self.load.live.sent) > 0:
            self.say(f"{missing:,} requests are still to be sent")
            await asyncio.sleep(max(0.1, missing / self.rate))

    async def _ramp(self, manifest: Json, at_share: dict[float, Callable[[float], Awaitable[None]]]) -> None:
        revision = revision_of(RoutingPolicySpec.model_validate(manifest["spec"]))
        self.revisions.append(revision)
        self.began.append(time.time())
        await self.it.apply_policy(manifest)
        await self.watcher.wait(_is_served, RECOVERS, "the gateway pods serve the endpoint")
        await self.it.look()
        self.load.set_targets(self.it.gateways())
        self.load.set_rate(2.5 * self.rate)
        shares = [float(str(step["share"])) for step in manifest["spec"]["rollout"]["steps"]]
        for share in shares:
            await self.watcher.wait(_in_effect(revision, share), LONGEST, f"{share:g} % of {revision} is in effect")
            self.load.set_rate(2.5 * self.rate if share < FASTER_BELOW else self.rate)
            self.say(f"{revision}: {share:g} % is in effect; {self.load.live.sent:,} requests sent")
            if share in at_share:
                await at_share[share](share)
        done = await self.watcher.wait(_is_over(revision), LONGEST, f"{revision} is promoted")
        if done.status.rejected:
            raise SoakFailed(f"{revision} was not promoted: {done.status.message}")
        self.say(f"{revision} is promoted; {self.load.live.sent:,} requests sent")

    async def _kill_agent(self, share: float) -> None:
        await self._kill("gateway", 0, "agent", share)

    async def _kill_envoy(self, share: float) -> None:
        await self._kill("gateway", 1, "envoy", share)

    async def _kill_operator(self, share: float) -> None:
        leader = await self.it.leader()
        names = [pod["metadata"]["name"] for pod in self.it.pods("operator")]
        await self._kill("operator", names.index(leader) if leader in names else 0, "operator", share)

    async def _kill(self, kind: str, index: int, container: str, share: float) -> None:
        pod = self.it.pods(kind)[index]
        at = await self.it.kill(pod, container)
        name, address = pod["metadata"]["name"], pod["status"]["podIP"]
        self.kills.append(Kill(container, name, f"http://{address}:8080", share, at))
        self.say(f"killed: {container} of {name}")


def patient(manifest: Json) -> Json:
    """The demo's policy, for a machine that is busy with other things: here nothing is said about times."""
    manifest["spec"]["strategy"]["classifier"]["timeout"] = "1s"
    next(slo for slo in manifest["spec"]["slos"] if slo["name"] == "p95")["bound"] = "10s"
    return manifest


class SoakFailed(Exception):
    """A ramp did not end as it must."""


def _is_served(it: Seen) -> bool:
    traffic = it.status.traffic
    return traffic is not None and traffic.share.acked is not None


def _in_effect(revision: str, share: float) -> Callable[[Seen], bool]:
    def reached(it: Seen) -> bool:
        status = it.status
        ramps = status.candidate is not None and status.candidate.revision == revision
        return _is_over(revision)(it) or (ramps and it.share >= share and bool(status.step and status.step.started_at))

    return reached


def _is_over(revision: str) -> Callable[[Seen], bool]:
    def over(it: Seen) -> bool:
        stable = it.status.stable
        return bool(it.status.rejected) or bool(it.status.candidate is None and stable and stable.revision == revision)

    return over


# --- what was seen --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Found:
    """The verdict on a run."""

    results: Results
    rows: tuple[tuple[str, StepUsers], ...]
    moved_back: int
    retried: int
    cut: tuple[Outcome, ...]
    lost: tuple[Outcome, ...]
    wanted: int
    late: float

    @property
    def faults(self) -> list[str]:
        found = []
        if len(self.results.outcomes) < self.wanted:
            found.append(f"only {len(self.results.outcomes):,} of {self.wanted:,} requests were sent")
        if self.lost:
            found.append(f"{len(self.lost)} requests were lost")
        if self.moved_back:
            found.append(f"{self.moved_back} users moved backwards on the way up")
        left_out = sum(len(users.left_out) for _, users in self.rows)
        if left_out:
            found.append(f"{left_out} users of a step are missing in the next one")
        if len(self.rows) < 2 * len(policies.STEPS):
            found.append(f"only {len(self.rows)} of {2 * len(policies.STEPS)} steps were seen")
        return found


def timed_by_sending(results: Results) -> float:
    """Who answers is decided when a request is sent, and on a busy machine that is later than it was due: times are moved
    to it. Returns the 99th percentile of how much later."""
    late = sorted(o.late for o in results.outcomes)
    for outcome in results.outcomes:
        outcome.at, outcome.latency, outcome.late = outcome.at + outcome.late, outcome.latency - outcome.late, 0.0
    return late[int(0.99 * len(late))] if late else 0.0


def find(soak: Soak, results: Results, timeline: Timeline) -> Found:
    late = timed_by_sending(results)
    rows: list[tuple[str, StepUsers]] = []
    moved = 0
    in_effect = timeline.steps(time.time())
    for revision in soak.revisions:
        own = [it for it in in_effect if it.revision == revision]
        named = [Step(f"{it.share:g} %", it.since, max(it.since, it.until - EDGE)) for it in own]
        rows += [(revision, users) for users in results.per_step(named, revision)]
        if named:
            moved += len(results.moved_back(revision, named[0].since, named[-1].until))
    envoys = [kill for kill in soak.kills if kill.what == "envoy"]
    cut = tuple(o for o in results.lost if o.failure is Failure.CUT and any(_died_with(o, kill) for kill in envoys))
    lost = tuple(o for o in results.lost if o not in cut)
    return Found(results, tuple(rows), moved, len(results.retried), cut, lost, soak.requests, late)


def _died_with(outcome: Outcome, kill: Kill) -> bool:
    return outcome.pod == kill.address and outcome.at - DEATH <= kill.at <= outcome.at + outcome.latency + DEATH


def show(found: Found, kills: Sequence[Kill], console: Console) -> None:
    steps = Table("revision", "share", "requests", "users", "treated", "control", "holdback", "left out", title="Steps")
    for revision, it in found.rows:
        counts = (it.requests, it.users, len(it.treated), len(it.control), len(it.holdback), len(it.left_out))
        steps.add_row(revision, it.step.name, *(f"{count:,}" for count in counts))
    console.print(steps)
    failed = [o for o in found.results.failed if o.provider_faults]
    whole = Table("what", "number", title="Requests")
    whole.add_row("sent", f"{len(found.results.outcomes):,}")
    whole.add_row("sent later than due, 99th percentile", f"{found.late:.2f} s")
    whole.add_row("answered", f"{sum(o.ok for o in found.results.outcomes):,}")
    whole.add_row("failed by a provider itself", f"{len(failed):,}")
    whole.add_row("retried on another pod (refused, or ended before the first byte)", f"{found.retried:,}")
    whole.add_row("cut in the middle of an answer, with the killed Envoy", f"{len(found.cut):,}")
    whole.add_row("lost", f"{len(found.lost):,}")
    whole.add_row("users that moved backwards on the way up", f"{found.moved_back:,}")
    for kill in kills:
        whole.add_row(f"killed at {kill.share:g} %", f"{kill.what} of {kill.pod}")
    console.print(whole)
    for outcome in (*found.lost[:20], *found.cut[:20]):
        console.print(outcome.explain(), markup=False, highlight=False)
    for fault in found.faults:
        console.print(f"FAILED: {fault}", style="red", markup=False)
    if not found.faults:
        console.print("no request lost, no user moved backwards, each step contains the one before", style="green")


# --- the run --------------------------------------------------------------------------------------------------------------
async def soak(cluster: Cluster, options: argparse.Namespace, console: Console, interrupts: Interrupts) -> int:
    interrupts.attach()
    habits = Habits(users=6_000, zipf=0.5, vote_share=0.6, up_if_good=0.95, spread=0.04)
    population = Population(habits, seed=options.seed)
    load = LoadThread(population, (), rate=0.0, seed=options.seed, timeout=30.0, retry=True)
    it = Stack(cluster, namespace="soak", gateways=3, operators=2, providers=policies.PROVIDERS, lease_seconds=10.0)
    timeline, began = Timeline(), time.time()

    def say(text: str) -> None:
        console.print(f"[{time.time() - began:6.1f} s] {text}", markup=False, highlight=False)

    watcher = Watcher(it, policies.POLICY, timeline, lambda event: say(f"Event {event['reason']}: {event['note']}"))
    broken = ""
    try:
        await it.start(180.0)
        load.start()
        run = Soak(it, watcher, load, options.requests, options.rate, say)
        async with beside(watcher.run(), _keep_targets(it, load)):
            try:
                await run.run()
            except (SoakFailed, TimeoutError) as error:
                broken = str(error)
            results = await asyncio.to_thread(load.stop, 60.0)
        results.attribute(await provider_failures([it.provider_admin(name) for name in it.providers]))
        found = find(run, results, timeline)
        show(found, run.kills, console)
        if broken:
            console.print(f"FAILED: {broken}", style="red", markup=False)
        return 1 if broken or found.faults else 0
    finally:
        interrupts.detach()
        load.set_targets(())
        with contextlib.suppress(RuntimeError, TimeoutError):
            await asyncio.to_thread(load.stop, 5.0)
        await it.stop()


async def _keep_targets(it: Stack, load: LoadThread) -> None:
    """The load goes to the pods that are ready, as a Service would see to."""
    before = it.gateways()
    while True:
        await asyncio.sleep(0.5)
        with contextlib.suppress(FunicularError):
            await it.look()
            now = it.gateways()
            if now and now != before:
                before = now
                load.set_targets(now)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hack.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="at least as many are sent")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second; 2.5 times as many below 10 %%")
    parser.add_argument("--seed", type=int, default=11, help="of users and their requests")
    parser.add_argument("--name", default="soak", help="of the cluster")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    interrupts = Interrupts()
    interrupts.install()
    cluster = Cluster(Options(name=options.name, images=stack.images()))
    try:
        cluster.launch()
        return asyncio.run(soak(cluster, options, console, interrupts))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return interrupts.exit_code
    except ClusterError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    finally:
        interrupts.ignore()
        cluster.stop()
        kill_descendants()


if __name__ == "__main__":
    sys.exit(main())
