"""Commands that are processes of the product: they hand over to the part that they start, and return its exit code."""

from __future__ import annotations

from typing import Annotated, Any

import typer

PASSED_ON: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

classifier = typer.Typer(help="The reference classifier, and a test that any classifier can be run against.",
                         no_args_is_help=True, pretty_exceptions_enable=False)  # fmt: skip

Arguments = Annotated[list[str] | None, typer.Argument(help="Passed on.", metavar="[OPTIONS]...")]


def operator() -> None:
    """Run the operator; its settings are FUNICULAR_... in the environment."""
    from funicular.controller.main import main

    raise typer.Exit(main())


def agent(arguments: Arguments = None) -> None:
    """Run the agent of a gateway pod; its settings are FUNICULAR_... in the environment. `drain` is its preStop hook."""
    if (arguments or [])[:1] == ["drain"]:  # a pod that ends must not first load the agent
        from funicular.agent.drain import main as drain

        raise typer.Exit(drain((arguments or [])[1:]))
    from funicular.agent.main import main

    raise typer.Exit(main(arguments or []))


@classifier.command("serve", context_settings=PASSED_ON)
def serve(arguments: Arguments = None) -> None:
    """Run the reference classifier server: --host, --port, --model, --drain."""
    from funicular.classifier.__main__ import main

    raise typer.Exit(main(["serve", *(arguments or [])]))


@classifier.command("conformance", context_settings=PASSED_ON)
def conformance(arguments: Arguments = None) -> None:
    """Test a running classifier server against the contract; --help says more."""
    from funicular.classifier.conformance import main

    raise typer.Exit(main(arguments or []))
