from __future__ import annotations

from typing import Any

import pytest

from funicular.api.verbs import ANNOTATION, Request, Verb, parse
from funicular.cli import verbs
from funicular.cli.verbs import intention, revision_for
from funicular.errors import Conflict, UserMustFix
from tests.unit.cli.bodies import REVISION, policy_body

STEADY: dict[str, Any] = {"candidate": None, "step": None}
REJECTED = {**STEADY, "rejected": [{"revision": REVISION, "at": "2026-11-25T00:00:00Z", "reason": "Regressed"}]}
PROMOTED = {**STEADY, "stable": {"revision": REVISION}}


@pytest.mark.parametrize("verb", [v for v in Verb if v is not Verb.RETRY])
def test_a_verb_is_bound_to_what_ramps(verb: Verb) -> None:
    body = policy_body(candidate={"revision": "cccccccccc"})
    assert revision_for(verb, body, None) == "cccccccccc"
    assert revision_for(verb, body, "cccccccccc") == "cccccccccc"


def test_a_verb_for_another_revision_is_refused() -> None:
    with pytest.raises(UserMustFix, match=f"you name revision other, but support-chat ramps {REVISION}"):
        revision_for(Verb.ABORT, policy_body(), "other")


def test_a_retry_is_bound_to_the_rejected_spec() -> None:
    assert revision_for(Verb.RETRY, policy_body(**REJECTED), None) == REVISION


def test_an_abort_before_the_ramp_is_bound_to_the_spec() -> None:
    assert revision_for(Verb.ABORT, policy_body(**STEADY), None) == REVISION


@pytest.mark.parametrize(
    ("verb", "status", "sentence"),
    [
        pytest.param(Verb.PROMOTE, STEADY, "no revision of support-chat ramps", id="promote without a ramp"),
        pytest.param(Verb.PAUSE, PROMOTED, "no revision of support-chat ramps", id="pause what is promoted"),
        pytest.param(Verb.ABORT, REJECTED, "no revision of support-chat ramps", id="abort what is rejected"),
        pytest.param(Verb.RETRY, STEADY, "is not rejected: there is nothing to retry", id="retry what is new"),
        pytest.param(Verb.RETRY, {}, "is not rejected: there is nothing to retry", id="retry in a ramp"),
    ],
)
def test_a_verb_that_means_nothing_is_refused(verb: Verb, status: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserMustFix, match=sentence):
        revision_for(verb, policy_body(**status), None)


@pytest.mark.parametrize(
    ("verb", "status", "sentence"),
    [
        pytest.param(Verb.ABORT, {}, "back to 0 % on all gateway pods and reject it", id="abort"),
        pytest.param(Verb.ABORT, STEADY, "before it ramps", id="abort before the ramp"),
        pytest.param(Verb.PAUSE, {}, "at step 2/4, 10 %, there until it is resumed", id="pause"),
        pytest.param(Verb.RESUME, {}, "at step 2/4, 10 %, go on", id="resume"),
        pytest.param(Verb.PROMOTE, {}, "to the next share, 50 %, without waiting for evidence", id="promote"),
        pytest.param(
            Verb.PROMOTE,
            {"step": {"index": 3, "of": 4, "share": 10000, "enteredAt": "2026-11-25T00:00:00Z"}},
            "to the promotion without waiting for evidence",
            id="promote from the last step",
        ),
        pytest.param(Verb.APPROVE, {}, "goes on as soon as its evidence is complete", id="approve"),
        pytest.param(Verb.RETRY, REJECTED, "ramps again from the first step", id="retry"),
    ],
)
def test_the_intention_names_revision_and_effect(verb: Verb, status: dict[str, Any], sentence: str) -> None:
    said = intention(verb, policy_body(**status), REVISION)
    assert REVISION in said
    assert sentence in said


class FakeKube:
    """Every `patch` before the last conflicts; `get` returns `after`."""

    def __init__(self, after: dict[str, Any], conflicts: int) -> None:
        self.after, self.conflicts = after, conflicts
        self.written: list[dict[str, Any]] = []

    async def get(self, path: str) -> dict[str, Any]:
        return self.after

    async def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.conflicts:
            self.conflicts -= 1
            raise Conflict("409")
        self.written.append(body)
        return body


def request() -> Request:
    return Request(Verb.PAUSE, REVISION, "id-1", "ann")


async def test_a_request_is_fenced_by_the_version_that_was_shown() -> None:
    kube = FakeKube(policy_body(), conflicts=0)
    await verbs._write(kube, policy_body(), request())  # type: ignore[arg-type]
    (written,) = kube.written
    assert written["metadata"]["resourceVersion"] == "7"
    assert parse(written["metadata"]["annotations"][ANNOTATION]) == request()


async def test_a_newer_version_of_the_same_ramp_is_no_obstacle() -> None:
    newer = policy_body()
    newer["metadata"]["resourceVersion"] = "8"
    kube = FakeKube(newer, conflicts=1)
    await verbs._write(kube, policy_body(), request())  # type: ignore[arg-type]
    assert kube.written[0]["metadata"]["resourceVersion"] == "8"


async def test_another_revision_that_ramps_by_now_is_left_alone() -> None:
    kube = FakeKube(policy_body(candidate={"revision": "cccccccccc"}), conflicts=1)
    with pytest.raises(UserMustFix, match="ramps cccccccccc"):
        await verbs._write(kube, policy_body(), request())  # type: ignore[arg-type]
    assert kube.written == []


async def test_another_policy_of_the_same_name_is_left_alone() -> None:
    anew = policy_body()
    anew["metadata"]["uid"] = "uid-2"
    kube = FakeKube(anew, conflicts=1)
    with pytest.raises(UserMustFix, match="deleted and made anew"):
        await verbs._write(kube, policy_body(), request())  # type: ignore[arg-type]
    assert kube.written == []
