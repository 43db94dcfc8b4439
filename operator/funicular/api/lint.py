"""What the API server would say of a manifest, without one. Called by `funicular lint` and by tests.

Walks the same schema that the CRD carries and evaluates the Python half of each rule (rules.py) where the server evaluates
the CEL half; types, enums and unknown fields are pydantic's part. It must not read files or know a cluster, so what only
a cluster knows (a Secret that is missing, a model name that another policy has) is beyond it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from funicular.api.base import API_VERSION, KIND
from funicular.api.crd import schema
from funicular.api.rules import PATTERNS, RULES, Rule, matches
from funicular.api.spec import RoutingPolicySpec

Json = dict[str, Any]
Schema = Mapping[str, Any]

_RULES: Mapping[tuple[str, str], Rule] = {(rule.cel, rule.sentence): rule for rule in RULES}
_PATTERN_OF: Mapping[str, str] = {sentence: pattern for pattern, sentence in PATTERNS.items()}
_REQUIRED = "is required: add it"
_MAPS = ("routes", "requests", "limits", "matchLabels")


@dataclass(frozen=True, slots=True)
class Finding:
    """`field` is a path as the API server writes it: spec.slos[2].bound."""

    field: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.field}: {self.sentence}"


def lint(manifest: Any) -> tuple[Finding, ...]:
    """Everything that is wrong with one manifest of a RoutingPolicy; empty: the API server would accept it."""
    if not isinstance(manifest, dict):
        return (Finding("<manifest>", f"is not a mapping: begin with apiVersion: {API_VERSION}"),)
    found = list(_of_the_head(manifest))
    if found:
        return tuple(found)
    completed = with_defaults({key: manifest[key] for key in ("metadata", "spec")}, schema())
    ruled = [
        *_nulls(completed["spec"], schema()["properties"]["spec"], "spec"),
        *_broken_rules(completed, schema(), ""),
    ]
    said = {finding.field for finding in ruled}
    typed = [finding for finding in _broken_types(completed["spec"]) if finding.field not in said]
    return tuple(dict.fromkeys([*typed, *ruled]))


def with_defaults(value: Any, node: Schema) -> Any:
    """`value` as the API server completes it before it validates: absent, or null where a default exists."""
    if isinstance(value, dict) and "properties" in node:
        completed = dict(value)
        for name, child in node["properties"].items():
            if completed.get(name) is None and "default" in child:
                completed[name] = copy.deepcopy(child["default"])
            if name in completed:
                completed[name] = with_defaults(completed[name], child)
        return completed
    if isinstance(value, dict) and "additionalProperties" in node:
        return {key: with_defaults(item, node["additionalProperties"]) for key, item in value.items()}
    if isinstance(value, list) and "items" in node:
        return [with_defaults(item, node["items"]) for item in value]
    return value


def _of_the_head(manifest: Json) -> Iterator[Finding]:
    if manifest.get("apiVersion") != API_VERSION:
        yield Finding("apiVersion", f"must be {API_VERSION}")
    if manifest.get("kind") != KIND:
        yield Finding("kind", f"must be {KIND}")
    metadata = manifest.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str):
        yield Finding("metadata.name", _REQUIRED)
    if not isinstance(manifest.get("spec"), dict):
        yield Finding("spec", _REQUIRED)
    for extra in sorted(map(str, manifest.keys() - {"apiVersion", "kind", "metadata", "spec", "status"})):
        yield Finding(extra, "no such field: remove it")


def _children(value: Any, node: Schema, path: str) -> Iterator[tuple[Any, Schema, str]]:
    if isinstance(value, dict) and "properties" in node:
        for name, child in node["properties"].items():
            if name in value:
                yield value[name], child, f"{path}.{name}".lstrip(".")
    elif isinstance(value, dict) and "additionalProperties" in node:
        for name, item in value.items():
            yield item, node["additionalProperties"], f"{path}[{name}]"
    elif isinstance(value, list) and "items" in node:
        for position, item in enumerate(value):
            yield item, node["items"], f"{path}[{position}]"


def _nulls(value: Any, node: Schema, path: str) -> Iterator[Finding]:
    for item, child, where in _children(value, node, path):
        if item is None:
            yield Finding(where, "must not be null: leave the field out, or give it a value")
        yield from _nulls(item, child, where)


def _broken_rules(value: Any, node: Schema, path: str) -> Iterator[Finding]:
    for written in node.get("x-kubernetes-validations", ()):
        sentence = _judged(written, value)
        if sentence is not None:
            yield Finding((path + written.get("fieldPath", "")).lstrip("."), sentence)
    for item, child, where in _children(value, node, path):
        yield from _broken_rules(item, child, where)


def _judged(written: Mapping[str, str], value: Any) -> str | None:
    """The sentence of a rule that is broken; None also where the value's type is wrong, which pydantic says."""
    sentence = written["message"]
    try:
        if sentence in _PATTERN_OF:
            text = str(value) if isinstance(value, int) and "type(self) == int" in written["rule"] else value
            return sentence if isinstance(text, str) and not matches(_PATTERN_OF[sentence], text) else None
        rule = _RULES.get((written["rule"], sentence))  # rules about updates are none of ours
        return rule.says(value) if rule is not None and not rule.holds(value) else None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        return None


def _broken_types(spec: Json) -> Iterator[Finding]:
    try:
        # As JSON and strict: "5" is no number to the API server either, but a list is a tuple.
        text = json.dumps(spec, default=str)
        RoutingPolicySpec.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValidationError as exc:
        for error in exc.errors(include_url=False):
            yield Finding(_path(error["loc"]), _words(error))


def _path(location: tuple[int | str, ...]) -> str:
    """As the API server writes it: positions and the keys of maps in brackets."""
    path, before = "spec", None
    for part in location:
        if part != "[key]":
            path += f"[{part}]" if isinstance(part, int) or before in _MAPS else f".{part}"
        before = part
    return path


def _words(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        near = get_close_matches(to_camel(str(error["loc"][-1])), _names(schema()["properties"]["spec"]), n=1)
        return f"no such field: did you mean {near[0]}?" if near else "no such field: remove it"
    if error["type"] == "missing":
        return _REQUIRED
    return error["msg"].replace("Input should", "must", 1)


def _names(node: Schema) -> frozenset[str]:
    """Of all fields below, wherever they stand."""
    own = node.get("properties", {})
    inner = [*own.values(), *(node[key] for key in ("items", "additionalProperties") if key in node)]
    return frozenset(own).union(*(_names(child) for child in inner))
