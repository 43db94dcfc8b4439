"""The e2e's account: what passed, what was measured, what the logs say of a failure. A pytest plugin.

Registered by conftest.py. Tests write figures by `account.facts[...]` and tables by `account.tables[...]`; e2e.json and
e2e.html come out of it when the session ends, also when it was interrupted.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pytest

from hack.cluster.errors import ClusterError
from hack.image.build import Built
from hack.node import Node

Json = dict[str, Any]
TEMPLATE = Path(__file__).with_name("report.html.j2")
WHAT_TO_KEEP = (
    ("pods", ("get", "pods", "-A", "-o", "wide")),
    ("events", ("get", "events", "-A", "--sort-by=.lastTimestamp")),
    ("policies", ("get", "routingpolicies", "-A", "-o", "yaml")),
)


class Account:
    """`facts`: one figure each; `tables`: rows of columns, for the report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = {}
        self.tables: dict[str, list[Mapping[str, Any]]] = {}
        self.node: Node | None = None
        self.cut = 0
        """Requests that the documented rule gives up: answers that a killed Envoy had begun."""
        self._began = time.time()
        self._rows: list[Json] = []
        self._requests: dict[str, int] = {"sent": 0, "failed_by_providers": 0, "lost": 0}

    def say(self, text: str) -> None:
        """What happens now, for people: on stderr, whatever pytest captures."""
        print(f"[{time.time() - self._began:6.1f} s] {text}", file=sys.__stderr__, flush=True)

    def images(self, built: Built) -> None:
        self.tables["images"] = [
            {
                "layer": it.name,
                "MB": round(it.layer.content / 1e6, 1),
                "MB compressed": round(it.layer.compressed / 1e6, 1),
            }
            for it in built.layers
        ]

    def requests(self, *, sent: int, failed_by_providers: int, lost: int) -> None:
        """Adds the account of one load."""
        for key, value in (("sent", sent), ("failed_by_providers", failed_by_providers), ("lost", lost)):
            self._requests[key] += value

    def timeline(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.tables[name] = list(rows)

    # --- pytest's hooks -----------------------------------------------------------------------------------------------
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if report.when == "call" or report.outcome != "passed":
            self._rows.append(
                {
                    "test": item.nodeid.partition("::")[2],
                    "file": item.path.stem,
                    "outcome": report.outcome if report.when == "call" or report.skipped else "error",
                    "seconds": round(report.duration, 1),
                    "says": _docstring(item),
                }
            )
            self.say(f"{report.outcome}: {item.nodeid} ({report.duration:.1f} s)")
        if report.failed:
            self._keep(item.name, str(report.longrepr))
        return report

    def pytest_sessionfinish(self) -> None:
        if not self._rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        found = self.found()
        (self.folder / "e2e.json").write_text(json.dumps(found, indent=2, default=str) + "\n")
        template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
            TEMPLATE.read_text()
        )
        (self.folder / "e2e.html").write_text(template.render(found))
        self.say(f"{found['passed']} passed, {found['failed']} failed: {self.folder / 'e2e.html'}")

    def found(self) -> Json:
        """What e2e.json holds."""
        passed = sum(row["outcome"] == "passed" for row in self._rows)
        return {
            "passed": passed,
            "failed": sum(row["outcome"] in ("failed", "error") for row in self._rows),
            "skipped": sum(row["outcome"] == "skipped" for row in self._rows),
            **{f"requests_{key}": value for key, value in self._requests.items() if key != "lost"},
            "requests_lost": self._requests["lost"] - self.cut,
            "requests_cut_by_a_killed_envoy": self.cut,
            "argocd_spec_writes_after_revert": None,
            "seconds": round(time.time() - self._began, 1),
            **self.facts,
            "tests": self._rows,
            "tables": self.tables,
        }

    def _keep(self, name: str, trace: str) -> None:
        """What a person needs to understand a failure: the node is gone by then."""
        place = self.folder / "logs" / name.translate(str.maketrans("/[]", "---"))
        place.mkdir(parents=True, exist_ok=True)
        (place / "failure.txt").write_text(trace)
        if self.node is None:
            return
        for title, command in WHAT_TO_KEEP:
            try:
                (place / f"{title}.txt").write_text(self.node.kubectl(*command))
            except (ClusterError, OSError) as error:
                (place / f"{title}.txt").write_text(str(error))
        shutil.copytree(self.node.logs, place / "node", dirs_exist_ok=True, ignore_dangling_symlinks=True)


def _docstring(item: pytest.Item) -> str:
    text = getattr(getattr(item, "function", None), "__doc__", None) or ""
    return " ".join(text.split())
