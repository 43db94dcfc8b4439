"""The CustomResourceDefinition, generated from the models of spec.py and status.py and the rules of rules.py.

`python -m funicular.api.crd` writes `crds/`; with `--check` it only says whether the file there is still what the models
say (`make check`, and a test). `funicular crd` prints it. It must not know a cluster.

What becomes of the models' JSON schema on the way to a *structural* schema: references are put in, "or null" goes, a
pattern becomes a rule with a sentence. Below `status` nothing is refused, because a status that cannot be written would
stop a revert; but for numbers and lengths in `status.traffic`, which the gateways obey whoever wrote it.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from funicular.api.base import GROUP, KIND, PLURAL, VERSION
from funicular.api.rules import PATTERNS, RULES, TRANSITIONS, Rule, Transition, raw
from funicular.api.spec import RoutingPolicySpec
from funicular.api.status import Status

Json = dict[str, Any]
NAME = f"{PLURAL}.{GROUP}"
FILE = Path(__file__).parents[3] / "crds" / f"{GROUP}_{PLURAL}.yaml"

KEYED_LISTS = {
    "RoutingPolicySpec.candidates": "name",
    "RoutingPolicySpec.slos": "name",
    "Prometheus.headers": "name",
    "ClassifierStrategy.env": "name",
    "Status.conditions": "type",
}
"""Lists that server-side apply merges by a key; the API server refuses a key that occurs twice."""

OPAQUE = frozenset({"Route", "UnitSource"})
"""Models that appear in the status without their fields: the spec describes them, and two more copies help nobody."""

OBEYED = frozenset({"Traffic", "Share"})
"""Models of the status whose bounds the API server checks, too. The operator's own values are within them by construction:
they went through the same models."""

QUANTITIES = frozenset({"Resources.requests", "Resources.limits"})

COLUMNS = (
    ("Phase", "string", ".status.phase", 0),
    ("Step", "string", ".status.stepText", 0),
    ("Share", "string", ".status.shareText", 0),
    ("SLO", "string", ".status.tightest", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Stable", "string", ".status.stable.revision", 1),
    ("Candidate", "string", ".status.candidate.revision", 1),
    ("Gateways", "string", ".status.gateways", 1),
    ("Message", "string", ".status.message", 1),
)


class _WithDefaults(GenerateJsonSchema):
    """pydantic leaves out what a default_factory makes; after apply a person wants to see it."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        factory = schema.get("default_factory")
        return cast(Any, factory)() if factory else super().get_default_value(schema)

    def encode_default(self, dft: Any) -> Any:
        return _plain(super().encode_default(_dumped(dft)))


