"""The chart against a real API server: what it refuses, what Helm makes of an upgrade, who may do what. No pod runs."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack import chart
from hack.cluster import Cluster, binaries
from tests.chart.conftest import rendered
from tests.chart.test_pods import pods
from tests.chart.value_sets import SETS

Json = dict[str, Any]
RESTRICTED = ("pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/warn=restricted")
CRD = "routingpolicies.routing.funicular.dev"
FOREIGN = ("PodMonitor", "PrometheusRule")  # of the Prometheus operator, whose CRDs are not here
RELEASE = "funicular"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with Cluster.start("chart-tests", folder=folder, node=False, prometheus=False) as running:
        for name in ("funicular", "team-a", "team-b", "platform"):
            running.kubectl("create", "namespace", name)
            running.kubectl("label", "namespace", name, *RESTRICTED)
        yield running


class Release:
    """One installation, in a namespace of its own."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def helm(self, *arguments: str) -> str:
        program = binaries.ensure(["helm"])["helm"]
        environment = {**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)}
        command = [program, *arguments, "--namespace", self.namespace]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def install(self, *arguments: str) -> str:
        return self.helm("install", RELEASE, str(chart.CHART), *arguments)

    def upgrade(self, *arguments: str) -> str:
        return self.helm("upgrade", RELEASE, str(chart.CHART), *arguments)

    def uninstall(self) -> str:
        """Without hooks: there is nobody here who runs a Job."""
        return self.helm("uninstall", RELEASE, "--no-hooks")

    def get(self, kind: str, name: str) -> Json:
        return dict(json.loads(self.cluster.kubectl("get", kind, name, "-n", self.namespace, "-o", "json")))

    def id_key(self) -> str:
        return base64.b64decode(self.get("secret", "funicular-gateway-id-key")["data"]["key"]).decode()

    def generations(self) -> dict[str, int]:
        return {
            name: self.get("deployment", name)["metadata"]["generation"]
            for name in ("funicular-operator", "funicular-gateway")
        }

    def may(self, account: str, verb: str, resource: str, *more: str) -> bool:
        user = account if ":" not in account else f"system:serviceaccount:{account}"
        asked = ["auth", "can-i", verb, resource, "--as", user, *more]
        program = binaries.ensure(["kubectl"])["kubectl"]
        done = subprocess.run(
            [program, "--kubeconfig", self.cluster.kubeconfig, *asked], capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() in ("yes", "no"), done.stderr
        return done.stdout.strip() == "yes"


@pytest.fixture
def release(cluster: Cluster) -> Iterator[Release]:
    """Nothing is installed yet; whatever is installed is gone afterwards, and the CRD with it."""
    found = Release(cluster, f"chart-{uuid.uuid4().hex[:8]}")
    cluster.kubectl("create", "namespace", found.namespace)
    yield found
    if RELEASE in found.helm("list", "--short"):
        found.uninstall()
    cluster.kubectl("delete", "crd", CRD, "--ignore-not-found")
    cluster.kubectl("delete", "namespace", found.namespace, "--wait=false")


@pytest.mark.parametrize("name", list(SETS))
def test_the_server_takes_every_object(cluster: Cluster, name: str, tmp_path: Path) -> None:
    objects = [it for it in rendered(name) if it["kind"] not in (*FOREIGN, "Pod")]  # pods: below
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    said = cluster.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", str(file))
    assert len(said.splitlines()) == len(objects)


@pytest.mark.parametrize("name", list(SETS))
def test_restricted_pod_security_admits_every_pod(cluster: Cluster, name: str, tmp_path: Path) -> None:
    """A Deployment that is refused only warns; so its pods are sent as they are."""
    accounts = [it for it in rendered(name) if it["kind"] == "ServiceAccount"]
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(accounts))
    cluster.kubectl("apply", "-f", str(file))
    found = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"pod-{number}", "namespace": chart.NAMESPACE},
            "spec": {**spec, "restartPolicy": spec.get("restartPolicy", "Always")},
        }
        for number, spec in enumerate(pods(rendered(name)))
    ]
    file.write_text(yaml.safe_dump_all(found))
    said = cluster.kubectl("apply", "--server-side", "--dry-run=server", "-f", str(file))
    assert len(said.splitlines()) == len(found)


def test_an_upgrade_keeps_the_signing_key_and_restarts_only_what_changed(release: Release) -> None:
    said = release.install()
    assert "helm test funicular" in said
    key, before = release.id_key(), release.generations()
    assert len(key) == 64
    release.upgrade()
    assert (release.id_key(), release.generations()) == (key, before)
    release.upgrade("--set", "operator.logLevel=DEBUG")
    after = release.generations()
    assert after["funicular-operator"] > before["funicular-operator"]
    assert after["funicular-gateway"] == before["funicular-gateway"]
    assert release.id_key() == key


