"""Policies that Envoy would not take, and when they are offered to it again: pure. Called by the applier.

A refusal is mostly for good, and each offer costs Envoy a parse of everything; but what Envoy refuses may also depend on
the moment (a file that is missing, memory), so nobody should have to edit a policy to get it tried again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from funicular.agent.ports import Compiled, PolicyKey

FIRST, LONGEST = 30.0, 900.0  # seconds until the next offer
REFUSED = "Envoy refused the configuration compiled from status.traffic"


@dataclass(frozen=True, slots=True)
class _Refusal:
    part: Compiled
    again: float


class Refusals:
    """Times are the loop's."""

    def __init__(self) -> None:
        self._refused: dict[PolicyKey, _Refusal] = {}
        self._times: dict[PolicyKey, tuple[Compiled, int]] = {}  # how often this very part was refused

    def refuse(self, key: PolicyKey, part: Compiled, now: float) -> None:
        before, times = self._times.get(key, (part, 0))
        times = times if part.routes_like(before) else 0
        self._times[key] = (part, times + 1)
        self._refused[key] = _Refusal(part, now + min(LONGEST, FIRST * 2**times))

    def why(self, key: PolicyKey, part: Compiled | None) -> str | None:
        """Why this part must not be offered now."""
        found = self._refused.get(key)
        if found is None or part is None:
            return None
        if part.routes_like(found.part):
            return REFUSED
        del self._refused[key]
        return None

    def next_due(self) -> float | None:
        return min((refusal.again for refusal in self._refused.values()), default=None)

    def due(self, now: float) -> set[PolicyKey]:
        """Those to be offered again; from here on nothing hinders them until they are refused anew."""
        keys = {key for key, refusal in self._refused.items() if refusal.again <= now}
        for key in keys:
            del self._refused[key]
        return keys

    def taken(self, installed: Mapping[PolicyKey, Compiled]) -> None:
        """Envoy serves by these now."""
        for key, (part, _) in list(self._times.items()):
            if part.routes_like(installed.get(key)):
                del self._times[key]

    def keep(self, keys: Mapping[PolicyKey, object]) -> None:
        """Forgets policies that are no more."""
        self._refused = {key: refusal for key, refusal in self._refused.items() if key in keys}
        self._times = {key: times for key, times in self._times.items() if key in keys}
