"""What a container's process is started with: expansion of variables, references, and rewritten paths."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from hack.cluster.node.environment import (
    ConfigMissing,
    PathRewriter,
    PodFacts,
    command_line,
    container_environment,
    expand,
    resource_field,
)

Object = dict[str, Any]

OBJECTS: dict[tuple[str, str], Object] = {
    ("secrets", "keys"): {"data": {"api": base64.b64encode(b"s3cret").decode()}},
    ("configmaps", "settings"): {"data": {"COLOUR": "red", "PATH_OF": "/etc/app/x"}},
}
POD: Object = {
    "metadata": {
        "name": "web-0",
        "namespace": "shop",
        "uid": "u-1",
        "labels": {"app": "web", "tier": "front"},
        "annotations": {"note": "hello"},
    },
    "spec": {"nodeName": "process-node", "serviceAccountName": "web"},
}
FACTS = PodFacts(POD, "127.10.0.7")


def lookup(kind: str, name: str) -> Object | None:
    return OBJECTS.get((kind, name))


def unchanged(text: str) -> str:
    return text


def environment(**container: Any) -> dict[str, str]:
    return container_environment(container, FACTS, lookup, unchanged)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        pytest.param("$(A)-$(B)", "1-2", id="known names are replaced"),
        pytest.param("$(C)", "$(C)", id="an unknown name stays"),
        pytest.param("$$(A)", "$(A)", id="a doubled dollar escapes"),
        pytest.param("$A ${A}", "$A ${A}", id="shell syntax means nothing"),
    ],
)
def test_expansion(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expanded


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        pytest.param("/etc/app", "/pod/config", id="the mount itself"),
        pytest.param("/etc/app/x.yaml", "/pod/config/x.yaml", id="a file below it"),
        pytest.param("--config=/etc/app/x", "--config=/pod/config/x", id="after an equals sign"),
        pytest.param(
            "a:/etc/app:/etc/app/certs/b", "a:/pod/config:/pod/certs/b", id="in a list, the longest mount wins"
        ),
        pytest.param("file:///etc/app/x", "file:///pod/config/x", id="in a file URL"),
        pytest.param('{"path": "/etc/app/x"}', '{"path": "/pod/config/x"}', id="in quotes"),
        pytest.param("/etc/application", "/etc/application", id="not a longer name"),
        pytest.param("/opt/etc/app", "/opt/etc/app", id="not inside another path"),
        pytest.param("/etc/app.bak", "/etc/app.bak", id="not a name with a suffix"),
        pytest.param("https://host/etc/app", "https://host/etc/app", id="not the path of a URL"),
    ],
)
def test_mounted_paths_become_local_ones(text: str, rewritten: str) -> None:
    assert PathRewriter({"/etc/app/": "/pod/config", "/etc/app/certs": "/pod/certs"})(text) == rewritten


def test_without_mounts_nothing_is_rewritten() -> None:
    assert PathRewriter({})("/etc/app") == "/etc/app"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "web-0"),
        ("metadata.namespace", "shop"),
        ("metadata.uid", "u-1"),
        ("metadata.labels['tier']", "front"),
        ("metadata.annotations['absent']", ""),
        ("metadata.labels", 'app="web"\ntier="front"'),
        ("status.podIP", "127.10.0.7"),
        ("spec.nodeName", "process-node"),
        ("spec.serviceAccountName", "web"),
    ],
)
def test_the_downward_api(path: str, value: str) -> None:
    assert environment(env=[{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}]) == {"X": value}


def test_env_wins_over_env_from_and_sees_what_stands_before_it() -> None:
    found = environment(
        envFrom=[{"configMapRef": {"name": "settings"}, "prefix": "P_"}, {"secretRef": {"name": "keys"}}],
        env=[{"name": "P_COLOUR", "value": "blue"}, {"name": "BOTH", "value": "$(P_COLOUR) $(api) $(LATER)"}],
    )
    assert found["P_COLOUR"] == "blue"
    assert found["BOTH"] == "blue s3cret $(LATER)"


def test_values_are_rewritten_wherever_they_come_from() -> None:
    found = container_environment(
        {"envFrom": [{"configMapRef": {"name": "settings"}}]}, FACTS, lookup, PathRewriter({"/etc/app": "/pod/c"})
    )
    assert found["PATH_OF"] == "/pod/c/x"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param({"secretKeyRef": {"name": "none", "key": "a"}}, 'secret "none" not found', id="no such secret"),
        pytest.param(
            {"secretKeyRef": {"name": "keys", "key": "b"}}, "couldn't find key b in secret keys", id="no such key"
        ),
        pytest.param({"configMapKeyRef": {"name": "none", "key": "a"}}, 'configmap "none" not found', id="no such map"),
        pytest.param({"fieldRef": {"fieldPath": "status.phase"}}, "fieldRef status.phase", id="no such field"),
    ],
)
def test_a_missing_reference_is_named(source: Object, message: str) -> None:
    with pytest.raises(ConfigMissing, match=message):
        environment(env=[{"name": "X", "valueFrom": source}])


def test_an_optional_reference_may_be_missing() -> None:
    optional = {"secretKeyRef": {"name": "none", "key": "a", "optional": True}}
    assert environment(env=[{"name": "X", "valueFrom": optional}]) == {}
    assert environment(envFrom=[{"secretRef": {"name": "none", "optional": True}}]) == {}


@pytest.mark.parametrize(
    ("container", "command"),
    [
        pytest.param({}, ["run", "127.10.0.7"], id="the image's entrypoint, expanded"),
        pytest.param({"args": ["--x=$(IP)"]}, ["run", "127.10.0.7", "--x=127.10.0.7"], id="args are appended"),
        pytest.param({"command": ["own"], "args": ["a"]}, ["own", "a"], id="command replaces the entrypoint"),
        pytest.param({"command": ["app", "serve"]}, ["python", "-m", "app", "serve"], id="a program of the image"),
        pytest.param({"args": ["/data/f"]}, ["run", "127.10.0.7", "/pod/f"], id="a mounted path is local"),
    ],
)
def test_command_lines(container: Object, command: list[str]) -> None:
    programs = {"app": ("python", "-m", "app")}
    rewrite = PathRewriter({"/data": "/pod"})
    assert command_line(container, ("run", "$(IP)"), programs, {"IP": "127.10.0.7"}, rewrite) == command


@pytest.mark.parametrize(
    ("reference", "value"),
    [
        pytest.param({"resource": "limits.cpu"}, "2", id="CPUs are rounded up"),
        pytest.param({"resource": "limits.cpu", "divisor": "1m"}, "1500", id="in thousandths"),
        pytest.param({"resource": "limits.memory", "divisor": "1Mi"}, "512", id="memory in MiB"),
        pytest.param({"resource": "requests.cpu"}, "1", id="unset counts as one"),
    ],
)
def test_resource_fields(reference: Object, value: str) -> None:
    container = {"resources": {"limits": {"cpu": "1500m", "memory": "512Mi"}}}
    assert resource_field(container, reference) == value
