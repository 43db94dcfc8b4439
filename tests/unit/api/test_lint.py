"""The Python half of the rules; tests/integration/test_crd.py holds the CEL half against the same policies."""

from __future__ import annotations

import pytest
import yaml

from funicular.api.crd import schema
from funicular.api.lint import lint, with_defaults
from funicular.api.rules import PATTERNS, RULES, TRANSITIONS
from tests.unit.api.bad_policies import (
    BAD,
    EXAMPLES,
    GOOD,
    NAME_SENTENCE,
    NAMED,
    NULL,
    UNKNOWN,
    Bad,
    Spec,
    changed,
    example,
    put,
)


@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.id) for bad in (*BAD, *UNKNOWN, NULL)])
def test_lint_names_the_field_and_says_what_to_do(bad: Bad) -> None:
    findings = lint(changed(bad.change))
    assert bad.field in {finding.field for finding in findings}
    if bad.sentence:
        assert any(f.field == bad.field and f.sentence.startswith(bad.sentence) for f in findings), findings


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in GOOD])
def test_lint_accepts(change: object) -> None:
    assert lint(changed(change)) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_good(file) -> None:
    assert lint(yaml.safe_load(file.read_text())) == ()


@pytest.mark.parametrize("name", [pytest.param(name, id=what) for what, name in NAMED])
def test_lint_refuses_a_name_that_no_service_can_have(name: str) -> None:
    (finding,) = lint(example(name))
    assert finding.field == "metadata.name"
    assert finding.sentence.startswith(NAME_SENTENCE)


def test_every_rule_and_every_pattern_refuses_something_in_the_table() -> None:
    bodies = [changed(bad.change) for bad in BAD] + [example(name) for _, name in NAMED]
    said = {finding.sentence for body in bodies for finding in lint(body)}
    silent = [rule.sentence for rule in RULES if rule.naming is None and rule.sentence not in said]
    silent += [sentence for sentence in PATTERNS.values() if sentence not in said]
    assert silent == []


def test_a_fault_in_one_place_hides_no_fault_in_another() -> None:
    def several(spec: Spec) -> None:
        put("candidates.1.url", "nowhere")(spec)
        put("rollout.steps.0.share", "one")(spec)
        put("slos.0.max", 5)(spec)

    fields = {finding.field for finding in lint(changed(several))}
    assert {"spec.candidates[1].url", "spec.rollout.steps[0].share", "spec.slos[0]"} <= fields


@pytest.mark.parametrize(
    ("manifest", "field"),
    [
        pytest.param(None, "<manifest>", id="nothing"),
        pytest.param([], "<manifest>", id="a list"),
        pytest.param({**example(), "apiVersion": "v1"}, "apiVersion", id="another version"),
        pytest.param({**example(), "kind": "Routingpolicy"}, "kind", id="a misspelt kind"),
        pytest.param({**example(), "metadata": {}}, "metadata.name", id="no name"),
        pytest.param({**example(), "spec": None}, "spec", id="no spec"),
        pytest.param({**example(), "sepc": {}}, "sepc", id="a misspelt member"),
    ],
)
def test_lint_reads_whatever_it_is_given(manifest: object, field: str) -> None:
    assert [finding.field for finding in lint(manifest)] == [field]


def test_a_misspelt_field_is_named_with_the_likely_one() -> None:
    (finding,) = lint(changed(put("rollout.holdbak", 1)))
    assert str(finding) == "spec.rollout.holdbak: no such field: did you mean holdback?"


def test_defaults_do_not_change_what_was_written() -> None:
    body = example()
    before = yaml.safe_dump(body)
    completed = with_defaults(body["spec"], schema()["properties"]["spec"])
    assert yaml.safe_dump(body) == before
    assert completed["rollout"]["steps"][0]["approval"] == "None"


RAMPS = {"candidate": {"revision": "0123456789"}}


@pytest.mark.parametrize(
    ("status", "change", "is_allowed"),
    [
        pytest.param({}, put("assignment.salt", "2"), True, id="a new salt while nothing ramps"),
        pytest.param({"candidate": None}, put("assignment.salt", "2"), True, id="a new salt, and null for nothing"),
        pytest.param(RAMPS, put("assignment.salt", "2"), False, id="a new salt in a ramp"),
        pytest.param(RAMPS, put("assignment.units", [{"body": "user"}]), False, id="new units in a ramp"),
        pytest.param(RAMPS, put("rollout.holdback", 2), True, id="something else in a ramp"),
    ],
)
def test_assignment_is_fixed_while_a_revision_ramps(status: object, change: object, is_allowed: bool) -> None:
    (rule,) = [rule for rule in TRANSITIONS if rule.on == "RoutingPolicy"]
    node = schema()["properties"]["spec"]
    old = {"spec": with_defaults(example()["spec"], node), "status": status}
    new = {"spec": with_defaults(changed(change)["spec"], node), "status": status}  # type: ignore[arg-type]
    assert rule.holds(new, old) is is_allowed
