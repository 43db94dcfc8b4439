"""The policies that this pod serves, from watch events: a pure store with a compile cache. Reads `status.traffic` alone.

Called by the watcher; read by the applier, the metrics and the readiness. What cannot be parsed or compiled keeps its
last good version and carries an error, which is acknowledged instead of silence. It must not know files or Envoy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from funicular.agent.labels import selects
from funicular.agent.ports import Compiled, Compiler, PolicyKey
from funicular.api.traffic import Traffic
from funicular.errors import FunicularError

Json = Mapping[str, Any]


@dataclass(slots=True)
class Record:
    """One policy that selects this pod. `traffic` and `compiled`: the last good ones, of version `good`."""

    key: PolicyKey
    uid: str
    created: str
    version: int
    error: str | None = None
    traffic: Traffic | None = None
    compiled: Compiled | None = None
    raw: Any = None

    @property
    def is_served(self) -> bool:
        return self.compiled is not None


def _sentence(exc: Exception) -> str:
    if isinstance(exc, ValidationError):
        first = exc.errors()[0]
        path = ".".join(str(part) for part in ("status.traffic", *first["loc"]))
        return f"{path}: {first['msg']}"
    return (
        f"status.traffic cannot be compiled: {exc}"
        if isinstance(exc, FunicularError | ValueError)
        else (f"status.traffic cannot be compiled: {type(exc).__name__}: {exc}")
    )


def _version(raw: Any) -> int:
    version = raw.get("version") if isinstance(raw, Mapping) else None
    return version if isinstance(version, int) and not isinstance(version, bool) else 0


class Policies:
    def __init__(self, compiler: Compiler, labels: Mapping[str, str]) -> None:
        self._compiler = compiler
        self._labels = dict(labels)
        self._raw: dict[PolicyKey, tuple[str, str, Any]] = {}  # all policies: uid, creation, status.traffic
        self.records: dict[PolicyKey, Record] = {}
        self._owners: dict[str, PolicyKey] = {}  # model -> the policy that serves it

    def resync(self, objects: Iterable[Json], namespace: str = "") -> set[PolicyKey]:
        """All there is in `namespace` (empty: everywhere). Returns the keys whose record changed, came or went."""
        seen: set[PolicyKey] = set()
        changed: set[PolicyKey] = set()
        for item in sorted(objects, key=_age):  # who came first has the endpoint
            key = _key(item)
            seen.add(key)
            changed |= self.put(item)
        for key in {key for key in self._raw if not namespace or key[0] == namespace} - seen:
            changed |= self._forget(key)
        return changed

    def event(self, kind: str, item: Json) -> set[PolicyKey]:
        return self._forget(_key(item)) if kind == "DELETED" else self.put(item)

    def relabel(self, labels: Mapping[str, str]) -> set[PolicyKey]:
        if dict(labels) == self._labels:
            return set()
        self._labels = dict(labels)
        changed: set[PolicyKey] = set()
        for key in list(self._raw):
            changed |= self._update(key)
        return changed

    def put(self, item: Json) -> set[PolicyKey]:
        key = _key(item)
        meta, status = item["metadata"], item.get("status")
        raw = status.get("traffic") if isinstance(status, Mapping) else None
        entry = (str(meta.get("uid", "")), str(meta.get("creationTimestamp", "")), raw)
        if self._raw.get(key) == entry:
            return set()
        self._raw[key] = entry
        return self._update(key)

    def _forget(self, key: PolicyKey) -> set[PolicyKey]:
        self._raw.pop(key, None)
        return self._drop(key)

    def _drop(self, key: PolicyKey) -> set[PolicyKey]:
        record = self.records.pop(key, None)
        if record is None:
            return set()
        return {key} | self._release(key, record)

    def _release(self, key: PolicyKey, record: Record) -> set[PolicyKey]:
        """Frees the endpoint, and lets a policy that waited for it try again."""
        model = record.compiled.model if record.compiled else None
        if model is None or self._owners.get(model) != key:
            return set()
        del self._owners[model]
        changed: set[PolicyKey] = set()
        waiting = [r for r in self.records.values() if r.error and isinstance(r.raw, Mapping) and r.key != key]
        for other in sorted(waiting, key=lambda r: (r.created, r.uid)):
            if other.raw.get("endpoint") == model:
                changed |= self._compile(other)
        return changed

    def _is_ours(self, raw: Any, known: Record | None) -> bool:
        """Garbage belongs to this pod if its selector still says so, or if the policy was served here before."""
        if raw is None:
            return False
        selector = raw.get("selector") if isinstance(raw, Mapping) else None
        if isinstance(selector, Mapping):
            return selects({str(k): str(v) for k, v in selector.items()}, self._labels)
        return known is not None

    def _update(self, key: PolicyKey) -> set[PolicyKey]:
        uid, created, raw = self._raw[key]
        known = self.records.get(key)
        if not self._is_ours(raw, known):
            return self._drop(key)
        changed: set[PolicyKey] = set()
        if known is not None and known.uid != uid:  # deleted and made anew between two events
            changed |= self._drop(key)
            known = None
        if known is None:
            known = self.records[key] = Record(key, uid, created, 0)
        elif known.raw == raw and known.error is None:
            return changed
        known.raw = raw
        return changed | self._compile(known)

    def _compile(self, record: Record) -> set[PolicyKey]:
        record.version = _version(record.raw)
        try:
            traffic = Traffic.model_validate(record.raw)
            owner = self._owners.get(traffic.endpoint)
            if owner not in (None, record.key):
                raise ValueError(f"endpoint {traffic.endpoint} is served by policy {'/'.join(owner or ())} already")
            compiled = self._compiler.policy(*record.key, traffic)
        except Exception as exc:  # whatever it is, it must not stop the others
            record.error = _sentence(exc)
            return {record.key}
        changed = (
            self._release(record.key, record) if record.compiled and record.compiled.model != compiled.model else set()
        )
        self._owners[compiled.model] = record.key
        record.error, record.traffic, record.compiled = None, traffic, compiled
        return changed | {record.key}


def _age(item: Json) -> tuple[str, PolicyKey]:
    return str(item["metadata"].get("creationTimestamp", "")), _key(item)


def _key(item: Json) -> PolicyKey:
    return str(item["metadata"].get("namespace", "")), str(item["metadata"]["name"])
