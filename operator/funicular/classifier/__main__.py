"""`python -m funicular.classifier serve`: the reference server's entry point, in a container and by hand.

Each option's default is read from FUNICULAR_CLASSIFIER_HOST, _PORT, _MODEL and _DRAIN, so that an image needs no arguments.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from funicular.classifier.server import serve


def main(arguments: Sequence[str] | None = None) -> int:
    environment = os.environ.get
    parser = argparse.ArgumentParser(prog="python -m funicular.classifier", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("serve", help="run the reference classifier server")
    command.add_argument("--host", default=environment("FUNICULAR_CLASSIFIER_HOST", "0.0.0.0"))
    command.add_argument("--port", type=int, default=environment("FUNICULAR_CLASSIFIER_PORT", "8080"))
    command.add_argument("--model", default=environment("FUNICULAR_CLASSIFIER_MODEL") or None,
                         help="a model file; without it the reference that comes with the package")  # fmt: skip
    command.add_argument("--drain", type=float, default=environment("FUNICULAR_CLASSIFIER_DRAIN", "1.0"),
                         help="seconds between SIGTERM and the port's end, not ready meanwhile")  # fmt: skip
    options = parser.parse_args(arguments)
    return serve(options.host, options.port, options.model, drain=options.drain)


if __name__ == "__main__":
    sys.exit(main())
