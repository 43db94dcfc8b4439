"""`python -m hack.image build|audit`: the images that a node imports with their bills of materials, and what is known of them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hack.image import audit as auditing
from hack.image import build as building
from hack.image.errors import ImageError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hack.image", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build all images into one archive")
    build.add_argument("--out", type=Path, default=Path("out"), help="folder of images.tar and *.cdx.json")
    build.add_argument(
        "--refresh", action="store_true", help="fetch Debian's packages again: they may have been updated"
    )
    commands.add_parser(
        "audit", help="known vulnerabilities of the locked packages; 1: found, 2: could not be looked up"
    )
    options = parser.parse_args(arguments)
    if options.command == "audit":
        return auditing.audit()
    began = time.monotonic()
    try:
        built = building.build(options.out, refresh=options.refresh, say=lambda text: print(text, file=sys.stderr))
    except ImageError as error:
        print(f"hack.image: {error}", file=sys.stderr)
        return 1
    Console().print(building.table(built.layers))
    state = "written" if built.is_new else "unchanged"
    size = built.archive.stat().st_size / 1e6
    print(f"{built.archive}: {size:.0f} MB, {state}, {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
