"""The command `funicular`, and `kubectl funicular`: one command for each process, for manifests and for running policies.

The composition root of the command line. What a command needs is imported when it runs, so that `funicular agent` in a
gateway pod does not pay for the operator's libraries. Every failure is one sentence on stderr: 1 when something is wrong
or was refused, 2 when the command was written wrongly.
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from funicular.cli import hooks, manifests, processes, show, verbs
from funicular.errors import FunicularError, UserMustFix

app = typer.Typer(
    name="funicular",
    help="Moves each LLM endpoint's easy requests to a cheaper route, in measured steps, and back when an SLO regresses.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
POLICIES, MANIFESTS, PROCESSES = "Policies", "Manifests", "Processes"

app.command("get", rich_help_panel=POLICIES)(show.get)
app.command("status", rich_help_panel=POLICIES)(show.status)
app.command("watch", rich_help_panel=POLICIES)(show.watch)
app.command("history", rich_help_panel=POLICIES)(show.history)
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


def run() -> None:
    """The entry point of both scripts."""
    try:
        app(prog_name=program_name(sys.argv[0]))
    except FunicularError as exc:
        sys.stderr.write(f"funicular: {sentence_of(exc)}\n")
        sys.exit(1)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
