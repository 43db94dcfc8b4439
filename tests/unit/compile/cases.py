"""The traffic of the golden files: one case for each shape of a policy. Used by the unit test and by Envoy's validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from funicular.api.spec import UnitSource
from funicular.compile import (
    GatewaySettings,
    PolicyTraffic,
    bootstrap,
    policy_clusters,
    policy_route,
    policy_secrets,
    policy_shares,
    route_configuration,
    secret,
    share_layer,
)
from tests.unit.compile.builders import (
    make_classifier,
    make_credentials,
    make_policy,
    make_route,
    make_traffic,
    make_upstream,
)

GOLDEN = Path(__file__).parent / "golden"
FRONTIER = make_upstream("frontier", "https://api.example.com/v1", credentials=make_credentials("openai"))
MINI = make_upstream("mini", "http://vllm.models:8000", timeout="5s")
OTHER_MINI = make_upstream(
    "mini",
    "https://10.1.2.3:8443/openai/v1",
    model='say "mini"',
    credentials=make_credentials("other", "x-api-key", ""),
)
BASELINE_ONLY = make_route("aaaa", FRONTIER)
CLASSIFIED = make_route("bbbb", FRONTIER, MINI, classifier=make_classifier())
RECLASSIFIED = make_route(
    "cccc",
    FRONTIER,
    OTHER_MINI,
    classifier=make_classifier("https://classify.example.com/base/", routes={"easy one": "mini"}, threshold=0.25),
)
SINGLE = make_route("dddd", FRONTIER, MINI, single="mini")
BOUNDS = {"LatencyP95": "4s", "TimeToFirstToken": "1500ms"}

CASES: dict[str, tuple[PolicyTraffic, ...]] = {
    "none": (),
    "idle": (make_policy(make_traffic(BASELINE_ONLY)),),
    "first_ramp": (make_policy(make_traffic(BASELINE_ONLY, CLASSIFIED, 100, holdback=100, latency_bounds=BOUNDS)),),
    "second_ramp": (make_policy(make_traffic(CLASSIFIED, RECLASSIFIED, 5000, holdback=250, salt="pepper")),),
    "migration": (
        make_policy(make_traffic(CLASSIFIED, SINGLE, 10_000, holdback=100, units=(UnitSource(body="session"),))),
    ),
    "promoted": (make_policy(make_traffic(SINGLE, holdback=100)), make_policy(make_traffic(endpoint="b"), name="b")),
}


def compiled(policies: tuple[PolicyTraffic, ...], settings: GatewaySettings) -> dict[str, Any]:
    """All files but the bootstrap."""
    clusters: dict[str, Any] = {}
    for policy in policies:
        clusters.update(policy_clusters(policy, settings))
    return {
        "cds": list(clusters.values()),
        "rds": route_configuration({p.traffic.endpoint: policy_route(p) for p in policies}, settings),
        "runtime": share_layer({k: v for p in policies for k, v in policy_shares(p).items()}),
        "sds": [secret(use.sds, "the-key") for p in policies for use in policy_secrets(p)],
    }


def golden(name: str) -> dict[str, Any]:
    settings = GatewaySettings("/run/funicular", dns_resolver="127.0.0.53:53")
    files = compiled(CASES[name], settings)
    return {**files, "bootstrap": bootstrap(settings)} if name == "none" else files
