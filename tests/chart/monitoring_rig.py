"""A real Prometheus with a history that was played to it at once, for tests/chart/test_monitoring*.py.

Expositions carry timestamps, so hours of samples arrive in one scrape, and expressions are evaluated at any instant of them.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml

from hack.cluster import binaries

RULES = Path(__file__).parents[2] / "charts" / "funicular" / "rules"
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")


class History:
    """Lines of an exposition, stamped. Times are seconds since the epoch."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, text: str, at: float, **labels: str) -> None:
        """`labels`: those that a scraper would set."""
        own = ",".join(f'{name}="{value}"' for name, value in labels.items())
        for line in text.splitlines():
            if line.startswith("#") or not line:
                continue
            found = _SAMPLE.match(line)
            assert found, line
            both = ",".join(filter(None, (found[2], own)))
            self.lines.append(f"{found[1]}{{{both}}} {found[3]} {int(at * 1000)}")

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


class Exporter:
    """Serves `text`; counts how often it was fetched."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.scrapes = 0
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = exporter.text.encode()
                self.send_response(200)
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                exporter.scrapes += 1

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Prometheus:
    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=20)

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **params: Any) -> Any:
        """`data` of an answer. A query that is refused fails with Prometheus' own words."""
        answer = self._client.get(f"/api/v1/{path}", params=params)
        body = answer.json()
        assert body["status"] == "success", f"{body.get('error')}: {params}"
        return body["data"]

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self._client.get("/-/ready").status_code == 200
        return False

    def query(self, expr: str, at: float) -> list[tuple[dict[str, str], float]]:
        found = self.get("query", query=expr, time=at)
        assert found["resultType"] == "vector", expr
        return [(item["metric"], float(item["value"][1])) for item in found["result"]]

    def over(self, expr: str, start: float, end: float, step: float) -> list[tuple[dict[str, str], list[float]]]:
        """Labels and the instants at which there is a sample."""
        found = self.get("query_range", query=expr, start=start, end=end, step=step)
        return [(item["metric"], [float(at) for at, _ in item["values"]]) for item in found["result"]]


def eventually(fact: Any, what: str, seconds: float = 30.0) -> Any:
    """Waits for a fact, not for a time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := fact():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def prometheus(
    folder: Path, text: str, rules: Mapping[str, Any] | None = None
) -> Iterator[tuple[Prometheus, Exporter]]:
    """Scrapes `text` once a second with honor_labels, and evaluates `rules` as often; ready when it was scraped."""
    exporter = Exporter(text)
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "storage": {"tsdb": {"out_of_order_time_window": "30d"}},
        "rule_files": [str(folder / "rules.yaml")],
        "scrape_configs": [
            {
                "job_name": "played",
                "honor_labels": True,
                "fallback_scrape_protocol": "PrometheusText0.0.4",
                "static_configs": [{"targets": [f"127.0.0.1:{exporter.port}"]}],
            }
        ],
    }
    (folder / "rules.yaml").write_text(yaml.safe_dump(dict(rules or {"groups": []})))
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = _free_port()
    command = [
        str(binaries.ensure(["prometheus"])["prometheus"]),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    found = Prometheus(f"http://127.0.0.1:{port}")
    try:
        eventually(lambda: found.is_ready() or process.poll() is not None, "Prometheus is ready")
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        eventually(lambda: found.query("up{job='played'} == 1", time.time()), "what is played has been scraped")
        yield found, exporter
    finally:
        found.close()
        process.terminate()
        process.wait(20)
        exporter.close()


def rule_groups(*names: str) -> list[dict[str, Any]]:
    return [group for name in names for group in yaml.safe_load((RULES / f"{name}.yaml").read_text())["groups"]]


def recorded() -> dict[str, str]:
    return {rule["record"]: rule["expr"] for group in rule_groups("recording") for rule in group["rules"]}


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in rule_groups("alerts") for rule in group["rules"]}


def in_full(expr: str) -> str:
    """What an expression means without the recording rules."""
    for name, meaning in recorded().items():
        expr = expr.replace(name, f"({meaning})")
    return expr


def seconds(text: str) -> float:
    """`10m` -> 600.0"""
    return float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]] if text else 0.0
