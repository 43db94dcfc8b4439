"""The rule of hack/designs/0002-api-growth.md: within a version nothing is taken away from those who use the API."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from funicular.api.crd import FILE
from funicular.api.policy import parse_policy
from funicular.api.revision import revision_of
from tests.unit.api.bad_policies import EXAMPLES

Json = dict[str, Any]
RELEASED = sorted((Path(__file__).parent / "released").glob("*.yaml"))
# What a smaller number forbids, and what a greater one does.
FLOORS, CEILINGS = (
    ("minimum", "minLength", "minItems", "minProperties"),
    ("maximum", "maxLength", "maxItems", "maxProperties"),
)
# Of examples, at the release: an upgrade must not make every policy ramp anew.
REVISIONS = {"support-chat": "0c8f36d623"}


def versions(crd: Json) -> dict[str, Json]:
    return {it["name"]: it["schema"]["openAPIV3Schema"] for it in crd["spec"]["versions"] if it["served"]}


def broken(old: Json, new: Json, at: str = "") -> Iterator[str]:
    """What worked with the old schema and does not with the new one."""
    if old.get("type") != new.get("type"):
        yield f"{at}: {old.get('type')} became {new.get('type')}"
    for name in FLOORS:
        if new.get(name, float("-inf")) > old.get(name, float("-inf")):
            yield f"{at}: {name} was raised"
    for name in CEILINGS:
        if new.get(name, float("inf")) < old.get(name, float("inf")):
            yield f"{at}: {name} was lowered"
    if "enum" in new and not set(old.get("enum", ())) <= set(new["enum"]):
        yield f"{at}: a value was taken away"
    if "enum" in new and "enum" not in old:
        yield f"{at}: only some values are left"
    if new.get("pattern") != old.get("pattern") and "pattern" in new:
        yield f"{at}: another pattern"
    if old.get("default", new.get("default")) != new.get("default"):
        yield f"{at}: another default"
    for name in set(new.get("required", ())) - set(old.get("required", ())):
        yield f"{at}.{name}: is required now"
    for name, before in old.get("properties", {}).items():
        if name not in new.get("properties", {}):
            yield f"{at}.{name}: is gone"
        else:
            yield from broken(before, new["properties"][name], f"{at}.{name}")
    for inner in ("items", "additionalProperties"):
        if isinstance(old.get(inner), dict):
            if isinstance(new.get(inner), dict):
                yield from broken(old[inner], new[inner], f"{at}[]")
            else:
                yield f"{at}[]: is gone"


@pytest.mark.parametrize("release", RELEASED, ids=lambda path: path.stem)
def test_nothing_is_taken_away_within_a_version(release: Path) -> None:
    now = versions(yaml.safe_load(FILE.read_text()))
    for name, old in versions(yaml.safe_load(release.read_text())).items():
        assert name in now, f"version {name} is served no more"
        assert list(broken(old, now[name])) == []


def _spec(schema: Json) -> Json:
    found: Json = schema["properties"]["spec"]
    return found


def _taken_away(schema: Json) -> None:
    del _spec(schema)["properties"]["assignment"]


def _required(schema: Json) -> None:
    _spec(schema).setdefault("required", []).append("prometheus")
    _spec(schema)["required"] = sorted({*_spec(schema)["required"], "brandNew"})


def _narrowed(schema: Json) -> None:
    rollout = _spec(schema)["properties"]["rollout"]["properties"]
    rollout["onRegression"]["enum"] = rollout["onRegression"]["enum"][:1]


def _tightened(schema: Json) -> None:
    _spec(schema)["properties"]["candidates"]["maxItems"] = 2


def _retyped(schema: Json) -> None:
    _spec(schema)["properties"]["endpoint"]["properties"]["model"]["type"] = "integer"


def _another_default(schema: Json) -> None:
    _spec(schema)["properties"]["rollout"]["properties"]["onInconclusive"]["default"] = "Revert"


def _status_taken_away(schema: Json) -> None:
    del schema["properties"]["status"]["properties"]["phase"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_taken_away, ".spec.assignment: is gone"),
        (_required, ".spec.brandNew: is required now"),
        (_narrowed, ".spec.rollout.onRegression: a value was taken away"),
        (_tightened, ".spec.candidates: maxItems was lowered"),
        (_retyped, ".spec.endpoint.model: string became integer"),
        (_another_default, ".spec.rollout.onInconclusive: another default"),
        (_status_taken_away, ".status.phase: is gone"),
    ],
)
def test_each_kind_of_loss_is_noticed(change: Callable[[Json], None], says: str) -> None:
    (schema,) = versions(yaml.safe_load(FILE.read_text())).values()
    worse = copy.deepcopy(schema)
    change(worse)
    assert says in list(broken(schema, worse))


def test_what_grows_is_no_loss() -> None:
    (schema,) = versions(yaml.safe_load(FILE.read_text())).values()
    better = copy.deepcopy(schema)
    _spec(better)["properties"]["brandNew"] = {"type": "string"}
    _spec(better)["properties"]["candidates"]["maxItems"] += 1
    _spec(better)["properties"]["rollout"]["properties"]["onRegression"]["enum"].append("Ask")
    assert list(broken(schema, better)) == []


@pytest.mark.parametrize("name", REVISIONS)
def test_the_revision_of_a_released_spec_stays(name: str) -> None:
    body = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    body["metadata"] |= {"namespace": "shop", "uid": "u", "resourceVersion": "1"}
    assert revision_of(parse_policy(body).spec) == REVISIONS[name]


def test_one_version_is_stored() -> None:
    crd = yaml.safe_load(FILE.read_text())
    assert [it["name"] for it in crd["spec"]["versions"] if it["storage"]] == ["v1alpha1"]
    assert crd["spec"].get("conversion", {"strategy": "None"})["strategy"] == "None"
