"""The three ways in: `kubectl apply -k`, `helm install` (and `helm test`), and what the cluster's owner sees of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from hack.cluster.errors import CommandFailed
from hack.demo.installed import RELEASE, Installed
from hack.demo.stack import CHECKOUT
from hack.node import Node
from tests.e2e.account import Account
from tests.integration.stack_fixtures import until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
KUSTOMIZATION = CHECKOUT / "charts" / "kustomize"
WORKLOADS = ("deployment/funicular-operator", "deployment/funicular-gateway")
Json = dict[str, Any]


@pytest_asyncio.fixture(loop_scope="session")
async def applied(node: Node) -> AsyncIterator[Node]:
    """The plain manifests, gone again before the chart comes."""

    async def kubectl(*arguments: str) -> str:
        return await asyncio.to_thread(node.kubectl, *arguments)

    await kubectl("apply", "--server-side", "-k", str(KUSTOMIZATION))
    yield node
    await kubectl("delete", "-k", str(KUSTOMIZATION), "--timeout=120s")


async def test_plain_manifests(applied: Node) -> None:
    """`kubectl apply -k charts/kustomize`: everything becomes ready, in a namespace of restricted Pod Security."""
    for workload in WORKLOADS:
        await asyncio.to_thread(
            applied.kubectl, "--namespace", "funicular", "rollout", "status", workload, "--timeout=120s"
        )
    labels = json.loads(applied.kubectl("get", "namespace", "funicular", "-o", "json"))["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


async def test_helm_install_says_what_comes_next(installed: Installed) -> None:
    """`helm install` ends with the address for applications and the next three commands."""
    for line in (
        installed.service_url.removesuffix(".cluster.local:8080"),
        "1. helm test",
        "2. kubectl apply",
        "3. kubectl get rp",
    ):
        assert line.replace(".svc.cluster.local", ".svc") in installed.notes


async def test_helm_test(installed: Installed) -> None:
    """`helm test` asks the API server, the operator's Lease and the gateways."""
    said = await installed.helm("test", RELEASE, "--logs", "--timeout", "60s")
    assert "Phase:          Succeeded" in said, said


async def test_every_pod_runs_and_was_never_restarted(installed: Installed) -> None:
    """All containers run as non-root without a writable root, and none was started twice."""
    items, _ = await installed.kube.list_all(f"/api/v1/namespaces/{installed.namespace}/pods")
    ours = [it for it in items if it["metadata"]["labels"].get("app.kubernetes.io/name") == "funicular"]
    ours = [it for it in ours if it["status"]["phase"] == "Running"]
    assert len(ours) == 5, [it["metadata"]["name"] for it in ours]
    for pod in ours:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        states = pod["status"]["containerStatuses"] + pod["status"].get("initContainerStatuses", [])
        assert all(it["restartCount"] == 0 for it in states), pod["metadata"]["name"]
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


async def test_a_misspelt_value_is_refused(installed: Installed) -> None:
    """values.schema.json names the value that it does not know."""
    with pytest.raises(CommandFailed, match="replcas"):
        await installed.upgrade(gateway={"replcas": 3})


async def test_the_autoscaler_reads_the_gateways_load(installed: Installed, account: Account) -> None:
    """With autoscaling on, the HorizontalPodAutoscaler gets the pods' CPU from metrics-server."""
    await installed.upgrade(gateway={"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 4}})

    async def reads() -> int | None:
        path = f"/apis/autoscaling/v2/namespaces/{installed.namespace}/horizontalpodautoscalers/{RELEASE}-gateway"
        status = (await installed.kube.get(path)).get("status", {})
        found = [it.get("resource", {}).get("current", {}) for it in status.get("currentMetrics") or []]
        return next((it["averageUtilization"] for it in found if "averageUtilization" in it), None)

    used = await until(reads, "the autoscaler's metric")
    account.facts["autoscaler_cpu_percent"] = used
    await installed.upgrade()
    await installed.until_ready()
