"""`python -m hack.bench`: ratios to plain Envoy and LiteLLM, reverts with 3 and with 100 agents, share changes; table and JSON.

Compare ratios, not rates: load, upstream and subject share the machine. Nothing it started survives it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from hack.bench import reverts, table
from hack.bench.gateway import share_changes
from hack.bench.machine import Machine, cores, wrk_binary
from hack.bench.throughput import MANY, Throughput
from hack.cluster.cluster import CHECKOUT, Cluster, Options
from hack.cluster.errors import ClusterError
from hack.demo import stack
from hack.demo.interrupts import Interrupts, kill_descendants
from hack.demo.stack import Stack

Json = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    interrupts = Interrupts()
    interrupts.install()
    began = time.time()

    def say(text: str) -> None:
        console.print(f"[{time.time() - began:6.1f} s] {text}", markup=False)

    found: Json = {
        "quick": options.quick,
        "cores": os.cpu_count(),
        "pinned": dict(zip(("subject", "others"), cores(), strict=True)),
    }
    try:
        if "throughput" in options.parts:
            wrk_binary()
            found |= _throughput(options, say)
        if "reverts" in options.parts:
            found |= _reverts(options, say, interrupts)
        found["seconds"] = round(time.time() - began, 1)
        found |= headline(found)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "bench.json").write_text(json.dumps(found, indent=2) + "\n")
        table.show(found, console)
        console.print(f"results: {options.out / 'bench.json'}", markup=False)
        return 0
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted: ending everything that was started", style="yellow")
        return interrupts.exit_code
    except (ClusterError, TimeoutError) as error:
        console.print(str(error), style="red", markup=False)
        return 1
    finally:
        interrupts.ignore()
        kill_descendants()


def headline(found: Json) -> Json:
    """The keys that scripts rely on; null where a part was left out."""
    ratios = found.get("throughput", {}).get("ratios", {})

    def median(name: str) -> float | None:
        return ratios[name]["median"] if name in ratios else None

    real, hundred = found.get("reverts_3_pods", {}), found.get("reverts_100_agents", {})
    return {
        "control_vs_envoy": median("control_vs_envoy, 2 kB, 1"),
        "control_vs_litellm": median("control_vs_litellm, 2 kB, 1"),
        "treatment_vs_control": median("treatment_vs_control, 2 kB, 1"),
        "revert_ms_p50": real.get("p50_ms"),
        "revert_ms_p95": real.get("p95_ms"),
        "revert_100_agents_ms_p50": hundred.get("p50_ms"),
        "revert_100_agents_ms_p95": hundred.get("p95_ms"),
        "share_change_1000_policies_ms_p50": found.get("share_change_1000_policies", {}).get("p50_ms"),
        "share_change_1000_policies_ms_p95": found.get("share_change_1000_policies", {}).get("p95_ms"),
    }


def _throughput(options: argparse.Namespace, say: Callable[[str], None]) -> Json:
    rounds, seconds = (3, 1.0) if options.quick else (7, 3.0)
    with tempfile.TemporaryDirectory(prefix="funicular-bench-") as folder, Machine(Path(folder)) as machine:
        part = Throughput(
            machine, say, rounds=rounds, seconds=seconds, with_litellm=options.litellm, quick=options.quick
        )
        found: Json = {"throughput": part.run()}
        if part.many is not None:
            say(f"shares with {MANY:,} policies loaded")
            changes = share_changes(part.many, 20 if options.quick else 100)
            found["share_change_1000_policies"] = {
                "changes": len(changes),
                "p50_ms": round(statistics.median(changes), 1),
                "p95_ms": round(reverts.quantile(changes, 0.95), 1),
                "max_ms": round(max(changes), 1),
                "compile_1000_policies_seconds": round(part.many.compile_seconds, 2),
            }
        return found


def _reverts(options: argparse.Namespace, say: Callable[[str], None], interrupts: Interrupts) -> Json:
    cluster = Cluster(Options(name=options.name, images=stack.images()))
    try:
        cluster.launch()
        return asyncio.run(_measure_reverts(cluster, options, say, interrupts))
    finally:
        cluster.stop()


async def _measure_reverts(
    cluster: Cluster, options: argparse.Namespace, say: Callable[[str], None], interrupts: Interrupts
) -> Json:
    interrupts.attach()
    times = options.reverts or (20 if options.quick else 100)
    it = Stack(cluster, namespace="bench", gateways=3, providers=reverts.PROVIDERS)
    light: asyncio.subprocess.Process | None = None
    try:
        await it.start()
        say("operator and three gateway pods are ready")
        part = reverts.Reverts(it, say)
        await part.measure(2, "warming up")
        found: Json = {"reverts_3_pods": await part.measure(times, "3 gateway pods")}
        say(f"{reverts.STAND_INS} agents without Envoy beside the three pods")
        light = await reverts.stand_ins(it)
        await part.measure(2, "warming up")
        found["reverts_100_agents"] = await part.measure(times, "100 agents")
        found["reverts_100_agents"]["note"] = f"3 gateway pods with Envoy, {reverts.STAND_INS} agents without"
        return found
    finally:
        interrupts.detach()
        if light is not None and light.returncode is None:
            light.kill()
            await light.wait()
        await it.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hack.bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=CHECKOUT / "out", help="folder for bench.json")
    parser.add_argument("--quick", action="store_true", help="about three minutes: fewer and shorter rounds")
    parser.add_argument("--parts", nargs="+", choices=("throughput", "reverts"), default=("throughput", "reverts"))
    parser.add_argument(
        "--reverts", type=int, help="how many with 3 pods, and how many with 100 agents (100; quick: 20)"
    )
    parser.add_argument(
        "--litellm", action=argparse.BooleanOptionalAction, default=True, help="compare with the LiteLLM proxy"
    )
    parser.add_argument("--name", default="bench", help="of the cluster")
    return parser


if __name__ == "__main__":
    sys.exit(main())
