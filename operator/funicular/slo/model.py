"""The words of a judgement: evidence in, verdict out. Shared by the statistics, the rollout and the resource's status.

Pure: no I/O and no clock. An arm's evidence is a vector over the hash replicates of the assignment unit, because users
are clusters and requests are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

REPLICATES = 64


class Arm(StrEnum):
    TREATMENT = "treatment"
    CONTROL = "control"
    HOLDBACK = "holdback"


class Outcome(StrEnum):
    """Ordered by how much it matters: the overall outcome of several is the first that occurs."""

    FAIL = "Fail"
    ERROR = "Error"
    INCONCLUSIVE = "Inconclusive"
    PASS = "Pass"  # noqa: S105 - a verdict, not a password


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """One arm's evidence: per replicate, `n` (trials or weights) and `x` (bad events, or a sum of values)."""

    n: tuple[float, ...]
    x: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.n)

    @property
    def events(self) -> float:
        return sum(self.x)

    @property
    def rate(self) -> float:
        return self.events / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a verdict may look at: the arms in the same window. `borrowed_effect` is a design effect for counts
    without replicates (a user's own query): then `n` and `x` have one element each."""

    treatment: ArmCounts
    control: ArmCounts
    holdback: ArmCounts | None = None
    borrowed_effect: float | None = None
    window_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """One SLO as the statistics see it. Values are bad-event shares in 0..1 (or means, for `kind="mean"`): a `min` on a
    good share has been turned into a `maximum` on the bad share before.

    maximum: the treatment's rate may not exceed it. allowed_increase: treatment may not exceed control by more.
    allowed_from_baseline: treatment may not exceed the holdback by more.
    """

    name: str
    kind: str = "proportion"  # proportion | mean
    maximum: float | None = None
    allowed_increase: float | None = None
    allowed_from_baseline: float | None = None
    min_samples: int = 300
    of: str = ""  # for people: what the rate counts, "failed", "over 4s", "thumbs down"
    trials: str = "requests"  # for people: what it is counted over


@dataclass(frozen=True, slots=True)
class Budget:
    """The error rates that one SLO may spend at one step."""

    alpha: float  # of a false Fail, over all looks of this SLO at this step
    beta: float  # of a false Pass, over all looks
    planned_information: float = 0.0  # effective treatment samples to plan the Fail for; 0: the test plans it itself


@dataclass(frozen=True, slots=True)
class Looks:
    """The sequential test's memory of one SLO at one step, whole: kept in status, so that a restart neither forgets
    nor repeats a look. Start with an empty one at each step; hand in what the last verdict handed back."""

    planned: float = 0.0  # effective treatment samples at which half of alpha is spent
    done: tuple[float, ...] = ()  # looks for a Fail so far, as fractions of `planned`
    failed: str = ""  # the bound that a paid look proved broken; a rejection is final within the step
    planned_pass: float = 0.0  # effective treatment samples at which half of beta is spent
    done_pass: tuple[float, ...] = ()  # looks for a Pass so far, as fractions of `planned_pass`
    passed: tuple[str, ...] = ()  # the bounds that a paid look has shown to be kept


@dataclass(frozen=True, slots=True)
class Verdict:
    slo: str
    outcome: Outcome
    reason: (
        str  # CamelCase, for conditions: WithinBound, NonInferior, Regressed, TooFewSamples, InformationSaturated ...
    )
    message: str  # one sentence with numbers
    estimate: float | None = None  # treatment's value
    reference: float | None = None  # control's value
    low: float | None = None  # confidence interval of treatment - control (or of treatment, for an absolute bound)
    high: float | None = None
    samples: float = 0.0  # requests in the treatment arm
    effective_samples: float = 0.0  # what they are worth, given that users are clusters
    needed: float = 0.0  # samples in the treatment arm that are expected to be enough; 0: unknown
    looks: Looks = field(default_factory=Looks)
    tightness: float = 0.0  # 0: far from its bound, 1: at it; orders SLOs for display
