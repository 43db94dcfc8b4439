"""Probes and lifecycle hooks: one question to a running container, and the loop that asks it.

Called by `containers.py`. It must not know Pod status: it reports through callbacks.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from hack.cluster.node.running import Running, spawn_and_wait
from hack.cluster.processes import Guard

Object = dict[str, Any]

# Until a probe has succeeded once it is asked at least this often: kubelet's periods would cost tests whole seconds.
_EAGER_PERIOD = 0.25


@dataclass(frozen=True, slots=True)
class Target:
    """Where probes and hooks of one running container go."""

    container: Object
    ip: str
    rewrite: Callable[[str], str]
    environment: Mapping[str, str]
    programs: Mapping[str, Sequence[str]]
    cwd: Path | str
    guard: Guard
    log: Path
    session: aiohttp.ClientSession

    def port(self, value: int | str) -> int:
        """A number, or the name of a container port."""
        if isinstance(value, int):
            return value
        named = {it.get("name"): it["containerPort"] for it in self.container.get("ports") or ()}
        return int(named.get(value, value))


async def ask(action: Object, target: Target, timeout: float) -> bool:
    """Run a probe's or hook's action once; anything but a clear yes within `timeout` is a no."""
    try:
        async with asyncio.timeout(timeout):
            if http := action.get("httpGet"):
                return await _http_get(http, target)
            if socket := action.get("tcpSocket") or action.get("grpc"):
                return await _connect(socket.get("host") or target.ip, target.port(socket["port"]))
            if command := action.get("exec"):
                return await _execute(command.get("command") or (), target) == 0
            if pause := action.get("sleep"):
                await asyncio.sleep(pause["seconds"])
            return True
    except (TimeoutError, OSError, aiohttp.ClientError, ValueError):
        return False


async def watch(
    probe: Object,
    target: Target,
    running: Running,
    *,
    period: float | None,
    on_change: Callable[[bool], None],
    once: bool = False,
) -> None:
    """Ask for as long as the container runs; `on_change(True)` after successThreshold yeses, `on_change(False)` after
    failureThreshold noes, each on a flip only. `once`: return at the first success (startup probes).
    """
    every = float(probe.get("periodSeconds") or 10) if period is None else period
    failures_allowed = int(probe.get("failureThreshold") or 3)
    successes_needed = int(probe.get("successThreshold") or 1)
    eager = min(every, _EAGER_PERIOD)
    clock = asyncio.get_running_loop().time
    await asyncio.sleep(float(probe.get("initialDelaySeconds") or 0))
    believed: bool | None = None
    successes = failures = 0
    failing_since = 0.0
    while not running.has_ended:
        asked_at = clock()
        if await ask(probe, target, float(probe.get("timeoutSeconds") or 1)):
            successes, failures = successes + 1, 0
            if successes >= successes_needed and believed is not True:
                believed = True
                on_change(True)
                if once:
                    return
        else:
            failing_since = failing_since if failures else asked_at
            successes, failures = 0, failures + 1
            # Eager questions before the first yes must not use up the patience that the Pod asks for.
            patient = failures < failures_allowed if believed else clock() - failing_since < failures_allowed * every
            if not patient and believed is not False:
                believed = False
                on_change(False)
        await asyncio.sleep(every if believed else eager)


async def _http_get(http: Object, target: Target) -> bool:
    scheme = str(http.get("scheme") or "HTTP").lower()
    host = http.get("host") or target.ip
    url = f"{scheme}://{host}:{target.port(http['port'])}/{str(http.get('path') or '/').lstrip('/')}"
    headers = {it["name"]: it["value"] for it in http.get("httpHeaders") or ()}
    context: ssl.SSLContext | bool = True
    if scheme == "https":
        # As kubelet: a probe does not verify the certificate.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    async with target.session.get(url, headers=headers, ssl=context, allow_redirects=False) as response:
        return 200 <= response.status < 400


async def _connect(host: str, port: int) -> bool:
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    await writer.wait_closed()
    return True


async def _execute(command: Sequence[str], target: Target) -> int:
    words = [target.rewrite(word) for word in command]
    if words and words[0] in target.programs:
        words[:1] = target.programs[words[0]]
    return await spawn_and_wait(words, target.guard, target.log, target.cwd, target.environment)
