"""`python -m funicular`: the same as the command `funicular`."""

from funicular.cli.main import run

run()
