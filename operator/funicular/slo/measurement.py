"""What was measured, as data: the evaluator builds it, the rollout reads it, the statistics judge its evidence.

Pure. An error is data too: one SLO that cannot be asked does not silence the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from funicular.slo.model import Arm, ArmCounts, Evidence


class Trouble(StrEnum):
    """Why an SLO could not be measured; becomes the reason of `Error` or `Inconclusive`."""

    METRICS_UNAVAILABLE = "MetricsUnavailable"  # Prometheus is down, slow, overloaded
    ACCESS_DENIED = "AccessDenied"  # 401 or 403
    SECRET_MISSING = "SecretMissing"  # noqa: S105
    INVALID_QUERY = "InvalidQuery"  # does not parse
    SEVERAL_SERIES = "SeveralSeries"  # the query must give one number
    NOT_A_NUMBER = "NotANumber"  # NaN or infinity
    NO_DATA = "NoData"  # the query gives nothing
    STALE_METRICS = "StaleMetrics"  # the last sample is older than three intervals


@dataclass(frozen=True, slots=True)
class MeasurementError:
    """`retry`: it may go away by itself; else a person has to change `field`, as `remedy` says."""

    reason: Trouble
    message: str
    field: str = ""
    remedy: str = ""

    @property
    def retry(self) -> bool:
        return self.reason in (Trouble.METRICS_UNAVAILABLE, Trouble.STALE_METRICS, Trouble.NO_DATA)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One SLO in one window. Exactly one of evidence, values and error is set.

    values: of a `query.value`, by arm, the sign as the query gave it."""

    slo: str
    evidence: Evidence | None = None
    values: Mapping[Arm, float] | None = None
    error: MeasurementError | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All SLOs of a policy in one window. It speaks of this version, revision and step alone: compare before use.

    started_at: `status.step.startedAt` of the ramp; None for an idle policy (nothing ramps), whose evidence compares what is
    served (as `treatment`) with the holdback (as `control` and as `holdback`).
    outcomes: per arm, answered requests (n) and bad ones (x) by replicate: for the sample ratio and the step's samples.
    observed: treatment's share of the requests outside the holdback, in basis points; None without requests.
    error: what made the whole look fail (Prometheus down, stale); then `measurements` carry it one by one too.
    """

    uid: str
    version: int
    revision: str
    started_at: datetime | None
    at: datetime
    window_start: datetime
    measurements: tuple[Measurement, ...] = ()
    outcomes: Mapping[Arm, ArmCounts] = field(default_factory=dict)
    observed: int | None = None
    sample_age_seconds: float | None = None
    error: MeasurementError | None = None

    @property
    def is_idle(self) -> bool:
        return self.started_at is None

    @property
    def window_seconds(self) -> float:
        return max(0.0, (self.at - self.window_start).total_seconds())

    @property
    def samples(self) -> float:
        """Requests answered in the arm on trial."""
        arm = self.outcomes.get(Arm.CONTROL if self.is_idle else Arm.TREATMENT)
        return arm.total if arm else 0.0


@dataclass(frozen=True, slots=True)
class Preflight:
    """Every query of a spec was asked once. `problems` of an own query name its field; empty: all can be asked."""

    at: datetime
    problems: tuple[MeasurementError, ...] = ()
