"""Commands that only look: get, status, watch, history."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from funicular.cli.access import Name, Namespace, path, policies, policy, present_namespace, with_cluster
from funicular.errors import NotFound

if TYPE_CHECKING:
    from rich.console import Console

    from funicular.adapters.kube import KubeClient

Json = dict[str, Any]


class Output(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


Format = Annotated[Output, typer.Option("-o", "--output", help="How to print.")]


def get(
    name: Annotated[str | None, typer.Argument(help="Name of a policy; default: all.")] = None,
    namespace: Namespace = None,
    all_namespaces: Annotated[bool, typer.Option("-A", "--all-namespaces", help="In every namespace.")] = False,
    output: Format = Output.TABLE,
) -> None:
    """List policies: phase, step, share and the tightest SLO of each."""
    if name is not None and all_namespaces:
        raise typer.BadParameter("a policy's name and all namespaces exclude each other")
    place = None if all_namespaces else namespace or present_namespace()

    async def read(kube: KubeClient) -> list[Json]:
        return [await policy(kube, place or "", name)] if name else await policies(kube, place)

    found = with_cluster(read)
    if output in (Output.JSON, Output.YAML):
        _print_objects(found[0] if name else {"apiVersion": "v1", "kind": "List", "items": found}, output)
        return
    if not found:
        where = "in any namespace" if place is None else f"in namespace {place}"
        print(f"No RoutingPolicies {where}.", file=sys.stderr)
        return
    from funicular.adapters.clock import SystemClock
    from funicular.cli.render import listing

    table = listing(found, SystemClock().now(), namespaces=all_namespaces, wide=output is Output.WIDE)
    _console(lines=True).print(table)


def status(name: Name, namespace: Namespace = None, output: Format = Output.TABLE) -> None:
    """Show everything about one policy: message, share, verdicts, conditions, history."""
    place = namespace or present_namespace()
    body = with_cluster(lambda kube: policy(kube, place, name))
    if output in (Output.JSON, Output.YAML):
        _print_objects(body.get("status") or {}, output)
        return
    from funicular.adapters.clock import SystemClock
    from funicular.cli.render import panel

    _console().print(panel(body, SystemClock().now()))


def history(name: Name, namespace: Namespace = None, output: Format = Output.TABLE) -> None:
    """Show what happened to one policy's revisions, the latest first."""
    place = namespace or present_namespace()
    body = with_cluster(lambda kube: policy(kube, place, name))
    if output in (Output.JSON, Output.YAML):
        _print_objects((body.get("status") or {}).get("history") or [], output)
        return
    from funicular.adapters.clock import SystemClock
    from funicular.cli.render import events, status_of

    entries = status_of(body).history
    if not entries:
        print(f"Nothing has happened to {name} yet.", file=sys.stderr)
        return
    _console(lines=True).print(events(entries, SystemClock().now()))


def watch(name: Name, namespace: Namespace = None) -> None:
    """Show one policy live until Ctrl-C; without a terminal, a line for every change of its message."""
    place = namespace or present_namespace()
    with_cluster(lambda kube: _follow(kube, place, name))


async def _follow(kube: KubeClient, namespace: str, name: str) -> None:
    from rich.live import Live

    from funicular.adapters.clock import SystemClock
    from funicular.cli.render import panel

    clock = SystemClock()
    body = await policy(kube, namespace, name)
    if not sys.stdout.isatty():
        await _follow_in_lines(kube, namespace, name)
        return
    with Live(panel(body, clock.now()), console=_console(), auto_refresh=False, screen=True) as live:
        async for kind, item in kube.watch(path(namespace), fieldSelector=f"metadata.name={name}"):
            live.update(panel(_present(kind, item, namespace, name), clock.now()), refresh=True)


async def _follow_in_lines(kube: KubeClient, namespace: str, name: str) -> None:
    said = ""
    async for kind, item in kube.watch(path(namespace), fieldSelector=f"metadata.name={name}"):
        found = _present(kind, item, namespace, name).get("status") or {}
        line = f"{found.get('phase', 'Pending')}: {found.get('message', '')}"
        if line != said:
            print(line, flush=True)
            said = line


def _present(kind: str, item: Any, namespace: str, name: str) -> Json:
    """The object of a watch's event; raises NotFound once it is gone."""
    body: Json | None = (item[0] if item else None) if kind == "RESYNC" else item
    if body is None or kind == "DELETED":
        raise NotFound(f"RoutingPolicy {name} in namespace {namespace} was deleted")
    return body


def _console(*, lines: bool = False) -> Console:
    """On a terminal as wide as that; in a pipe `lines` are never broken, so that grep and awk find whole rows."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 10_000 if lines else 140
    return Console(highlight=False, width=width)


def _print_objects(value: Any, output: Output) -> None:
    for body in value.get("items", [value]) if isinstance(value, dict) else ():
        body.get("metadata", {}).pop("managedFields", None)  # as kubectl: nobody reads them here
    if output is Output.JSON:
        print(json.dumps(value, indent=2))
    else:
        import yaml

        sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
