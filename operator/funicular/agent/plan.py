"""In which order files may change: pure. Called by the applier; `tests/unit/agent/test_plan.py` holds the rules.

1. A cluster stands before a route leads to it, and goes after the last route, and the last request's retry, left it.
2. Shares follow routes: a key that routes in force still read keeps its value. But a share that falls may fall at once,
   before the routes change: it only moves units to control.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from funicular.agent.ports import Compiled, PolicyKey

Parts = Mapping[PolicyKey, Compiled]


def layer(wanted: Parts, installed: Parts, found: Mapping[str, int] | None) -> dict[str, int]:
    """The shares that may stand now. `found`: those that an earlier process left, while its routes are still unknown."""
    if found is not None:
        new = {key: value for part in wanted.values() for key, value in part.shares.items()}
        return {key: min(value, new.get(key, value)) for key, value in found.items()}
    result: dict[str, int] = {}
    for key, part in wanted.items():
        old = installed.get(key)
        if old is None:
            continue
        if part.routes_like(old):
            result.update(part.shares)
        else:
            result.update({name: min(value, part.shares.get(name, value)) for name, value in old.shares.items()})
    for key, old in installed.items():
        if key not in wanted:
            result.update(old.shares)
    return result


@dataclass(slots=True)
class Clusters:
    """What stands in Envoy, and until when clusters that no route uses any more stay (seconds of the loop's clock)."""

    standing: dict[str, bytes]
    retire_at: dict[str, float]

    def union(self, wanted: Parts) -> dict[str, bytes]:
        """Rule 1, first half: all that stand, and all that are wanted."""
        result = dict(self.standing)
        for part in wanted.values():
            result.update(part.clusters)
        return dict(sorted(result.items()))

    def used(self, installed: Parts, now: float, grace: float) -> None:
        """Rule 1, second half: starts the grace of those that no installed route uses, stops that of the others."""
        in_use = {name for part in installed.values() for name in part.clusters}
        for name in self.standing:
            if name in in_use:
                self.retire_at.pop(name, None)
            else:
                self.retire_at.setdefault(name, now + grace)

    def due(self, now: float) -> set[str]:
        return {name for name, at in self.retire_at.items() if at <= now}

    def retire(self, names: set[str]) -> None:
        for name in names:
            self.standing.pop(name, None)
            self.retire_at.pop(name, None)

    def next_due(self) -> float | None:
        return min(self.retire_at.values(), default=None)
