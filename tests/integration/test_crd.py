"""The CRD on a real API server: what it refuses and with which sentence, what it accepts, and what people see."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import yaml

from funicular.api import crd
from funicular.api.base import API_VERSION
from funicular.api.lint import lint
from funicular.api.rules import PATTERNS, RULES
from hack.cluster import Cluster, CommandFailed
from tests.unit.api.bad_policies import (
    BAD,
    EXAMPLES,
    GOOD,
    NAME_SENTENCE,
    NAMED,
    NULL,
    UNKNOWN,
    Bad,
    changed,
    example,
    put,
)

Json = dict[str, Any]
OURS = {rule.sentence for rule in RULES if rule.naming is None} | set(PATTERNS.values())
STATUS = {
    "observedGeneration": 1,
    "phase": "Ramping",
    "message": "step 2/4 at 10 %: errors inconclusive, 412 of 1000 samples, about 9 min",
    "stable": {"revision": "baseline-0123456789"},
    "candidate": {"revision": "aaaaaaaaaa"},
    "stepText": "2/4",
    "shareText": "10%",
    "tightest": "errors",
    "gateways": "3/3",
}


class Api:
    """Plain HTTP to the API server: hundreds of dry runs cost a second, hundreds of kubectls a minute."""

    def __init__(self, client: httpx.Client, namespace: str) -> None:
        self.client = client
        self.base = f"/apis/{API_VERSION}/namespaces/{namespace}/routingpolicies"

    def create(self, body: Json, **parameters: str) -> httpx.Response:
        return self.client.post(self.base, json=body, params={"fieldValidation": "Strict", **parameters})

    def dry(self, body: Json) -> str:
        """What the API server says of a manifest; empty: it would accept it."""
        answer = self.create(body, dryRun="All")
        return "" if answer.is_success else str(answer.json()["message"])

    def patch(self, name: str, body: Json, sub: str = "") -> httpx.Response:
        headers = {"content-type": "application/merge-patch+json"}
        return self.client.patch(f"{self.base}/{name}{sub}", content=json.dumps(body), headers=headers)


@pytest.fixture(scope="module")
def known(cluster: Cluster) -> Iterator[httpx.Client]:
    """A client of an API server that knows the CRD."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(crd.FILE))
    config = yaml.safe_load(cluster.kubectl("config", "view", "--raw", "--flatten", "-o", "yaml"))
    (user,), (server,) = config["users"], config["clusters"]
    with httpx.Client(base_url=cluster.api_url, verify=_context(user["user"], server["cluster"]), timeout=20) as client:
        until(lambda: client.get(f"/apis/{API_VERSION}/routingpolicies").is_success)
        until(lambda: client.get(f"/openapi/v3/apis/{API_VERSION}").is_success)
        yield client


def until(is_so: Callable[[], bool], timeout: float = 30) -> None:
    end = time.monotonic() + timeout
    while not is_so():
        assert time.monotonic() < end, "the API server does not serve the CRD"
        time.sleep(0.1)


def _context(user: Json, server: Json) -> Any:
    import base64
    import ssl
    import tempfile

    context = ssl.create_default_context(cadata=base64.b64decode(server["certificate-authority-data"]).decode())
    with tempfile.NamedTemporaryFile(suffix=".pem") as both:
        both.write(
            base64.b64decode(user["client-certificate-data"]) + b"\n" + base64.b64decode(user["client-key-data"])
        )
        both.flush()
        context.load_cert_chain(both.name)
    return context


@pytest.fixture
def api(known: httpx.Client, namespace: str) -> Api:
    return Api(known, namespace)


@pytest.fixture(scope="module")
def shared(known: httpx.Client) -> Api:
    """For dry runs, which need no namespace of their own."""
    return Api(known, "default")


@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.id) for bad in BAD])
def test_the_api_server_refuses_with_the_same_sentence_as_lint(shared: Api, bad: Bad) -> None:
    said = shared.dry(changed(bad.change))
    assert re.search(rf"{re.escape(bad.field)}: (Invalid|Required|Unsupported|Duplicate) value", said), said
    assert bad.sentence in said


