"""What the gateways obey: `status.traffic`. The operator writes it, every agent compiles it, nothing else decides traffic.

It is whole in itself (both revisions' routes, not references to a spec), so that one atomic write moves all pods and a
spec edited in mid-ramp changes nothing by itself.
"""

from __future__ import annotations

from pydantic import Field

from funicular.api.base import StatusModel
from funicular.api.duration import Duration
from funicular.api.spec import Credentials, LabelValue, ModelName, Price, UnitSource

WHOLE = 10_000  # basis points
LONGEST = 253  # characters of a revision's name


class Upstream(StatusModel):
    """One candidate, as the gateways call it."""

    name: str
    url: str
    model: str
    credentials: Credentials | None = None
    price: Price | None = None
    timeout: Duration = "60s"


class ClassifierRoute(StatusModel):
    url: str = Field(description="Base URL of the classifier; the gateway posts to URL/v1/classify.")
    threshold: float
    timeout: Duration
    routes: dict[str, str] = Field(description="Label -> name of the upstream; any other answer: the baseline.")


class Route(StatusModel):
    """One revision: where its requests go. Neither classifier nor single: all to the baseline."""

    revision: str
    upstreams: tuple[Upstream, ...]
    baseline: str
    classifier: ClassifierRoute | None = None
    single: str | None = None

    @property
    def is_baseline_only(self) -> bool:
        return self.classifier is None and self.single is None


class Share(StatusModel):
    """Basis points of the units outside the holdback."""

    desired: int = Field(default=0, ge=0, le=WHOLE, description="What is ordered.")
    acked: int | None = Field(
        default=None, ge=0, le=WHOLE, description="What all ready gateway pods have confirmed; null: not all have."
    )
    observed: int | None = Field(default=None, ge=0, le=WHOLE, description="What the metrics show.")


class Traffic(StatusModel):
    """version rises with every change of anything below but acked and observed; agents acknowledge it by number."""

    version: int = Field(ge=0, description="Rises with every change of what gateways obey.")
    revision: str = Field(
        max_length=LONGEST,
        description="The revision that `share` speaks of: the candidate's, or the stable one when nothing ramps.",
    )
    share: Share = Field(description="How many are treated.")
    endpoint: ModelName = Field(description="What applications send as model.")
    selector: dict[str, LabelValue] = Field(max_length=16, description="Labels of the gateway pods that serve it.")
    units: tuple[UnitSource, ...] = Field(max_length=8, description="Places of the assignment unit.")
    salt: str = Field(default="", max_length=64, description="Mixed into the hash of the holdback.")
    holdback: int = Field(
        default=0, ge=0, le=WHOLE, description="Basis points of the units that always get the baseline."
    )
    stable: Route = Field(description="Where control goes.")
    candidate: Route | None = Field(default=None, description="Where treatment goes; absent when nothing ramps.")
    latency_bounds: dict[str, Duration] = Field(
        default_factory=dict, max_length=16, description="Bound of each latency indicator."
    )

    @property
    def compared(self) -> Route:
        """The revision that the arms are compared for: labels all of a policy's series."""
        return self.candidate or self.stable

    @property
    def is_measured(self) -> bool:
        """Whether the arms can differ, so that replicate series are worth their cost."""
        return self.candidate is not None or (self.holdback > 0 and not self.stable.is_baseline_only)
