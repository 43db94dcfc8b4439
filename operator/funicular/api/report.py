"""What agents tell the operator: HTTP bodies of `POST /v1/report` (operator's report port, leader only).

Nothing of it is stored: an agent tells everything again when the operator restarts or another replica leads. It finds
the leader by the Lease `funicular-operator`: the annotation REPORT_URL is its report address. Trust: the agent sends its
projected service account token (audience AUDIENCE) as a bearer; the operator reviews it and checks that the pod named in
the token is the pod that reports.

Answers: 200 {"resync": false}; 200 {"resync": true}: send a full report; 401/403; 503: not the leader (look at the Lease).
"""

from __future__ import annotations

from pydantic import Field

from funicular.api.base import StatusModel

LEASE = "funicular-operator"
REPORT_URL = "routing.funicular.dev/report-url"
AUDIENCE = "funicular-operator"
REPORT_PATH = "/v1/report"


class Ack(StatusModel):
    """Envoy of this pod serves version `version` of a policy's traffic; or could not take it, and why."""

    version: int
    error: str | None = None


class ArmReport(StatusModel):
    """Per replicate, since Envoy counted this revision first: requests, bad outcomes, answers over the largest latency bound."""

    n: tuple[int, ...] = ()
    bad: tuple[int, ...] = ()
    slow: tuple[int, ...] = ()


class Counts(StatusModel):
    """A ramping policy's counters in this pod since the share of `version` took effect there: feeds the fast-burn guard."""

    version: int
    revision: str
    arms: dict[str, ArmReport]


class Report(StatusModel):
    pod: str
    namespace: str
    uid: str
    session: str = Field(description="Random, anew at each start of the agent.")
    full: bool = Field(
        default=False, description="True: `acks` holds every policy; false: only what changed since the last report."
    )
    acks: dict[str, Ack] = Field(default_factory=dict, description="By the policy's uid.")
    counts: dict[str, Counts] = Field(
        default_factory=dict, description="By the policy's uid; only of ramping policies."
    )


class ReportAnswer(StatusModel):
    resync: bool = False