@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.id) for bad in UNKNOWN])
def test_the_api_server_refuses_an_unknown_field_where_validation_is_strict(shared: Api, bad: Bad) -> None:
    assert f'unknown field "{bad.field}"' in shared.dry(changed(bad.change))


@pytest.mark.parametrize("name", [pytest.param(name, id=what) for what, name in NAMED])
def test_the_api_server_refuses_a_name_that_no_service_can_have(shared: Api, name: str) -> None:
    assert f"metadata.name: Invalid value: {NAME_SENTENCE}" in shared.dry(example(name))


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in GOOD])
def test_the_api_server_accepts(shared: Api, change: Any) -> None:
    assert shared.dry(changed(change)) == ""


def rules_in(causes: list[Json]) -> set[tuple[str, str]]:
    """Field and sentence of every rule of ours among the causes that the API server names."""
    return {(cause["field"], sentence) for cause in causes for sentence in OURS if cause["message"].endswith(sentence)}


def test_lint_and_the_api_server_agree_on_policies_with_several_faults(shared: Api) -> None:
    """Of two to four random faults at once both say the same, wherever the server gets as far as the rules."""
    luck, compared = random.Random(20), 0
    for _ in range(250):
        body = example()
        for bad in luck.sample(BAD, luck.randint(2, 4)):
            try:
                bad.change(body["spec"])
            except (KeyError, TypeError, AttributeError, IndexError):
                continue  # a fault before has removed the place of this one
        answer = shared.create(body, dryRun="All")
        assert answer.is_success == (not lint(body)), answer.text
        causes = [] if answer.is_success else answer.json()["details"]["causes"]
        if answer.is_success or any("some validation rules were not checked" in cause["message"] for cause in causes):
            continue
        linted = {(finding.field, finding.sentence) for finding in lint(body) if finding.sentence in OURS}
        assert rules_in(causes) == linted, answer.text
        compared += 1
    assert compared > 100


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_kubectl_applies_the_examples_again_and_again(cluster: Cluster, api: Api, namespace: str, file: Any) -> None:
    apply = ("apply", "--validate=strict", "-n", namespace, "-f", str(file))
    assert "created" in cluster.kubectl(*apply)
    cluster.kubectl(*apply)
    cluster.kubectl(*apply, "--server-side", "--force-conflicts")
    (policy,) = api.client.get(api.base).json()["items"]
    assert policy["metadata"]["generation"] == 1, "the spec is what it was"


@pytest.mark.parametrize("way", [(), ("--server-side",)], ids=["in the client", "on the server"])
def test_kubectl_refuses_an_unknown_field(cluster: Cluster, api: Api, namespace: str, way: tuple[str, ...]) -> None:
    bad = json.dumps(changed(put("rollout.holdbak", 1)))
    with pytest.raises(CommandFailed, match="holdbak"):
        cluster.kubectl("apply", *way, "--validate=strict", "-n", namespace, "-f", "-", input=bad)


def test_server_side_apply_refuses_null(cluster: Cluster, api: Api, namespace: str) -> None:
    body = json.dumps(changed(NULL.change))
    with pytest.raises(CommandFailed, match="price"):
        cluster.kubectl("apply", "--server-side", "-n", namespace, "-f", "-", input=body)


def test_defaults_are_visible_after_apply(api: Api) -> None:
    least = {
        **example("least"),
        "spec": {
            "endpoint": {"model": "least"},
            "candidates": [{"name": "only", "baseline": True, "url": "http://only", "model": "m"}],
            "strategy": {"classifier": {"url": "http://classifier", "routes": {"easy": "only"}}},
            "prometheus": {"url": "http://prometheus:9090"},
        },
    }
    answer = api.create(least)
    assert answer.is_success, answer.text
    spec = answer.json()["spec"]
    assert spec["gateway"] == {"selector": {"matchLabels": {"app.kubernetes.io/component": "gateway"}}}
    assert [step["share"] for step in spec["rollout"]["steps"]] == [1, 10, 50, 100]
    assert spec["rollout"]["holdback"] == 1
    assert spec["assignment"]["minDuration"] == "168h"
    assert len(spec["assignment"]["units"]) == 4
    assert spec["candidates"][0]["timeout"] == "60s"
    assert spec["strategy"]["classifier"]["threshold"] == 0.5
    assert spec["prometheus"]["interval"] == "15s"


