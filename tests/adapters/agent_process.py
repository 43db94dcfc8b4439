"""`python -m tests.adapters.agent_process`: the agent as main starts it, with the stand-in compiler unless told otherwise."""

from __future__ import annotations

import os
import sys

from funicular.agent import main, refusals
from tests.adapters.agent_stand_in import StandIn

if __name__ == "__main__":
    if os.environ.get("COMPILER") != "real":
        main.compiling.EnvoyCompiler = StandIn  # type: ignore[misc,assignment]
    refusals.FIRST = float(os.environ.get("REFUSAL_SECONDS", refusals.FIRST))
    sys.exit(main.main([]))
