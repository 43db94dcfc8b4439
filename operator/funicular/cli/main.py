"""The command `funicular`, and `kubectl funicular`: one command for each process, for manifests and for running policies.

The composition root of the command line. What a command needs is imported when it runs, so that `funicular agent` in a
gateway pod does not pay for the operator's libraries. Every failure is one sentence on stderr: 1 when something is wrong
or was refused, 2 when the command was written wrongly.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from funicular.cli import diff, hooks, manifests, processes, show, verbs
from funicular.cli.access import CONTEXT
from funicular.errors import FunicularError, UserMustFix

app = typer.Typer(
    name="funicular",
    help="Moves each LLM endpoint's easy requests to a cheaper route, in measured steps, and back when an SLO regresses.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"funicular {version('funicular')}")
        raise typer.Exit


@app.callback()
def everywhere(
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig; may stand anywhere.")] = None,
    kubeconfig: Annotated[str | None, typer.Option(help="The kubeconfig's file; may stand anywhere.")] = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What every command takes. `placed` has read the first two, wherever they stood."""


POLICIES, MANIFESTS, PROCESSES = "Policies", "Manifests", "Processes"

app.command("get", rich_help_panel=POLICIES)(show.get)
app.command("status", rich_help_panel=POLICIES)(show.status)
app.command("watch", rich_help_panel=POLICIES)(show.watch)
app.command("history", rich_help_panel=POLICIES)(show.history)
app.command("diff", rich_help_panel=POLICIES)(diff.diff)
verbs.register(app, POLICIES)
app.command("lint", rich_help_panel=MANIFESTS)(manifests.lint)
app.command("crd", rich_help_panel=MANIFESTS)(manifests.crd)
app.command("operator", rich_help_panel=PROCESSES)(processes.operator)
app.command("agent", rich_help_panel=PROCESSES, context_settings=processes.PASSED_ON)(processes.agent)
app.add_typer(processes.classifier, name="classifier", rich_help_panel=PROCESSES)
app.command("smoke", hidden=True)(hooks.smoke)
app.command("stand-down", hidden=True)(hooks.stand_down)


def sentence_of(error: FunicularError) -> str:
    remedy = error.remedy if isinstance(error, UserMustFix) else ""
    return f"{error}; {remedy}" if remedy else str(error)


def program_name(called: str) -> str:
    return "kubectl funicular" if Path(called).name.startswith("kubectl-") else "funicular"


def placed(arguments: list[str]) -> list[str]:
    """Takes --context and --kubeconfig out, as kubectl does wherever they stand, and puts them into the environment."""
    parser = argparse.ArgumentParser(prog="funicular", add_help=False, allow_abbrev=False)
    parser.add_argument("--context")
    parser.add_argument("--kubeconfig")
    found, others = parser.parse_known_args(arguments)
    if found.context:
        os.environ[CONTEXT] = found.context
    if found.kubeconfig:
        os.environ["KUBECONFIG"] = found.kubeconfig
    return others


def run() -> None:
    """The entry point of both scripts."""
    try:
        app(args=placed(sys.argv[1:]), prog_name=program_name(sys.argv[0]))
    except FunicularError as exc:
        sys.stderr.write(f"funicular: {sentence_of(exc)}\n")
        sys.exit(1)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)


def complete() -> None:
    """`kubectl_complete-funicular`: what kubectl asks when somebody presses Tab after `kubectl funicular`.

    One candidate a line, its help behind a tab, then cobra's directive: 4 means "no file names".
    """
    from typer._completion_classes import BashComplete  # get_completions is of no shell in particular

    *words, incomplete = sys.argv[1:] or [""]
    command = typer.main.get_command(app)
    shell = BashComplete(command, {}, "kubectl funicular", "_FUNICULAR_COMPLETE")
    for item in shell.get_completions(placed(words), incomplete):
        print(item.value, item.help or "", sep="\t")
    print(":4")