def test_the_endpoint_is_fixed(api: Api) -> None:
    assert api.create(example()).is_success
    answer = api.patch("support-chat", {"spec": {"endpoint": {"model": "other"}}})
    assert answer.status_code == 422
    assert "endpoint.model is fixed once the policy exists: create a new policy" in answer.text


@pytest.mark.parametrize("change", [{"salt": "new"}, {"units": [{"body": "user"}]}], ids=["salt", "units"])
def test_the_assignment_is_fixed_while_a_revision_ramps(api: Api, change: Json) -> None:
    patch = {"spec": {"assignment": change}}
    assert api.create(example()).is_success
    assert api.patch("support-chat", patch).is_success, "nothing ramps yet"
    assert api.patch("support-chat", {"status": STATUS}, "/status").is_success

    answer = api.patch("support-chat", {"spec": {"assignment": {"salt": "another", "units": [{"header": "x-a"}]}}})
    assert answer.status_code == 422
    assert "cannot change while a revision ramps" in answer.text
    assert api.patch("support-chat", {"spec": {"rollout": {"holdback": 2}}}).is_success, "all else may change"
    assert api.patch("support-chat", {"status": {"message": "goes on"}}, "/status").is_success

    assert api.patch("support-chat", {"status": {"candidate": None}}, "/status").is_success
    assert api.patch("support-chat", {"spec": {"assignment": {"salt": "third"}}}).is_success, "the ramp is over"


def test_a_status_is_never_refused(api: Api) -> None:
    """Neither a value that an older CRD does not know, nor a field that is missing, nor null."""
    assert api.create(example()).is_success
    odd = {
        "phase": "AnythingAtAll",
        "candidate": None,
        "step": {"index": -1},
        "verdicts": [{"slo": "errors", "outcome": "Perhaps", "estimate": None}],
        "traffic": {"version": 3, "stable": {"revision": "x", "of a later version": [1, {"a": None}]}},
        "conditions": [{"type": "Ready"}],
        "lastVerb": {"id": "x" * 5000},
    }
    body = api.client.get(f"{api.base}/support-chat").json()
    answer = api.client.put(f"{api.base}/support-chat/status", json={**body, "status": odd})
    assert answer.is_success, answer.text
    stored = answer.json()["status"]
    assert stored["traffic"]["stable"]["of a later version"] == [1, {"a": None}]
    assert api.patch("support-chat", {"spec": {"assignment": {"salt": "new"}}}).is_success, "null is no candidate"


@pytest.mark.parametrize(
    "traffic",
    [
        pytest.param({"share": {"desired": 10_001}}, id="more than everybody"),
        pytest.param({"share": {"desired": -1}}, id="fewer than nobody"),
        pytest.param({"holdback": 20_000}, id="a holdback of more than everybody"),
        pytest.param({"version": -1}, id="a version below zero"),
        pytest.param({"revision": "r" * 300}, id="a revision's name without end"),
        pytest.param({"selector": {f"label-{i}": "x" for i in range(17)}}, id="a selector without end"),
    ],
)
def test_nonsense_that_gateways_would_obey_is_refused(api: Api, traffic: Json) -> None:
    assert api.create(example()).is_success
    assert api.patch(
        "support-chat", {"status": {"traffic": {"version": 1, "share": {"desired": 1}}}}, "/status"
    ).is_success
    answer = api.patch("support-chat", {"status": {"traffic": traffic}}, "/status")
    assert answer.status_code == 422, answer.text


