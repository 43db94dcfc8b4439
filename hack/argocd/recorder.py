"""What Argo CD said of an application while something happened, and who wrote the policy's spec meanwhile: rows for a report.

Called by tests. It looks on: Argo CD's API is asked twice a second, the policy is watched at the API server. It writes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

from funicular.adapters.kube import KubeClient
from funicular.errors import FunicularError
from hack.argocd.application import Application, Resource

Json = dict[str, Any]
LOOK_EVERY = 0.5  # seconds
MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """One look that differed from the one before."""

    at: float  # seconds since the epoch
    application: Application
    policy: Resource | None  # health and message of the policy; None: Argo CD shows none


@dataclass(frozen=True, slots=True)
class SpecWrite:
    """The generation rose: somebody changed the spec."""

    at: float
    generation: int
    manager: str  # the field manager that wrote last


@dataclass
class Recorder:
    """`rows` and `writes` grow while `recording` is open."""

    rows: list[Row] = field(default_factory=list)
    writes: list[SpecWrite] = field(default_factory=list)
    began: float = field(default_factory=time.time)

    def writes_between(self, begin: float, end: float) -> list[SpecWrite]:
        return [it for it in self.writes if begin <= it.at < end]

    def rows_between(self, begin: float, end: float) -> list[Row]:
        """Those that were in effect in this time: the last one before it too."""
        before = [row for row in self.rows if row.at <= begin][-1:]
        return before + [row for row in self.rows if begin < row.at < end]

    def table(self) -> list[Json]:
        """For a report: one row a change."""
        return [
            {
                "seconds": round(row.at - self.began, 1),
                "sync": row.application.sync,
                "health": row.application.health,
                "operation": row.application.operation,
                "message": row.policy.message if row.policy else "",
                "spec writes in the last minute": len(self.writes_between(row.at - MINUTE, row.at)),
            }
            for row in self.rows
        ]


@contextlib.asynccontextmanager
async def recording(url: str, application: str, kube: KubeClient, policy_path: str) -> AsyncIterator[Recorder]:
    """`url` of Argo CD's API server; `policy_path` of the policy at the cluster's."""
    recorder = Recorder()
    tasks = [
        asyncio.ensure_future(_look(recorder, url, application, policy_path.rpartition("/")[2])),
        asyncio.ensure_future(_watch(recorder, kube, policy_path)),
    ]
    try:
        yield recorder
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


async def _look(recorder: Recorder, url: str, name: str, policy: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        while True:
            with contextlib.suppress(httpx.HTTPError, json.JSONDecodeError):
                found = await _seen(client, name, policy)
                last = recorder.rows[-1] if recorder.rows else None
                if found is not None and (last is None or (last.application, last.policy) != found):
                    recorder.rows.append(Row(time.time(), *found))
            await asyncio.sleep(LOOK_EVERY)


async def _seen(client: httpx.AsyncClient, name: str, policy: str) -> tuple[Application, Resource | None] | None:
    body = await client.get(f"/api/v1/applications/{name}")
    tree = await client.get(f"/api/v1/applications/{name}/resource-tree")
    if body.status_code != 200 or tree.status_code != 200:
        return None  # there is no such application yet, or no more
    nodes = [Resource.of(it) for it in tree.json().get("nodes") or ()]
    return Application.of(body.json()), next(
        (it for it in nodes if (it.kind, it.name) == ("RoutingPolicy", policy)), None
    )


async def _watch(recorder: Recorder, kube: KubeClient, path: str) -> None:
    collection, _, name = path.rpartition("/")
    generation = 0
    while True:
        with contextlib.suppress(FunicularError):
            async with aclosing(kube.watch(collection)) as found:  # type: ignore[type-var]
                async for kind, item in found:
                    for body in item if kind == "RESYNC" else [item]:
                        meta = body["metadata"]
                        if meta["name"] != name or kind == "DELETED" or meta["generation"] == generation:
                            continue
                        first = generation + 1 if generation else meta["generation"]
                        generation = meta["generation"]
                        for number in range(first, generation + 1):
                            recorder.writes.append(SpecWrite(time.time(), number, _last_writer(meta)))
        await asyncio.sleep(LOOK_EVERY)


def _last_writer(metadata: Json) -> str:
    """Of the spec: the manager with the latest time among those that own fields of it."""
    own = [it for it in metadata.get("managedFields") or () if "f:spec" in (it.get("fieldsV1") or {})]
    return str(max(own, key=lambda it: it.get("time", ""))["manager"]) if own else ""
