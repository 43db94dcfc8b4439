"""`funicular agent drain`: the preStop hook of the agent's container, where Envoy is a sidecar.

Started by the kubelet beside the running agent. Envoy is told at once to close connections after their present request and
to fail its health check; then the command waits until nobody opens new ones. It leaves a note in the config folder, so
that /readyz says so and SIGTERM, which follows, does not wait as long again: from then on the agent waits for open
requests alone. Imports the standard library only, because a pod that ends must not first load half of the product.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from funicular.settings import AgentSettings, agent_settings

NOTE = "draining"  # in the config folder; holds how many seconds the hook waits
SECONDS = 7.0  # after which, as measured, no Service sends a new connection here
TIMEOUT = 2.0
LEAST = 3.0  # of a pod without the hook


def drained_seconds(folder: Path) -> float | None:
    """For how long a hook has waited already. None: there was none."""
    try:
        return float((folder / NOTE).read_text())
    except (OSError, ValueError):
        return None


def limits(waited: float | None, longest: float) -> tuple[float, float]:
    """How long SIGTERM waits at least, and at most for open requests: the hook's time counts."""
    return (LEAST, max(LEAST, longest)) if waited is None else (0.0, max(0.0, longest - waited))


def forget(folder: Path) -> None:
    (folder / NOTE).unlink(missing_ok=True)


def _fail_healthcheck(settings: AgentSettings) -> str | None:
    """What went wrong, or None."""
    connection = http.client.HTTPConnection(settings.admin_host, settings.admin_port, timeout=TIMEOUT)
    with contextlib.closing(connection):
        try:
            connection.request("POST", "/healthcheck/fail", headers={"content-length": "0"})
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as exc:
            return f"Envoy's admin interface does not answer: {exc}"
    return None if status == 200 else f"Envoy's admin interface answers {status}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="funicular agent drain", description="Drains Envoy before the pod ends.")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="how long new connections may still come (default: %(default)g)"
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.seconds <= 3600:
        parser.error("--seconds is a number from 0 to 3600")
    settings = agent_settings()
    with contextlib.suppress(OSError):  # a full disk must not keep Envoy from draining
        (Path(settings.config_dir) / NOTE).write_text(f"{options.seconds:g}")
    problem = _fail_healthcheck(settings)
    if problem is not None:
        sys.stderr.write(f"funicular agent drain: {problem}\n")
        return 1
    time.sleep(options.seconds)
    return 0
