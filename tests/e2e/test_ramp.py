"""The ramp's two stories on a real node: applications in pods, gateways behind a Service, a classifier from an image."""

from __future__ import annotations

import time

import pytest

from hack.demo.installed import Installed
from tests.e2e.account import Account
from tests.e2e.apps import AppPod, app, patient, served
from tests.integration.stack_fixtures import NEXT, is_stable, manifest, on_stage, revision

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]
RATE = 100.0


async def test_a_good_candidate_is_promoted_and_a_bad_one_comes_back(installed: Installed, account: Account) -> None:
    """A full ramp to its promotion; a worse revision is reverted by itself; the object has its last good spec again."""
    async with on_stage(installed, "support-chat") as scene:
        good = await served(scene, patient(manifest(installed, "support-chat", classifier=True)))
        async with app(installed, account, "shop", "support-chat", RATE) as users:
            await scene.promoted(good)
            account.facts["promotion_seconds"] = round(time.time() - scene.timeline.seen[0].at, 1)
            await _is_answered_by(users, "mini-1")

            bad_spec = patient(manifest(installed, "support-chat", candidate=NEXT, classifier=True))
            bad = await scene.apply(bad_spec)
            await scene.step(0)
            at = await installed.set_faults("next", error_rate=0.5, error_code=503)
            reverted = await scene.wait(
                lambda it: any(r.revision == bad for r in it.status.rejected) and it.share == 0, "it is reverted"
            )
            assert reverted.status.reverted_at is not None
            account.facts["verdict_seconds"] = round(reverted.status.reverted_at.timestamp() - at, 1)
            restored = await scene.wait(
                lambda it: it.status.timings is not None and revision({"spec": it.spec}) == good,
                "the last good spec is back",
            )
            assert is_stable(restored, good)
            assert restored.status.timings is not None
            account.facts["revert_ms"] = restored.status.timings.decision_to_acked_ms
            await users.more(200)
            last = await users.settle()
        assert last["lost"] == 0, lost(last)
        assert last["models"].get("mini-2"), "the bad revision was never asked"

        await scene.apply(bad_spec)
        seen = len(scene.timeline.seen)
        await scene.wait(lambda it: it.status.observed_generation == it.generation, "the same manifest is noticed")
        assert not any(it.status.candidate for it in scene.timeline.seen[seen:]), "a rejected revision ramped"
        await installed.set_faults("next", error_rate=0.0)


async def _is_answered_by(users: AppPod, model: str) -> None:
    before = (await users.state())["models"].get(model, 0)
    await users.more(100)
    assert (await users.state())["models"].get(model, 0) > before


def lost(state: dict[str, object]) -> str:
    return f"lost {state['lost']}: {state['lost_by_reason']}"
