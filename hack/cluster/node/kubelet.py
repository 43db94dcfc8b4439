"""The one endpoint of kubelet's API that the node has: `kubectl logs`.

Started by the node's main module. The API server comes with the admin's client certificate; nobody else is let in.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from hack.cluster.node.pods import Pods
from hack.cluster.pki import Pki


@contextlib.asynccontextmanager
async def serving(port: int, pki: Pki, pods: Pods) -> AsyncIterator[None]:
    """Serve on 127.0.0.1:`port` while the block runs."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki.ca))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(pki.cert("server"), pki.key("server"))
    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", lambda request: _logs(request, pods))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, shutdown_timeout=0.1).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def _logs(request: web.Request, pods: Pods) -> web.StreamResponse:
    names = request.match_info
    pod = pods.find(names["namespace"], names["pod"])
    if pod is None:
        raise web.HTTPNotFound(text="the process node does not run this pod")
    path = pods.node.log_of(pod, names["container"])
    content = await asyncio.to_thread(_tail, path, request.query.get("tailLines"))
    response = web.StreamResponse(headers={"content-type": "text/plain"})
    await response.prepare(request)
    await response.write(content)
    position = path.stat().st_size if path.exists() else 0
    while request.query.get("follow") == "true" and pods.find(names["namespace"], names["pod"]):
        if path.exists() and path.stat().st_size > position:
            with path.open("rb") as file:
                file.seek(position)
                await response.write(file.read())
                position = file.tell()
        await asyncio.sleep(0.2)
    await response.write_eof()
    return response


def _tail(path: Path, lines: str | None) -> bytes:
    content = path.read_bytes() if path.exists() else b""
    return content if lines is None else b"".join(content.splitlines(keepends=True)[-int(lines) :])
