"""Grafana dashboards as code: what the chart ships in charts/funicular/dashboards, with Grafana's own typed SDK.

`python -m hack.dashboards [--check]` writes the JSON or says that it differs. Tests and the e2e ask `queries()` for every
expression as Grafana would send it, to see on a real Prometheus that no panel is empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from hack.dashboards.cost import cost
from hack.dashboards.gateway import gateway
from hack.dashboards.rollout import rollout

FOLDER = Path(__file__).resolve().parents[2] / "charts" / "funicular" / "dashboards"


class PanelQuery(NamedTuple):
    """One expression of one panel, with the variables filled in."""

    dashboard: str
    panel: str
    expr: str


def boards() -> dict[str, Dashboard]:
    """By the file's name."""
    return {"rollout": rollout(), "cost": cost(), "gateway": gateway()}


def as_json(board: Dashboard) -> str:
    return json.dumps(board, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def expressions(board: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Title and expression of each query of a dashboard's JSON, variables and all."""
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def filled(expr: str, *, namespace: str = ".*", policy: str = ".*", pod: str = ".*", window: str = "1m") -> str:
    """As Grafana sends it. `window` stands for the time range and for the interval of rates."""
    values = {"namespace": namespace, "policy": policy, "pod": pod, "__rate_interval": window, "__range": window}
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)


def queries(namespace: str = ".*", policy: str = ".*", *, pod: str = ".*", window: str = "1m") -> list[PanelQuery]:
    """Every query of every panel; the variables take regular expressions. `window`: at least two scrapes long."""
    return [
        PanelQuery(name, title, filled(expr, namespace=namespace, policy=policy, pod=pod, window=window))
        for name, board in boards().items()
        for title, expr in expressions(json.loads(as_json(board)))
    ]
