"""`python -m hack.demo [--node real]`: two stories on real parts in under four minutes, live, with a report at the end.

Exit code: 0 if everything promised was seen, 1 if not, 128 + N after signal N. Nothing it started survives it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from hack.cluster import binaries
from hack.cluster.cluster import CHECKOUT, Cluster, Options
from hack.cluster.errors import ClusterError
from hack.demo import policies, stack
from hack.demo.findings import Run, find
from hack.demo.installed import Installed
from hack.demo.interrupts import Interrupts, kill_descendants
from hack.demo.live import Screen, beside
from hack.demo.measure import Measured, Prometheus
from hack.demo.people import People
from hack.demo.stack import Stack
from hack.demo.stories import Stories, StoryBroken
from hack.demo.timeline import Timeline
from hack.demo.watching import Watcher
from hack.image.build import build
from hack.image.errors import ImageError
from hack.node import Node
from hack.node.node import Options as NodeOptions
from hack.sim.load import provider_failures
from hack.sim.load_thread import LoadThread
from hack.sim.users import Habits, Population

PARTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "prometheus")
REAL_PARTS = (*NodeOptions().binaries, "helm")
USERS = 6_000


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    options.rate = options.rate or (300.0 if options.node == "process" else 150.0)
    console = Console(highlight=False)
    console.soft_wrap = not console.is_terminal  # a line of a log stays one line
    interrupts = Interrupts()
    interrupts.install()
    began = time.time()
    place: Cluster | Node | None = None
    try:
        built = _prepare(console, PARTS if options.node == "process" else REAL_PARTS)
        began += built
        screen = Screen(console, Timeline())
        place = _place(options, screen.say)
        place.launch()
        what = (
            "the process node runs its pods as processes" if options.node == "process" else "a real node runs its pods"
        )
        screen.say(
            f"etcd, API server, controller manager, scheduler and Prometheus run; {what} ({time.time() - began:.1f} s)"
        )
        demo = Demo(_stack(place, options), screen, options, began, built)
        run = asyncio.run(demo.run(interrupts))
        from hack.demo import report  # here: drawing libraries take a second to import

        numbers = report.write(found := find(run), options.out)
        report.summary(numbers, console, options.out)
        return 0 if found.ok else 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted: ending everything that was started", style="yellow")
        return interrupts.exit_code
    except (ClusterError, ImageError, TimeoutError) as error:
        console.print(str(error), style="red", markup=False)
        return 1
    finally:
        interrupts.ignore()
        if place is not None:
            place.stop()
        left = kill_descendants()
        if left and not interrupts.number:
            console.print(f"had to be killed: {', '.join(left)}", style="yellow", markup=False)


class Demo:
    """One run between a cluster that is up and a report that is to be written."""

    def __init__(self, it: Stack, screen: Screen, options: argparse.Namespace, began: float, built: float) -> None:
        self._it, self._screen, self._options, self._began, self._built = it, screen, options, began, built
        self._timeline = screen._timeline
        self._people = People()
        self._load = LoadThread(
            Population(Habits(users=USERS, zipf=0.5, vote_share=0.75, up_if_good=0.95, spread=0.04), seed=options.seed),
            (),
            rate=0.0,
            seed=options.seed,
            timeout=30.0,
            on_outcome=self._people.see,
        )

    async def run(self, interrupts: Interrupts) -> Run:
        interrupts.attach()
        it = self._it
        try:
            await it.start()
            setup = time.time() - self._began
            self._screen.say(f"operator, three gateway pods and three providers are ready ({setup:.1f} s)")
            return await self._tell(it, setup)
        finally:
            interrupts.detach()
            await asyncio.to_thread(self._end_load)
            await it.stop()

    async def _tell(self, it: Stack, setup: float) -> Run:
        regression = policies.REGRESSIONS[self._options.regression]
        watcher = Watcher(it, policies.POLICY, self._timeline, self._screen.event)
        self._load.start()
        self._screen.watch(self._load.live, self._people)
        stories = Stories(
            it,
            watcher,
            self._load,
            regression,
            rate=self._options.rate,
            scale=self._options.seconds_scale,
            say=self._screen.say,
        )
        broken, started = "", time.time()
        async with beside(watcher.run(), self._screen.run(), self._keep_targets(it), self._keep_pace()):
            try:
                await stories.run()
            except (StoryBroken, TimeoutError) as error:
                broken = str(error)
        ended = self._timeline.marks.setdefault("end", time.time())
        self._screen.say("the stories are told; waiting for the last answers, asking Prometheus")
        results = await asyncio.to_thread(self._load.stop, 40.0)
        results.attribute(await provider_failures([it.provider_admin(name) for name in it.providers]))
        return Run(
            timeline=self._timeline,
            results=results,
            measured=await self._measure(started, ended),
            regression=regression,
            good=stories.good_revision,
            bad=stories.bad_revision,
            checks=tuple(stories.checks),
            setup_seconds=setup,
            demo_seconds=ended - started,
            votes_failed=self._load.live.votes_failed,
            broken=broken,
            build_seconds=self._built,
        )

    async def _measure(self, started: float, ended: float) -> Measured | None:
        prometheus = Prometheus(self._it.cluster.prometheus_url, "demo", policies.POLICY)
        return await prometheus.measured(started, ended)

    async def _keep_targets(self, it: Stack) -> None:
        """The load goes to the pods that are ready, as a Service would see to."""
        before = it.gateways()
        while True:
            await asyncio.sleep(2.0)
            await it.look()
            if it.gateways() != before:
                before = it.gateways()
                self._load.set_targets(before)

    async def _keep_pace(self) -> None:
        """A machine that is too busy for the rate gets less: requests that queue up here would look like a slow provider."""
        rate = wanted = float(self._options.rate)
        while True:
            await asyncio.sleep(1.0)
            recent = self._load.results.outcomes[-100:]
            late = sorted(o.late for o in recent)[len(recent) // 2] if recent else 0.0
            wise = max(wanted / 5, rate * 0.8) if late > 0.1 else min(wanted, rate * 1.1) if late < 0.02 else rate
            if self._timeline.marks.get("load") and wise != rate:
                rate = wise
                self._load.set_rate(rate)

    def _end_load(self) -> None:
        with contextlib.suppress(Exception):
            self._load.set_targets(())
            self._load.stop(2.0)


def _place(options: argparse.Namespace, say: Callable[[str], None]) -> Cluster | Node:
    """Not started yet. The images of a real node are built here if something of them changed."""
    if options.node == "process":
        return Cluster(Options(name=options.name, images=stack.images()))
    images = build(CHECKOUT / ".run" / "images", say=say)
    return Node(NodeOptions(name=options.name, images=(images.archive,)), say)


def _stack(place: Cluster | Node, options: argparse.Namespace) -> Stack:
    """From plain manifests on the process node, from the chart on a real one."""
    wanted: dict[str, Any] = {"gateways": 3, "operators": options.operators, "providers": policies.PROVIDERS}
    return (
        Installed(place, namespace="demo", **wanted)
        if isinstance(place, Node)
        else Stack(place, namespace="demo", **wanted)
    )


def _prepare(console: Console, parts: Sequence[str]) -> float:
    """Builds what is nowhere; the seconds that it took."""
    began = time.time()
    missing = [part for part in parts if binaries.find(part) is None]
    if not missing:
        return 0.0
    console.print(
        f"First run: {', '.join(missing)} will be built from pinned Go modules into {binaries.cache_folder()}. "
        "Together 8 to 20 minutes on two cores, once; later runs start in about 15 seconds."
    )
    binaries.ensure(parts)
    return time.time() - began


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hack.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=CHECKOUT / "out", help="folder for report.html and report.json")
    parser.add_argument(
        "--regression",
        choices=sorted(policies.REGRESSIONS),
        default=os.environ.get("REGRESSION") or "errors",
        help="what goes wrong with the bad revision",
    )
    parser.add_argument("--seconds-scale", type=float, default=1.0, help="stretches the steps' shortest times")
    parser.add_argument(
        "--rate", type=float, help="requests a second (default: 300; 150 on a real node, which needs CPU)"
    )
    parser.add_argument("--seed", type=int, default=7, help="of users and their requests")
    parser.add_argument("--operators", type=int, default=2, help="replicas of the operator")
    parser.add_argument(
        "--node",
        choices=("process", "real"),
        default=os.environ.get("NODE") or "process",
        help="real: the chart on a real node with real pods; needs root and Debian 12",
    )
    parser.add_argument("--name", default="demo", help="of the cluster; two demos side by side need two names")
    return parser


if __name__ == "__main__":
    sys.exit(main())
