"""A Pod's volumes as folders: Secrets, ConfigMaps, the downward API, service account tokens, scratch space.

Called by `pods.py`: `set_up` until it succeeds, then `refresh` whenever an object or the Pod changes, and `keep_tokens`
beside the containers. It must not know processes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from hack.cluster.node.api import Api, ApiError
from hack.cluster.node.atomic import VolumeFile, write_atomically
from hack.cluster.node.environment import (
    ConfigMissing,
    Lookup,
    PathRewriter,
    PodFacts,
    contents,
    resource_field,
)

log = logging.getLogger(__name__)

Object = dict[str, Any]

_PROJECTED = ("secret", "configMap", "downwardAPI", "serviceAccountToken")


@dataclass(slots=True)
class _Token:
    value: str
    renew_at: float


@dataclass(slots=True)
class PodVolumes:
    """All volumes of one Pod below `folder`."""

    api: Api
    facts: Callable[[], PodFacts]
    lookup: Lookup
    folder: Path
    _tokens: dict[tuple[str, int], _Token] = field(default_factory=dict)
    _is_set_up: bool = False

    @property
    def _pod(self) -> Object:
        return self.facts().pod

    @property
    def _volumes(self) -> list[Object]:
        return self._pod["spec"].get("volumes") or []

    def path_of(self, name: str) -> Path:
        """The local folder of a volume; a hostPath is itself."""
        volume = next(it for it in self._volumes if it["name"] == name)
        return Path(volume["hostPath"]["path"]) if "hostPath" in volume else self.folder / name

    def mounts(self, container: Object) -> dict[str, str]:
        """Mounted path -> local path, of one container."""
        found = {}
        for mount in container.get("volumeMounts") or ():
            local = self.path_of(mount["name"])
            found[mount["mountPath"]] = str(local / mount["subPath"] if mount.get("subPath") else local)
        return found

    async def set_up(self) -> None:
        """Create everything. Raises ConfigMissing if an object is not there (yet)."""
        for volume in self._volumes:
            if "persistentVolumeClaim" in volume:
                raise ConfigMissing(f"volume {volume['name']}: the process node has no persistent volumes")
            for source in _token_sources(volume):
                await self._fetch_token(source)
            if _sources(volume):
                self._write(volume)
            elif "hostPath" not in volume:
                self.path_of(volume["name"]).mkdir(parents=True, exist_ok=True)
        self._is_set_up = True

    def uses(self, kind: str, name: str) -> bool:
        """Whether a volume shows this object of "secrets" or "configmaps"."""
        field_name = {"secrets": "secret", "configmaps": "configMap"}[kind]
        bodies = [source[field_name] for volume in self._volumes for source in _sources(volume) if field_name in source]
        return any(name in (body.get("secretName"), body.get("name")) for body in bodies)

    def refresh(self) -> None:
        """Write what changed; an object that has gone keeps its last files, as with kubelet."""
        for volume in self._volumes:
            if _sources(volume) and self._is_set_up:
                try:
                    self._write(volume)
                except ConfigMissing as missing:
                    log.info("volume %s: %s", volume["name"], missing)

    async def keep_tokens(self) -> None:
        """Renew each token after four fifths of its life, for ever."""
        sources = [source for volume in self._volumes for source in _token_sources(volume)]
        while self._tokens:
            await asyncio.sleep(max(1.0, min(it.renew_at for it in self._tokens.values()) - time.time()))
            try:
                for source in sources:
                    if self._tokens[_token_key(source)].renew_at <= time.time():
                        await self._fetch_token(source)
                self.refresh()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("token of %s: %s", self._pod["metadata"]["name"], error)

    async def _fetch_token(self, source: Object) -> None:
        metadata, spec = self._pod["metadata"], self._pod["spec"]
        account = spec.get("serviceAccountName", "default")
        audience, seconds = _token_key(source)
        request: Object = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [audience] if audience else [],
                "expirationSeconds": seconds,
                "boundObjectRef": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                },
            },
        }
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
        try:
            answer = await self.api.post(path, request)
        except ApiError as error:
            raise ConfigMissing(f"token for service account {account}: {error}") from error
        self._tokens[audience, seconds] = _Token(answer["status"]["token"], time.time() + 0.8 * seconds)

    def _write(self, volume: Object) -> None:
        mode = int(_body(volume).get("defaultMode", 0o644))
        files: dict[str, VolumeFile] = {}
        for source in _sources(volume):
            files |= self._files(source, mode)
        write_atomically(self.folder / volume["name"], files)

    def _files(self, source: Object, mode: int) -> dict[str, VolumeFile]:
        """Files of one source, which has exactly one of the keys in `_PROJECTED`."""
        kind = next(iter(source))
        body: Object = source[kind]
        if kind == "serviceAccountToken":
            token = self._tokens[_token_key(body)].value
            return {body["path"]: VolumeFile(token.encode(), 0o600)}
        if kind == "downwardAPI":
            return {it["path"]: VolumeFile(self._downward(it).encode(), mode) for it in body.get("items") or ()}
        plural = {"secret": "secrets", "configMap": "configmaps"}[kind]
        name = body.get("secretName") or body["name"]
        found = self.lookup(plural, name)
        if found is None:
            if body.get("optional"):
                return {}
            raise ConfigMissing(f'{plural.rstrip("s")} "{name}" not found')
        values = contents(plural, found)
        if plural == "configmaps":
            rewrite = self._rewriter()
            values = {key: _rewritten(value, rewrite) for key, value in values.items()}
        items = body.get("items")
        if items is None:
            return {key: VolumeFile(value, mode) for key, value in values.items()}
        if absent := [it["key"] for it in items if it["key"] not in values and not body.get("optional")]:
            raise ConfigMissing(f"references non-existent key {absent[0]} in {plural.rstrip('s')} {name}")
        return {
            it["path"]: VolumeFile(values[it["key"]], int(it.get("mode") or mode))
            for it in items
            if it["key"] in values
        }

    def _downward(self, item: Object) -> str:
        if reference := item.get("fieldRef"):
            return self.facts().field(reference["fieldPath"])
        reference = item["resourceFieldRef"]
        containers = [it for it in self._pod["spec"]["containers"] if it["name"] == reference["containerName"]]
        return resource_field(containers[0], reference)

    def _rewriter(self) -> PathRewriter:
        """A ConfigMap's files may name mounted paths as well; they are meant for any container of the Pod."""
        mounts: dict[str, str] = {}
        spec = self._pod["spec"]
        for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
            mounts |= self.mounts(container)
        return PathRewriter(mounts)


def _body(volume: Object) -> Object:
    return next((volume[kind] for kind in (*_PROJECTED, "projected") if volume.get(kind) is not None), {})


def _sources(volume: Object) -> list[Object]:
    """The sources of a volume that consists of files; empty for others."""
    if projected := volume.get("projected"):
        return projected.get("sources") or []
    return [{kind: volume[kind]} for kind in _PROJECTED if volume.get(kind) is not None]


def _token_sources(volume: Object) -> list[Object]:
    return [source["serviceAccountToken"] for source in _sources(volume) if source.get("serviceAccountToken")]


def _token_key(source: Mapping[str, Any]) -> tuple[str, int]:
    return source.get("audience") or "", int(source.get("expirationSeconds") or 3600)


def _rewritten(content: bytes, rewrite: Callable[[str], str]) -> bytes:
    try:
        return rewrite(content.decode()).encode()
    except UnicodeDecodeError:
        return content
