"""The candidates' credentials: one watch per Secret, one SDS file per key. Values are never logged.

Called by the applier. A watch is narrowed to one name, so that RBAC can grant Secrets by `resourceNames`. A value that is
gone keeps its last good file: the requests of users in flight must not fail because somebody renames a Secret. Where there
never was one, a placeholder lets Envoy start; the provider answers 401, and the acknowledgement says what is missing.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from funicular.adapters.kube import KubeClient, decode_secret, path_of
from funicular.agent.documents import document
from funicular.agent.files import Files
from funicular.agent.ports import Compiler, SecretUse
from funicular.agent.watch import watch_for_ever
from funicular.errors import FunicularError

log = logging.getLogger(__name__)
PLACEHOLDER = "credential-is-missing"
FIRST_ANSWER = 3.0  # seconds to wait for the API server before a placeholder is used
Source = tuple[str, str]  # namespace and name of a Secret


def usable(value: str) -> bool:
    """A header's value: no control characters, else Envoy would refuse it or a provider read two headers."""
    return bool(value) and all(" " <= char != "\x7f" for char in value)


class SecretKeeper:
    def __init__(
        self, kube: KubeClient, files: Files, compiler: Compiler, on_change: Callable[[set[SecretUse]], None]
    ) -> None:
        self._kube, self._files, self._compiler, self._on_change = kube, files, compiler, on_change
        self._uses: dict[Source, set[SecretUse]] = {}
        self._watches: dict[Source, asyncio.Task[None]] = {}
        self._answered: dict[Source, asyncio.Event] = {}
        self._seen: dict[Source, Mapping[str, Any] | None] = {}
        self._problems: dict[SecretUse, str] = {}
        self._known: set[SecretUse] = set()  # there is, or was, a value in the file
        self._late: set[Source] = set()  # waited for in vain

    def _file(self, use: SecretUse) -> str:
        return f"sds/{use.sds}.json"

    def _content(self, use: SecretUse, value: str) -> bytes:
        return document([self._compiler.secret(use.sds, value)])[0]

    def need(self, uses: Iterable[SecretUse]) -> None:
        wanted: dict[Source, set[SecretUse]] = {}
        for use in uses:
            wanted.setdefault((use.namespace, use.name), set()).add(use)
        for source in self._uses.keys() - wanted.keys():
            self._stop(source)
        for source, found in wanted.items():
            fresh = found - self._uses.get(source, set())
            dropped = self._uses.get(source, set()) - found
            self._uses[source] = found
            for use in dropped:
                self._remove(use)
            for use in fresh:
                self._adopt(use)
            if source not in self._watches:
                self._answered[source] = asyncio.Event()
                self._watches[source] = asyncio.create_task(self._watch(source))
            elif fresh and source in self._seen:
                self._take(source, self._seen[source])

    def _adopt(self, use: SecretUse) -> None:
        """A file of an earlier process holds a good key unless it is the placeholder."""
        placeholder = self._content(use, PLACEHOLDER)
        self._files.write_if_absent(self._file(use), placeholder, private=True)
        if self._files.read(self._file(use)) != placeholder:
            self._known.add(use)

    def _remove(self, use: SecretUse) -> None:
        self._problems.pop(use, None)
        self._known.discard(use)
        if not any(use.sds == other.sds for uses in self._uses.values() for other in uses):
            self._files.remove(self._file(use))

    def _stop(self, source: Source) -> None:
        self._watches.pop(source).cancel()
        self._answered.pop(source).set()
        self._late.discard(source)
        self._seen.pop(source, None)
        for use in self._uses.pop(source):
            self._remove(use)

    async def close(self) -> None:
        for task in self._watches.values():
            task.cancel()
        await asyncio.gather(*self._watches.values(), return_exceptions=True)

    async def fetched(self, uses: Iterable[SecretUse]) -> None:
        asked = {(u.namespace, u.name) for u in uses} & self._answered.keys()
        waiting = [event.wait() for s in asked if not (event := self._answered[s]).is_set()]
        if waiting:
            try:
                async with asyncio.timeout(FIRST_ANSWER):
                    await asyncio.gather(*waiting)
            except TimeoutError:
                self._late |= {s for s in asked if s in self._answered and not self._answered[s].is_set()}
                log.warning("Secrets are not read yet: the API server does not answer")

    def problem(self, use: SecretUse) -> str | None:
        """None also for one that was only just asked for: the applier waits for it before it acknowledges."""
        found = self._problems.get(use)
        if found or use in self._known or (use.namespace, use.name) not in self._late:
            return found
        return f"{use}: not read yet, the API server does not answer"

    def has_value(self, use: SecretUse) -> bool:
        return use in self._known

    async def _watch(self, source: Source) -> None:
        namespace, name = source

        def on_event(kind: str, item: Any) -> None:
            if kind == "RESYNC":
                self._take(source, item[0] if item else None)
            else:
                self._take(source, None if kind == "DELETED" else item)

        def on_refusal(exc: FunicularError) -> None:
            self._refuse(source, f"cannot be read: {exc}")

        await watch_for_ever(
            self._kube,
            path_of("v1", "secrets", namespace),
            on_event,
            on_refusal=on_refusal,
            fieldSelector=f"metadata.name={name}",
        )

    def _refuse(self, source: Source, why: str) -> None:
        changed = set()
        for use in self._uses.get(source, ()):
            problem = f"{use}: {why}"
            if self._problems.get(use) != problem:
                self._problems[use] = problem
                changed.add(use)
        self._done(source, changed)

    def _take(self, source: Source, secret: Mapping[str, Any] | None) -> None:
        self._seen[source] = secret
        changed = set()
        for use in self._uses.get(source, ()):
            value, problem = _value(secret, use)
            if value is not None:
                self._files.write(self._file(use), self._content(use, value), private=True)
                if use not in self._known:
                    self._known.add(use)
                    changed.add(use)
            if self._problems.get(use) != problem:
                changed.add(use)
                if problem is None:
                    del self._problems[use]
                else:
                    self._problems[use] = problem
                    log.warning("%s", problem)
        self._done(source, changed)

    def _done(self, source: Source, changed: set[SecretUse]) -> None:
        self._late.discard(source)
        if source in self._answered:
            self._answered[source].set()
        if changed:
            self._on_change(changed)


def _value(secret: Mapping[str, Any] | None, use: SecretUse) -> tuple[str | None, str | None]:
    """The value, or what is wrong with it. A line end after the key is a habit of `echo`, not part of it."""
    if secret is None:
        return None, f"{use}: the Secret does not exist"
    try:
        value = decode_secret(secret, use.key)
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None, f"{use}: the value is not text"
    if value is None:
        return None, f"{use}: the Secret has no such key"
    value = value.strip()
    if not usable(value):
        return None, f"{use}: the value is empty or holds characters that no header may hold"
    return value, None
