"""The counts of slo/queries.py on a real Prometheus: exact for newborn series, restarts, gaps and pods that are gone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from funicular.adapters.prometheus import PrometheusClients
from funicular.adapters.prometheus_access import Access
from funicular.api.spec import Prometheus
from funicular.errors import InvalidQuery
from funicular.slo import queries
from funicular.slo.queries import Scope, Window
from hack.cluster import binaries

SCOPE = Scope("shop", "chat", "r1")
LABELS = 'namespace="shop",policy="chat",revision="r1",arm="treatment"'
MANY_TO_MANY = 'up * on() group_left() (vector(1) or label_replace(vector(1), "a", "b", "", ""))'


class NoSecrets:
    """An AccessResolver for a Prometheus that lets everybody in."""

    async def resolve(self, namespace: str, settings: Prometheus) -> Access:
        return Access(url=settings.url)

    def renew(self, namespace: str, settings: Prometheus) -> bool:
        return False


@dataclass
class Pods:
    """What the gateway pods would expose: by pod, answered requests. `scrapes` rises with each scrape."""

    good: dict[str, int] = field(default_factory=dict)
    scrapes: int = 0

    async def handle(self, _: web.Request) -> web.Response:
        self.scrapes += 1
        lines = []
        for pod, value in self.good.items():
            lines.append(f'{queries.OUTCOMES}{{{LABELS},pod="{pod}",replicate="3",outcome="good"}} {value}')
            lines.append(f'{queries.REQUESTS}{{{LABELS},pod="{pod}",candidate="mini",code="2xx"}} {value}')
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")

    async def scraped(self, times: int = 2) -> None:
        """Until what is exposed now has surely been scraped."""
        wanted = self.scrapes + times
        async with asyncio.timeout(20):
            while self.scrapes < wanted:  # noqa: ASYNC110 - the server counts, nobody sets an event
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)  # the last answer is on its way into the database


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
async def pods() -> AsyncIterator[tuple[Pods, int]]:
    exposed = Pods()
    app = web.Application()
    app.router.add_get("/metrics", exposed.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield exposed, runner.addresses[0][1]
    await runner.cleanup()


@contextlib.contextmanager
def prometheus(folder: Path, target: int) -> Iterator[str]:
    binary = binaries.ensure(["prometheus"])["prometheus"]
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        "scrape_configs": [
            {
                "job_name": "pods",
                "honor_labels": True,
                "fallback_scrape_protocol": "PrometheusText0.0.4",
                "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
            }
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(binary),
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


async def test_counts_are_exact_whatever_happened_to_the_pods(pods: tuple[Pods, int], tmp_path: Path) -> None:
    exposed, port = pods
    with prometheus(tmp_path, port) as url:
        clients = PrometheusClients(NoSecrets())  # type: ignore[arg-type]
        metrics = clients.at("shop", Prometheus(url=url))

        exposed.good = {"old": 100, "idle": 50, "gap": 1000, "twice": 20}
        await exposed.scraped()
        del exposed.good["gap"]  # a failed scrape around the start
        await exposed.scraped(1)
        start = time.time()
        await exposed.scraped()
        exposed.good |= {"gap": 1003, "born": 7, "old": 130}
        await exposed.scraped()
        calm = time.time()

        async def counted(window: Window) -> float:
            at = datetime.fromtimestamp(window.end, UTC)
            return sum(value for _, value in await metrics.query(queries.outcomes(SCOPE, window), at))

        async def framed(window: Window) -> dict[str, float]:
            at = datetime.fromtimestamp(window.end, UTC)
            answer = await metrics.query(queries.frame(SCOPE, window), at)
            return {labels["what"]: value for labels, value in answer}

        frame = await framed(Window(start, calm))
        assert (frame.get("resets"), frame.get("vanished")) == (0, None)
        assert frame["age"] < 2
        assert await counted(Window(start, calm)) == 3 + 7 + 30
        assert await counted(Window(start, calm, disturbed=True)) == 3 + 7 + 30

        del exposed.good["old"]  # its Envoy restarts
        exposed.good |= {"born": 12, "twice": 25}
        await exposed.scraped()
        exposed.good |= {"old": 5, "twice": 1}  # a restart without a gap
        await exposed.scraped()
        del exposed.good["born"]  # the pod is gone
        exposed.good |= {"old": 6, "twice": 26}
        await exposed.scraped()
        end = time.time()

        frame = await framed(Window(start, end))
        assert frame["resets"] >= 2
        assert frame["vanished"] == 1
        old, twice, born, gap = 30 + 6, 5 + 26, 12, 3
        assert await counted(Window(start, end, disturbed=True)) == old + twice + born + gap
        assert await counted(Window(calm, end, disturbed=True)) == 6 + twice + (12 - 7)
        await clients.close()


@pytest.mark.parametrize(
    ("promql", "error", "sentence"),
    [
        pytest.param("sum(rate(x[5m])", InvalidQuery, "parse error", id="a query that does not parse"),
        pytest.param("up[5m]", InvalidQuery, "range vector", id="a range vector"),
        pytest.param(
            'up * on() group_left() (vector(1) or label_replace(vector(1), "a", "b", "", ""))',
            InvalidQuery,
            "many",
            id="many to many",
        ),
    ],
)
async def test_what_prometheus_itself_refuses(
    pods: tuple[Pods, int], tmp_path: Path, promql: str, error: type[Exception], sentence: str
) -> None:
    exposed, port = pods
    with prometheus(tmp_path, port) as url:
        clients = PrometheusClients(NoSecrets())  # type: ignore[arg-type]
        metrics = clients.at("shop", Prometheus(url=url))
        await exposed.scraped()
        with pytest.raises(error, match=sentence):
            await metrics.query(promql, datetime.now(UTC))
        assert await metrics.query("1 + 1", datetime.now(UTC)) == [({}, 2.0)]
        await clients.close()
