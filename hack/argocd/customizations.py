"""The chart's health check and actions as keys of argocd-cm.

Called by tests and by whoever starts an `ArgoCD` that shall know RoutingPolicies. The chart's template makes the same keys; a
test compares the two.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from funicular.api.base import GROUP, KIND

FOLDER = Path(__file__).parents[2] / "charts" / "funicular" / "argocd" / "resource_customizations" / GROUP / KIND
ACTIONS = ("pause", "resume", "promote", "approve", "abort", "retry")
HEALTH_KEY = f"resource.customizations.health.{GROUP}_{KIND}"
ACTIONS_KEY = f"resource.customizations.actions.{GROUP}_{KIND}"
_SWITCH = "local progressing_while_ramping = {}"


def settings(*, progressing_while_ramping: bool = False) -> dict[str, str]:
    """What argocd-cm has to hold."""
    health = (FOLDER / "health.lua").read_text()
    if progressing_while_ramping:
        health = health.replace(_SWITCH.format("false"), _SWITCH.format("true"))
    actions = FOLDER / "actions"
    definitions = [{"name": name, "action.lua": (actions / name / "action.lua").read_text()} for name in ACTIONS]
    found = {"discovery.lua": (actions / "discovery.lua").read_text(), "definitions": definitions}
    return {HEALTH_KEY: health, ACTIONS_KEY: yaml.safe_dump(found, sort_keys=False, width=1000)}
