"""Whom the operator takes for git: the whole tracking id of this very object, or Flux's labels."""

from __future__ import annotations

from typing import Any

import pytest

from funicular.controller.managed import ARGO_TRACKING, managed_by
from tests.builders import make_metadata

OWN = "routing.funicular.dev/RoutingPolicy:shop/support-chat"


@pytest.mark.parametrize(
    ("marks", "who"),
    [
        pytest.param({"annotations": {ARGO_TRACKING: f"apps:{OWN}"}}, "Argo CD application apps", id="argo"),
        pytest.param(
            {"annotations": {ARGO_TRACKING: f"team-a_apps:{OWN}"}},
            "Argo CD application team-a_apps",
            id="any namespace",
        ),
        pytest.param({"annotations": {ARGO_TRACKING: f":{OWN}"}}, None, id="no application"),
        pytest.param(
            {"annotations": {ARGO_TRACKING: "apps:routing.funicular.dev/RoutingPolicy:shop/other"}},
            None,
            id="copied name",
        ),
        pytest.param(
            {"annotations": {ARGO_TRACKING: "apps:routing.funicular.dev/RoutingPolicy:stage/support-chat"}},
            None,
            id="copied namespace",
        ),
        pytest.param(
            {"annotations": {ARGO_TRACKING: "apps:apps/Deployment:shop/support-chat"}},
            None,
            id="tracking of another kind",
        ),
        pytest.param({"annotations": {ARGO_TRACKING: "apps"}}, None, id="not a tracking id"),
        pytest.param({"labels": {"app.kubernetes.io/instance": "apps"}}, None, id="a label that charts set too"),
        pytest.param({"labels": {"app.kubernetes.io/managed-by": "Helm"}}, None, id="helm by hand"),
        pytest.param(
            {
                "labels": {
                    "kustomize.toolkit.fluxcd.io/name": "apps",
                    "kustomize.toolkit.fluxcd.io/namespace": "flux-system",
                }
            },
            "Flux Kustomization flux-system/apps",
            id="flux kustomization",
        ),
        pytest.param(
            {"labels": {"helm.toolkit.fluxcd.io/name": "shop", "helm.toolkit.fluxcd.io/namespace": "shop"}},
            "Flux HelmRelease shop/shop",
            id="flux release",
        ),
        pytest.param({"labels": {"kustomize.toolkit.fluxcd.io/name": "apps"}}, None, id="half of flux's labels"),
        pytest.param({}, None, id="nobody"),
    ],
)
def test_who_manages_it(marks: dict[str, Any], who: str | None) -> None:
    assert managed_by(make_metadata(**marks)) == who
