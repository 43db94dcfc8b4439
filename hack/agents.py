"""Many lightweight agents in one process, *without Envoy*: they stand in for gateway pods where only numbers count.

    python -m hack.agents --count 97 --kubeconfig FILE [--namespace default] [--prefix agent] [--existing]

Used by the benchmark of reverts with 100 agents. Each has a Pod object, a watch of all policies, a Lease watch, a token that is
bound to its pod, and the real report protocol: what it lacks is Envoy, so it acknowledges what it has parsed at once. It says
nothing about Envoy's own time; a few real pods beside them do. The pods are created here, with their status patched to Ready
(no node runs them: their scheduler's name is nobody's), and deleted at the end; with --existing the caller made them.
Prints "ready" when all watch. Ends by SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvloop
from kubernetes.config import kube_config

from funicular.adapters.kube import KubeClient, discover, path_of
from funicular.agent.metrics import AgentMetrics
from funicular.agent.policies import Policies
from funicular.agent.ports import Compiled, Sample
from funicular.agent.reporter import Reporter
from funicular.agent.reports import ReportBook
from funicular.agent.watch import watch_for_ever
from funicular.api.base import API_VERSION, GATEWAY_LABEL, PLURAL
from funicular.api.report import AUDIENCE, Ack, Counts
from funicular.api.traffic import Traffic
from funicular.errors import Conflict, FunicularError

Json = dict[str, Any]
LABELS = {"app.kubernetes.io/component": "gateway", GATEWAY_LABEL: "true"}
TOKEN_SECONDS = 3600
AT_ONCE = 16


class NoCompiler:
    """Traffic is parsed, and nothing is made of it."""

    id_key = "id-key"

    def policy(self, namespace: str, name: str, traffic: Traffic) -> Compiled:
        return Compiled(traffic.endpoint, b"", {}, {}, ())

    def routes(self, by_model: Mapping[str, bytes]) -> Any:
        return None

    def shares(self, layer: Mapping[str, int]) -> Any:
        return None

    def secret(self, sds: str, value: str) -> Any:
        return None

    def bootstrap(self) -> Any:
        return None

    def companions(self) -> Mapping[str, bytes]:
        return {}

    def translate(self, name: str, labels: Mapping[str, str]) -> Sample | None:
        return None


class LightAgent:
    def __init__(self, kube: KubeClient, pod: Json, operator_namespace: str, token_file: str) -> None:
        meta = pod["metadata"]
        self._kube = kube
        self._policies = Policies(NoCompiler(), meta["labels"])
        self._uids: dict[tuple[str, str], str] = {}
        self._book = ReportBook(
            pod=meta["name"], namespace=meta["namespace"], uid=meta["uid"], session=secrets.token_hex(8)
        )
        self._reporter = Reporter(
            kube, operator_namespace, self._book, token_file, self._no_counts, lambda: False, AgentMetrics()
        )
        self.synced = asyncio.Event()

    @staticmethod
    async def _no_counts(full: bool) -> dict[str, Counts]:
        return {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(watch_for_ever(self._kube, path_of(API_VERSION, PLURAL), self._on_event))
            group.create_task(self._reporter.run())

    def _on_event(self, kind: str, item: Any) -> None:
        changed = self._policies.resync(item) if kind == "RESYNC" else self._policies.event(kind, item)
        for key in changed:
            record = self._policies.records.get(key)
            known = self._uids.get(key)
            if known and (record is None or record.uid != known):
                self._book.gone(self._uids.pop(key))
            if record is not None:
                self._uids[key] = record.uid
                self._book.acked(record.uid, Ack(version=record.version, error=record.error))
        self.synced.set()
        if changed:
            self._reporter.wake()


def pod_body(namespace: str, name: str, labels: Mapping[str, str]) -> Json:
    container = {"name": "agent", "image": "none.invalid/agent:none", "ports": []}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": dict(labels)},
        "spec": {"schedulerName": "nobody", "containers": [container], "terminationGracePeriodSeconds": 0},
    }


async def make_pod(kube: KubeClient, namespace: str, name: str, labels: Mapping[str, str]) -> Json:
    """Created and Ready; one that is left from before is taken over."""
    path = path_of("v1", "pods", namespace)
    with contextlib.suppress(Conflict):
        await kube.create(path, pod_body(namespace, name, labels))
    status = {
        "phase": "Running",
        "podIP": "127.0.0.1",
        "podIPs": [{"ip": "127.0.0.1"}],
        "conditions": [{"type": kind, "status": "True"} for kind in ("Initialized", "ContainersReady", "Ready")],
    }
    return await kube.patch(f"{path}/{name}/status", {"status": status})


async def write_token(kube: KubeClient, pod: Json, folder: Path) -> str:
    """A token as kubelet projects it: for the operator's audience, bound to the pod."""
    meta = pod["metadata"]
    account = pod["spec"].get("serviceAccountName", "default")
    bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
    request = {"spec": {"audiences": [AUDIENCE], "expirationSeconds": TOKEN_SECONDS, "boundObjectRef": bound}}
    path = path_of("v1", "serviceaccounts", meta["namespace"], account, "token")
    answer = await kube.create(path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", **request})
    file = folder / meta["name"]
    file.touch(mode=0o600)
    file.write_text(answer["status"]["token"])
    return str(file)


async def run(options: argparse.Namespace) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    names = [f"{options.prefix}-{i}" for i in range(options.count)]
    labels = {**LABELS, **dict(pair.split("=", 1) for pair in options.label)}
    gate = asyncio.Semaphore(AT_ONCE)
    with tempfile.TemporaryDirectory(prefix="funicular-agents-") as folder:
        async with KubeClient(discover(), limit=AT_ONCE) as kube:

            async def start(name: str) -> LightAgent:
                async with gate:
                    if options.existing:
                        pod = await kube.get(path_of("v1", "pods", options.namespace, name))
                    else:
                        pod = await make_pod(kube, options.namespace, name, labels)
                    token_file = await write_token(kube, pod, Path(folder))
                return LightAgent(kube, pod, options.operator_namespace, token_file)

            running: list[asyncio.Task[None]] = []
            try:
                agents = await asyncio.gather(*(start(name) for name in names))
                running = [asyncio.create_task(agent.run()) for agent in agents]
                await asyncio.gather(*(agent.synced.wait() for agent in agents))
                print("ready", flush=True)
                await asyncio.wait({*running, asyncio.create_task(ended.wait())}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                if not options.existing:
                    await remove(kube, options.namespace, names)


async def remove(kube: KubeClient, namespace: str, names: list[str]) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        async with gate:
            try:
                await kube.delete(path_of("v1", "pods", namespace, name), {"gracePeriodSeconds": 0})
            except FunicularError as exc:
                print(f"pod {namespace}/{name} is left: {exc}", file=sys.stderr)

    await asyncio.gather(*(one(name) for name in names))


def main() -> int:
    parser = argparse.ArgumentParser(prog="hack.agents", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=97)
    parser.add_argument("--kubeconfig", default="")
    parser.add_argument("--namespace", default="default", help="of the pods")
    parser.add_argument("--operator-namespace", default="default", help="of the Lease")
    parser.add_argument("--prefix", default="agent", help="the pods are PREFIX-0, PREFIX-1, ...")
    parser.add_argument(
        "--label", action="append", default=[], help="key=value, beside the usual labels of a gateway pod"
    )
    parser.add_argument("--existing", action="store_true", help="the pods exist already")
    options = parser.parse_args()
    if options.kubeconfig:
        os.environ["KUBECONFIG"] = kube_config.KUBE_CONFIG_DEFAULT_LOCATION = options.kubeconfig  # read at its import
    uvloop.run(run(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
