"""Commands that the chart's hooks run in a pod: they hand over to smoke.py and stand_down.py, imported when they run."""

from __future__ import annotations

from typing import Annotated

import typer

from funicular.cli.access import Namespace, present_namespace, with_cluster

OperatorNamespace = Annotated[
    str | None, typer.Option("--operator-namespace", help="Where the operator's Lease lies; default: the namespace.")
]
Urls = Annotated[list[str] | None, typer.Option("--url", help="A gateway's base URL; may be given several times.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds that it may take in all.")]
Namespaces = Annotated[
    list[str] | None, typer.Option("-n", "--namespace", help="A namespace; may be given several times. Default: all.")
]


def smoke(
    namespace: Namespace = None, operator_namespace: OperatorNamespace = None, url: Urls = None, timeout: Timeout = 60
) -> None:
    """Check an installation: API, CRD, a leading operator, gateways that answer."""
    from funicular.adapters.clock import SystemClock
    from funicular.cli.smoke import checks, run

    place = namespace or present_namespace()
    with_cluster(
        lambda kube: run(checks(kube, place, operator_namespace or place, url or (), SystemClock()), timeout, print)
    )


def stand_down(namespace: Namespaces = None, timeout: Timeout = 60) -> None:
    """Take ramping revisions back, and say what each endpoint is left at."""
    from funicular.cli.stand_down import run

    with_cluster(lambda kube: run(kube, namespace or [None], timeout, print))
