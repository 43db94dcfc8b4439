from __future__ import annotations

import asyncio
from typing import Any

import pytest

from funicular.api.report import LEASE, REPORT_URL
from funicular.controller.lease import Elector, LeaseFence
from funicular.controller.wiring import NotLeader
from funicular.errors import ApiUnavailable
from tests.controller.fakes import FakeClock, FakeKube, until

PATH = f"/apis/coordination.k8s.io/v1/namespaces/ops/leases/{LEASE}"
LEASE_SECONDS, RENEW = 0.6, 0.04


class Terms:
    """Counts the terms that an elector starts; `stubborn` ones do not end when they are cancelled."""

    def __init__(self, fence: LeaseFence, stubborn: bool = False) -> None:
        self.fence = fence
        self.begun = 0
        self.running = 0
        self.open_at_the_end: list[bool] = []
        self.stubborn = stubborn
        self.fail = asyncio.Event()

    async def lead(self) -> None:
        self.begun += 1
        self.running += 1
        try:
            await self.fail.wait()
            self.fail.clear()
            raise RuntimeError("the term broke")
        except asyncio.CancelledError:
            self.open_at_the_end.append(self.fence.is_open)
            if self.stubborn:
                await asyncio.Event().wait()
            raise
        finally:
            self.running -= 1


def make(kube: FakeKube, name: str, **options: Any) -> tuple[Elector, Terms]:
    fence = LeaseFence()
    elector = Elector(
        kube,
        fence,
        FakeClock(),
        namespace="ops",
        identity=name,
        report_url=f"http://{name}:8085",
        lease_seconds=LEASE_SECONDS,
        renew_seconds=RENEW,
        **options,
    )
    return elector, Terms(fence)


def test_the_fence_opens_until_the_deadline_and_not_a_moment_longer() -> None:
    now = [100.0]
    fence = LeaseFence(lambda: now[0])
    with pytest.raises(NotLeader):
        fence.check()
    fence.extend(110.0)
    fence.check()
    now[0] = 110.0
    with pytest.raises(NotLeader):
        fence.check()
    fence.extend(120.0)
    fence.drop()
    with pytest.raises(NotLeader):
        fence.check()


async def test_one_leads_and_the_other_follows_when_the_lease_is_released() -> None:
    kube = FakeKube()
    (a, first), (b, second) = make(kube, "a"), make(kube, "b")
    run_a = asyncio.create_task(a.run(first.lead))
    await until(lambda: first.running == 1)
    run_b = asyncio.create_task(b.run(second.lead))
    await asyncio.sleep(LEASE_SECONDS * 2)
    assert second.begun == 0
    lease = kube.objects[PATH]
    assert lease["spec"]["holderIdentity"] == "a"
    assert lease["metadata"]["annotations"][REPORT_URL] == "http://a:8085"
    a.stop()
    await run_a
    assert first.open_at_the_end == [False]  # the fence fell before the term was told
    await until(lambda: second.running == 1, LEASE_SECONDS)
    assert kube.objects[PATH]["spec"]["leaseTransitions"] == 1
    b.stop()
    await run_b
    assert kube.objects[PATH]["spec"]["holderIdentity"] == ""


async def test_a_dead_leader_is_followed_only_after_its_lease_ran_out() -> None:
    kube = FakeKube()
    a, first = make(kube, "a")
    run_a = asyncio.create_task(a.run(first.lead))
    await until(lambda: first.running == 1)
    run_a.cancel()  # as kill -9: nothing is released
    await asyncio.wait({run_a})
    b, second = make(kube, "b")
    loop = asyncio.get_running_loop()
    kube.objects[PATH]["spec"]["leaseDurationSeconds"] = 1
    started = loop.time()
    run_b = asyncio.create_task(b.run(second.lead))
    await until(lambda: second.running == 1)
    assert loop.time() - started >= 1.0
    b.stop()
    await run_b


async def test_without_the_api_server_the_term_ends_before_the_lease_does() -> None:
    kube = FakeKube()
    a, terms = make(kube, "a")
    run = asyncio.create_task(a.run(terms.lead))
    await until(lambda: terms.running == 1)
    kube.failure = ApiUnavailable("down")
    loop = asyncio.get_running_loop()
    lost = loop.time()
    await until(lambda: terms.running == 0)
    assert loop.time() - lost < LEASE_SECONDS
    with pytest.raises(NotLeader):
        terms.fence.check()
    kube.failure = None
    await until(lambda: terms.running == 1)
    assert terms.begun == 2
    a.stop()
    await run


async def test_a_lease_that_another_took_ends_the_term_at_once() -> None:
    kube = FakeKube()
    a, terms = make(kube, "a")
    run = asyncio.create_task(a.run(terms.lead))
    await until(lambda: terms.running == 1)
    stolen = await kube.get(PATH)
    stolen["spec"]["holderIdentity"] = "thief"
    await kube.replace(PATH, stolen)
    await until(lambda: terms.running == 0, LEASE_SECONDS / 2)
    a.stop()
    await run
    assert kube.objects[PATH]["spec"]["holderIdentity"] == "thief"


async def test_a_term_that_breaks_gives_the_lease_away_and_is_begun_anew() -> None:
    kube = FakeKube()
    a, terms = make(kube, "a")
    run = asyncio.create_task(a.run(terms.lead))
    await until(lambda: terms.running == 1)
    terms.fail.set()
    await until(lambda: kube.objects[PATH]["spec"]["holderIdentity"] == "")
    await until(lambda: terms.begun == 2)
    a.stop()
    await run


async def test_a_term_that_does_not_end_costs_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funicular.controller.lease.STOP_SECONDS", 0.1)
    exits: list[int] = []
    kube = FakeKube()
    a, terms = make(kube, "a", exit_process=exits.append)
    terms.stubborn = True
    run = asyncio.create_task(a.run(terms.lead))
    await until(lambda: terms.running == 1)
    a.stop()
    await run
    assert exits == [1]


async def test_a_process_that_was_frozen_writes_nothing_when_it_wakes() -> None:
    """The clock jumps, as after SIGSTOP or a suspended machine: the fence is closed before anything else runs."""
    jump = [0.0]
    loop = asyncio.get_running_loop()
    fence = LeaseFence(lambda: loop.time() + jump[0])
    fence.extend(loop.time() + 10)
    fence.check()
    jump[0] = 11
    with pytest.raises(NotLeader):
        fence.check()
