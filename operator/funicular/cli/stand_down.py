"""`funicular stand-down` (hooks.py): before the operator goes, takes back what ramps, and says what each endpoint is left at.

Run by the chart's uninstall Job, while the operator is still there to answer. It asks by the same annotation as a
person's `abort` does, so the operator stays the only one who moves traffic; it deletes nothing and changes no spec.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from funicular.api.base import PLURAL
from funicular.api.policy import parse_policy
from funicular.api.revision import revision_of
from funicular.api.status import Status
from funicular.api.verbs import ANNOTATION, Request, Verb
from funicular.cli.access import path, policies, policy
from funicular.cli.render import status_of
from funicular.errors import FunicularError, NotFound

if TYPE_CHECKING:
    from funicular.adapters.kube import KubeClient

Json = dict[str, Any]
POLL_SECONDS = 0.3
AT_ONCE = 8
WHO = "stand-down"


class Left(StrEnum):
    """What an endpoint is left at."""

    BASELINE = "at the baseline"
    PROMOTED = "at a promoted revision"
    UNANSWERED = "as it was"
    UNSERVED = "not served"
    DELETED = "deleted meanwhile"


Outcome = tuple[Left, str]  # and what more there is to say


async def run(kube: KubeClient, namespaces: Sequence[str | None], timeout: float, say: Callable[[str], object]) -> None:
    found = [body for namespace in namespaces for body in await policies(kube, namespace)]
    end = asyncio.get_running_loop().time() + timeout
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(body: Json) -> Left:
        async with limit:
            left, more = await take_back(kube, body, end)
        name = f"{body['metadata']['namespace']}/{body['metadata']['name']}"
        say(f"{name}: {left}" + (f": {more}" if more else ""))
        return left

    say(summary(Counter(await asyncio.gather(*map(one, found)))))


async def take_back(kube: KubeClient, body: Json, end: float) -> Outcome:
    """Of one policy. `end` is on the event loop's clock."""
    loop = asyncio.get_running_loop()
    namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
    asked: str | None = None
    try:
        if needs_taking_back(body):
            asked = uuid.uuid4().hex[:12]
            request = Request(Verb.ABORT, bound_to(body), asked, WHO)
            patch = {"metadata": {"uid": body["metadata"]["uid"], "annotations": {ANNOTATION: request.annotation()}}}
            await kube.patch(path(namespace, name), patch)
            while True:  # once at least, also when the time is over
                body = await policy(kube, namespace, name)
                if is_settled(body, asked) or loop.time() >= end:
                    break
                await asyncio.sleep(POLL_SECONDS)
        return left_at(body, asked)
    except NotFound:
        return Left.DELETED, ""
    except (FunicularError, ValidationError) as exc:  # one policy that cannot be read must not keep the others
        return Left.UNANSWERED, str(exc).partition("\n")[0]


def needs_taking_back(body: Json) -> bool:
    """Something else than the baseline has users, and the policy is not on its way out."""
    status = status_of(body)
    if body["metadata"].get("deletionTimestamp") or status.traffic is None:
        return False
    return status.candidate is not None or not status.traffic.stable.is_baseline_only


def bound_to(body: Json) -> str:
    """The revision that the operator binds a request to: what ramps, else what the spec says."""
    status = status_of(body)
    return status.candidate.revision if status.candidate else revision_of(parse_policy(body).spec)


def is_settled(body: Json, asked: str) -> bool:
    """The operator has answered, and the gateways serve by its answer."""
    status = status_of(body)
    return has_answered(status, asked) and gateways_agree(status)


def has_answered(status: Status, asked: str) -> bool:
    return status.last_verb is not None and status.last_verb.id == asked


def gateways_agree(status: Status) -> bool:
    condition = status.condition("GatewaysSynced")
    return condition is not None and condition.status == "True"


def left_at(body: Json, asked: str | None) -> Outcome:
    status = status_of(body)
    if status.traffic is None:
        return Left.UNSERVED, ""
    if asked is not None and not has_answered(status, asked):
        return Left.UNANSWERED, "no operator has answered in time"
    if status.candidate is None and status.traffic.stable.is_baseline_only:
        return Left.BASELINE, "" if gateways_agree(status) else f"confirmed by {status.gateways} gateway pods so far"
    return Left.PROMOTED, f"{status.traffic.stable.revision}; nothing watches it from now on"


def summary(counts: Counter[Left]) -> str:
    if not counts:
        return "There is no policy."
    counted = ", ".join(f"{number} {left}" for left, number in counts.most_common())
    return (
        f"{counted}. The policies stay. Without an operator their finalizer keeps them from being deleted; to let one go: "
        f'kubectl patch {PLURAL} NAME -n NAMESPACE --type=merge -p \'{{"metadata":{{"finalizers":null}}}}\''
    )
