"""What a changed spec does to a policy, in one sentence."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from funicular.api.revision import revision_of
from funicular.api.spec import RoutingPolicySpec
from funicular.cli.diff import _yaml, consequence
from funicular.errors import UserMustFix
from tests.unit.cli.bodies import REVISION, ago, policy_body

Json = dict[str, Any]


def other(spec: Json) -> tuple[Json, str]:
    """With another model behind the cheap candidate."""
    found = copy.deepcopy(spec)
    found["candidates"][1]["model"] = "another"
    return found, revision_of(RoutingPolicySpec.model_validate(found))


def test_a_new_revision_ramps_and_a_price_does_not() -> None:
    body = policy_body(candidate=None)
    spec, revision = other(body["spec"])
    assert (
        consequence(body, body["spec"], spec)
        == f"Revision {REVISION} becomes {revision}: a new ramp, from the first step."
    )
    cheaper = copy.deepcopy(body["spec"])
    cheaper["candidates"][1]["price"]["inputPerMillion"] = 0.01
    assert consequence(body, body["spec"], cheaper) == f"The revision stays {REVISION}: nothing ramps anew."


def test_what_ramps_is_stable_or_was_rejected_is_said() -> None:
    body = policy_body()
    assert "is the one that ramps now" in consequence(body, body["spec"], body["spec"])
    spec, revision = other(body["spec"])
    rejected = policy_body(rejected=[{"revision": revision, "at": ago(days=1), "reason": "Regressed"}])
    assert "ramps nothing until a retry" in consequence(rejected, body["spec"], spec)
    stable = policy_body(candidate=None, stable={"revision": revision, "since": ago(days=1)})
    assert "is the stable one" in consequence(stable, body["spec"], spec)


def test_a_bad_spec_names_its_field() -> None:
    body = policy_body()
    with pytest.raises(UserMustFix, match=r"spec\.candidates"):
        consequence(body, body["spec"], {**body["spec"], "candidates": []})


def test_a_default_that_is_not_written_is_no_difference() -> None:
    body = policy_body()
    written = RoutingPolicySpec.model_validate(body["spec"]).model_dump(mode="json", by_alias=True)
    assert _yaml(body["spec"]) == _yaml(written)
