"""Values from Secrets and ConfigMaps. Used for Prometheus's credentials and to tell a person early what is missing.

Values are kept for half a minute and never appear in a message; names and keys do.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from funicular.adapters.kube import KubeClient, decode_secret, path_of
from funicular.api.spec import ConfigMapKeyRef, SecretKeyRef
from funicular.errors import NotFound, SecretMissing

Json = dict[str, Any]
FRESH_SECONDS = 30.0


class Secrets:
    """Implements wiring.Secrets. Raises SecretMissing with the field, ApiUnavailable, AccessDenied."""

    def __init__(self, kube: KubeClient, elapsed: Callable[[], float] = monotonic) -> None:
        self._kube = kube
        self._elapsed = elapsed
        self._cache: dict[str, tuple[float, Json | None]] = {}

    async def value(self, namespace: str, ref: SecretKeyRef, *, field: str = "") -> str:
        body = await self._object("secrets", namespace, ref.name)
        if body is None:
            raise _missing("Secret", namespace, ref.name, field)
        try:
            found = decode_secret(body, ref.key)
        except ValueError as exc:
            raise SecretMissing(
                f"Secret {namespace}/{ref.name}, key {ref.key}, is not text", field=field, remedy="store it as text"
            ) from exc
        if found is None:
            raise _without_key("Secret", namespace, ref.name, ref.key, field)
        return found

    async def config_value(self, namespace: str, ref: ConfigMapKeyRef, *, field: str = "") -> str:
        body = await self._object("configmaps", namespace, ref.name)
        if body is None:
            raise _missing("ConfigMap", namespace, ref.name, field)
        found = (body.get("data") or {}).get(ref.key)
        if found is None:
            raise _without_key("ConfigMap", namespace, ref.name, ref.key, field)
        return str(found)

    async def _object(self, plural: str, namespace: str, name: str) -> Json | None:
        path = path_of("v1", plural, namespace, name)
        known, now = self._cache.get(path), self._elapsed()
        if known and now - known[0] < FRESH_SECONDS and known[1] is not None:  # what was missing may be there now
            return known[1]
        try:
            body: Json | None = await self._kube.get(path)
        except NotFound:
            body = None
        if len(self._cache) > 1000:
            self._cache = {p: e for p, e in self._cache.items() if now - e[0] < FRESH_SECONDS}
        self._cache[path] = (now, body)
        return body


def _missing(kind: str, namespace: str, name: str, field: str) -> SecretMissing:
    return SecretMissing(
        f"{kind} {namespace}/{name} does not exist", field=field, remedy=f"create the {kind} or correct {field or 'it'}"
    )


def _without_key(kind: str, namespace: str, name: str, key: str, field: str) -> SecretMissing:
    return SecretMissing(
        f"{kind} {namespace}/{name} has no key {key}", field=field, remedy=f"add the key or correct {field or 'it'}"
    )
