"""The benchmark's results for the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

Json = dict[str, Any]


def show(found: Json, console: Console) -> None:
    if "throughput" in found:
        _rates(found["throughput"], console)
        _ratios(found["throughput"], console)
    _times(found, console)


def _rates(part: Json, console: Console) -> None:
    table = Table(title="requests a second (one core under test; trust the ratios)", title_justify="left")
    for name in ("path", "body", "policies", "min", "median", "max", "p50 ms", "p99 ms", "CPU us", "failed"):
        table.add_column(name, justify="left" if name in ("path", "body") else "right")
    for row in part["rows"]:
        rate = row["requests_per_second"]
        table.add_row(
            row["path"],
            row["size"],
            f"{row['policies']:,}",
            *(f"{rate[k]:,.0f}" for k in ("min", "median", "max")),
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['cpu_us']:,.0f}",
            str(row["failed"]),
        )
    console.print(table)


def _ratios(part: Json, console: Console) -> None:
    table = Table(title="ratios, each within its round", title_justify="left")
    for name in ("ratio, body, policies", "min", "median", "max"):
        table.add_column(name, justify="left" if name.startswith("ratio") else "right")
    for key, text in (("of_the_best_rounds", "each subject's best round"), ("by_cpu", "by the subject's CPU time")):
        for name, value in part[key].items():
            if value is not None:
                table.add_row(f"{name.replace('_', ' ')}, 2 kB, 1 ({text})", "", f"{value:.3g}", "")
    for name, it in part["ratios"].items():
        table.add_row(name.replace("_", " "), *(f"{it[k]:.3g}" for k in ("min", "median", "max")))
    console.print(table)


def _times(found: Json, console: Console) -> None:
    table = Table(title="milliseconds", title_justify="left")
    for name in ("what", "times", "p50", "p95", "max"):
        table.add_column(name, justify="left" if name == "what" else "right")
    names = {
        "reverts_3_pods": "decision -> all of 3 gateway pods confirmed share 0",
        "reverts_100_agents": "the same with 100 agents (97 of them without Envoy)",
        "share_change_1000_policies": "a share in effect with 1,000 policies loaded",
    }
    for key, text in names.items():
        if key in found:
            it = found[key]
            table.add_row(
                text,
                str(it.get("reverts", it.get("changes"))),
                *(f"{it[k]:.0f}" for k in ("p50_ms", "p95_ms", "max_ms")),
            )
    if table.row_count:
        console.print(table)
