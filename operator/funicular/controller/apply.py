"""Carries a decision's actions out, in order. Called by the reconciler; decides nothing. Each action is safe to repeat.

Status is written as a merge patch that carries the resourceVersion it was decided on: a stale decision fails with 409
(Conflict) and is dropped, because a newer event follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from funicular.adapters.kube import path_of
from funicular.api.base import API_VERSION, FINALIZER, PLURAL
from funicular.api.policy import Metadata
from funicular.api.revision import classifier_name, revision_of
from funicular.api.spec import RoutingPolicySpec
from funicular.controller.wiring import Ports
from funicular.errors import NotFound, RetryLater
from funicular.rollout.actions import (
    Action,
    DropFinalizer,
    Emit,
    EnsureFinalizer,
    RecordRevision,
    RestoreSpec,
    RunClassifiers,
    WriteStatus,
)

Json = dict[str, Any]


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> Json:
    """RFC 7386: what turns `old` into `new`; lists are replaced whole, what is gone becomes null."""
    patch: Json = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            inner = merge_patch(before, value)
            if inner:
                patch[key] = inner
        elif before != value or key not in old:
            patch[key] = value
    return patch


class Applier:
    """One policy's actions, one after the other; remembers what it last asked of the classifiers, to ask only for news."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._classifiers: dict[str, RunClassifiers] = {}

    def forget(self, uid: str) -> None:
        self._classifiers.pop(uid, None)

    async def apply(self, metadata: Metadata, body: Json, actions: tuple[Action, ...]) -> Json:
        """Returns the object as it stands after the writes."""
        for action in actions:
            match action:
                case EnsureFinalizer():
                    body = await self._finalizers(metadata, body, (*metadata.finalizers, FINALIZER))
                case DropFinalizer():
                    await self._finalizers(metadata, body, tuple(f for f in metadata.finalizers if f != FINALIZER))
                case RunClassifiers():
                    await self._run_classifiers(metadata, action)
                case RecordRevision():
                    await self._record(metadata, body, action)
                case WriteStatus(status):
                    wanted = status.model_dump(mode="json", by_alias=True, exclude_none=True)
                    body = await self._write_status(metadata, body, wanted)
                case RestoreSpec():
                    body = await self._restore(metadata, body, action)
                case Emit(reason, message, warning):
                    self._ports.events.record(metadata, "Warning" if warning else "Normal", reason, message)
        return body

    def _path(self, metadata: Metadata, sub: str | None = None) -> str:
        return path_of(API_VERSION, PLURAL, metadata.namespace, metadata.name, sub)

    async def _patch(self, metadata: Metadata, body: Json, patch: Json, sub: str | None = None) -> Json:
        version = {"resourceVersion": body["metadata"]["resourceVersion"], "uid": metadata.uid}
        fenced = {**patch, "metadata": {**patch.get("metadata", {}), **version}}
        fresh = await self._ports.kube.patch(self._path(metadata, sub), fenced)
        self._ports.store.put(fresh)
        return fresh

    async def _finalizers(self, metadata: Metadata, body: Json, wanted: tuple[str, ...]) -> Json:
        return await self._patch(metadata, body, {"metadata": {"finalizers": list(wanted)}})

    async def _write_status(self, metadata: Metadata, body: Json, wanted: Json) -> Json:
        patch = merge_patch(body.get("status") or {}, wanted)
        return await self._patch(metadata, body, {"status": patch}, "status") if patch else body

    async def _record(self, metadata: Metadata, body: Json, action: RecordRevision) -> None:
        """Of the older ones the latest stay, and always those that a revert may go back to."""
        history, status = self._ports.history, body.get("status") or {}
        await history.record(metadata, action.name, action.revision, action.spec)
        needed = [(status.get(role) or {}).get("controllerRevision") for role in ("stable", "previous")]
        await history.prune(metadata, [name for name in (action.name, *needed, status.get("specToRevert")) if name])

    async def _restore(self, metadata: Metadata, body: Json, action: RestoreSpec) -> Json:
        """Only over the spec that was rejected: a person's newer wish is left alone."""
        if revision_of(RoutingPolicySpec.model_validate(body["spec"])) != action.rejected:
            return body
        try:
            good = await self._ports.history.spec_of(metadata.namespace, action.controller_revision)
        except NotFound as exc:  # not the policy: the next look finds that there is nothing to write back
            raise RetryLater(f"ControllerRevision {action.controller_revision} is gone") from exc
        patch = merge_patch(body["spec"], good)
        fresh = await self._patch(metadata, body, {"spec": patch}) if patch else body
        self._ports.events.record(
            metadata,
            "Normal",
            "SpecReverted",
            f"the spec is that of {action.controller_revision} again; {action.rejected} is rejected",
        )
        return fresh

    async def _run_classifiers(self, metadata: Metadata, action: RunClassifiers) -> None:
        there = all(
            self._ports.store.workload(metadata.namespace, classifier_name(metadata.name, revision)) is not None
            for revision, _ in action.run
        )
        if there and self._classifiers.get(metadata.uid) == action:
            return
        for revision, classifier in action.run:
            await self._ports.workloads.ensure(metadata, revision, classifier)
        await self._ports.workloads.retire(metadata, action.keep)
        self._classifiers[metadata.uid] = action
