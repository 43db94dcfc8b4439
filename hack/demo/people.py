"""Who is in which arm at this moment, from the answers' ids, while the load runs.

Fed by the load's thread, read by the live table: each user counts where the last answer put him.
"""

from __future__ import annotations

from collections import Counter

from hack.sim.outcomes import Outcome


class People:
    """Plain dict writes from one thread, snapshots from another: safe under the interpreter's lock."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, str]] = {}
        self.answers: Counter[tuple[str, str]] = Counter()  # arm, candidate: since the start

    def see(self, outcome: Outcome) -> None:
        answer = outcome.answer
        if answer is None:
            return
        self.answers[answer.arm, answer.candidate] += 1
        if outcome.user:
            self._last[outcome.user] = (answer.arm, answer.revision)

    def by_arm(self) -> Counter[str]:
        return Counter(arm for arm, _ in tuple(self._last.values()))
