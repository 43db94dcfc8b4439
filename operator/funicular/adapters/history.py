"""Good specs as ControllerRevisions: what a revert writes back. Used by the controller's gather and apply."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from funicular.adapters.kube import KubeClient, path_of
from funicular.adapters.manifests import POLICY_LABEL, REVISION_LABEL, controller_revision
from funicular.api.policy import Metadata
from funicular.errors import Conflict, NotFound

Json = dict[str, Any]


def _path(namespace: str, name: str | None = None) -> str:
    return path_of("apps/v1", "controllerrevisions", namespace, name)


class ControllerRevisions:
    """Implements wiring.History."""

    def __init__(self, kube: KubeClient) -> None:
        self._kube = kube

    async def record(self, policy: Metadata, name: str, revision: str, spec: Json) -> None:
        with suppress(NotFound):
            await self._kube.get(_path(policy.namespace, name))
            return
        number = max((item["revision"] for item in await self._owned(policy)), default=0) + 1
        with suppress(Conflict):  # it exists: another attempt of ours made it
            await self._kube.create(_path(policy.namespace), controller_revision(policy, name, revision, number, spec))

    async def list(self, policy: Metadata) -> dict[str, str]:
        return {
            item["metadata"]["labels"][REVISION_LABEL]: item["metadata"]["name"] for item in await self._owned(policy)
        }

    async def spec_of(self, namespace: str, name: str) -> Json:
        found = await self._kube.get(_path(namespace, name))
        data: Json = found["data"]
        return data

    async def prune(self, policy: Metadata, keep: Sequence[str], limit: int = 10) -> None:
        items = await self._owned(policy)
        spare = [item["metadata"]["name"] for item in items if item["metadata"]["name"] not in keep]
        for name in spare[: max(0, len(items) - limit)]:
            with suppress(NotFound):
                await self._kube.delete(_path(policy.namespace, name))

    async def _owned(self, policy: Metadata) -> Sequence[Json]:
        """Oldest first."""
        items, _ = await self._kube.list_all(_path(policy.namespace), labelSelector=f"{POLICY_LABEL}={policy.uid}")
        return sorted(items, key=lambda item: int(item["revision"]))
