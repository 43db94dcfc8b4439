from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from funicular.api import crd, rules, spec
from funicular.api.base import Model
from funicular.api.policy import parse_policy
from funicular.api.rules import PATTERNS
from tests.unit.api.bad_policies import example

Node = dict[str, Any]


def nodes(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")
    if "additionalProperties" in node:
        yield from nodes(node["additionalProperties"], f"{path}{{}}")


NODES = dict(nodes(crd.schema()))
SPEC = {path: node for path, node in NODES.items() if path.startswith(".spec")}
STATUS = {path: node for path, node in NODES.items() if path.startswith(".status")}


def test_the_file_is_what_the_models_say() -> None:
    assert crd.FILE.read_text() == crd.render(), "run python -m funicular.api.crd and commit crds/"


def test_the_check_fails_when_a_model_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "crd.yaml"
    assert crd.main(["--file", str(file)]) == 0
    assert crd.main(["--check", "--file", str(file)]) == 0

    class Changed(spec.RoutingPolicySpec):
        more: int = Field(default=1, description="A new field.")

    monkeypatch.setattr(crd, "RoutingPolicySpec", Changed)
    crd.schema.cache_clear()
    try:
        assert crd.main(["--check", "--file", str(file)]) == 1
    finally:
        crd.schema.cache_clear()
    assert "commit it" in capsys.readouterr().err


def test_the_check_fails_when_there_is_no_file(tmp_path: Path) -> None:
    assert crd.main(["--check", "--file", str(tmp_path / "none.yaml")]) == 1


@pytest.mark.parametrize("path", [path for path in NODES if path != ".metadata"])
def test_every_field_has_a_sentence(path: str) -> None:
    description = NODES[path].get("description", "")
    assert description, path
    assert "\n" not in description
    assert not description.endswith(" ")


def test_the_schema_is_structural() -> None:
    text = yaml.safe_dump(crd.schema())
    assert "$ref" not in text
    assert "'null'" not in text
    for path, node in NODES.items():
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not {"title", "pattern", "const", "oneOf", "$defs"} & node.keys(), path
        assert node.get("additionalProperties") is not False, path


def test_whatever_a_rule_reads_has_an_upper_size() -> None:
    """Else a CEL rule over it would have no upper cost, and the API server would refuse the CRD."""
    for path, node in SPEC.items():
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if node.get("type") == "string" and "enum" not in node:
            assert "maxLength" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


BOUNDS = {"minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}


def test_nothing_in_the_status_can_be_refused_but_what_gateways_obey() -> None:
    for path, node in STATUS.items():
        refusing = {"enum", "default", "x-kubernetes-validations"}
        assert not (refusing if path.startswith(".status.traffic") else refusing | BOUNDS) & node.keys(), path
        assert set(node.get("required", [])) <= {"type"}, path


def test_what_gateways_obey_has_bounds() -> None:
    obeyed = {path: node for path, node in STATUS.items() if path.startswith(".status.traffic.")}
    for path, node in obeyed.items():
        if node["type"] == "integer":
            assert node["minimum"] == 0, path
            assert ("maximum" in node) is (path != ".status.traffic.version"), path
        if node["type"] == "string":
            assert "maxLength" in node, path
        if node["type"] == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path
    assert obeyed[".status.traffic.share.desired"]["maximum"] == 10_000


def test_every_rule_stands_in_the_schema() -> None:
    written = {(r["rule"], r["message"]) for node in NODES.values() for r in node.get("x-kubernetes-validations", ())}
    for rule in (*rules.RULES, *rules.TRANSITIONS):
        assert (rule.cel, rule.sentence) in written, rule.on
    assert set(PATTERNS.values()) <= {sentence for _, sentence in written}


@pytest.mark.parametrize(
    "sentence", sorted({*PATTERNS.values(), *(r.sentence for r in (*rules.RULES, *rules.TRANSITIONS))})
)
def test_a_sentence_is_one_line_without_a_full_stop(sentence: str) -> None:
    assert "\n" not in sentence
    assert not sentence.endswith(".")
    assert len(sentence) < 200


def test_defaults_are_those_of_the_models() -> None:
    assert NODES[".spec.rollout"]["default"]["holdback"] == 1
    steps = NODES[".spec.rollout.steps"]["default"]
    assert [step["share"] for step in steps] == [1, 10, 50, 100]
    assert NODES[".spec.assignment.units"]["default"][3] == {"apiKey": True}
    assert NODES[".spec.candidates[].credentials.prefix"]["default"] == "Bearer "


def test_names_and_columns() -> None:
    made = crd.crd()["spec"]
    assert made["names"]["shortNames"] == ["rp"]
    assert made["names"]["categories"] == ["funicular"]
    (version,) = made["versions"]
    assert version["subresources"] == {"status": {}}
    for column in version["additionalPrinterColumns"]:
        if column["jsonPath"].startswith(".status"):
            assert column["jsonPath"] in STATUS


def test_models_read_what_the_schema_completes() -> None:
    from funicular.api.lint import with_defaults

    body = example()
    body["metadata"] |= {"namespace": "default", "uid": "1"}
    plain, completed = parse_policy(body), {**body, "spec": with_defaults(body["spec"], NODES[".spec"])}
    assert parse_policy(completed).spec == plain.spec


def test_fields_have_aliases_in_camel_case() -> None:
    assert all("_" not in path for path in NODES)
    assert issubclass(spec.RoutingPolicySpec, Model)
