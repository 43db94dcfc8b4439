"""`python -m hack.node up|down|list|env|binaries`: a real node for a person at a terminal, as root.

`up` leaves a detached process behind that owns the node and waits for SIGTERM, which `down` sends. stdout carries only what a
shell evaluates; everything for eyes goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hack.cluster import binaries, detached, state
from hack.cluster.cluster import CHECKOUT
from hack.cluster.controlplane import PrometheusOptions
from hack.cluster.errors import ClusterError
from hack.node import packages, sandbox
from hack.node.node import Node, Options, wipe

# Prometheus is on this machine; everything else goes with the sandbox.
STOP_ORDER = ("sandbox", "prometheus")

console = Console(stderr=True, soft_wrap=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ClusterError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130


def up(arguments: argparse.Namespace) -> int:
    """Start a detached owner and wait until the node is ready."""
    options = _options(arguments)
    if arguments.owner or arguments.foreground:
        node = Node(replace(options, detached=True), report=lambda line: print(line, file=sys.stderr, flush=True))
        return detached.own(node, node.launch, foreground=arguments.foreground)
    running = state.read(options.place)
    if running is not None and running.is_running and running.ready:
        console.print(f"{options.name} is running already.", markup=False)
        print(f"export KUBECONFIG={running.kubeconfig}")
        return 0
    # Here and not in the detached process: the progress belongs to this terminal.
    sandbox.check()
    _fetch(options)
    detached.end(options.place, STOP_ORDER, wipe)
    ready = detached.up("hack.node", sys.argv[1:], options.place, console)
    if ready is None:
        return 1
    console.print(f"Prometheus: {ready.prometheus_url or 'none'}   DNS: {ready.dns}", markup=False)
    print(f"export KUBECONFIG={ready.kubeconfig}")
    return 0


def down(arguments: argparse.Namespace) -> int:
    """End one node, or all. Nothing to do is not an error."""
    folders = _folders() if arguments.all else [Options(arguments.name, arguments.folder).place]
    for folder in folders:
        ran = detached.end(folder, STOP_ORDER, wipe)
        said = f"is down; its logs stay in {folder / 'logs'}" if ran else "is not running"
        console.print(f"{folder.name} {said}", markup=False)
    return 0


def show(_: argparse.Namespace) -> int:
    """One line for each node of this checkout."""
    for folder in _folders():
        found = state.read(folder)
        if found is not None:
            status = ("ready" if found.ready else "starting") if found.is_running else "dead: `down` cleans up"
            print(f"{folder.name}\t{status}\t{found.kubeconfig}")
    return 0


def build(_: argparse.Namespace) -> int:
    """Find every binary and package of a node, or get it into the cache; stdout has a line for each."""
    for name, path in _fetch(Options(metrics_server=True)).items():
        print(f"{name}\t{path}")
    return 0


def env(arguments: argparse.Namespace) -> int:
    """The lines that `eval` takes, for a node that runs."""
    found = state.read(Options(arguments.name, arguments.folder).place)
    if found is None or not found.is_running:
        console.print(f"{arguments.name} is not running; `python -m hack.node up` starts it", markup=False)
        return 1
    print(f"export KUBECONFIG={found.kubeconfig}")
    print(f"export PROMETHEUS_URL={found.prometheus_url}")
    print(f"export CLUSTER_DNS={found.dns}")
    return 0


def _fetch(options: Options) -> dict[str, Path]:
    programs = packages.ensure(lambda line: console.print(line, markup=False))
    return binaries.ensure(options.binaries) | {"containerd": programs.program("containerd")}


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        name=arguments.name,
        folder=arguments.folder,
        images=tuple(path.resolve() for path in arguments.image),
        metrics_server=arguments.metrics_server,
        network_policy=arguments.network_policy,
        prometheus=arguments.prometheus,
        prometheus_options=PrometheusOptions(arguments.scrape_interval),
    )


def _folders() -> list[Path]:
    return sorted(path.parent for path in (CHECKOUT / ".run" / "nodes").glob(f"*/{state.FILE}"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hack.node", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--name", default="default", help="of the node; several run side by side")
        sub.add_argument("--folder", type=Path, help="for all its files (default: .run/nodes/NAME in the checkout)")
        return sub

    start = command("up", up, "start a node and print one line that sets KUBECONFIG")
    start.add_argument("--foreground", action="store_true", help="stay, and end the node on Ctrl-C")
    start.add_argument("--image", type=Path, action="append", default=[], help="an image archive; may be repeated")
    start.add_argument("--metrics-server", action=argparse.BooleanOptionalAction, default=True)
    start.add_argument("--network-policy", action=argparse.BooleanOptionalAction, default=True)
    start.add_argument("--prometheus", action=argparse.BooleanOptionalAction, default=True)
    start.add_argument("--scrape-interval", default="1s", help="of Prometheus (default 1s)")
    start.add_argument("--owner", action="store_true", help=argparse.SUPPRESS)
    stop = command("down", down, "end a node and everything on it")
    stop.add_argument("--all", action="store_true", help="every node of this checkout")
    command("binaries", build, "find, or get once, every binary and package that a node needs")
    command("list", show, "list the nodes of this checkout")
    command("env", env, "print the shell lines of a running node")
    return parser


if __name__ == "__main__":
    sys.exit(main())
