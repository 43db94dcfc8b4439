"""Brings Envoy to what the policies want, in plan.py's order, and says what it has taken.

Two loops, because they differ in cost: shares (one small file, 10-20 ms) never wait for routes and clusters (a second with
1,000 policies). Called by main; the watcher only marks keys as changed. It must not know Kubernetes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import orjson

from funicular.adapters.envoy_admin import CLUSTERS, ROUTES, SHARES, EnvoyAdmin
from funicular.adapters.envoy_admin import Refusals as Counted
from funicular.agent.documents import document
from funicular.agent.files import Files
from funicular.agent.plan import Clusters, layer
from funicular.agent.policies import Policies, Record
from funicular.agent.ports import Compiled, Compiler, PolicyKey, SecretUse
from funicular.agent.refusals import Refusals
from funicular.api.report import Ack
from funicular.errors import GatewayUnavailable

log = logging.getLogger(__name__)
FILE = {CLUSTERS: "cds/cds.json", ROUTES: "rds/rds.json", SHARES: "runtime/runtime.json"}
GRACE = 90.0  # seconds that an unused cluster stays: a request on the old route may still fall back to it
COALESCE = 0.01  # a burst of events becomes one file
WARM = 5.0  # a candidate whose name is not resolved by then waits alone
REWRITE = 5.0  # an Envoy that answers but has not taken a file by then missed the rename
REFUSAL = 0.05  # from when on the dearer question after refusals is asked


def write_empty(files: Files, compiler: Compiler) -> None:
    """What Envoy starts with where nothing is known yet."""
    for kind, empty in ((CLUSTERS, []), (ROUTES, [compiler.routes({})]), (SHARES, [compiler.shares({})])):
        files.write_if_absent(FILE[kind], document(empty)[0])


class Secrets(Protocol):
    def need(self, uses: Iterable[SecretUse]) -> None:
        """Watches these, writes their files (a placeholder where there is no value)."""

    async def fetched(self, uses: Iterable[SecretUse]) -> None:
        """Until each has been looked for once, or the API server is too slow."""

    def problem(self, use: SecretUse) -> str | None: ...

    def has_value(self, use: SecretUse) -> bool: ...


class Applier:
    def __init__(
        self,
        policies: Policies,
        compiler: Compiler,
        files: Files,
        admin: EnvoyAdmin,
        secrets: Secrets,
        on_ack: Callable[[Record, Ack], None],
        *,
        grace: float = GRACE,
    ) -> None:
        self._policies, self._compiler, self._files = policies, compiler, files
        self._admin, self._secrets, self._on_ack = admin, secrets, on_ack
        self._grace = grace
        self._installed: dict[PolicyKey, Compiled] = {}
        self._found: dict[str, int] | None = {}
        self._clusters = Clusters({}, {})
        self._leaving: dict[SecretUse, float] = {}  # until when clusters of the past may read these
        self._refused = Refusals()
        self._pending: set[PolicyKey] = set()
        self._layer: dict[str, int] = {}  # as Envoy has confirmed it
        self._versions: dict[str, str] = {}  # of the files that Envoy should serve by
        self._structure_wake, self._share_wake = asyncio.Event(), asyncio.Event()
        self.envoy_is_up = False
        self._in_step = False

    # --- what others see ----------------------------------------------------------------------------------------------
    def installed(self) -> dict[PolicyKey, Compiled]:
        return self._installed

    def unsettled(self) -> list[str]:
        """Policies that Envoy has neither taken nor were acknowledged with an error."""
        return sorted("/".join(key) for key in self._pending)

    @property
    def in_step(self) -> bool:
        """Envoy answers, and serves by the files that were written last."""
        return self.envoy_is_up and self._in_step

    def changed(self, keys: Iterable[PolicyKey]) -> None:
        keys = set(keys)
        if not keys:
            return
        self._pending |= keys
        records = self._policies.records
        for key in keys:
            record, old = records.get(key), self._installed.get(key)
            part = record.compiled if record else None
            if part is None or not part.routes_like(old):
                self._structure_wake.set()
        self._share_wake.set()
        self._settle()

    # --- start --------------------------------------------------------------------------------------------------------
    def load(self) -> None:
        """Takes over what an earlier process left, or writes empty files, without which Envoy would not start."""
        write_empty(self._files, self._compiler)
        for cluster in self._resources(CLUSTERS):
            self._clusters.standing[cluster["name"]] = orjson.dumps(cluster)
        self._found = {}
        for resource in self._resources(SHARES):
            for key, value in (resource.get("layer") or {}).items():
                self._found[key] = int(value.get("numerator", 0)) if isinstance(value, dict) else 0

    def _resources(self, kind: str) -> list[Any]:
        try:
            return list(orjson.loads(self._files.read(FILE[kind]) or b"{}").get("resources") or [])
        except (ValueError, AttributeError):
            log.warning("%s is damaged and will be written anew", FILE[kind])
            return []

    async def run(self) -> None:
        """After the initial list: until then nothing may be written."""
        self.changed(self._policies.records)
        self._structure_wake.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_structure())
            group.create_task(self._keep_shares())
            group.create_task(self._watch_envoy())

    # --- clusters and routes ------------------------------------------------------------------------------------------
    async def _keep_structure(self) -> None:
        loop = asyncio.get_running_loop()
        delay = 0.2
        while True:
            due = [at for at in (self._clusters.next_due(), self._refused.next_due()) if at is not None]
            try:
                async with asyncio.timeout_at(min(due, default=None)):
                    await self._structure_wake.wait()
                await asyncio.sleep(COALESCE)
            except TimeoutError:
                pass
            self._structure_wake.clear()
            try:
                again = await self._converge()
                await self._retire(loop.time())
                delay = 0.2
            except (GatewayUnavailable, OSError) as exc:
                log.warning("files are not in force yet: %s", exc)
                again, delay = delay, min(delay * 2, 5.0)
            if again is not None:
                loop.call_later(again, self._structure_wake.set)

    def _targets(self) -> dict[PolicyKey, Compiled]:
        """What should be in force: held and refused policies keep what they have."""
        targets: dict[PolicyKey, Compiled] = {}
        for key, record in self._policies.records.items():
            part = record.compiled
            if part is not None and self._hindrance(record) is not None:
                part = self._installed.get(key)
            if part is not None:
                targets[key] = part
        return targets

    async def _converge(self) -> float | None:
        """One pass. Returns in how many seconds to come again for policies that had to wait."""
        self._refused.keep(self._policies.records)
        self._pending |= self._refused.due(asyncio.get_running_loop().time())
        await self._fetch_secrets()
        targets = self._targets()
        changed = [key for key, part in targets.items() if not part.routes_like(self._installed.get(key))]
        gone = self._installed.keys() - targets.keys()
        if not changed and not gone and self._found is None:
            self._settle()
            return None
        return await self._install(targets, changed)

    async def _fetch_secrets(self) -> None:
        """A policy that changes meanwhile may bring another Secret: Envoy refuses a cluster whose credential has no file."""
        fetched: set[SecretUse] = set()
        while not (uses := self._uses()) <= fetched:
            self._secrets.need(uses)
            await self._secrets.fetched(uses)
            fetched = uses
        self._secrets.need(uses)

    def _uses(self) -> set[SecretUse]:
        records = self._policies.records.values()
        parts = [r.compiled for r in records if r.compiled] + list(self._installed.values())
        return {use for part in parts for use in part.secrets} | self._leaving.keys()

    async def _install(self, targets: dict[PolicyKey, Compiled], changed: list[PolicyKey]) -> float | None:
        """All at once; if Envoy refuses the file, halves, until the policy that it cannot take stands alone."""
        waiting = await self._write_clusters(targets)
        if waiting is not None:
            for key in [key for key in changed if targets[key].clusters.keys() & waiting]:
                targets = {**targets, key: self._installed[key]} if key in self._installed else _without(targets, key)
            if await self._write_routes(targets):
                return 2.0 if waiting else None
        if not changed:
            log.error("Envoy refused files in which no policy had changed")
            return 5.0
        if len(changed) == 1:
            part = targets.get(changed[0])
            if part is not None:
                self._refused.refuse(changed[0], part, asyncio.get_running_loop().time())
            log.error("Envoy refused policy %s", "/".join(changed[0]))
            await self._write_clusters(self._installed, standing=True)
            await self._write_routes(self._installed)
            return None
        kept = {key: part for key, part in self._installed.items() if key in targets}
        half = len(changed) // 2
        again = None
        for keys in (changed[:half], changed[half:]):
            fresh = {key: targets[key] for key in keys if key in targets}
            again = await self._install({**kept, **self._installed_of(targets), **fresh}, list(fresh)) or again
        return again

    def _installed_of(self, targets: dict[PolicyKey, Compiled]) -> dict[PolicyKey, Compiled]:
        return {key: part for key, part in self._installed.items() if key in targets}

    async def _write_clusters(self, targets: dict[PolicyKey, Compiled], *, standing: bool = False) -> set[str] | None:
        """The names that Envoy still resolves after WARM seconds; None: refused."""
        union = self._clusters.standing if standing else self._clusters.union(targets)
        content, version = document([orjson.Fragment(cluster) for _, cluster in sorted(union.items())])
        if not await self._write(CLUSTERS, content, version):
            return None
        self._clusters.standing = dict(union)
        return await self._warmed()

    async def _warmed(self) -> set[str]:
        loop = asyncio.get_running_loop()
        until, delay = loop.time() + WARM, 0.005
        while await self._admin.warming():
            if loop.time() > until:
                return await self._admin.warming_names()
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, 0.2)
        return set()

    async def _write_routes(self, targets: dict[PolicyKey, Compiled]) -> bool:
        by_model = {part.model: part.route for _, part in sorted(targets.items())}
        content, version = document([self._compiler.routes(by_model)])
        if not await self._write(ROUTES, content, version):
            return False
        now = asyncio.get_running_loop().time()
        self._leaving |= {use: now + self._grace for part in self._installed.values() for use in part.secrets}
        self._installed = dict(targets)
        self._found = None
        self._refused.taken(self._installed)
        self._share_wake.set()
        self._clusters.used(self._installed, now, self._grace)
        self._settle()
        return True

    async def _retire(self, now: float) -> None:
        due = self._clusters.due(now)
        if not due:
            return
        left = {name: cluster for name, cluster in self._clusters.standing.items() if name not in due}
        content, version = document([orjson.Fragment(cluster) for _, cluster in sorted(left.items())])
        if await self._write(CLUSTERS, content, version):
            self._clusters.retire(due)
            self._leaving = {use: at for use, at in self._leaving.items() if at > now}
            self._secrets.need(self._uses())

    async def _write(self, kind: str, content: bytes, version: str) -> bool:
        """Writes one file and waits until Envoy serves by it. False: Envoy refused it."""
        before = await self._refusals()
        self._files.write(FILE[kind], content)
        self._versions[kind] = version
        loop = asyncio.get_running_loop()
        start, delay = loop.time(), 0.002
        check, rewrite = start + REFUSAL, start + REWRITE
        while True:
            if (await self._seen()).get(kind) == version:
                return True
            now = loop.time()
            if self.envoy_is_up and now > check:
                check = now + max(REFUSAL, (now - start) / 2)
                if before is None:
                    before = await self._refusals()
                elif (refusals := await self._refusals()) and refusals.since(before, kind):
                    return (await self._seen()).get(kind) == version
            if now > rewrite:
                rewrite = now + REWRITE
                if self.envoy_is_up:
                    self._files.write(FILE[kind], content, force=True)
            await asyncio.sleep(delay)
            delay = min(delay * 1.3, 0.25)

    async def _refusals(self) -> Counted | None:
        try:
            return await self._admin.refusals()
        except GatewayUnavailable:
            return None

    async def _seen(self) -> dict[str, str]:
        try:
            versions = await self._admin.versions()
        except GatewayUnavailable:
            self.envoy_is_up = False
            return {}
        self.envoy_is_up = True
        return versions

    # --- shares -------------------------------------------------------------------------------------------------------
    async def _keep_shares(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._share_wake.wait()
            self._share_wake.clear()
            wanted = {key: record.compiled for key, record in self._policies.records.items() if record.compiled}
            shares = layer(wanted, self._installed, self._found)
            content, version = document([self._compiler.shares(shares)])
            start, delay = loop.time(), 0.002
            try:
                self._files.write(FILE[SHARES], content)
            except OSError as exc:
                log.warning("shares cannot be written: %s", exc)
                loop.call_later(1.0, self._share_wake.set)
                continue
            self._versions[SHARES] = version
            while (await self._seen()).get(SHARES) != version:
                waited = loop.time() - start
                if waited > 0.1 and self._share_wake.is_set():
                    break  # a newer file holds this change too
                if waited > REWRITE:
                    start = loop.time()
                    if self.envoy_is_up:
                        self._files.write(FILE[SHARES], content, force=True)
                await asyncio.sleep(delay)
                delay = min(delay * 1.3, 0.25)
            else:
                self._layer = shares
                self._settle()

    # --- acknowledgements ---------------------------------------------------------------------------------------------
    def _hindrance(self, record: Record) -> str | None:
        """Why the newest version of a policy must not replace the one in force."""
        part = record.compiled
        if (refused := self._refused.why(record.key, part)) is not None:
            return refused
        old = self._installed.get(record.key)
        if part is None or old is None:
            return None
        for use in part.secrets:
            if use not in old.secrets and not self._secrets.has_value(use):
                return self._secrets.problem(use)
        return None

    def _settle(self) -> None:
        for key in list(self._pending):
            record = self._policies.records.get(key)
            if record is None:
                if key not in self._installed:
                    self._pending.discard(key)
                continue
            ack = self._ack(record)
            if ack is not None:
                self._pending.discard(key)
                self._on_ack(record, ack)

    def _ack(self, record: Record) -> Ack | None:
        error = record.error or self._hindrance(record)
        if error is not None:
            return Ack(version=record.version, error=error)
        part = record.compiled
        if part is None or not part.routes_like(self._installed.get(record.key)):
            return None
        if any(self._layer.get(name) != value for name, value in part.shares.items()):
            return None
        problems = (self._secrets.problem(use) for use in part.secrets)
        return Ack(version=record.version, error=next((p for p in problems if p), None))

    def secrets_changed(self, uses: set[SecretUse]) -> None:
        """Acknowledge again those that wait for, or have lost, a credential."""
        records = self._policies.records.values()
        self.changed(r.key for r in records if r.compiled and uses.intersection(r.compiled.secrets))

    # --- Envoy's health -----------------------------------------------------------------------------------------------
    async def _watch_envoy(self) -> None:
        """Once a second: does Envoy answer, and does it serve by the files of last time? After a restart it reads them itself."""
        behind = 0
        while True:
            seen = await self._seen()
            late = [kind for kind, version in self._versions.items() if seen.get(kind) != version]
            self._in_step = self.envoy_is_up and not late
            behind = behind + 1 if self.envoy_is_up and late else 0
            if behind >= 5:
                behind = 0
                for kind in late:
                    content = self._files.read(FILE[kind])
                    if content is not None and not self._structure_wake.is_set():
                        with contextlib.suppress(OSError):
                            self._files.write(FILE[kind], content, force=True)
            await asyncio.sleep(1.0)


def _without(parts: dict[PolicyKey, Compiled], key: PolicyKey) -> dict[PolicyKey, Compiled]:
    return {name: part for name, part in parts.items() if name != key}
