"""`python -m hack.sim app|provider|load ...`: the simulations under one name, for an image whose arguments choose one."""

from __future__ import annotations

import importlib
import sys

MODULES = ("app", "load", "provider")


def main() -> int:
    name, *arguments = sys.argv[1:] or [""]
    if name not in MODULES:
        print(f"usage: python -m hack.sim {{{','.join(MODULES)}}} ...", file=sys.stderr)
        return 2
    # Imported when asked for: a provider's pod does not pay for the load generator.
    return int(importlib.import_module(f"hack.sim.{name}").main(arguments))


if __name__ == "__main__":
    sys.exit(main())
