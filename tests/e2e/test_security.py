"""From the outside, on real pods: what other pods reach, what tokens may do, and where a provider's key is not."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from funicular.api.base import GATEWAY_LABEL
from hack.cluster.errors import CommandFailed
from hack.demo.installed import RELEASE, SIM_IMAGE, Installed
from tests.e2e.account import Account
from tests.e2e.apps import app, patient, served
from tests.integration.stack_fixtures import MINI, STEPS, manifest, on_stage, until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
Json = dict[str, Any]
ELSEWHERE = "stranger"
CONNECT = (
    "import socket,sys; s=socket.socket(); s.settimeout(3); "
    "print('open' if s.connect_ex((sys.argv[1], int(sys.argv[2]))) == 0 else 'closed')"
)
RESTRICTED: Json = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stranger(installed: Installed) -> AsyncIterator[str]:
    """Two pods of another namespace; one of them calls itself a gateway of everybody's."""
    labels = {GATEWAY_LABEL: "true", "app.kubernetes.io/component": "gateway"}
    serves = {"routing.funicular.dev/serves": "*"}
    await installed.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ELSEWHERE}})
    await installed.apply(make_pod({"name": "stranger"}))
    await installed.apply(make_pod({"name": "pretender", "labels": labels, "annotations": serves}))
    await asyncio.to_thread(
        installed.node.kubectl, "-n", ELSEWHERE, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"
    )
    yield "stranger"
    await asyncio.to_thread(installed.node.kubectl, "delete", "namespace", ELSEWHERE, "--wait=false")


def make_pod(metadata: Json) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": ELSEWHERE, **metadata},
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "pod",
                    "image": SIM_IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "args": ["provider", "--port", "9000"],
                    "securityContext": RESTRICTED,
                }
            ],
        },
    }


async def reaches(installed: Installed, address: str, port: int) -> bool:
    said = await asyncio.to_thread(
        installed.node.kubectl,
        *("-n", ELSEWHERE, "exec", "stranger", "--", "/usr/bin/python3.11", "-c", CONNECT, address, str(port)),
    )
    return said.strip() == "open"


async def test_other_pods_reach_the_gateways_port_for_applications_alone(installed: Installed, stranger: str) -> None:
    """A pod of another namespace reaches 8080 of a gateway; not its metrics, not Envoy's admin, nothing of the operator."""
    await installed.look()
    gateway = installed.pods("gateway")[0]["status"]["podIP"]
    operator = installed.pods("operator")[0]["status"]["podIP"]
    assert await reaches(installed, gateway, 8080)
    for address, port in ((gateway, 8081), (gateway, 9901), (gateway, 9902), (operator, 8085), (operator, 8086)):
        assert not await reaches(installed, address, port), f"{address}:{port}"


async def may(installed: Installed, account: str, verb: str, what: str, *more: str) -> bool:
    subject = f"--as=system:serviceaccount:{installed.namespace}:{account}"
    try:
        return (await installed.kubectl("auth", "can-i", verb, what, subject, *more)).strip() == "yes"
    except CommandFailed:
        return False  # kubectl's way to say no


async def test_the_agents_token_reads_its_secrets_and_writes_nothing(installed: Installed) -> None:
    """The gateways' service account may read the Secrets that the chart names, in its namespace, and write nothing at all."""
    account = f"{RELEASE}-gateway"
    assert await may(installed, account, "get", f"secret/{MINI.secret}")
    assert await may(installed, account, "list", "routingpolicies")
    assert not await may(installed, account, "get", f"secret/{RELEASE}-gateway-id-key")
    assert not await may(installed, account, "list", "secrets")
    assert not await may(installed, account, "get", f"secret/{MINI.secret}", "--namespace=kube-system")
    for verb in ("create", "update", "patch", "delete"):
        for what in ("routingpolicies", "routingpolicies/status", "secrets", "pods", "deployments", "leases"):
            assert not await may(installed, account, verb, what), f"{verb} {what}"


async def test_the_operators_token_writes_no_secret_and_no_pod(installed: Installed) -> None:
    """The operator may patch a policy and its status; it may not write Secrets, pods, roles, nor read Secrets of others."""
    account = f"{RELEASE}-operator"
    assert await may(installed, account, "patch", "routingpolicies/status")
    for verb, what in (
        ("create", "secrets"), ("patch", "secrets"), ("create", "pods"), ("create", "roles"), ("delete", "routingpolicies"),
        ("create", "pods/exec"), ("impersonate", "serviceaccounts"), ("list", "secrets"),
    ):  # fmt: skip
        assert not await may(installed, account, verb, what), f"{verb} {what}"
    assert not await may(installed, account, "get", "secrets", "--namespace=kube-system")


async def test_a_gateway_of_another_namespace_is_not_waited_for_and_keys_are_nowhere(
    installed: Installed, account: Account, stranger: str
) -> None:
    """A stranger's pod with a gateway's labels holds no ramp up; after one, no key stands in status, Events, logs or metrics."""
    secrets = [
        json.loads(await installed.kubectl("get", "secret", it.secret, "-o", "json"))
        for it in installed.providers.values()
    ]
    keys = [base64.b64decode(it["data"]["api-key"]).decode() for it in secrets]
    async with on_stage(installed, "guarded") as scene:
        ramps = await served(scene, patient(manifest(installed, "guarded", classifier=True, steps=STEPS)))
        async with app(installed, account, "guarded-users", "guarded", 80.0) as users:
            done = await scene.promoted(ramps)
            assert done.status.gateways == "3/3"
            await users.more(50)
        texts = {
            "policies": await installed.kubectl("get", "routingpolicies", "-o", "yaml"),
            "events": await installed.kubectl("get", "events", "-o", "yaml"),
        }
    for pod in (*installed.pods("gateway"), *installed.pods("operator")):
        name = pod["metadata"]["name"]
        texts[f"logs of {name}"] = await installed.kubectl("logs", name, "--all-containers")
        ports = (8081, 9902) if "gateway" in name else (8086,)
        async with aiohttp.ClientSession() as session:
            for port in ports:
                async with session.get(f"http://{pod['status']['podIP']}:{port}/metrics") as answer:
                    texts[f"metrics of {name}:{port}"] = await answer.text()
    for where, text in texts.items():
        assert not [key for key in keys if key in text], where
    await until(lambda: _is_quiet(installed), "nothing ramps")


async def _is_quiet(installed: Installed) -> bool:
    items, _ = await installed.kube.list_all(installed.policy_path())
    return not items