def _dumped(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    return [_dumped(item) for item in value] if isinstance(value, tuple) else value


def _plain(value: Any) -> Any:
    """1.0 as 1: the API server stores it so."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _rule(rule: Rule | Transition) -> Json:
    made: Json = {"rule": rule.cel, "message": rule.sentence}
    if isinstance(rule, Rule) and rule.expression:
        made["messageExpression"] = rule.expression
    if isinstance(rule, Rule) and rule.member:
        made["fieldPath"] = f".{rule.member}"
    return made


def _rules(on: str) -> list[Json]:
    rules: tuple[Rule | Transition, ...] = (*RULES, *TRANSITIONS)
    return [_rule(rule) for rule in rules if rule.on == on]


class _Structural:
    """Turns pydantic's JSON schema of one model into a structural one. `part` is what it stands in the object for."""

    def __init__(self, model: type[BaseModel], part: Literal["spec", "status"]) -> None:
        self._schema = model.model_json_schema(by_alias=True, schema_generator=_WithDefaults)
        self._definitions: Json = self._schema.get("$defs", {})
        self._refuses = part == "spec"
        self._bounds = self._refuses
        self._root = model.__name__

    def make(self, description: str) -> Json:
        return {**self._object(self._schema, self._root), "description": description}

    def _node(self, node: Json, where: str) -> Json:
        """`where` names the field, as rules do: Model.field; an item of a list or map has that of its list."""
        node, model, nullable = self._resolved(node)
        outside, self._bounds = self._bounds, self._bounds or model in OBEYED
        try:
            return self._made(node, model, where, nullable)
        finally:
            self._bounds = outside

    def _made(self, node: Json, model: str, where: str, nullable: bool) -> Json:
        if model in OPAQUE and not self._refuses:
            made: Json = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        elif "properties" in node:
            made = self._object(node, model)
        elif node.get("type") == "array":
            made = self._array(node, where)
        elif "additionalProperties" in node:
            made = self._map(node, where)
        else:
            made = self._scalar(node)
        for keyword in ("description", *(("default",) if self._refuses else ())):
            if node.get(keyword) is not None:
                made[keyword] = node[keyword]
        if nullable and not self._refuses:
            made["nullable"] = True
        return made

    def _resolved(self, node: Json) -> tuple[Json, str, bool]:
        """The node with its reference put in, the name of the model it refers to, and whether null is a value."""
        nullable, model = False, ""
        if "anyOf" in node:
            (kept,) = [item for item in node["anyOf"] if item != {"type": "null"}]
            nullable = len(node["anyOf"]) > 1
            node = {**kept, **{key: value for key, value in node.items() if key != "anyOf"}}
        if "$ref" in node:
            model = node["$ref"].rpartition("/")[2]
            node = {**self._definitions[model], **{key: value for key, value in node.items() if key != "$ref"}}
        return node, model, nullable

    def _object(self, node: Json, model: str) -> Json:
        made: Json = {
            "type": "object",
            "properties": {
                name: self._field(child, f"{model}.{name}") for name, child in node.get("properties", {}).items()
            },
        }
        required = node.get("required", [])
        if self._refuses and required:
            made["required"] = required
        return self._with_rules(made, model)

    def _field(self, node: Json, where: str) -> Json:
        return self._with_rules(self._node(node, where), where)

    def _with_rules(self, made: Json, on: str) -> Json:
        if not self._refuses:
            return made
        if any(rule.on == on and rule.bounds for rule in RULES):
            for keyword in ("minimum", "maximum", "multipleOf", "exclusiveMinimum", "exclusiveMaximum"):
                made.pop(keyword, None)
        rules = made.get("x-kubernetes-validations", []) + _rules(on)
        return {**made, "x-kubernetes-validations": rules} if rules else made

    def _array(self, node: Json, where: str) -> Json:
        made: Json = {"type": "array", "items": self._node(node["items"], where)}
        made["items"].setdefault("description", node.get("description"))  # of a list of numbers or texts
        key = KEYED_LISTS.get(where)
        if key:
            made["items"].setdefault("required", [key])
            made |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
        else:
            made["x-kubernetes-list-type"] = "atomic"
        return made | self._kept(node, "minItems", "maxItems")

    def _map(self, node: Json, where: str) -> Json:
        values = self._node(node["additionalProperties"], where)
        values.setdefault("description", node.get("description"))
        if where in QUANTITIES:
            values = _quantity(values)
        return {"type": "object", "additionalProperties": values} | self._kept(node, "minProperties", "maxProperties")

    def _scalar(self, node: Json) -> Json:
        made: Json = {"type": node["type"]} | ({"format": node["format"]} if "format" in node else {})
        made |= self._kept(node, "enum", "minLength", "maxLength", "minimum", "maximum", "multipleOf")
        for keyword, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if exclusive in node:  # a number in today's JSON schema, a flag beside the number in OpenAPI 3.0
                made |= self._kept({keyword: node[exclusive], exclusive: True}, keyword, exclusive)
        pattern = node.get("pattern")
        if pattern and self._refuses:
            made["x-kubernetes-validations"] = [{"rule": f"self.matches({raw(pattern)})", "message": PATTERNS[pattern]}]
        return made

    def _kept(self, node: Json, *keywords: str) -> Json:
        return {keyword: _plain(node[keyword]) for keyword in keywords if keyword in node} if self._bounds else {}


def _quantity(values: Json) -> Json:
    """`cpu: 2` and `cpu: 500m` are both quantities."""
    (rule,) = values["x-kubernetes-validations"]
    pattern = rule["rule"].removeprefix("self.")
    return {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "x-kubernetes-int-or-string": True,
        "description": values["description"],
        "maxLength": values["maxLength"],
        "x-kubernetes-validations": [{**rule, "rule": f"type(self) == int ? self >= 0 : string(self).{pattern}"}],
    }


@cache
def schema() -> Json:
    """openAPIV3Schema of the whole object. Shared: not to be changed."""
    return {
        "type": "object",
        "description": "One LLM endpoint of an application, the models that may answer it, and how its requests move to a "
        "cheaper route: in measured steps, and back at once when an SLO regresses.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}"},
            "kind": {"type": "string", "description": KIND},
            # The server knows its fields; named here so that a rule can point at it.
            "metadata": {
                "type": "object",
                "properties": {"name": {"type": "string", "description": "Name of the policy."}},
            },
            "spec": _Structural(RoutingPolicySpec, "spec").make(
                "What a person declares: who may answer the endpoint, how a request chooses, and what must hold."
            ),
            "status": _Structural(Status, "status").make("What the operator reports."),
        },
        "x-kubernetes-validations": _rules(KIND),
    }


def crd() -> Json:
    columns = [
        {"name": name, "type": kind, "jsonPath": path} | ({"priority": priority} if priority else {})
        for name, kind, path, priority in COLUMNS
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": NAME},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["rp"],
                "categories": ["funicular"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": schema()},
                }
            ],
        },
    }


class _Dumper(yaml.SafeDumper):
    """No aliases: kubectl reads them, people do not."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render() -> str:
    head = "# Generated from operator/funicular/api by `python -m funicular.api.crd`. Do not edit.\n"
    return head + yaml.dump(crd(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m funicular.api.crd", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is not up to date")
    parser.add_argument("--file", type=Path, default=FILE, help="where the CRD lies (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.check:
        if options.file.is_file() and options.file.read_text() == render():
            return 0
        sys.stderr.write(f"{options.file} is not what the models say: run python -m funicular.api.crd and commit it.\n")
        return 1
    options.file.parent.mkdir(parents=True, exist_ok=True)
    options.file.write_text(render())
    return 0


if __name__ == "__main__":
    sys.exit(main())
