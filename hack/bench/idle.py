"""What an operator costs that has nothing to do: `python -m hack.bench.idle [--policies 1000] [--minutes 5]`.

Real API server and Prometheus; policies that were promoted a day ago, with a holdback; agents that have confirmed
everything and repeat an empty report every 5 s. Prints and, with --out, writes JSON: memory, CPU seconds a minute, writes
by resource and Prometheus queries within the measured minutes, and what the settling before cost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import psutil
from kubernetes.config import kube_config

from funicular.adapters.kube import KubeClient, discover, path_of
from funicular.api.base import API_VERSION, FINALIZER, GATEWAY_LABEL, PLURAL
from funicular.api.report import LEASE, REPORT_PATH, REPORT_URL
from funicular.api.revision import revision_of, route_of
from funicular.api.spec import DEFAULT_UNITS, RoutingPolicySpec
from hack.cluster import Cluster
from hack.cluster.errors import CommandFailed

Json = dict[str, Any]
NAMESPACE = "default"
CRDS = Path(__file__).resolve().parents[2] / "crds"
SELECTOR = {"app.kubernetes.io/component": "gateway"}
COUNTED = ("routingpolicies", "events", "deployments", "services", "controllerrevisions", "tokenreviews", "leases")


def spec_of(index: int, prometheus: str) -> Json:
    return {
        "endpoint": {"model": f"endpoint-{index}"},
        "candidates": [
            {"name": "frontier", "baseline": True, "url": "http://frontier.models/v1", "model": "big"},
            {"name": "mini", "url": "http://mini.models/v1", "model": "small"},
        ],
        "strategy": {"classifier": {"url": "http://classifier.models:8080", "routes": {"easy": "mini"}}},
        "slos": [
            {"name": "errors", "indicator": "ErrorRate", "max": 0.02, "allowedIncrease": 0.005},
            {"name": "p95", "indicator": "LatencyP95", "bound": "4s", "allowedIncrease": 0.02},
            {"name": "thumbs-up", "indicator": "ThumbsUpRate", "allowedDecrease": 0.02},
        ],
        "prometheus": {"url": prometheus},
    }


def promoted(name: str, spec: RoutingPolicySpec, since: datetime) -> Json:
    route = route_of(spec, NAMESPACE, name)
    traffic = {
        "version": 9,
        "revision": route.revision,
        "share": {"desired": 0, "acked": 0},
        "endpoint": spec.endpoint.model,
        "selector": SELECTOR,
        "units": [u.model_dump(by_alias=True, exclude_none=True) for u in DEFAULT_UNITS],
        "salt": "",
        "holdback": 100,
        "stable": route.model_dump(by_alias=True, exclude_none=True),
        "latencyBounds": {"LatencyP95": "4s"},
    }
    return {
        "observedGeneration": 1,
        "phase": "Promoted",
        "revision": revision_of(spec),
        "stable": {"revision": route.revision, "since": since.isoformat()},
        "traffic": traffic,
    }


async def make_world(kube: KubeClient, count: int, prometheus: str) -> list[Json]:
    """Policies with their statuses, and three ready gateway pods. Returns the pods."""
    since = datetime.now(UTC) - timedelta(days=1)
    turns = asyncio.Semaphore(12)

    async def policy(index: int) -> None:
        name = f"policy-{index}"
        body = {
            "apiVersion": API_VERSION,
            "kind": "RoutingPolicy",
            "metadata": {"name": name, "finalizers": [FINALIZER]},
            "spec": spec_of(index, prometheus),
        }
        async with turns:
            made = await kube.create(path_of(API_VERSION, PLURAL, NAMESPACE), body)
            status = promoted(name, RoutingPolicySpec.model_validate(made["spec"]), since)
            await kube.patch(path_of(API_VERSION, PLURAL, NAMESPACE, name, "status"), {"status": status})

    await asyncio.gather(*(policy(i) for i in range(count)))
    pods = []
    for i in range(3):
        name = f"gateway-{i}"
        metadata = {"name": name, "labels": {GATEWAY_LABEL: "true", **SELECTOR}}
        spec = {"nodeSelector": {"not": "scheduled"}, "containers": [{"name": "c", "image": "none"}]}
        pod = await kube.create(path_of("v1", "pods", NAMESPACE), {"metadata": metadata, "spec": spec})
        ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        await kube.patch(path_of("v1", "pods", NAMESPACE, name, "status"), ready)
        pods.append(pod)
    return pods


async def agent(kube: KubeClient, pod: Json) -> None:
    """Confirms whatever is ordered, and repeats an empty report every 5 s, as the real one does."""
    session_name, first = uuid.uuid4().hex, True
    async with aiohttp.ClientSession() as session:
        while True:
            acks = {}
            if first:
                items, _ = await kube.list_all(path_of(API_VERSION, PLURAL, NAMESPACE))
                acks = {i["metadata"]["uid"]: {"version": i["status"]["traffic"]["version"]} for i in items}
            body = {
                "pod": pod["metadata"]["name"],
                "namespace": NAMESPACE,
                "uid": pod["metadata"]["uid"],
                "session": session_name,
                "full": first,
                "acks": acks,
            }
            try:
                lease = await kube.get(path_of("coordination.k8s.io/v1", "leases", NAMESPACE, LEASE))
                url = lease["metadata"]["annotations"][REPORT_URL] + REPORT_PATH
                async with session.post(url, json=body) as answer:
                    first = answer.status != 200 or (await answer.json())["resync"]
            except Exception:
                await asyncio.sleep(0.5)
                continue
            await asyncio.sleep(5)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def operator(kubeconfig: Path, log: Path) -> Iterator[tuple[psutil.Process, int]]:
    metrics = free_port()
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "FUNICULAR_REPORT_PORT": str(free_port()),
        "FUNICULAR_METRICS_PORT": str(metrics),
        "FUNICULAR_CHECK_TOKENS": "false",
        "FUNICULAR_POD_NAME": "bench",
        "FUNICULAR_LOG_LEVEL": "WARNING",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "funicular.controller.main"], env=environment, stdout=file, stderr=file
        )
    try:
        yield psutil.Process(process.pid), metrics
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


async def writes(kube: KubeClient) -> dict[str, int]:
    """By resource, all clients together: nobody else writes these but the operator (and its Lease)."""
    async with kube._session.get(kube.access.server + "/metrics") as answer:
        text = await answer.text()
    found = dict.fromkeys(COUNTED, 0)
    for line in text.splitlines():
        if line.startswith("apiserver_request_total{") and re.search(r'verb="(POST|PUT|PATCH|APPLY|DELETE)"', line):
            match = re.search(r'resource="([a-z]+)"', line)
            if match and match[1] in found:
                found[match[1]] += int(float(line.rsplit(" ", 1)[1]))
    return found


def scrape(url: str, name: str) -> float:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def settled(kube: KubeClient, process: psutil.Process, quiet: float = 15.0, longest: float = 600.0) -> float:
    """Seconds until policies were not written for `quiet` seconds and the process is idle."""
    started = changed = monotonic()
    before = await writes(kube)
    while monotonic() - started < longest:
        burnt = cpu(process)
        await asyncio.sleep(3)
        now = await writes(kube)
        if now["routingpolicies"] != before["routingpolicies"] or cpu(process) - burnt > 0.6:
            changed, before = monotonic(), now
        if monotonic() - changed > quiet:
            return changed - started
    raise TimeoutError(f"the operator did not settle within {longest:.0f} s")


async def measure(policies: int, minutes: float, cluster: Cluster, log: Path) -> Json:
    os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
    kube_config.KUBE_CONFIG_DEFAULT_LOCATION = str(cluster.kubeconfig)  # read when it was imported
    async with KubeClient(discover()) as kube:
        pods = await make_world(kube, policies, cluster.prometheus_url)
        with operator(cluster.kubeconfig, log) as (process, port):
            agents = [asyncio.create_task(agent(kube, pod)) for pod in pods]
            before = await writes(kube)
            start = await settled(kube, process)
            settling = {k: v - before[k] for k, v in (await writes(kube)).items()}
            queries = f"{cluster.prometheus_url}/metrics"
            handled = 'prometheus_http_requests_total{code="200",handler="/api/v1/query"}'
            first = (await writes(kube), cpu(process), scrape(queries, handled), monotonic())
            peak = 0
            while monotonic() - first[3] < minutes * 60:
                await asyncio.sleep(5)
                peak = max(peak, process.memory_info().rss)
            last = (await writes(kube), cpu(process), scrape(queries, handled), monotonic())
            took = (last[3] - first[3]) / 60
            text = f"http://127.0.0.1:{port}/metrics"
            reconciles = scrape(text, "funicular_operator_reconcile_seconds_count")
            for task in agents:
                task.cancel()
    return {
        "policies": policies,
        "minutes": round(took, 2),
        "memory_mib": round(peak / 2**20, 1),
        "cpu_seconds_per_minute": round((last[1] - first[1]) / took, 3),
        "writes": {k: v - first[0][k] for k, v in last[0].items()},
        "prometheus_queries": last[2] - first[2],
        "settled_after_seconds": round(start, 1),
        "settling_cpu_seconds": round(first[1], 2),
        "settling_writes": settling,
        "reconciles": reconciles,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--policies", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "operator.log"
        with Cluster.start("bench-idle", folder=Path(folder) / "cluster", node=False) as cluster:
            cluster.kubectl("apply", "--server-side", "-f", str(CRDS))
            for _ in range(100):
                with contextlib.suppress(CommandFailed):
                    cluster.kubectl("get", "routingpolicies.routing.funicular.dev")
                    break
            found = asyncio.run(measure(chosen.policies, chosen.minutes, cluster, log))
        said = log.read_text().splitlines()
    found["log_lines"] = len(said)
    print(json.dumps(found, indent=2))
    print("\n".join(said[:20]), file=sys.stderr)
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