def test_an_uninstall_keeps_crd_policies_and_key_and_a_new_install_takes_them_over(release: Release) -> None:
    release.install()
    key = release.id_key()
    example = chart.CHECKOUT / "hack" / "examples" / "support-chat.yaml"
    release.cluster.kubectl("wait", "--for=condition=Established", f"crd/{CRD}")
    release.cluster.kubectl("apply", "-n", release.namespace, "-f", str(example))
    said = release.uninstall()
    assert f"[CustomResourceDefinition] {CRD}" in said
    assert release.get("rp", "support-chat")
    assert release.id_key() == key
    release.install()
    assert release.id_key() == key
    assert release.get("rp", "support-chat")


def test_a_key_that_a_person_made_is_left_alone(release: Release) -> None:
    release.cluster.kubectl(
        "create", "secret", "generic", "mine", "-n", release.namespace, "--from-literal=key=" + "k" * 40
    )
    release.install("--set", "gateway.idKey.secretName=mine")
    names = release.cluster.kubectl("get", "secrets", "-n", release.namespace, "-o", "name").split()
    assert "secret/funicular-gateway-id-key" not in names


def test_an_upgrade_brings_the_new_crd(release: Release) -> None:
    release.install()
    shorter = '[{"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns/0"}]'
    release.cluster.kubectl("patch", "crd", CRD, "--type=json", "-p", shorter)
    release.upgrade()
    columns = release.get("crd", CRD)["spec"]["versions"][0]["additionalPrinterColumns"]
    assert columns[0]["name"] == "Phase"


def test_helm_makes_no_difference_to_what_kustomize_says(cluster: Cluster) -> None:
    said = cluster.kubectl("apply", "--server-side", "--dry-run=server", "-k", str(chart.KUSTOMIZE))
    assert len(said.splitlines()) == len(chart.plain_objects()) + 1


@pytest.mark.parametrize("names", [[], ["openai"]], ids=["none is named", "one is named"])
def test_the_agent_reads_named_secrets_only(release: Release, names: list[str]) -> None:
    release.install("--set-json", f"gateway.credentials.secretNames={json.dumps(names)}")
    agent = f"{release.namespace}:funicular-gateway"
    here = ("-n", release.namespace)
    assert release.may(agent, "watch", "secrets/openai", *here) == bool(names)
    assert not release.may(agent, "list", "secrets", *here)
    assert not release.may(agent, "get", "secrets/funicular-gateway-id-key", *here)
    assert not release.may(agent, "get", "secrets/openai", "-n", "team-a")
    assert release.may(agent, "watch", "routingpolicies", *here)
    assert not release.may(agent, "watch", "routingpolicies", "-n", "team-a")
    assert not release.may(agent, "patch", "routingpolicies", *here)
    assert not release.may(agent, "patch", "routingpolicies", "--subresource=status", *here)


def test_the_operator_reads_secrets_only_where_gateways_serve(release: Release) -> None:
    release.install("--set", "gateway.policyNamespaces={team-a}")
    operator = f"{release.namespace}:funicular-operator"
    for namespace, expected in ((release.namespace, True), ("team-a", True), ("team-b", False), ("kube-system", False)):
        assert release.may(operator, "get", "secrets/x", "-n", namespace) == expected, namespace
        assert not release.may(operator, "list", "secrets", "-n", namespace)
    assert release.may(operator, "patch", "routingpolicies", "--subresource=status", "-n", "team-b")
    assert not release.may(operator, "delete", "routingpolicies", "-n", "team-b")
    assert not release.may(operator, "create", "pods", "-n", release.namespace)
    assert not release.may(operator, "update", "leases/another", "-n", release.namespace)


def test_people_see_and_edit_policies_and_nobody_writes_their_status(release: Release) -> None:
    release.install()
    here = ("-n", release.namespace)
    for role in ("view", "edit", "admin"):
        release.cluster.kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}", *here)
    end = time.monotonic() + 30
    while not release.may(
        "edit", "patch", "routingpolicies", *here
    ):  # the controller that aggregates is quick, not instant
        assert time.monotonic() < end
    assert release.may("view", "get", "routingpolicies", *here)
    assert not release.may("view", "patch", "routingpolicies", *here)
    assert release.may("admin", "delete", "routingpolicies", *here)
    for role in ("view", "edit", "admin"):
        assert release.may(role, "get", "routingpolicies", "--subresource=status", *here)
        assert not release.may(role, "patch", "routingpolicies", "--subresource=status", *here)
        assert not release.may(role, "update", "routingpolicies", "--subresource=status", *here)
