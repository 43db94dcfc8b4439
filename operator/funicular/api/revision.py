"""Revisions: the hash of what routes. Prices, SLOs and the ramp's steps do not change a revision; a URL or a threshold does."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from funicular.api.spec import ClassifierStrategy, RoutingPolicySpec
from funicular.api.traffic import ClassifierRoute, Route, Upstream

CLASSIFIER_PORT = 8080


def what_routes(spec: RoutingPolicySpec) -> dict[str, Any]:
    candidates = [
        c.model_dump(mode="json", by_alias=True, exclude={"price"}, exclude_none=True) for c in spec.candidates
    ]
    strategy: dict[str, Any] = spec.strategy.model_dump(mode="json", by_alias=True, exclude_none=True)
    if spec.strategy.classifier:
        for operational in ("replicas", "resources"):
            strategy["classifier"].pop(operational, None)
    units = [u.model_dump(mode="json", by_alias=True, exclude_none=True) for u in spec.assignment.units]
    return {
        "candidates": sorted(candidates, key=lambda c: str(c["name"])),
        "strategy": strategy,
        "units": units,
        "salt": spec.assignment.salt,
    }


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:10]


def revision_of(spec: RoutingPolicySpec) -> str:
    return digest(what_routes(spec))


def classifier_name(policy: str, revision: str) -> str:
    """Name of the Deployment and the Service that run one revision's classifier."""
    return f"{policy[:40].rstrip('-.')}-clf-{revision}"


def classifier_url(namespace: str, policy: str, revision: str, classifier: ClassifierStrategy) -> str:
    if classifier.url:
        return classifier.url
    return f"http://{classifier_name(policy, revision)}.{namespace}.svc.cluster.local:{CLASSIFIER_PORT}"


def upstreams_of(spec: RoutingPolicySpec) -> tuple[Upstream, ...]:
    return tuple(
        Upstream(name=c.name, url=c.url, model=c.model, credentials=c.credentials, price=c.price, timeout=c.timeout)
        for c in spec.candidates
    )


def route_of(spec: RoutingPolicySpec, namespace: str, policy: str) -> Route:
    """The spec's revision as the gateways obey it."""
    revision, classifier, single = revision_of(spec), None, None
    if spec.strategy.classifier:
        declared = spec.strategy.classifier
        classifier = ClassifierRoute(
            url=classifier_url(namespace, policy, revision, declared),
            threshold=declared.threshold,
            timeout=declared.timeout,
            routes=dict(declared.routes),
        )
    elif spec.strategy.single:
        single = spec.strategy.single.candidate
    return Route(
        revision=revision,
        upstreams=upstreams_of(spec),
        baseline=spec.baseline.name,
        classifier=classifier,
        single=single,
    )


def baseline_route(spec: RoutingPolicySpec) -> Route:
    """The very first stable revision: everything to the baseline."""
    baseline = [u for u in upstreams_of(spec) if u.name == spec.baseline.name]
    hashed = digest([u.model_dump(mode="json", exclude={"price"}) for u in baseline])
    return Route(revision=f"baseline-{hashed}"[:19], upstreams=tuple(baseline), baseline=spec.baseline.name)
