"""The two stories, one after the other, as a person would act them: apply a manifest, look on, apply the next one.

Called by the demo's main. It knows the policy through the watcher only; what the users got is the load's business.
Every wait is for a fact, with a limit; the few fixed pauses are there for people and for the "after" of a comparison.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from funicular.api.revision import revision_of
from funicular.api.spec import RoutingPolicySpec
from hack.demo import policies
from hack.demo.policies import POLICY, Regression
from hack.demo.stack import Stack
from hack.demo.timeline import Seen, Timeline
from hack.demo.watching import Watcher
from hack.sim.load_thread import LoadThread

Json = dict[str, Any]
BEFORE_REGRESSION = 4.0  # seconds of health at 10 % before the provider turns bad
CALM = 6.0  # seconds to compare the untreated users' answers before and after
WATCHED_AGAIN = 8.0  # seconds in which the rejected manifest, applied again, must not ramp
LONGEST_RAMP = 300.0  # a limit for a busy machine; a quiet one needs a third of it
LONGEST_REVERT = 60.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the stories promise, and what was seen."""

    name: str
    ok: bool
    seen: str


class Stories:
    def __init__(
        self,
        stack: Stack,
        watcher: Watcher,
        load: LoadThread,
        regression: Regression,
        *,
        rate: float,
        scale: float = 1.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self._stack, self._watcher, self._load, self._regression = stack, watcher, load, regression
        self._rate, self._scale, self._say = rate, scale, say
        self._good = policies.good(stack.provider_url, stack.cluster.prometheus_url, scale)
        self._bad = policies.changed(self._good, stack.provider_url)
        self.good_revision, self.bad_revision = _revision(self._good), _revision(self._bad)
        self.checks: list[Check] = []

    @property
    def _timeline(self) -> Timeline:
        return self._watcher.timeline

    async def run(self) -> None:
        await self.good_candidate()
        await self.bad_revision_of_it()
        await self.the_same_again()

    async def good_candidate(self) -> None:
        """Story 1."""
        self._timeline.story = "1: a good candidate"
        self._timeline.mark("story1")
        self._say("kubectl apply: support-chat, everything at gpt-frontier; easy questions may go to mini-1")
        await self._stack.apply_policy(self._good)
        await self._watcher.wait(_is_served, 30, "the gateway pods serve the endpoint")
        await self._stack.look()
        self._load.set_targets(self._stack.gateways())
        self._load.set_rate(self._rate)
        self._timeline.mark("load")
        done = await self._watcher.wait(
            lambda it: self._is_stable(it, self.good_revision) or self._is_rejected(it, self.good_revision),
            LONGEST_RAMP * max(1.0, self._scale),
            "the good candidate is promoted",
        )
        promoted = self._is_stable(done, self.good_revision)
        self._timeline.mark("promoted")
        self._check("the good candidate was promoted", promoted, done.status.message)
        if not promoted:
            raise StoryBroken(f"the good candidate was not promoted: {done.status.message}")
        self._say(f"promoted: revision {self.good_revision} is what production does now, with a holdback of 10 %")
        await asyncio.sleep(CALM)

    async def bad_revision_of_it(self) -> None:
        """Story 2."""
        self._timeline.story = f"2: a bad revision of it ({self._regression.kind})"
        self._timeline.mark("story2")
        self._say("kubectl apply: the cheap model's next revision, mini-2, with a braver threshold")
        await self._stack.apply_policy(self._bad)
        await self._watcher.wait(
            lambda it: it.share == 10 and bool(it.status.step and it.status.step.started_at),
            LONGEST_RAMP * max(1.0, self._scale),
            "the changed candidate reaches 10 %",
        )
        await asyncio.sleep(BEFORE_REGRESSION)
        at = await self._stack.set_faults("mini-next", **self._regression.faults)
        self._timeline.mark("regression", at)
        self._say(f"mini-2 turns bad at 10 %: {self._regression.says}")
        gone = await self._watcher.wait(
            lambda it: it.share != 10, LONGEST_REVERT * max(1.0, self._scale), "the operator reverts"
        )
        reverted = self._is_rejected(gone, self.bad_revision)
        self._check("the bad revision was reverted", reverted, _why(gone, self.bad_revision))
        if not reverted:
            raise StoryBroken(f"the bad revision went on: {gone.status.message}")
        assert gone.status.reverted_at is not None
        self._timeline.mark("verdict", gone.status.reverted_at.timestamp())
        acked = await self._watcher.wait(
            lambda it: it.status.timings is not None and it.status.reverted_at is not None, 20, "all pods confirm"
        )
        assert acked.status.timings is not None
        self._timeline.mark(
            "reverted", self._timeline.marks["verdict"] + (acked.status.timings.decision_to_acked_ms or 0) / 1000
        )
        self._say(f"reverted: {_why(gone, self.bad_revision)}")
        self._check(
            "every gateway pod confirmed share 0",
            acked.share == 0,
            f"{acked.status.gateways} pods, share {acked.share:g} %",
        )
        restored = await self._watcher.wait(
            lambda it: _revision_of(it.spec) == self.good_revision, 20, "the last good spec is in the object again"
        )
        self._check(
            "the last good spec is back in the object",
            True,
            f"revision {_revision_of(restored.spec)}, generation {restored.generation}",
        )
        latched = [r for r in restored.status.rejected if r.revision == self.bad_revision]
        self._check(
            "the bad revision is latched in status.rejected",
            bool(latched),
            f"{latched[0].revision}, {latched[0].reason}" if latched else "it is not",
        )
        await asyncio.sleep(CALM)

    async def the_same_again(self) -> None:
        """The epilogue: a rejected revision stays rejected."""
        self._timeline.story = "2: the same manifest again"
        first = len(self._timeline.seen)
        self._timeline.mark("again")
        self._say("kubectl apply: the same bad manifest once more")
        await self._stack.apply_policy(self._bad)
        await asyncio.sleep(WATCHED_AGAIN)
        seen = self._timeline.seen[first:]
        noticed = any(_revision_of(it.spec) == self.bad_revision for it in seen)
        ramped = [it for it in seen if it.status.candidate is not None]
        self._check(
            "the same manifest applied again ramps nothing",
            noticed and not ramped,
            f"watched for {WATCHED_AGAIN:g} s: {self._timeline.status().message}",
        )
        self._timeline.mark("end")

    def _check(self, name: str, ok: bool, seen: str) -> None:
        self.checks.append(Check(name, ok, seen))

    @staticmethod
    def _is_stable(it: Seen, revision: str) -> bool:
        status = it.status
        return status.candidate is None and status.stable is not None and status.stable.revision == revision

    @staticmethod
    def _is_rejected(it: Seen, revision: str) -> bool:
        return it.status.candidate is None and any(r.revision == revision for r in it.status.rejected)


class StoryBroken(Exception):
    """The operator did something else than the story tells. The report is written nevertheless."""


def _why(it: Seen, revision: str) -> str:
    """Why the revision was rejected; what the policy says if it was not."""
    return next((r.message for r in it.status.rejected if r.revision == revision), it.status.message)


def _is_served(it: Seen) -> bool:
    """All gateway pods have confirmed some traffic."""
    traffic = it.status.traffic
    return traffic is not None and traffic.share.acked is not None


def _revision(manifest: Json) -> str:
    return _revision_of(manifest["spec"])


def _revision_of(spec: Json) -> str:
    return revision_of(RoutingPolicySpec.model_validate(spec))


__all__ = ["POLICY", "Check", "Stories", "StoryBroken"]