def test_a_status_of_the_models_is_stored_whole(api: Api) -> None:
    """Nothing that the operator writes is pruned."""
    from datetime import UTC, datetime

    from funicular.api import status as words
    from funicular.api.revision import route_of
    from funicular.api.spec import RoutingPolicySpec
    from funicular.api.traffic import Share, Traffic

    body = api.create(example()).json()
    spec, now = RoutingPolicySpec.model_validate(body["spec"]), datetime(2026, 11, 25, tzinfo=UTC)
    route = route_of(spec, "default", "support-chat")
    traffic = Traffic(version=1, revision=route.revision, share=Share(desired=100, acked=None, observed=1), endpoint="e",
                      selector={"a": "b"}, units=spec.assignment.units, holdback=100, stable=route, candidate=route,
                      latency_bounds={"LatencyP95": "4s"})  # fmt: skip
    verdict = words.VerdictStatus(
        slo="errors", outcome="Pass", reason="NonInferior", looks=(0.5, 1.0), estimate=0.0, at=now
    )
    wanted = words.Status(
        observed_generation=1,
        candidate=words.RevisionStatus(revision=route.revision, since=now),
        traffic=traffic,
        step=words.StepStatus(index=0, of=4, share=100, entered_at=now, samples=1.5),
        verdicts=(verdict,),
        rejected=(words.Rejected(revision="x", at=now, reason="Regressed"),),
        history=(words.HistoryEntry(at=now, revision="x", event="Ramped"),),
        last_verb=words.Verb(id="1", verb="pause", revision="x", at=now, result="done"),
        timings=words.Timings(decision_to_acked_ms=12.5),
        conditions=(
            words.Condition(
                type="Ready", status="True", observed_generation=1, last_transition_time=now, reason="Promoted"
            ),
        ),
    )
    plain = wanted.model_dump(mode="json", by_alias=True, exclude_none=True)
    answer = api.patch("support-chat", {"status": plain}, "/status")
    assert answer.is_success, answer.text
    assert answer.json()["status"] == plain


def test_kubectl_get_shows_the_ramp(cluster: Cluster, api: Api, namespace: str) -> None:
    assert api.create(example()).is_success
    assert api.patch("support-chat", {"status": STATUS}, "/status").is_success
    header, row = cluster.kubectl("get", "rp", "-n", namespace).splitlines()
    assert header.split() == ["NAME", "PHASE", "STEP", "SHARE", "SLO", "AGE"]
    assert row.split()[:5] == ["support-chat", "Ramping", "2/4", "10%", "errors"]
    wide = cluster.kubectl("get", "rp", "-n", namespace, "-o", "wide")
    assert wide.splitlines()[0].split()[6:] == ["STABLE", "CANDIDATE", "GATEWAYS", "MESSAGE"]
    assert STATUS["message"] in wide
    assert "support-chat" in cluster.kubectl("get", "funicular", "-n", namespace)


@pytest.mark.parametrize(
    "path", ["rp", "rp.spec.rollout.steps", "rp.spec.slos.allowedFromBaseline", "rp.status.traffic.share"]
)
def test_kubectl_explains(cluster: Cluster, api: Api, path: str) -> None:
    said = cluster.kubectl("explain", path)
    assert re.search(r"DESCRIPTION:\n\s+\S", said)
    assert "<no description>" not in said


def test_the_published_schema_has_a_sentence_for_every_field(known: httpx.Client) -> None:
    """What `kubectl explain` and editors read."""
    published = known.get(f"/openapi/v3/apis/{API_VERSION}").json()["components"]["schemas"]
    (policy,) = [node for name, node in published.items() if name.endswith(".RoutingPolicy")]
    silent: list[str] = []

    def walk(node: Json, path: str) -> None:
        if not node.get("description") and not node.get("allOf"):
            silent.append(path)
        for name, child in node.get("properties", {}).items():
            walk(child, f"{path}.{name}")
        for key in ("items", "additionalProperties"):
            if isinstance(node.get(key), dict):
                walk(node[key], f"{path}[]")

    walk(policy, "rp")
    assert silent == []
