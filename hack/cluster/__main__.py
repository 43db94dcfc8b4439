"""`python -m hack.cluster up|down|list|env|binaries`: a cluster for a person at a terminal.

`up` leaves a detached process behind that owns the cluster and waits for SIGTERM, which `down` sends. stdout carries
only what a shell evaluates; everything for eyes goes to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hack.cluster import binaries, detached, images, state
from hack.cluster.cluster import CHECKOUT, STOP_ORDER, Cluster, Options, wipe
from hack.cluster.controlplane import PrometheusOptions
from hack.cluster.errors import ClusterError

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
    """Start a detached owner and wait until it says that the cluster is ready."""
    if arguments.owner or arguments.foreground:
        return own(arguments)
    options = _options(arguments)
    running = state.read(options.place)
    if running is not None and running.is_running and running.ready:
        console.print(f"{options.name} is running already.", markup=False)
        print(f"export KUBECONFIG={running.kubeconfig}")
        return 0
    # Built here and not in the detached process: the progress bar belongs to this terminal.
    binaries.ensure([*(part for part in options.parts if part != "process-node"), "kubectl"])
    down_folder(options.place)
    ready = detached.up("hack.cluster", sys.argv[1:], options.place, console)
    if ready is None:
        return 1
    console.print(f"Prometheus: {ready.prometheus_url or 'none'}   DNS: {ready.dns or 'none'}", markup=False)
    print(f"export KUBECONFIG={ready.kubeconfig}")
    return 0


def own(arguments: argparse.Namespace) -> int:
    """Run a cluster until SIGTERM or SIGINT; this is the detached process of `up`, or `up --foreground`."""
    options = replace(_options(arguments), detached=True)
    cluster = Cluster(options, report=lambda line: print(line, file=sys.stderr, flush=True))
    return detached.own(cluster, cluster.launch, foreground=arguments.foreground)


def down(arguments: argparse.Namespace) -> int:
    """End one cluster, or all, and everything they started. Nothing to do is not an error."""
    folders = _folders() if arguments.all else [Options(arguments.name, arguments.folder).place]
    for folder in folders:
        if down_folder(folder):
            console.print(f"{folder.name} is down; its logs stay in {folder / 'logs'}", markup=False)
        else:
            console.print(f"{folder.name} is not running", markup=False)
    return 0


def down_folder(folder: Path) -> bool:
    """End one cluster. Whether anything ran."""
    return detached.end(folder, [name for batch in STOP_ORDER for name in batch], wipe)


def show(_: argparse.Namespace) -> int:
    """One line for each cluster folder of this checkout."""
    for folder in _folders():
        found = state.read(folder)
        if found is not None:
            status = ("ready" if found.ready else "starting") if found.is_running else "dead: `down` cleans up"
            print(f"{folder.name}\t{status}\t{found.kubeconfig}")
    return 0


def build(arguments: argparse.Namespace) -> int:
    """Find every binary, or build it into the cache; stdout has a line for each."""
    everything = [name for tool in (*binaries.TOOLS, *binaries.ON_REQUEST) for name in tool.packages]
    for name, path in binaries.ensure(everything if arguments.all else binaries.CLUSTER_BINARIES).items():
        print(f"{name}\t{path}")
    return 0


def env(arguments: argparse.Namespace) -> int:
    """The lines that `eval` takes, for a cluster that runs."""
    folder = Options(arguments.name, arguments.folder).place
    found = state.read(folder)
    if found is None or not found.is_running:
        console.print(f"{arguments.name} is not running; `python -m hack.cluster up` starts it", markup=False)
        return 1
    print(f"export KUBECONFIG={found.kubeconfig}")
    print(f"export PROMETHEUS_URL={found.prometheus_url}")
    print(f"export CLUSTER_DNS={found.dns}")
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    external = None
    if arguments.external:
        configured = os.environ.get("KUBECONFIG", "")
        if not configured or not Path(configured).is_file():
            raise ClusterError("--external needs KUBECONFIG to name the kubeconfig file of your cluster")
        external = Path(configured).resolve()
    return Options(
        name=arguments.name,
        folder=arguments.folder,
        images=images.load(arguments.images) if arguments.images else {},
        node=arguments.node if arguments.node is not None else not arguments.external,
        prometheus=arguments.prometheus,
        prometheus_options=PrometheusOptions(arguments.scrape_interval, arguments.web_config),
        probe_period=arguments.probe_period,
        keep=arguments.keep,
        external=external,
    )


def _folders() -> list[Path]:
    return sorted(path.parent for path in (CHECKOUT / ".run").glob(f"*/{state.FILE}"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hack.cluster", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--name", default="default", help="of the cluster; several run side by side")
        sub.add_argument("--folder", type=Path, help="for all its files (default: .run/NAME in the checkout)")
        return sub

    start = command("up", up, "start a cluster and print one line that sets KUBECONFIG")
    start.add_argument("--foreground", action="store_true", help="stay, and end the cluster on Ctrl-C")
    start.add_argument("--keep", action="store_true", help="keep the objects of the last run, and of this one")
    start.add_argument("--external", action="store_true", help="use the cluster of $KUBECONFIG; start only Prometheus")
    start.add_argument("--node", action=argparse.BooleanOptionalAction, help="the process node")
    start.add_argument("--prometheus", action=argparse.BooleanOptionalAction, default=True)
    start.add_argument("--images", type=Path, help="JSON file: image name -> command, for the process node")
    start.add_argument("--scrape-interval", default="1s", help="of Prometheus (default 1s)")
    start.add_argument("--web-config", type=Path, help="Prometheus's --web.config.file (TLS, passwords)")
    start.add_argument("--probe-period", type=float, help="seconds between probes, instead of periodSeconds")
    start.add_argument("--owner", action="store_true", help=argparse.SUPPRESS)
    stop = command("down", down, "end a cluster and everything it started")
    stop.add_argument("--all", action="store_true", help="every cluster of this checkout")
    built = command("binaries", build, "find, or build once, every binary a cluster needs")
    built.add_argument("--all", action="store_true", help="also those of a real node, Helm and Argo CD")
    command("list", show, "list the clusters of this checkout")
    command("env", env, "print the shell lines of a running cluster")
    return parser


if __name__ == "__main__":
    sys.exit(main())
