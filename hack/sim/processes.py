"""Starts the classifier and simulated providers as processes of their own on free ports, and ends them.

Called by tests and benchmarks, which want real processes without a cluster.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Running:
    """A process that answers at `url`."""

    url: str
    port: int
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> tuple[int, str]:
        """Status and body."""
        return fetch(f"{self.url}{path}")

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        return fetch(f"{self.url}{path}", json.dumps(body).encode())

    def terminate(self, timeout: float = 20.0) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.process.wait(timeout)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def fetch(url: str, body: bytes | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10.0) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@contextlib.contextmanager
def running(*command: str, port: int, path: str = "/healthz", env: dict[str, str] | None = None) -> Iterator[Running]:
    """Runs `command` until the block ends, from the moment that `path` answers at all."""
    process = subprocess.Popen(command, env=env)
    server = Running(f"http://127.0.0.1:{port}", port, process)
    try:
        deadline = time.monotonic() + 30.0
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
            with contextlib.suppress(OSError):
                server.get(path)
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"{' '.join(command)} did not answer in 30 s")
            time.sleep(0.02)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def provider(*options: str, name: str = "gpt-frontier") -> contextlib.AbstractContextManager[Running]:
    """A simulated provider."""
    port = free_port()
    return running(sys.executable, "-m", "hack.sim.provider", "--port", str(port), "--name", name, *options, port=port)


def classifier(*options: str) -> contextlib.AbstractContextManager[Running]:
    """The reference classifier."""
    port = free_port()
    start = (sys.executable, "-m", "funicular.classifier", "serve", "--host", "127.0.0.1", "--port", str(port))
    return running(*start, *options, port=port)
