"""Does a server keep the classifier contract? `python -m funicular.classifier.conformance --url http://127.0.0.1:8080`

Run by authors of classifier images, by hand or in their CI, against any implementation in any language. Every sentence of
openapi.yaml is a check (conformance_checks.py); each ends as PASS, WARN or FAIL with a sentence. Exit code 0 when nothing
failed, 1 when something did, 2 when there is no server. It needs nothing of a cluster.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import httpx
import uvloop
from rich.console import Console
from rich.table import Table

from funicular.classifier.conformance_checks import CHECKS, Broken, Doubtful, Options, Probe, Unreachable

COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}


@dataclass(frozen=True, slots=True)
class Result:
    """`verdict` is PASS, WARN or FAIL; `note` says what was seen."""

    rule: str
    verdict: str
    note: str


async def examine(url: str, options: Options | None = None, only: str = "") -> list[Result]:
    """Runs every check whose rule contains `only`, in turn. Raises Unreachable when nothing answers at `url`."""
    options = options or Options()
    limits = httpx.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency)
    async with httpx.AsyncClient(
        base_url=url.rstrip("/"), timeout=options.timeout, limits=limits, trust_env=False
    ) as client:
        probe = Probe(client, options)
        await probe.knock()
        results = []
        for check in (check for check in CHECKS if only in check.rule):
            try:
                results.append(Result(check.rule, "PASS", await check.run(probe)))
            except Doubtful as doubt:
                results.append(Result(check.rule, "WARN", str(doubt)))
            except Broken as broken:
                results.append(Result(check.rule, "FAIL", str(broken)))
            except httpx.HTTPError as error:
                results.append(Result(check.rule, "FAIL", f"no answer: {type(error).__name__} {error}".strip()))
        return results


def table_of(results: Sequence[Result], url: str) -> Table:
    table = Table(
        "", "rule", "what was seen", title=f"The classifier contract at {url}", title_justify="left", show_lines=True
    )
    for result in results:
        table.add_row(f"[{COLOURS[result.verdict]}]{result.verdict}", result.rule, result.note)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m funicular.classifier.conformance", description=__doc__)
    parser.add_argument("--url", required=True, help="the server, as in http://127.0.0.1:8080")
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds in which every request must be answered")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2_000, help="requests of the latency report")
    parser.add_argument("--only", default="", help="check only rules that contain this text")
    parser.add_argument("--json", action="store_true", help="results as JSON instead of a table")
    chosen = parser.parse_args(arguments)
    options = Options(timeout=chosen.timeout, concurrency=chosen.concurrency, requests=chosen.requests)
    console = Console()
    try:
        results = uvloop.run(examine(chosen.url, options, chosen.only))
    except Unreachable as error:
        Console(stderr=True).print(f"{error}", style="red")
        return 2
    failed = sum(result.verdict == "FAIL" for result in results)
    if chosen.json:
        console.out(
            json.dumps({"url": chosen.url, "failed": failed, "results": [asdict(r) for r in results]}, indent=2)
        )
    else:
        console.print(table_of(results, chosen.url))
        console.print(f"{len(results)} rules, {failed} broken.", style="red" if failed else "green")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
