"""What became of every request, and who was in which arm: the load generator's results as data.

Filled by load; read by the demo's report and by tests. It does no I/O but to write itself to a file.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import orjson


class Failure(StrEnum):
    """Why a request has no good answer, as its client saw it."""

    CONNECT = "connect"  # the connection was refused or could not be made
    DISCONNECTED = "disconnected"  # the connection ended before the first byte of an answer
    CUT = "cut"  # the answer began and did not end
    TIMEOUT = "timeout"
    STATUS = "status"  # 400 or more
    GARBAGE = "garbage"  # 200, and no completion in it
    NOT_SENT = "not-sent"  # too many in flight: the load generator's own fault


@dataclass(frozen=True, slots=True)
class AnswerId:
    """The header x-funicular-id, taken apart."""

    policy: str
    revision: str
    arm: str
    candidate: str
    replicate: str
    time: int
    raw: str

    @classmethod
    def parse(cls, raw: str | None) -> AnswerId | None:
        """None when there is no id or it has another shape."""
        parts = (raw or "").split(";")
        if len(parts) != 7 or not parts[5].replace(".", "", 1).isdigit():
            return None
        return cls(parts[0], parts[1], parts[2], parts[3], parts[4], int(float(parts[5])), raw or "")


@dataclass(slots=True)
class Outcome:
    """One request. Times in seconds: `at` since the epoch when it was due, `late` how much later it was sent."""

    number: str
    at: float
    late: float
    user: str
    place: str
    pod: str
    difficulty: str
    stream: bool
    status: int = 0
    failure: Failure | None = None
    detail: str = ""
    latency: float = 0.0
    first_byte: float = 0.0
    answer: AnswerId | None = None
    model: str = ""
    good: bool | None = None
    tried_before: tuple[str, ...] = ()
    vote: str = ""
    vote_status: int = 0
    provider_faults: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return self.failure is None

    @property
    def lost(self) -> bool:
        """It failed, and no provider says that it had failed it. Known only after `Results.attribute`."""
        return self.failure is not None and not self.provider_faults

    def explain(self) -> str:
        """One line about a request that failed."""
        if self.failure is None:
            return f"request {self.number}: {self.status}"
        arm = f" {self.answer.arm}/{self.answer.candidate}" if self.answer else ""
        whose = (
            f"provider: {', '.join(self.provider_faults)}" if self.provider_faults else "LOST: no provider failed it"
        )
        return (f"{self.at:.3f} request {self.number} of {self.user or 'nobody'} to {self.pod}{arm}: {self.failure.value} "
                f"{self.status or ''} after {self.latency * 1e3:.0f} ms ({whose}) {self.detail}")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of time in which one share was in effect: from all gateways' acknowledgement to the next change."""

    name: str
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class StepUsers:
    """Who was where in one step. `left_out`: treated in an earlier step, seen in this one, and not always treated."""

    step: Step
    requests: int
    users: int
    treated: frozenset[str]
    control: frozenset[str]
    holdback: frozenset[str]
    both: frozenset[str]
    left_out: frozenset[str]

    @property
    def contains_the_step_before(self) -> bool:
        return not self.left_out


@dataclass
class Results:
    """All outcomes of a load, in the order in which they ended."""

    outcomes: list[Outcome] = field(default_factory=list)

    def attribute(self, failures: Iterable[Mapping[str, Sequence[str]]]) -> None:
        """Writes into each outcome what providers (their GET /admin/failures) say they did to it."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for of_one in failures:
            for number, fates in of_one.items():
                found[number] += fates
        for outcome in self.outcomes:
            outcome.provider_faults = tuple(found.get(outcome.number, ()))

    def write(self, path: Path) -> None:
        """JSON lines, one outcome each."""
        with path.open("wb") as file:
            for outcome in self.outcomes:
                file.write(orjson.dumps(outcome, option=orjson.OPT_APPEND_NEWLINE))

    @property
    def failed(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.failure is not None]

    @property
    def lost(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.lost]

    @property
    def retried(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.tried_before]

    def by_arm(self) -> Counter[str]:
        return Counter(o.answer.arm for o in self.outcomes if o.answer)

    def of_users(self) -> dict[str, list[tuple[float, AnswerId]]]:
        """Every identified user's answers: when, and from whom."""
        users: defaultdict[str, list[tuple[float, AnswerId]]] = defaultdict(list)
        for outcome in sorted(self.outcomes, key=lambda o: o.at):
            if outcome.user and outcome.answer:
                users[outcome.user].append((outcome.at, outcome.answer))
        return dict(users)

    def per_step(self, steps: Sequence[Step], revision: str) -> list[StepUsers]:
        """Who was treated with `revision` in each step, and whether each step's treated users contain those before."""
        rows: list[StepUsers] = []
        before: set[str] = set()
        for step in steps:
            arms: defaultdict[str, set[str]] = defaultdict(set)
            requests = 0
            for outcome in self.outcomes:
                if not step.since <= outcome.at < step.until or not outcome.answer:
                    continue
                requests += 1
                if outcome.user:
                    arm = outcome.answer.arm
                    if arm == "treatment" and outcome.answer.revision != revision:
                        arm = "another revision"
                    arms[outcome.user].add(arm)
            treated = {user for user, seen in arms.items() if seen == {"treatment"}}
            both = {user for user, seen in arms.items() if len(seen) > 1}
            rows.append(StepUsers(
                step, requests, len(arms), frozenset(treated),
                frozenset(user for user, seen in arms.items() if seen == {"control"}),
                frozenset(user for user, seen in arms.items() if seen == {"holdback"}),
                frozenset(both), frozenset((before & arms.keys()) - treated),
            ))  # fmt: skip
            before |= treated
        return rows

    def moved_back(self, revision: str, since: float, until: float) -> dict[str, float]:
        """Users once treated with `revision` and later, before `until`, not: each with the time of the first such answer."""
        treated: set[str] = set()
        back: dict[str, float] = {}
        for outcome in sorted(self.outcomes, key=lambda o: o.at):
            if not since <= outcome.at < until or not outcome.user or not outcome.answer:
                continue
            if outcome.answer.arm == "treatment" and outcome.answer.revision == revision:
                treated.add(outcome.user)
            elif outcome.user in treated:
                back.setdefault(outcome.user, outcome.at)
        return back
