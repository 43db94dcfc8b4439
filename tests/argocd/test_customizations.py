"""Health check and actions, asked of the real Argo CD: every phase that the operator can write has an answer.

The expectations stand beside the scripts in the format of argo-cd's own tests, and are read from there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from funicular.api.policy import parse_policy
from funicular.api.verbs import ANNOTATION, Request, Verb, parse
from funicular.rollout.decide import decide
from funicular.rollout.observation import GatewayFacts
from hack.argocd.customizations import ACTIONS, FOLDER
from tests.argocd.cases import CASES, Case
from tests.argocd.conftest import Ask
from tests.argocd.testdata import files
from tests.builders import make_observation

Json = dict[str, Any]
pytestmark = pytest.mark.timeout(1200)  # of which the first, on a new machine, builds the binary
HEALTH_TESTS: list[Json] = yaml.safe_load((FOLDER / "health_test.yaml").read_text())["tests"]
ACTION_TESTS: Json = yaml.safe_load((FOLDER / "actions" / "action_test.yaml").read_text())
# A ramp that is safe and watched, or that a person holds.
RAMPS = {"preparing", "later-step-unconfirmed", "ramping", "held", "paused"}


def _load(path: Path) -> Json:
    found: Json = yaml.safe_load(path.read_text())
    return found


@pytest.mark.parametrize("name", files())
def test_the_files_are_what_the_operator_writes(name: str) -> None:
    assert (FOLDER / name).read_text() == files()[name], "run: python -m tests.argocd.testdata"


def test_no_file_is_left_over() -> None:
    scripts = {"health.lua", "actions/discovery.lua", *(f"actions/{action}/action.lua" for action in ACTIONS)}
    there = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
    assert there == scripts | set(files())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_message_says_why(case: Case) -> None:
    (test,) = [it for it in HEALTH_TESTS if it["inputPath"] == f"testdata/{case.name}.yaml"]
    assert test["healthStatus"]["status"] == case.health
    assert case.says in test["healthStatus"]["message"]


@pytest.mark.parametrize("test", HEALTH_TESTS, ids=lambda test: Path(test["inputPath"]).stem)
def test_health(test: Json, ask: Ask) -> None:
    answer = ask("health", FOLDER / test["inputPath"])
    status, message = test["healthStatus"]["status"], test["healthStatus"]["message"]
    if "deletionTimestamp" in _load(FOLDER / test["inputPath"])["metadata"]:
        message = (
            "Pending deletion; blocked by finalizers: routing.funicular.dev/gateways"  # said before a script is asked
        )
    assert answer.strip() == f"STATUS: {status}\nMESSAGE: {message}"


@pytest.mark.parametrize("test", HEALTH_TESTS, ids=lambda test: Path(test["inputPath"]).stem)
def test_the_switch_makes_ramps_progressing_and_nothing_else(test: Json, ask: Ask) -> None:
    answer = ask("health", FOLDER / test["inputPath"], progressing_while_ramping=True)
    name, status = Path(test["inputPath"]).stem, test["healthStatus"]["status"]
    assert answer.splitlines()[0] == f"STATUS: {'Progressing' if name in RAMPS else status}"


@pytest.mark.parametrize("test", ACTION_TESTS["discoveryTests"], ids=lambda test: Path(test["inputPath"]).stem)
def test_discovery(test: Json, ask: Ask) -> None:
    lines = ask("list-actions", FOLDER / "actions" / test["inputPath"]).splitlines()[1:]
    found = {name: disabled == "true" for name, disabled in (line.split() for line in lines)}
    assert found == {it["name"]: it["disabled"] for it in test["result"]}


@pytest.mark.parametrize("test", ACTION_TESTS["actionTests"], ids=lambda test: test["action"])
def test_an_action_writes_a_request_that_the_operator_carries_out(test: Json, ask: Ask) -> None:
    source = FOLDER / "actions" / test["inputPath"]
    *_, made = ask("run-action", source, test["action"]).split("==> ")
    changed: Json = yaml.safe_load(made.partition("<==\n")[2])
    assert changed == _load(FOLDER / "actions" / test["expectedOutputPath"])
    request = parse(changed["metadata"]["annotations"][ANNOTATION])
    assert request is not None
    assert (request.verb, request.by) == (Verb(test["action"]), "argocd")
    assert _answer(_load(source), request) == "done"


@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize("case", [it for it in CASES if it.name != "invalid"], ids=lambda case: case.name)
def test_what_is_offered_is_what_the_operator_accepts(case: Case, verb: Verb) -> None:
    body = case.make()
    status = body.get("status") or {}
    revision = (status.get("candidate") or status).get("revision", "none")
    answer = _answer(body, Request(verb, revision, "new", "argocd"))
    # Approving a step that asks for no approval is accepted, and changes nothing: it is not offered.
    if verb is not Verb.APPROVE or case.enabled & {"approve"}:
        assert (answer == "done") == (verb.value in case.enabled), answer


def _answer(body: Json, request: Request) -> str:
    """What the operator says to it in the next decision."""
    policy = parse_policy(body)
    acked, _, ready = (policy.status.gateways or "3/3").partition("/")
    seen = replace(
        make_observation(policy.spec, policy.status, metadata=policy.metadata, request=request),
        gateways=GatewayFacts(ready=int(ready), acked=int(acked)),
        conflict="shop/older" if policy.status.phase == "Conflicted" else None,
    )
    answered = decide(seen).status.last_verb
    return answered.result if answered is not None and answered.id == request.id else ""
