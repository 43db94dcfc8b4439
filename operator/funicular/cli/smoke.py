"""`funicular smoke` (hooks.py): does an installation work? Run by `helm test`, in a pod with the right to look and nothing else.

Each check is asked until it holds or the time is over, so that it may follow an installation at once. It knows what a
user's cluster has to answer, and nothing of how the answers come about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp

from funicular.adapters.kube import path_of
from funicular.api.report import LEASE
from funicular.cli.access import policies
from funicular.errors import FunicularError, GatewayUnavailable, NotFound, RetryLater
from funicular.ports import Clock

if TYPE_CHECKING:
    from funicular.adapters.kube import KubeClient

Json = dict[str, Any]
Check = Callable[[], Awaitable[str]]
POLL_SECONDS = 0.5
ANSWER_SECONDS = 5.0  # for one answer of a gateway


def checks(
    kube: KubeClient, namespace: str, operator_namespace: str, urls: Sequence[str], clock: Clock
) -> tuple[Check, ...]:
    async def api() -> str:
        return f"the API server answers: {(await kube.get('/version'))['gitVersion']}"

    async def resource() -> str:
        found = len(await policies(kube, namespace))
        return f"RoutingPolicies are served: {found} in namespace {namespace}"

    async def operator() -> str:
        try:
            lease = await kube.get(path_of("coordination.k8s.io/v1", "leases", operator_namespace, LEASE))
        except NotFound as exc:
            raise NotFound(f"no operator has ever led in namespace {operator_namespace}") from exc
        return f"an operator leads: {leader_of(lease, clock.now())}"

    def gateway(url: str) -> Check:
        async def answers() -> str:
            await healthy(url)
            return f"the gateway answers: {url}"

        return answers

    return (api, resource, operator, *map(gateway, urls))


def leader_of(lease: Json, now: datetime) -> str:
    """The holder of a Lease that is being renewed. Raises RetryLater."""
    spec = lease.get("spec") or {}
    if not (spec.get("holderIdentity") and spec.get("renewTime")):
        raise RetryLater("no operator leads: the Lease is free")
    renewed = datetime.fromisoformat(spec["renewTime"])
    if now > renewed + timedelta(seconds=spec.get("leaseDurationSeconds") or 0):
        raise RetryLater(f"no operator leads: {spec['holderIdentity']} has not renewed its Lease since {renewed}")
    return str(spec["holderIdentity"])


async def healthy(url: str) -> None:
    """Raises GatewayUnavailable."""
    place = f"{url.rstrip('/')}/healthz"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS)) as session,
            session.get(place) as answer,
        ):
            if answer.status != 200:
                raise GatewayUnavailable(f"{place} answers {answer.status}")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
        raise GatewayUnavailable(f"{place} does not answer: {type(exc).__name__} {exc}".rstrip()) from exc


async def run(asked: Sequence[Check], timeout: float, say: Callable[[str], object]) -> None:
    """One after the other, each until it holds. Raises what the first one says that does not in time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    for check in asked:
        while True:
            try:
                say(f"ok: {await check()}")
                break
            except FunicularError:
                if loop.time() >= end:
                    raise
            await asyncio.sleep(POLL_SECONDS)
