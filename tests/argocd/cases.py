"""Policies in every phase, made by the operator's own decisions, and what Argo CD shall say of each.

Used by the tests of the Lua scripts and by `testdata.py`, which writes them in the format of argo-cd's own tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from funicular.api.base import API_VERSION, KIND
from funicular.api.verbs import Request, Verb
from funicular.rollout.observation import GatewayFacts, Problem
from tests.builders import STEPS, Ramp, make_measurements, make_metadata, make_spec

Json = dict[str, Any]
TRACKED = {"argocd.argoproj.io/tracking-id": f"shop:routing.funicular.dev/{KIND}:shop/support-chat"}
BY_ARGO = {"managed_by": "Argo CD application shop"}
WAITING = "waiting for the operator to see this spec"
MISSING = Problem("spec.candidates[1].credentials.secretRef", "SecretMissing", "Secret x does not exist", "create it")
NOT_TAKEN = GatewayFacts(ready=3, acked=2, errors=("shop/gateway-a: Secret shop/x, key k: forbidden",))


@dataclass(frozen=True, slots=True)
class Case:
    """`says` must stand in the message. That is the operator's own sentence, or that of a condition, or the script's."""

    name: str
    make: Callable[[], Json]
    health: str
    says: str
    enabled: frozenset[str] = frozenset()
    source: str = "message"  # or the type of a condition, or "script": then it is `says`


def as_object(ramp: Ramp, *, generation: int = 1, deleted: bool = False) -> Json:
    """As the API server would show it."""
    metadata: Json = {
        "name": "support-chat",
        "namespace": "shop",
        "uid": "3f0c7d0e-6a53-4b1c-9a55-0d6f0f4a5f11",
        "resourceVersion": "4711",
        "generation": generation,
        "creationTimestamp": "2026-11-25T11:00:00Z",
        "annotations": dict(TRACKED),
        "finalizers": ["routing.funicular.dev/gateways"],
    }
    if deleted:
        metadata["deletionTimestamp"] = "2026-11-25T12:30:00Z"
    found = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata}
    found["spec"] = ramp.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    if ramp.status.phase != "Pending":
        found["status"] = ramp.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return found


def _ticked(ramp: Ramp, **facts: Any) -> Ramp:
    ramp.tick(**facts)
    return ramp


def _unconfirmed(ramp: Ramp) -> Ramp:
    ramp.is_acked = False
    return ramp


def _second() -> Ramp:
    """A promoted policy whose next revision is at its first step."""
    ramp = Ramp(**BY_ARGO).to_promoted()
    ramp.spec = make_spec(model="qwen-tiny")
    return ramp.to_step(0)


def _rejected() -> Ramp:
    ramp = _second()
    ramp.measure(treatment=0.5)  # regressed: share 0 is ordered
    ramp.tick()  # and confirmed
    return ramp


def _asked(ramp: Ramp, verb: Verb) -> Ramp:
    assert ramp.status.candidate is not None
    return _ticked(ramp, request=Request(verb, ramp.status.candidate.revision, "1", "ada"))


def _edited(ramp: Ramp) -> Json:
    """The status speaks of the generation before."""
    ramp.spec = make_spec(model="qwen-edited")
    return as_object(ramp, generation=2)


def _awaiting() -> Ramp:
    first, *others = STEPS
    ramp = Ramp(make_spec(rollout={"steps": [{**first, "approval": "Required"}, *others]})).to_step(0)
    ramp.measure()
    ramp.measure()
    return ramp


def _without_prometheus() -> Ramp:
    ramp = Ramp().to_step(1)
    look = make_measurements(ramp.status, ramp.now, {})
    gone = replace(look, error="MetricsUnavailable", message="connection refused")
    return _ticked(ramp, measurements=gone)


def _shifting_to_the_second_step() -> Ramp:
    ramp = Ramp().to_step(0)
    while ramp.status.step is not None and ramp.status.step.index == 0:
        ramp.measure()
    _unconfirmed(ramp)
    return _ticked(ramp)


def _reverting() -> Ramp:
    ramp = _second()
    ramp.measure(treatment=0.5)
    return _ticked(_unconfirmed(ramp))


def _put_back_in_git() -> Ramp:
    ramp = _rejected()
    ramp.spec = make_spec()
    return _ticked(ramp)


def _drifted() -> Ramp:
    ramp = Ramp(**BY_ARGO).to_promoted()
    for _ in range(3):
        ramp.measure(treatment=0.5, n=64_000)
    return _ticked(ramp)


def _invalid() -> Ramp:
    problem = Problem(
        "spec.strategy.single.candidate", "InvalidSpec", "no candidate is called minnie", "name one of them"
    )
    return _ticked(Ramp(), spec=None, spec_problem=problem)


def _deleting() -> Json:
    ramp = _unconfirmed(Ramp().to_step(1))
    going = make_metadata(deleted=datetime(2026, 11, 25, 12, 30, tzinfo=UTC).isoformat())
    return as_object(_ticked(ramp, metadata=going), deleted=True)


def _case(
    name: str, made: Callable[[], Ramp | Json], health: str, says: str, *enabled: str, source: str = "message"
) -> Case:
    def make() -> Json:
        found = made()
        return as_object(found) if isinstance(found, Ramp) else found

    return Case(name, make, health, says, frozenset(enabled), source)


CASES = (
    _case("new", Ramp, "Progressing", WAITING, source="script"),
    _case("edited", lambda: _edited(Ramp().to_promoted()), "Progressing", WAITING, source="script"),
    _case("edited-in-mid-ramp", lambda: _edited(Ramp().to_step(1)), "Progressing", WAITING, "abort", source="script"),
    _case(
        "preparing-unconfirmed",
        lambda: _ticked(_unconfirmed(Ramp()), preflight_done=False),
        "Progressing",
        "the queries have not been tried yet",
        "abort",
    ),
    _case(
        "preparing",
        lambda: _ticked(_ticked(Ramp(), preflight_done=False), preflight_done=False),
        "Healthy",
        "the queries have not been tried yet",
        "abort",
    ),
    _case("blocked", lambda: _ticked(Ramp(), problems=(MISSING,)), "Degraded", "Secret x does not exist", "abort"),
    _case(
        "first-step-unconfirmed",
        lambda: _ticked(_unconfirmed(_ticked(Ramp()))),
        "Progressing",
        "waiting for 3 of 3 gateway pods to confirm the share",
        "abort",
        "pause",
    ),
    _case(
        "first-step-not-taken",
        lambda: _ticked(_ticked(Ramp()), gateways=NOT_TAKEN),
        "Degraded",
        "shop/gateway-a: Secret shop/x, key k: forbidden",
        "abort",
        "pause",
        source="GatewaysSynced",
    ),
    _case(
        "later-step-unconfirmed",
        _shifting_to_the_second_step,
        "Healthy",
        "step 2/4 at 10 %: waiting for 3 of 3 gateway pods",
        "abort",
        "pause",
    ),
    _case("ramping", lambda: Ramp().to_step(1), "Healthy", "step 2/4 at 10 %", "abort", "pause", "promote"),
    _case(
        "held", _without_prometheus, "Healthy", "held: spec.prometheus: connection refused", "abort", "pause", "promote"
    ),
    _case(
        "paused",
        lambda: _asked(Ramp().to_step(1), Verb.PAUSE),
        "Healthy",
        "step 2/4 at 10 %: paused",
        "abort",
        "resume",
    ),
    _case(
        "awaiting-approval",
        _awaiting,
        "Suspended",
        "approval by a person",
        "abort",
        "pause",
        "promote",
        "approve",
    ),
    _case("promoted", lambda: Ramp().to_promoted(), "Healthy", "is promoted", "abort"),
    _case("reverting", _reverting, "Degraded", ": errors: ", source="Regressed"),
    _case("rejected", _rejected, "Degraded", "was rejected: errors: ", "retry"),
    _case("aborted", lambda: _ticked(_asked(_second(), Verb.ABORT)), "Degraded", "aborted by ada", "retry"),
    _case("put-back-in-git", _put_back_in_git, "Healthy", "was reverted (errors: ", "abort"),
    _case("drifted", _drifted, "Degraded", "was rejected: errors: ", "retry"),
    _case("invalid", _invalid, "Degraded", "no candidate is called minnie"),
    _case("conflicted", lambda: _ticked(Ramp(), conflict="shop/older"), "Degraded", "shop/older serves this endpoint"),
    _case("deleting", _deleting, "Progressing", "the endpoint goes to the baseline"),
)
