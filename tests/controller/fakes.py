"""Hand-written fakes of the controller's seams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

from funicular.errors import Conflict, FunicularError, NotFound

Json = dict[str, Any]
NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


class FakeClock:
    def __init__(self, now: datetime = NOW) -> None:
        self.time = now

    def now(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class FakeKube:
    """An API server of dictionaries: objects by path, a resourceVersion that rises, Conflict for a stale one."""

    def __init__(self) -> None:
        self.objects: dict[str, Json] = {}
        self.calls: list[tuple[str, str, Any]] = []
        self.version = 0
        self.failure: FunicularError | None = None
        self.answers: Callable[[str, Json], Json] | None = None  # for a POST that stores nothing

    def _called(self, method: str, path: str, body: Any = None) -> None:
        self.calls.append((method, path, body))
        if self.failure is not None:
            raise self.failure

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [(method, path) for method, path, _ in self.calls if method not in ("GET", "LIST")]

    def _stored(self, path: str, body: Json) -> Json:
        self.version += 1
        stored = deepcopy(body)
        stored.setdefault("metadata", {})["resourceVersion"] = str(self.version)
        self.objects[path] = stored
        return deepcopy(stored)

    async def get(self, path: str, **params: str) -> Json:
        self._called("GET", path)
        if path not in self.objects:
            raise NotFound(path)
        return deepcopy(self.objects[path])

    async def create(self, path: str, body: Json, **params: str) -> Json:
        self._called("POST", path, body)
        if self.answers is not None:
            return self.answers(path, body)
        at = f"{path}/{body['metadata']['name']}"
        if at in self.objects:
            raise Conflict(at)
        return self._stored(at, body)

    async def replace(self, path: str, body: Json) -> Json:
        self._called("PUT", path, body)
        if path not in self.objects:
            raise NotFound(path)
        if body["metadata"].get("resourceVersion") != self.objects[path]["metadata"]["resourceVersion"]:
            raise Conflict(path)
        return self._stored(path, body)

    async def patch(self, path: str, body: Any, *, content_type: str = "", **params: str) -> Json:
        self._called("PATCH", path, body)
        if "apply" not in content_type and path not in self.objects:
            raise NotFound(path)
        return self._stored(path, {**self.objects.get(path, {}), **body})

    async def delete(self, path: str, body: Json | None = None) -> Json:
        self._called("DELETE", path)
        if path not in self.objects:
            raise NotFound(path)
        return self.objects.pop(path)

    async def list_all(self, path: str, **params: str) -> tuple[list[Json], str]:
        self._called("LIST", path)
        wanted = dict(pair.split("=", 1) for pair in params.get("labelSelector", "").split(",") if pair)
        found = [
            deepcopy(body)
            for at, body in self.objects.items()
            if at.rsplit("/", 1)[0] == path
            and all((body["metadata"].get("labels") or {}).get(k) == v for k, v in wanted.items())
        ]
        return found, str(self.version)

    async def watch(self, path: str, **params: str) -> AsyncIterator[tuple[str, Any]]:
        yield "RESYNC", (await self.list_all(path, **params))[0]


class FakeMetrics:
    """Answers by the first key that stands in the query; an exception is raised."""

    def __init__(self, answers: Mapping[str, Any] | None = None) -> None:
        self.answers = dict(answers or {})
        self.asked: list[str] = []

    async def query(self, promql: str, at: datetime) -> list[tuple[dict[str, str], float]]:
        self.asked.append(promql)
        for part, answer in self.answers.items():
            if part in promql:
                if isinstance(answer, Exception):
                    raise answer
                return answer(promql) if callable(answer) else list(answer)
        return []


class FakeClients:
    """A client for everybody."""

    def __init__(self, metrics: FakeMetrics) -> None:
        self.metrics = metrics

    def at(self, namespace: str, settings: Any) -> FakeMetrics:
        return self.metrics

    def key(self, namespace: str, settings: Any) -> str:
        return str(settings.url)


class Observer:
    def __init__(self) -> None:
        self.results: list[str] = []

    def reconciled(self, seconds: float, result: str) -> None:
        self.results.append(result)

    def queue_depth(self, ready: int, running: int) -> None: ...


async def until(fact: Callable[[], Any], seconds: float = 5.0) -> None:
    """Waits for a fact rather than for a time."""
    async with asyncio.timeout(seconds):
        while not fact():  # noqa: ASYNC110 - any fact, not an event's
            await asyncio.sleep(0.002)
