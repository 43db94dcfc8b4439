"""Writes OUT/report.json and OUT/report.html (one file, no network), and the summary for the terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hack.demo import plots
from hack.demo.findings import Findings, as_json

Json = dict[str, Any]


def write(found: Findings, out: Path) -> Json:
    """Returns what stands in report.json."""
    out.mkdir(parents=True, exist_ok=True)
    numbers = as_json(found)
    (out / "report.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (out / "report.html").write_text(_page(found, numbers))
    _write_timeline(found, out / "timeline.jsonl")
    return numbers


def _write_timeline(found: Findings, path: Path) -> None:
    """Every version of the policy's status that was seen, one a line: for whoever wants to know why."""
    with path.open("w") as file:
        for it in found.run.timeline.seen:
            line = {
                "at": it.at,
                "generation": it.generation,
                "status": it.status.model_dump(mode="json", by_alias=True),
            }
            file.write(json.dumps(line) + "\n")


def _page(found: Findings, numbers: Json) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    start = found.run.timeline.marks.get("story1", 0.0)
    events = [
        {
            "second": f"{e['seenAt'] - start:.1f}",
            "reason": e.get("reason", ""),
            "note": e.get("note", ""),
            "warning": e.get("type") == "Warning",
        }
        for e in found.run.timeline.events
    ]
    return environment.get_template("report.html.j2").render(
        json=numbers,
        kind=found.run.regression.kind,
        says=found.run.regression.says[:1].upper() + found.run.regression.says[1:],
        date=time.strftime("%Y-%m-%d %H:%M"),
        numbers=_cards(numbers),
        plots=_plots(found),
        users_svg=plots.users(found),
        events=events,
    )


def _plots(found: Findings) -> list[tuple[str, str, str]]:
    bands = (
        "Lines: the last 8 seconds; bands: 95 %, with users as clusters. A reverted revision's lines end at its revert."
    )
    words = {
        "errors": ("SLO errors", f"Answers of 5xx or 429, cut ones, and those that only the fallback rescued. {bands}"),
        "p95": ("SLO p95", f"At most 5 % of the answers may take longer than the bound. {bands}"),
        "thumbs-up": ("SLO thumbs-up", f"Of the users who voted. {bands}"),
        "cost": ("SLO cost (observed only)", f"At the policy's prices. {bands}"),
    }
    ordered = (
        "What the operator ordered for the revision that ramps, what all gateway pods confirmed, what the metrics showed. "
        "A promoted revision serves everyone outside the holdback, less what the next one gets."
    )
    sent = (
        "Requests that the bad revision answered, by the quarter of a second in which they were sent. Red before the "
        "regression is what healthy providers do too: 0.3 % of their answers fail and about 3 % are of no use, by design, "
        "and now and then one is slow."
    )
    return [
        ("Share per step", ordered, plots.shares(found)),
        ("The revert", sent, plots.revert(found)),
        *((title, text, plots.slo(found, name)) for name, (title, text) in words.items()),
    ]


def _cards(n: Json) -> list[tuple[str, str]]:
    def shown(value: Any, unit: str) -> str:
        return "-" if value is None else f"{value:,} {unit}".strip()

    saved = part = ""
    if n["money_saved"] is not None and n["money_baseline"]:
        saved, part = f"${n['money_saved']:.2f}", f" ({100 * n['money_saved'] / n['money_baseline']:.0f} %)"
    return [
        ("yes" if n["promoted"] else "NO", "good candidate promoted"),
        ("yes" if n["reverted"] else "NO", "bad revision reverted"),
        (shown(n["verdict_seconds"], "s"), "regression to verdict"),
        (shown(n["revert_ms"] and round(n["revert_ms"]), "ms"), "verdict to all pods at share 0"),
        (shown(n["requests_sent"], ""), "requests sent"),
        (shown(n["requests_lost"], ""), "requests lost"),
        (
            shown(n["requests_failed_by_providers"], ""),
            "failed by the simulated providers themselves (they fail 0.3 % by design)",
        ),
        (saved or "-", f"saved{part}, against everything at the baseline"),
    ]


def summary(numbers: Json, console: Console, out: Path) -> None:
    """What a person wants to know, in the terminal."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    for value, name in _cards(numbers):
        table.add_row(name, value)
    for row in numbers["users_per_step"]:
        note = "" if row["contains_the_step_before"] else f"   {row['left_out']} users of earlier steps LEFT OUT"
        table.add_row(
            f"story {row['story']}, {row['share']:g} %", f"{row['treated']:,} treated users in {row['seconds']} s{note}"
        )
    console.print(table, soft_wrap=False)
    _checks(numbers, console)
    for line in numbers["lost"][:10]:
        console.print(f"  {line}", style="red", markup=False)
    if numbers["broken"]:
        console.print(f"The stories ended early: {numbers['broken']}", style="bold red", markup=False)
    console.print(f"report: {out / 'report.html'}, {out / 'report.json'}", markup=False)


def _checks(numbers: Json, console: Console) -> None:
    """A terminal gets them wrapped between words, indented; a log gets a line for each."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for check in numbers["checks"]:
        mark, style = ("ok", "green") if check["ok"] else ("NO", "bold red")
        text = f"{check['name']}: {check['seen']}"
        if console.is_terminal:
            grid.add_row(f"  {mark}", Text(text), style=style)
        else:
            console.print(f"  {mark}  {text}", style=style, markup=False, highlight=False, soft_wrap=True)
    if console.is_terminal:
        console.print(grid)
