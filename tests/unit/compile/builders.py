"""Builders of what is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from funicular.api.spec import Credentials, SecretKeyRef, UnitSource
from funicular.api.traffic import ClassifierRoute, Route, Share, Traffic, Upstream
from funicular.compile import PolicyTraffic

UNITS = (
    UnitSource(header="x-user-id"),
    UnitSource(body="user"),
    UnitSource(header="x-session-id"),
    UnitSource(api_key=True),
)


def make_credentials(name: str, header: str = "authorization", prefix: str = "Bearer ") -> Credentials:
    return Credentials(secret_ref=SecretKeyRef(name=name, key="api-key"), header=header, prefix=prefix)


def make_upstream(name: str, url: str = "", **fields: Any) -> Upstream:
    return Upstream(name=name, url=url or f"http://{name}.models:8000/v1", **{"model": f"model-of-{name}", **fields})


def make_route(
    revision: str,
    *upstreams: Upstream,
    classifier: ClassifierRoute | None = None,
    single: str | None = None,
) -> Route:
    """The first upstream is the baseline."""
    found: Sequence[Upstream] = upstreams or (make_upstream("frontier"),)
    return Route(
        revision=revision, upstreams=tuple(found), baseline=found[0].name, classifier=classifier, single=single
    )


def make_classifier(url: str = "http://classifier.ns:8080", **fields: Any) -> ClassifierRoute:
    defaults = {"threshold": 0.7, "timeout": "50ms", "routes": {"easy": "mini", "hard": "frontier"}}
    return ClassifierRoute(url=url, **{**defaults, **fields})


def make_traffic(stable: Route | None = None, candidate: Route | None = None, share: int = 0, **fields: Any) -> Traffic:
    stable = stable or make_route("aaaa")
    compared = candidate or stable
    defaults: dict[str, Any] = {
        "version": 1,
        "revision": compared.revision,
        "share": Share(desired=share),
        "endpoint": "support-chat",
        "selector": {"app.kubernetes.io/component": "gateway"},
        "units": UNITS,
    }
    return Traffic(stable=stable, candidate=candidate, **{**defaults, **fields})


def make_policy(traffic: Traffic | None = None, namespace: str = "shop", name: str = "support") -> PolicyTraffic:
    return PolicyTraffic(namespace, name, traffic or make_traffic(), uid=f"uid-of-{name}")
