"""An application's pod, from outside: its counters, its rate, and the account that it leaves."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from hack.demo.installed import Installed
from tests.e2e.account import Account
from tests.integration.stack_fixtures import Scene, until

Json = dict[str, Any]


class AppPod:
    """As hack/sim/app.py serves it."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def state(self) -> Json:
        async with self._session.get(f"{self.url}/state") as answer:
            found: Json = await answer.json()
            return found

    async def failures(self) -> list[Json]:
        """Each failed request: whose fault, when, why."""
        async with self._session.get(f"{self.url}/failures") as answer:
            found: list[Json] = await answer.json()
            return found

    async def pace(self, rate: float) -> None:
        async with self._session.post(f"{self.url}/rate", json={"rate": rate}) as answer:
            answer.raise_for_status()

    async def more(self, requests: int) -> None:
        """Waits until as many more were answered."""
        before = (await self.state())["ok"]

        async def answered() -> bool:
            return bool((await self.state())["ok"] >= before + requests)

        await until(answered, f"{requests} more answers")

    async def settle(self) -> Json:
        """No new requests; the state when none is under way any more."""
        await self.pace(0.0)

        async def ended() -> Json | None:
            found = await self.state()
            return found if not found["in_flight"] else None

        found = await until(ended, "the last answers")
        assert found is not None
        return found

    async def lost(self) -> list[Json]:
        """Failed, and no provider failed them."""
        return [it for it in await self.failures() if it["lost"]]


@contextlib.asynccontextmanager
async def app(
    installed: Installed, account: Account, name: str, model: str, rate: float, *arguments: str
) -> AsyncIterator[AppPod]:
    """Users from now to the end of the block; what became of their requests goes into the account."""
    url = await installed.start_app(name, model, "--rate", "0", *arguments)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        pod = AppPod(url, session)
        await pod.pace(rate)
        try:
            yield pod
        finally:
            last = await pod.settle()
            account.requests(sent=last["sent"], failed_by_providers=last["failed_by_provider"], lost=last["lost"])
            await installed.kubectl("delete", "deployment", name, "--wait=false")


def patient(policy: Json) -> Json:
    """A busy machine's classifier takes its time; a request that it does not decide is evidence of nothing."""
    policy["spec"]["strategy"]["classifier"]["timeout"] = "2s"
    return policy


async def served(scene: Scene, policy: Json) -> str:
    """Applies it and waits until all gateway pods serve it. Returns the revision."""
    ramps = await scene.apply(policy)
    await scene.wait(lambda it: bool(it.status.traffic and it.status.traffic.share.acked is not None), "it is served")
    return ramps
