"""A value that is misspelt is refused, wherever it stands."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import jsonschema
import pytest
import yaml

from hack import chart

Json = dict[str, Any]
SCHEMA: Json = json.loads((chart.CHART / "values.schema.json").read_text())
DEFAULTS: Json = yaml.safe_load((chart.CHART / "values.yaml").read_text())
FREE = ("annotations", "labels", "nodeSelector", "commonLabels", "commonAnnotations", "podAnnotations", "podLabels",
        "requests", "limits", "scaleDown", "global")  # fmt: skip
"""Whose keys are the user's or Kubernetes' own; what a scaleDown may hold is the API server's business."""


def mappings(value: Json, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for key, inner in value.items():
        if isinstance(inner, dict) and key not in FREE:
            yield from mappings(inner, (*path, key))


def at(value: Json, path: tuple[str, ...]) -> Json:
    for key in path:
        value = value[key]
    return value


def definition(node: Json) -> Json:
    return SCHEMA["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def test_the_schema_is_one_and_takes_the_defaults() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(DEFAULTS, SCHEMA)


@pytest.mark.parametrize("path", [pytest.param(p, id=".".join(p) or "the top") for p in mappings(DEFAULTS)])
def test_a_key_that_is_not_there_is_refused_at(path: tuple[str, ...]) -> None:
    values = deepcopy(DEFAULTS)
    at(values, path)["misspelt"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="misspelt"):
        jsonschema.validate(values, SCHEMA)


FILLED = [path for path in mappings(DEFAULTS) if at(DEFAULTS, path)]
WITHOUT_DEFAULT = {"global", "claims", "scaleUp"}


@pytest.mark.parametrize("path", [pytest.param(p, id=".".join(p) or "the top") for p in FILLED])
def test_schema_and_defaults_have_the_same_keys_at(path: tuple[str, ...]) -> None:
    node = SCHEMA
    for key in path:
        node = definition(node["properties"][key])
    assert set(node["properties"]) - WITHOUT_DEFAULT == set(at(DEFAULTS, path)) - WITHOUT_DEFAULT


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        pytest.param("gateway.replica=3", "additional properties 'replica' not allowed", id="a misspelt name"),
        pytest.param("gatewya.replicas=3", "additional properties 'gatewya' not allowed", id="a misspelt part"),
        pytest.param("gateway.replicas=many", "got string, want integer", id="a word for a number"),
        pytest.param("image.digest=sha256:123", "does not match pattern", id="a digest that is none"),
        pytest.param("gateway.service.type=Cluster", "value must be one of", id="a type of Service that is none"),
        pytest.param(
            "operator.namespaces={*}", "does not match pattern", id="a wildcard where the empty list means all"
        ),
        pytest.param("operator.enabled=false,gateway.enabled=false", "nothing to install", id="nothing at all"),
        pytest.param("gateway.operatorNamespace=platform", "set operator.enabled=false", id="two operators"),
    ],
)
def test_helm_refuses(given: str, sentence: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        chart.helm("template", "x", str(chart.CHART), "--set", given)
    assert sentence in caught.value.stderr
