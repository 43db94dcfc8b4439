"""The objects that the operator makes, as data. That an API server takes them: tests/integration."""

from __future__ import annotations

from typing import Any

import pytest

from funicular.adapters.manifests import classifier_objects, controller_revision
from funicular.api.spec import ClassifierStrategy
from tests.builders import make_metadata

Json = dict[str, Any]


def objects(**changes: Any) -> tuple[Json, Json]:
    declared = {"image": "ghcr.io/x/y@sha256:0", "routes": {"easy": "mini"}, **changes}
    return classifier_objects(make_metadata(), "r1", ClassifierStrategy.model_validate(declared))


def container(**changes: Any) -> Json:
    (found,) = objects(**changes)[0]["spec"]["template"]["spec"]["containers"]
    return found


def test_the_pod_is_as_the_restricted_standard_wants_it() -> None:
    pod = objects()[0]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    context = container()["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_service_leads_to_this_revisions_pods_only() -> None:
    deployment, service = objects()
    selector = service["spec"]["selector"]
    assert selector == deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert service["metadata"]["name"] == deployment["metadata"]["name"] == "support-chat-clf-r1"
    owner = deployment["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("RoutingPolicy", "uid-1", True)


def test_the_environment_of_a_person_cannot_move_the_port() -> None:
    env = container(env=[{"name": "A", "value": "b"}, {"name": "FUNICULAR_CLASSIFIER_PORT", "value": "1"}])["env"]
    assert [(e["name"], e.get("value")) for e in env] == [
        ("FUNICULAR_CLASSIFIER_PORT", "8080"),
        ("FUNICULAR_CLASSIFIER_HOST", None),
        ("A", "b"),
    ]
    assert env[1]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        pytest.param({}, {"requests": {"cpu": "100m", "memory": "128Mi"}}, id="none declared"),
        pytest.param(
            {"limits": {"memory": "1Gi"}},
            {"limits": {"memory": "1Gi"}, "requests": {"cpu": "100m"}},
            id="a limit alone is also the request",
        ),
        pytest.param(
            {"requests": {"cpu": "2"}}, {"requests": {"cpu": "2", "memory": "128Mi"}}, id="one of the two is declared"
        ),
    ],
)
def test_resources(resources: Json, expected: Json) -> None:
    assert container(resources=resources).get("resources") == expected


def test_a_long_name_fits_into_its_labels() -> None:
    policy = make_metadata(name="a" * 100 + "-" + "b" * 100)
    deployment, _ = classifier_objects(policy, "0123456789", ClassifierStrategy(image="x", routes={"easy": "mini"}))
    labels = deployment["metadata"]["labels"]
    assert all(len(value) <= 63 for value in labels.values())
    assert len(deployment["metadata"]["name"]) <= 63


def test_a_good_spec_is_kept_whole() -> None:
    found = controller_revision(make_metadata(), "chat-r1", "r1", 4, {"endpoint": {"model": "x"}})
    assert (found["data"], found["revision"]) == ({"endpoint": {"model": "x"}}, 4)
