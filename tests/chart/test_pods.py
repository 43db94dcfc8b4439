"""What is true of every pod of the chart, whatever the values."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack import chart
from tests.chart.conftest import rendered

Json = dict[str, Any]
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
NEEDS_THE_API = {"operator", "agent", "smoke", "stand-down"}


def pods(objects: tuple[Json, ...]) -> Iterator[Json]:
    """Specs of pods."""
    for it in objects:
        if it["kind"] == "Pod":
            yield it["spec"]
        elif it["kind"] in ("Deployment", "Job"):
            yield it["spec"]["template"]["spec"]


def containers(objects: tuple[Json, ...]) -> Iterator[Json]:
    for pod in pods(objects):
        yield from (*pod.get("initContainers", ()), *pod["containers"])


def one(objects: tuple[Json, ...], kind: str, component: str) -> Json:
    (found,) = (it for it in objects if it["kind"] == kind and it["metadata"]["labels"][chart.COMPONENT] == component)
    return found


def test_pods_are_not_root_and_have_the_runtimes_filter(objects: tuple[Json, ...]) -> None:
    for pod in pods(objects):
        context = pod["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"], context["seccompProfile"]) == (
            True,
            65532,
            {"type": "RuntimeDefault"},
        )
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


def test_containers_have_no_privilege_and_no_disk(objects: tuple[Json, ...]) -> None:
    for container in containers(objects):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, container["name"]
        assert "memory" in container["resources"]["limits"], container["name"]


def test_only_who_talks_to_the_api_server_has_a_token(objects: tuple[Json, ...]) -> None:
    for pod in pods(objects):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
    for container in containers(objects):
        has_token = any(mount["mountPath"] == TOKEN for mount in container.get("volumeMounts", ()))
        assert has_token == (container["name"] in NEEDS_THE_API), container["name"]


def test_no_volume_grows_without_end_and_none_is_the_nodes(objects: tuple[Json, ...]) -> None:
    for pod in pods(objects):
        for volume in pod["volumes"]:
            assert "hostPath" not in volume
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], volume["name"]


def test_pythons_allocator_keeps_to_one_arena(objects: tuple[Json, ...]) -> None:
    for container in containers(objects):
        if container["name"] in ("operator", "agent", "bootstrap"):
            assert {"name": "MALLOC_ARENA_MAX", "value": "1"} in container["env"]


def test_no_variable_is_set_twice(objects: tuple[Json, ...]) -> None:
    for container in containers(objects):
        names = [variable["name"] for variable in container.get("env", ())]
        assert len(names) == len(set(names)), container["name"]


def test_every_object_has_the_usual_labels(objects: tuple[Json, ...]) -> None:
    for it in objects:
        missing = {"app.kubernetes.io/name", "app.kubernetes.io/part-of", chart.COMPONENT} - set(
            it["metadata"]["labels"]
        )
        assert not missing, it["metadata"]["name"]


def test_no_name_of_the_whole_cluster_is_also_another_releases(objects: tuple[Json, ...]) -> None:
    """But for what only one release of a cluster may have, which its value says."""
    whole = {it["metadata"]["name"] for it in objects if it["kind"] in ("ClusterRole", "ClusterRoleBinding")}
    assert all(name.startswith((f"{chart.NAMESPACE}:", "funicular-policies-")) for name in whole), whole


def test_common_labels_and_annotations_are_on_everything_but_in_no_selector() -> None:
    objects = rendered("labels, annotations, names")
    for it in objects:
        assert it["metadata"]["labels"]["cost-centre"] == "42"
        assert it["metadata"]["annotations"]["owner"] == "platform"
    for kind in ("operator", "gateway"):
        deployment = one(objects, "Deployment", kind)
        assert deployment["spec"]["template"]["metadata"]["labels"]["cost-centre"] == "42"
        assert "cost-centre" not in deployment["spec"]["selector"]["matchLabels"]


def test_an_upgrade_of_the_chart_alone_restarts_no_pod(tmp_path: Path) -> None:
    copy = tmp_path / "funicular"
    shutil.copytree(chart.CHART, copy)
    metadata = yaml.safe_load((copy / "Chart.yaml").read_text())
    (copy / "Chart.yaml").write_text(yaml.safe_dump({**metadata, "version": "0.0.9-earlier"}))
    text = chart.helm("template", chart.RELEASE, str(copy), "--namespace", chart.NAMESPACE)
    earlier = tuple(document for document in yaml.safe_load_all(text) if document)
    now = rendered("the defaults")
    assert one(earlier, "Deployment", "gateway")["metadata"]["labels"]["helm.sh/chart"] == "funicular-0.0.9-earlier"
    for component in ("operator", "gateway"):
        assert one(earlier, "Deployment", component)["spec"] == one(now, "Deployment", component)["spec"]


def test_two_renderings_are_equal() -> None:
    """No random value, no date: a GitOps controller that renders the chart anew each minute finds nothing to do."""
    assert tuple(chart.template()) == rendered("the defaults")


def test_a_drain_fits_into_the_grace_period(objects: tuple[Json, ...]) -> None:
    for pod in pods(objects):
        for container in pod["containers"]:
            if container["name"] == "agent":
                command = container["lifecycle"]["preStop"]["exec"]["command"]
                (longest,) = (it["value"] for it in container["env"] if it["name"] == "FUNICULAR_DRAIN_SECONDS")
                assert command[:3] == ["funicular", "agent", "drain"]
                assert int(command[-1]) <= int(longest) <= pod["terminationGracePeriodSeconds"] - 20


def test_envoy_ends_after_the_agent_that_drains_it(objects: tuple[Json, ...]) -> None:
    """A sidecar container: the kubelet ends it when the others have ended."""
    for pod in pods(objects):
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            if container["name"] == "envoy":
                assert container in pod["initContainers"]
                assert container["restartPolicy"] == "Always"


@pytest.mark.parametrize(
    ("values", "annotation", "variable"),
    [
        pytest.param("the defaults", None, "funicular", id="its own namespace"),
        pytest.param("gateways for several namespaces", "team-a,team-b", "funicular,team-a,team-b", id="several"),
        pytest.param("gateways for all namespaces", "*", "*", id="all"),
    ],
)
def test_operator_and_agent_hear_the_same_of_what_a_gateway_serves(
    values: str, annotation: str | None, variable: str
) -> None:
    template = one(rendered(values), "Deployment", "gateway")["spec"]["template"]
    assert template["metadata"]["annotations"].get("routing.funicular.dev/serves") == annotation
    (agent,) = template["spec"]["containers"]
    assert {"name": "FUNICULAR_NAMESPACES", "value": variable} in agent["env"]
