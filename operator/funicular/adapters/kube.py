"""The Kubernetes API on the event loop: a few verbs over one limited aiohttp session, shared by operator and agent.

aiohttp costs a third of the generated clients' CPU per request. Credentials come from the kubeconfig or the pod's service
account, by the official client's loader; a token file is read again when it changes. Every call has a timeout.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from kubernetes import config as kubeconfig
from kubernetes.client import Configuration

from funicular.errors import AccessDenied, ApiUnavailable, Conflict, FunicularError, InvalidPolicy, NotFound

Json = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"
IN_CLUSTER_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach the API server. `token_file` wins over `token`: projected tokens are renewed in place."""

    server: str
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    token: str | None = None
    token_file: str | None = None
    verify: bool = True

    def ssl(self) -> ssl.SSLContext | bool:
        if not self.server.startswith("https:"):
            return False
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def bearer(self) -> str | None:
        if self.token_file:
            return Path(self.token_file).read_text().strip()
        return self.token


def _token_file_of_kubeconfig(context: str | None) -> str | None:
    """The official loader reads `tokenFile` once and forgets its name, so a renewed token would never be seen."""
    import yaml

    path = Path(os.environ.get("KUBECONFIG", "~/.kube/config")).expanduser()
    if not path.is_file():
        return None
    loaded = yaml.safe_load(path.read_text())
    wanted = context or loaded.get("current-context")
    current = next((c["context"]["user"] for c in loaded.get("contexts", []) if c["name"] == wanted), None)
    user: Json = next((u["user"] for u in loaded.get("users", []) if u["name"] == current), {})
    return user.get("tokenFile")


def discover(context: str | None = None) -> Access:
    """In a pod: its service account; elsewhere KUBECONFIG or ~/.kube/config, by its present context or the one named."""
    loaded = Configuration()
    if context is None and "KUBECONFIG" not in os.environ and Path(IN_CLUSTER_TOKEN).exists():
        kubeconfig.load_incluster_config(client_configuration=loaded)  # type: ignore[no-untyped-call]
        token_file: str | None = IN_CLUSTER_TOKEN
    else:
        kubeconfig.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=os.environ.get("KUBECONFIG"), context=context, client_configuration=loaded
        )
        token_file = _token_file_of_kubeconfig(context)
    bearer = (loaded.api_key or {}).get("authorization") or (loaded.api_key or {}).get("BearerToken")
    return Access(
        server=loaded.host.rstrip("/"),
        ca_file=loaded.ssl_ca_cert,
        cert_file=loaded.cert_file,
        key_file=loaded.key_file,
        token=bearer.removeprefix("Bearer ") if bearer else None,
        token_file=token_file,
        verify=bool(loaded.verify_ssl),
    )


def path_of(
    api_version: str, plural: str, namespace: str | None = None, name: str | None = None, sub: str | None = None
) -> str:
    """`/apis/apps/v1/namespaces/n/deployments/x/status`"""
    root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
    parts = [root] + ([f"namespaces/{namespace}"] if namespace else []) + [plural]
    return "/".join(parts + [part for part in (name, sub) if part])


