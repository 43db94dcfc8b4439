"""The API server, as far as the process node needs it: JSON over HTTPS, and informers.

Called by every other module of the node. It knows kubeconfig files, paths and HTTP; it must not know Pods.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml

log = logging.getLogger(__name__)

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"

# One watch event of a large object must fit into the stream's buffer.
_LARGEST_EVENT = 16 * 2**20


class ApiError(Exception):
    """The API server answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """One connection pool to one API server."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    @classmethod
    def open(cls, kubeconfig: Path) -> Self:
        """For the current context of a kubeconfig (client certificate or token); on a running event loop."""
        config = yaml.safe_load(kubeconfig.read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        server = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        headers = {"authorization": f"Bearer {user['token']}"} if "token" in user else {}
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=_tls(server, user), limit=0),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=15),
            read_bufsize=_LARGEST_EVENT,
        )
        return cls(server["server"].rstrip("/"), session)

    async def close(self) -> None:
        await self._session.close()

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Object:
        return await self._call("GET", path, params=params)

    async def post(self, path: str, body: Object) -> Object:
        return await self._call("POST", path, body)

    async def put(self, path: str, body: Object) -> Object:
        return await self._call("PUT", path, body)

    async def patch(self, path: str, body: Object, kind: str = MERGE) -> Object:
        return await self._call("PATCH", path, body, kind)

    async def delete(self, path: str, body: Object) -> Object:
        return await self._call("DELETE", path, body)

    async def watch(self, path: str, version: str) -> AsyncIterator[Object]:
        """Events after `version`, until the server ends the stream."""
        params = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": "300"}
        # Bookmarks come every minute: a silent stream is a dead one.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=120)
        async with self._session.get(self.url + path, params=params, timeout=timeout) as response:
            await _raise_for_status(response)
            async for line in response.content:
                yield json.loads(line)

    async def _call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
    ) -> Object:
        data = None if body is None else json.dumps(body)
        headers = {"content-type": content_type}
        async with self._session.request(method, self.url + path, data=data, headers=headers, params=params) as answer:
            await _raise_for_status(answer)
            result: Object = await answer.json()
            return result


def _named(entries: list[Object], name: str) -> Object:
    return next(entry for entry in entries if entry["name"] == name)


def _tls(server: Object, user: Object) -> ssl.SSLContext | bool:
    if not server["server"].startswith("https"):
        return True
    if "certificate-authority-data" in server:
        context = ssl.create_default_context(cadata=base64.b64decode(server["certificate-authority-data"]).decode())
    else:
        context = ssl.create_default_context(cafile=server.get("certificate-authority"))
    if server.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "client-certificate-data" in user:
        # The ssl module reads certificates from files only.
        with tempfile.NamedTemporaryFile() as pem:
            pem.write(base64.b64decode(user["client-certificate-data"]))
            pem.write(base64.b64decode(user["client-key-data"]))
            pem.flush()
            context.load_cert_chain(pem.name)
    elif "client-certificate" in user:
        context.load_cert_chain(user["client-certificate"], user["client-key"])
    return context


async def _raise_for_status(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    text = await response.text()
    try:
        message = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        message = text
    raise ApiError(response.status, message)


Listener = Callable[[Object, bool], None]


@dataclass(slots=True)
class Informer:
    """A local copy of all objects of one kind; listeners hear of each change as `(object, still there)`."""

    api: Api
    path: str
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    listeners: list[Listener] = field(default_factory=list)

    def get(self, namespace: str, name: str) -> Object | None:
        return self.objects.get((namespace, name))

    async def run(self) -> None:
        """List and watch for ever; an unreachable API server is retried, what is known stays known meanwhile."""
        while True:
            try:
                version = await self._list()
                self.synced.set()
                await self._follow(version)
            except (ApiError, aiohttp.ClientError, TimeoutError, ValueError) as error:
                log.info("watch of %s: %s", self.path, error)
                await asyncio.sleep(0.3)

    async def _list(self) -> str:
        listed = await self.api.get(self.path)
        present = {_key(item): item for item in listed.get("items") or ()}
        for key in [key for key in self.objects if key not in present]:
            self._notice(self.objects[key], present=False)
        for item in present.values():
            self._notice(item, present=True)
        return str(listed["metadata"]["resourceVersion"])

    async def _follow(self, version: str) -> None:
        while True:
            async for event in self.api.watch(self.path, version):
                kind, item = event["type"], event["object"]
                if kind == "ERROR":
                    raise ApiError(int(item.get("code", 410)), str(item.get("message")))
                version = item["metadata"]["resourceVersion"]
                if kind != "BOOKMARK":
                    self._notice(item, present=kind != "DELETED")

    def _notice(self, item: Object, *, present: bool) -> None:
        key = _key(item)
        known = self.objects.get(key)
        if known is not None and known["metadata"]["uid"] != item["metadata"]["uid"]:
            # Deleted and created again while we were not looking.
            self._tell(known, present=False)
        if present:
            if known is not None and known["metadata"]["resourceVersion"] == item["metadata"]["resourceVersion"]:
                return
            self.objects[key] = item
        else:
            self.objects.pop(key, None)
        self._tell(item, present=present)

    def _tell(self, item: Object, *, present: bool) -> None:
        for listener in self.listeners:
            listener(item, present)


def _key(item: Object) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]
