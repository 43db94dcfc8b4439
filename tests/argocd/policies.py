"""The policies that the e2e tests of Argo CD deliver, what is asked of them, and the chart's files as a commit."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

from funicular.api.revision import revision_of
from funicular.api.spec import RoutingPolicySpec
from hack.argocd import ArgoCD
from hack.demo.stack import CHECKOUT, Stack
from tests.argocd.delivery import Delivery
from tests.integration.stack_fixtures import MINI, NEXT, manifest

Json = dict[str, Any]
STEPS = ({"share": 50, "minDuration": "1s", "minSamples": 60}, {"share": 100, "minDuration": "1s", "minSamples": 80})
# Long enough for a commit to come in mid-ramp.
LONG_STEPS = ({"share": 20, "minDuration": "15s", "minSamples": 40}, STEPS[1])


def first(stack: Stack, name: str, **rollout: Any) -> Json:
    return manifest(stack, name, **{"steps": STEPS, "candidate": MINI, **rollout})


def second(stack: Stack, name: str, **rollout: Any) -> Json:
    """The same policy with another cheap model."""
    return first(stack, name, candidate=NEXT, **rollout)


def changed(policy: Json, timeout: str) -> Json:
    """The same models; another revision all the same."""
    found = copy.deepcopy(policy)
    found["spec"]["candidates"][1]["timeout"] = timeout
    return found


def spec_revision(body: Json) -> str:
    return revision_of(RoutingPolicySpec.model_validate(body["spec"]))


def ramps_of(body: Json, of: str) -> int:
    return sum(it["event"] == "RampStarted" and it["revision"] == of for it in body["status"]["history"])


async def holds(it: Delivery, stable: str, rejected: str) -> None:
    """The spec is git's, traffic is at the stable revision, and the rejected one does not ramp again."""
    body = await it.scene.body()
    assert spec_revision(body) == rejected
    status = body["status"]
    assert (status["phase"], status.get("candidate"), status["stable"]["revision"]) == ("Degraded", None, stable)
    assert (status["traffic"]["revision"], status["traffic"]["share"]["desired"]) == (stable, 0)
    assert ramps_of(body, rejected) == 1


def customizations(argo: ArgoCD) -> str:
    """As the chart's argocd/README.md says."""
    values = "argocd.customizations.enabled=true,argocd.customizations.configMapName=argocd-cm"
    return argo.helm(
        *("template", "funicular", str(CHECKOUT / "charts" / "funicular")),
        *("--show-only", "templates/argocd/customizations.yaml"),
        *("--set", f"{values},argocd.customizations.configMapNamespace=argocd"),
    )


def chart_files(folder: Path) -> dict[str, str | None]:
    own = subprocess.run(["git", "ls-files"], cwd=folder, check=True, capture_output=True, text=True).stdout
    return {
        f"{folder.name}/{name}": (folder / name).read_text() for name in own.splitlines() if (folder / name).exists()
    }