class KubeClient:
    """Raises ApiUnavailable, Conflict, NotFound, AccessDenied, InvalidPolicy (422 or 400, with the server's sentence)."""

    def __init__(self, access: Access, *, limit: int = 16, timeout: float = 10.0) -> None:
        self.access = access
        self._timeout = timeout
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=access.ssl(), limit=limit),
            json_serialize=lambda v: orjson.dumps(v).decode(),
        )
        self._watches: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        await self._session.close()
        if self._watches:
            await self._watches.close()
        await asyncio.sleep(0)

    async def __aenter__(self) -> KubeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def headers(self, content_type: str | None = None) -> dict[str, str]:
        bearer = self.access.bearer()
        found = {"authorization": f"Bearer {bearer}"} if bearer else {}
        return {**found, "content-type": content_type} if content_type else found

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Json:
        try:
            async with self._session.request(
                method,
                self.access.server + path,
                data=orjson.dumps(body) if body is not None else None,
                params=params,
                headers=self.headers(content_type if body is not None else None),
                timeout=aiohttp.ClientTimeout(total=self._timeout),
            ) as answer:
                text = await answer.read()
                if answer.status >= 400:
                    raise error_of(answer.status, text, f"{method} {path}")
                return orjson.loads(text) if text else {}
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise ApiUnavailable(f"{method} {path}: {type(exc).__name__}: {exc}") from exc

    async def get(self, path: str, **params: str) -> Json:
        return await self.request("GET", path, params=params)

    async def create(self, path: str, body: Json, **params: str) -> Json:
        return await self.request("POST", path, body, params=params)

    async def replace(self, path: str, body: Json) -> Json:
        return await self.request("PUT", path, body)

    async def patch(self, path: str, body: Any, *, content_type: str = MERGE_PATCH, **params: str) -> Json:
        return await self.request("PATCH", path, body, content_type=content_type, params=params)

    async def delete(self, path: str, body: Json | None = None) -> Json:
        return await self.request("DELETE", path, body)

    async def list_all(self, path: str, **params: str) -> tuple[list[Json], str]:
        """Every item, in pages, and the resourceVersion to watch from."""
        items: list[Json] = []
        token, version = "", ""
        while True:
            answer = await self.get(path, limit="500", **params, **({"continue": token} if token else {}))
            items += answer.get("items") or []
            token, version = answer["metadata"].get("continue", ""), answer["metadata"]["resourceVersion"]
            if not token:
                return items, version

    async def watch(self, path: str, **params: str) -> AsyncIterator[tuple[str, Any]]:
        """("RESYNC", [objects]) at first and after each gap, then ("ADDED" | "MODIFIED" | "DELETED", object), for ever.

        Lists again after a broken or expired watch, so nothing is lost: a RESYNC holds all there is. Waits 0.2-5 s after
        failures. Never raises but for AccessDenied and NotFound (the resource's kind is unknown)."""
        delay = 0.2
        while True:
            try:
                items, version = await self.list_all(path, **params)
                yield "RESYNC", items
                delay = 0.2
                async for kind, item in self._stream(path, version, params):
                    yield kind, item
            except (ApiUnavailable, Conflict):
                await asyncio.sleep(delay)
                delay = min(5.0, delay * 2)

    async def _stream(self, path: str, version: str, params: Mapping[str, str]) -> AsyncIterator[tuple[str, Json]]:
        if self._watches is None:  # watches are long: they must not eat the short calls' connections
            self._watches = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self.access.ssl(), limit=0), read_bufsize=1 << 20
            )
        while True:
            query = {
                **params,
                "watch": "true",
                "resourceVersion": version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": "290",
            }
            try:
                async with self._watches.get(
                    self.access.server + path,
                    params=query,
                    headers=self.headers(),
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=330),
                ) as answer:
                    if answer.status >= 400:
                        raise error_of(answer.status, await answer.read(), f"WATCH {path}")
                    pending = b""
                    async for chunk in answer.content.iter_any():
                        *lines, pending = (pending + chunk).split(b"\n")
                        for line in filter(None, lines):
                            event = orjson.loads(line)
                            if event["type"] == "ERROR":  # 410 Gone: list again
                                return
                            version = event["object"]["metadata"]["resourceVersion"]
                            if event["type"] != "BOOKMARK":
                                yield event["type"], event["object"]
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                raise ApiUnavailable(f"WATCH {path}: {exc}") from exc


def error_of(status: int, text: bytes, what: str) -> FunicularError:
    """One place turns an answer of the API server into our tree."""
    try:
        message = str(orjson.loads(text).get("message", ""))
    except orjson.JSONDecodeError:
        message = text[:200].decode(errors="replace")
    message = f"{what}: {status} {message}"
    if status == 404:
        return NotFound(message)
    if status == 409:
        return Conflict(message)
    if status in (401, 403):
        return AccessDenied(message, remedy="grant the verb in RBAC")
    if status == 410:
        return ApiUnavailable(message)
    if status in (400, 422):
        return InvalidPolicy(message)
    return ApiUnavailable(message)


def decode_secret(secret: Mapping[str, Any], key: str) -> str | None:
    encoded = (secret.get("data") or {}).get(key)
    return base64.b64decode(encoded).decode() if encoded is not None else None


def temporary_pem(text: str) -> str:
    """A file only this process reads: ssl.SSLContext takes certificates by file alone."""
    descriptor, name = tempfile.mkstemp(prefix="funicular-", suffix=".pem")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return name
