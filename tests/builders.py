"""Builders for tests: `make_spec(...)`, `make_observation(...)`; what a test does not name has a sane value."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from funicular.api.base import FINALIZER
from funicular.api.policy import Metadata
from funicular.api.spec import RoutingPolicySpec
from funicular.api.status import Status
from funicular.rollout.actions import Decision, WriteStatus
from funicular.rollout.decide import decide
from funicular.rollout.observation import GatewayFacts, Measurements, Observation, SloMeasurement
from funicular.slo.model import REPLICATES, Arm, ArmCounts, Evidence

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
STEPS = (
    {"share": 1, "minSamples": 100},
    {"share": 10, "minSamples": 100},
    {"share": 50, "minSamples": 100},
    {"share": 100, "minSamples": 100},
)
ERRORS = {"name": "errors", "indicator": "ErrorRate", "max": 0.05, "allowedIncrease": 0.03}


def spec_body(model: str = "qwen-small", **changes: Any) -> dict[str, Any]:
    """A spec as a manifest writes it: two candidates, single strategy, one enforced SLO, four steps without waits."""
    rollout = {"steps": list(STEPS), "holdback": 10, **changes.pop("rollout", {})}
    body = {
        "endpoint": {"model": "support-chat"},
        "candidates": [
            {"name": "frontier", "baseline": True, "url": "http://frontier/v1", "model": "gpt-5"},
            {"name": "mini", "url": "http://mini/v1", "model": model},
        ],
        "strategy": {"single": {"candidate": "mini"}},
        "assignment": {"minDuration": "0s"},
        "slos": [ERRORS],
        "rollout": rollout,
        "prometheus": {"url": "http://prometheus:9090", "interval": "5s"},
    }
    return {**body, **changes}


def make_spec(model: str = "qwen-small", **changes: Any) -> RoutingPolicySpec:
    return RoutingPolicySpec.model_validate(spec_body(model, **changes))


def make_metadata(**changes: Any) -> Metadata:
    found = Metadata("shop", "support-chat", "uid-1", 1, "1", "2026-11-25T11:00:00Z", None, (FINALIZER,), {}, {})
    return replace(found, **changes)


def make_observation(
    spec: RoutingPolicySpec | None = None, status: Status | None = None, **changes: Any
) -> Observation:
    seen = Observation(
        now=NOW,
        metadata=make_metadata(),
        status=status or Status(),
        spec=spec or make_spec(),
        gateways=GatewayFacts(ready=3, acked=3, acked_at=NOW),
    )
    return replace(seen, **changes)


def counts(n: float, rate: float = 0.0) -> ArmCounts:
    """Evenly over the replicates, the bad events spread as evenly as whole numbers allow."""
    bad = round(n * rate)
    per = [bad // REPLICATES + (1 if i < bad % REPLICATES else 0) for i in range(REPLICATES)]
    return ArmCounts((n / REPLICATES,) * REPLICATES, tuple(float(x) for x in per))


def evidence(treatment: float = 0.0, control: float = 0.0, n: float = 6400) -> Evidence:
    return Evidence(counts(n, treatment), counts(n, control), counts(n, control))


def make_measurements(
    status: Status, now: datetime, slos: dict[str, Evidence | str], *, n: float = 6400, **changes: Any
) -> Measurements:
    """A look at what `status` has in effect; an SLO's text instead of evidence is an error's reason."""
    assert status.traffic is not None
    share = status.step.share if status.step else 0
    began = status.step.started_at if status.step and status.step.started_at else now - timedelta(hours=1)
    found = Measurements(
        at=now,
        version=status.traffic.version,
        revision=status.traffic.revision,
        started_at=began,
        idle=status.candidate is None,
        slos=tuple(
            SloMeasurement(k, v) if isinstance(v, Evidence) else SloMeasurement(k, error=v, message=v)
            for k, v in slos.items()
        ),
        outcomes={
            Arm.TREATMENT: counts(n * share / 10_000),
            Arm.CONTROL: counts(n * (1 - share / 10_000)),
            Arm.HOLDBACK: counts(n / 10),
        },
        observed_share=share,
    )
    return replace(found, **changes)


class Ramp:
    """Plays the world for one policy: applies each decision's status, lets pods confirm, measures, and moves the clock."""

    def __init__(self, spec: RoutingPolicySpec | None = None, **facts: Any) -> None:
        self.spec = spec or make_spec()
        self.status = Status()
        self.now = NOW
        self.facts = facts
        self.events: list[str] = []
        self.actions: list[Any] = []
        self.is_acked = True

    def tick(self, seconds: float = 1.0, **facts: Any) -> Decision:
        self.now += timedelta(seconds=seconds)
        gateways = GatewayFacts(ready=3, acked=3 if self.is_acked else 0, acked_at=self.now if self.is_acked else None)
        seen = replace(
            make_observation(self.spec, self.status, now=self.now, gateways=gateways), **{**self.facts, **facts}
        )
        decision = decide(seen)
        for action in decision.actions:
            if isinstance(action, WriteStatus):  # as the API server does it: through JSON
                self.status = Status.model_validate_json(
                    action.status.model_dump_json(by_alias=True, exclude_none=True)
                )
            self.actions.append(action)
            if hasattr(action, "reason"):
                self.events.append(action.reason)
        return decision

    def measure(
        self, treatment: float = 0.0, control: float = 0.0, n: float = 6400, seconds: float = 5.0, **facts: Any
    ) -> Decision:
        slos = {slo.name: evidence(treatment, control, n) for slo in self.spec.slos}
        look = make_measurements(self.status, self.now + timedelta(seconds=seconds), slos, n=n * 100)
        return self.tick(seconds, measurements=look, **facts)

    def to_step(self, index: int) -> Ramp:
        """Ramps with good evidence until step `index` (0-based) runs."""
        for _ in range(40):
            if (
                self.status.step is not None
                and self.status.step.index == index
                and self.status.step.started_at is not None
            ):
                return self
            if self.status.step is not None and self.status.step.started_at is not None:
                self.measure()
            else:
                self.tick()
        raise AssertionError(f"step {index} was not reached: {self.status.phase} {self.status.message}")

    def to_promoted(self) -> Ramp:
        for _ in range(60):
            if self.status.phase == "Promoted":
                return self
            if self.status.step is not None and self.status.step.started_at is not None:
                self.measure()
            else:
                self.tick()
        raise AssertionError(f"not promoted: {self.status.phase} {self.status.message}")

    @property
    def share(self) -> int:
        assert self.status.traffic is not None
        return self.status.traffic.share.desired
