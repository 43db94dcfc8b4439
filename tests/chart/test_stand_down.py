"""`funicular stand-down`, which runs before an uninstall. API server and operator are played; the models are the real ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from funicular.api.verbs import ANNOTATION, Verb, parse
from funicular.cli.stand_down import Left, bound_to, needs_taking_back, run, take_back
from funicular.errors import AccessDenied, NotFound
from tests.unit.cli.bodies import REVISION, policy_body

Json = dict[str, Any]
FOR_EVER = float("inf")
BASELINE = {"revision": "baseline-0", "upstreams": [], "baseline": "frontier"}
CHEAP = {"revision": "cheap-0", "upstreams": [], "baseline": "frontier", "single": "frontier"}
SYNCED = {
    "type": "GatewaysSynced",
    "status": "True",
    "observedGeneration": 1,
    "lastTransitionTime": "2026-11-25T11:00:00Z",
    "reason": "Synced",
}


def traffic(stable: Json, candidate: Json | None = None) -> Json:
    found = {**policy_body()["status"]["traffic"], "stable": stable}
    return {**found, "candidate": candidate} if candidate else {k: v for k, v in found.items() if k != "candidate"}


def ramping() -> Json:
    return policy_body(traffic=traffic(BASELINE, CHEAP), conditions=[SYNCED])


def at_the_baseline() -> Json:
    return policy_body(candidate=None, step=None, traffic=traffic(BASELINE), conditions=[SYNCED])


def promoted() -> Json:
    return policy_body(candidate=None, step=None, traffic=traffic(CHEAP), conditions=[SYNCED])


class PlayedApi:
    """Keeps one policy. `operator` answers a request: it gets the body with the annotation, and may change its status."""

    def __init__(self, body: Json, operator: Any = None) -> None:
        self.body: Json | None = copy.deepcopy(body)
        self.operator = operator
        self.patches: list[Json] = []

    async def list_all(self, path: str, **_: str) -> tuple[list[Json], str]:
        return ([copy.deepcopy(self.body)] if self.body else []), "1"

    async def get(self, path: str, **_: str) -> Json:
        if self.body is None:
            raise NotFound(path)
        return copy.deepcopy(self.body)

    async def patch(self, path: str, body: Json, **_: str) -> Json:
        self.patches.append(body)
        assert self.body is not None
        self.body["metadata"].setdefault("annotations", {}).update(body["metadata"]["annotations"])
        if self.operator:
            self.operator(self)
        return self.body


def answer(api: PlayedApi, result: str) -> None:
    assert api.body is not None
    request = parse(api.body["metadata"]["annotations"][ANNOTATION])
    assert request is not None
    api.body["status"]["lastVerb"] = {
        "id": request.id,
        "verb": request.verb.value,
        "revision": request.revision,
        "at": "2026-11-25T12:00:00Z",
        "result": result,
    }


def obeys(api: PlayedApi) -> None:
    answer(api, "done")
    assert api.body is not None
    api.body["status"] = {**at_the_baseline()["status"], "lastVerb": api.body["status"]["lastVerb"]}


def refuses(api: PlayedApi) -> None:
    answer(api, "refused: nothing ramps")


async def outcome(api: PlayedApi, end: float = FOR_EVER) -> tuple[Left, str]:
    assert api.body is not None
    return await take_back(api, copy.deepcopy(api.body), end)  # type: ignore[arg-type]


async def test_what_ramps_is_aborted_by_the_operator_and_is_at_the_baseline() -> None:
    api = PlayedApi(ramping(), obeys)
    assert await outcome(api) == (Left.BASELINE, "")
    ((patch,),) = (api.patches,)
    request = parse(patch["metadata"]["annotations"][ANNOTATION])
    assert request is not None
    assert (request.verb, request.revision, request.by) == (Verb.ABORT, REVISION, "stand-down")


async def test_nothing_but_one_annotation_is_written() -> None:
    api = PlayedApi(ramping(), obeys)
    await outcome(api)
    (patch,) = api.patches
    assert set(patch) == {"metadata"}
    assert set(patch["metadata"]) == {"uid", "annotations"}
    assert set(patch["metadata"]["annotations"]) == {ANNOTATION}


async def test_what_is_at_the_baseline_is_not_touched() -> None:
    api = PlayedApi(at_the_baseline())
    assert await outcome(api) == (Left.BASELINE, "")
    assert not api.patches


async def test_a_promoted_revision_that_the_operator_leaves_is_said() -> None:
    left, more = await outcome(PlayedApi(promoted(), refuses))
    assert left is Left.PROMOTED
    assert more.startswith("cheap-0")


async def test_without_an_operator_it_ends_in_time_and_says_so() -> None:
    assert await outcome(PlayedApi(ramping()), end=0.0) == (Left.UNANSWERED, "no operator has answered in time")


async def test_gateways_that_have_not_confirmed_are_said() -> None:
    def obeys_alone(api: PlayedApi) -> None:
        obeys(api)
        assert api.body is not None
        api.body["status"]["conditions"] = [{**SYNCED, "status": "False"}]
        api.body["status"]["gateways"] = "1/3"

    api = PlayedApi(ramping(), obeys_alone)
    assert await outcome(api, end=0.0) == (Left.BASELINE, "confirmed by 1/3 gateway pods so far")


async def test_a_policy_that_goes_meanwhile_is_no_failure() -> None:
    def deletes(api: PlayedApi) -> None:
        api.body = None

    assert (await outcome(PlayedApi(ramping(), deletes)))[0] is Left.DELETED


async def test_a_policy_that_may_not_be_written_does_not_keep_the_others() -> None:
    class Refusing(PlayedApi):
        async def patch(self, path: str, body: Json, **_: str) -> Json:
            raise AccessDenied("PATCH: 403")

    assert await outcome(Refusing(ramping())) == (Left.UNANSWERED, "PATCH: 403")


@pytest.mark.parametrize(
    ("body", "needed"),
    [
        pytest.param(ramping(), True, id="it ramps"),
        pytest.param(promoted(), True, id="a cheap route was promoted"),
        pytest.param(at_the_baseline(), False, id="it is at the baseline"),
        pytest.param(policy_body(traffic=None, candidate=None), False, id="it is not served"),
    ],
)
def test_what_needs_to_be_taken_back(body: Json, needed: bool) -> None:
    assert needs_taking_back(body) is needed
    body = copy.deepcopy(body)
    body["metadata"]["deletionTimestamp"] = "2026-11-25T12:00:00Z"
    assert not needs_taking_back(body), "what is deleted goes to the baseline by itself"


def test_a_request_is_bound_to_what_ramps_else_to_the_spec() -> None:
    assert bound_to(ramping()) == REVISION == bound_to(promoted())


async def test_each_policy_and_a_sum_are_printed_with_the_way_to_let_one_go() -> None:
    lines: list[str] = []
    await run(PlayedApi(ramping(), obeys), [None], 30.0, lines.append)  # type: ignore[arg-type]
    assert lines[0] == "shop/support-chat: at the baseline"
    assert lines[1].startswith("1 at the baseline. The policies stay.")
    assert "finalizers" in lines[1]


async def test_no_policy_is_said_too() -> None:
    api = PlayedApi(ramping())
    api.body = None
    lines: list[str] = []
    await run(api, ["shop"], 30.0, lines.append)  # type: ignore[arg-type]
    assert lines == ["There is no policy."]
