"""From what was seen to what is claimed: the numbers of report.json and the checks. Pure; called by the report.

Everything comes from three independent witnesses: the load generator (what users got), the policy's status (what the
operator decided and when) and Prometheus (money). Nothing is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hack.demo.measure import Measured
from hack.demo.policies import Regression
from hack.demo.stories import Check
from hack.demo.timeline import StepInEffect, Timeline
from hack.sim.outcomes import Outcome, Results, Step, StepUsers

Json = dict[str, Any]
EDGE = 0.02  # seconds for what the clocks of two processes may differ in order
MIX_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """All that a run left behind."""

    timeline: Timeline
    results: Results
    measured: Measured | None
    regression: Regression
    good: str
    bad: str
    checks: tuple[Check, ...]
    setup_seconds: float
    demo_seconds: float
    votes_failed: int
    broken: str = ""
    build_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step of one ramp, as users saw it."""

    story: int
    step: StepInEffect
    users: StepUsers


@dataclass(frozen=True, slots=True)
class Findings:
    run: Run
    steps: tuple[StepRow, ...]
    mixes: dict[str, float | None]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return not self.run.broken and all(check.ok for check in self.checks)


def find(run: Run) -> Findings:
    steps = tuple(_steps(run))
    mixes = _mixes(run)
    checks = [*run.checks, *_users_checks(run, steps, mixes)]
    return Findings(run, steps, mixes, tuple(checks))


def _steps(run: Run) -> list[StepRow]:
    end = run.timeline.marks.get("end", run.timeline.seen[-1].at if run.timeline.seen else 0.0)
    in_effect = run.timeline.steps(end)
    results = _clear_of([it.until for it in in_effect], run.results)
    rows: list[StepRow] = []
    for story, revision in ((1, run.good), (2, run.bad)):
        own = [it for it in in_effect if it.revision == revision]
        named = [Step(f"{it.share:g} %", it.since, it.until) for it in own]
        users = results.per_step(named, revision)
        rows += [StepRow(story, step, found) for step, found in zip(own, users, strict=True)]
    return rows


def sent_at(outcome: Outcome) -> float:
    """`at` is when it was due: a busy machine sends later."""
    return outcome.at + outcome.late


def _clear_of(instants: Sequence[float], results: Results) -> Results:
    """By when they were sent; without those that were under way at one of these instants: nobody can say what held for them."""
    kept = []
    for outcome in results.outcomes:
        sent, ended = sent_at(outcome), outcome.at + outcome.latency
        if not any(sent - EDGE <= instant <= ended for instant in instants):
            kept.append(replace(outcome, at=sent))
    return Results(kept)


def _mixes(run: Run) -> dict[str, float | None]:
    """The cheap model's share of the answers to untreated users: after the promotion, during story 2, after the revert."""
    marks = run.timeline.marks
    windows = {
        "after_promotion": (marks.get("promoted"), marks.get("story2")),
        "during_story_2": (marks.get("story2"), marks.get("verdict")),
        "after_revert": (marks.get("reverted"), marks.get("again")),
    }
    return {
        name: _cheap_share(run.results.outcomes, since, until) if since and until else None
        for name, (since, until) in windows.items()
    }


def _cheap_share(outcomes: Sequence[Outcome], since: float, until: float) -> float | None:
    candidates = [
        o.answer.candidate for o in outcomes if since <= sent_at(o) < until and o.answer and o.answer.arm == "control"
    ]
    return candidates.count("mini") / len(candidates) if candidates else None


def last_bad_request(run: Run) -> float | None:
    """When the last request was sent that the bad revision's treatment answered."""
    sent = [sent_at(o) for o in run.results.outcomes if is_bad_treatment(o, run.bad)]
    return max(sent, default=None)


def is_bad_treatment(outcome: Outcome, bad: str) -> bool:
    return outcome.answer is not None and outcome.answer.arm == "treatment" and outcome.answer.revision == bad


def _users_checks(run: Run, steps: Sequence[StepRow], mixes: dict[str, float | None]) -> list[Check]:
    results, marks = run.results, run.timeline.marks
    left_out = sum(len(row.users.left_out) for row in steps)
    found = [
        Check("no request was lost", not results.lost, f"{len(results.lost)} of {len(results.outcomes):,} sent"),
        Check(
            "each step's users contain those of the step before",
            bool(steps) and left_out == 0,
            f"{left_out} users left out in {len(steps)} steps",
        ),
    ]
    before, after = mixes["after_promotion"], mixes["after_revert"]
    if before is not None and after is not None:
        kept = abs(before - after) <= MIX_TOLERANCE
        found.append(
            Check(
                "untreated users were not thrown back to the frontier model",
                kept,
                f"mini answered {before:.0%} of their requests before, {after:.0%} after",
            )
        )
    last, reverted = last_bad_request(run), marks.get("reverted")
    if last is not None and reverted is not None:
        gone = last <= reverted + EDGE
        found.append(
            Check(
                "after the revert no request reached the bad revision",
                gone,
                _when_last(1000 * (last - marks["verdict"]), 1000 * (reverted - marks["verdict"])),
            )
        )
    return found


def _when_last(last: float, confirmed: float) -> str:
    """Both in milliseconds from the verdict."""
    if last < 0:
        return f"the last one was sent {-last:.0f} ms before the verdict"
    order = "before" if last <= confirmed else "after"
    return (
        f"the last one was sent {last:.0f} ms after the verdict, {order} the last pod confirmed at {confirmed:.0f} ms"
    )


def as_json(found: Findings) -> Json:
    """report.json."""
    run, marks = found.run, found.run.timeline.marks
    results, money = run.results, run.measured.money if run.measured else None
    seen = {check.name: check.ok for check in run.checks}
    verdict = marks["verdict"] - marks["regression"] if "verdict" in marks and "regression" in marks else None
    status = run.timeline.status()
    revert = status.timings.decision_to_acked_ms if status.timings and "verdict" in marks else None
    late = sorted(o.late for o in results.outcomes)
    return {
        "regression": run.regression.kind,
        "ok": found.ok,
        "promoted": seen.get("the good candidate was promoted", False),
        "reverted": seen.get("the bad revision was reverted", False),
        "requests_sent": len(results.outcomes),
        "requests_failed": len(results.failed),
        "requests_failed_by_providers": len(results.failed) - len(results.lost),
        "requests_lost": len(results.lost),
        "lost": [o.explain() for o in results.lost[:50]],
        "votes_failed": run.votes_failed,
        "load_late_p99_ms": round(1000 * late[int(0.99 * len(late))], 1) if late else None,
        "verdict_seconds": round(verdict, 2) if verdict is not None else None,
        "revert_ms": revert,
        "users_per_step": [_step_json(row) for row in found.steps],
        "nested": bool(found.steps) and all(row.users.contains_the_step_before for row in found.steps),
        "untreated_users_cheap_share": {k: None if v is None else round(v, 3) for k, v in found.mixes.items()},
        "money_baseline": round(money.baseline, 4) if money else None,
        "money_real": round(money.real, 4) if money else None,
        "money_saved": round(money.saved, 4) if money else None,
        "build_seconds": round(run.build_seconds, 1),
        "setup_seconds": round(run.setup_seconds, 1),
        "demo_seconds": round(run.demo_seconds, 1),
        "revisions": {"good": run.good, "bad": run.bad},
        "broken": run.broken,
        "checks": [{"name": c.name, "ok": c.ok, "seen": c.seen} for c in found.checks],
        "rejected": [{"revision": r.revision, "reason": r.reason, "message": r.message} for r in status.rejected],
    }


def _step_json(row: StepRow) -> Json:
    users = row.users
    return {
        "story": row.story,
        "share": row.step.share,
        "ordered_to_effect_ms": round(1000 * (row.step.since - row.step.entered), 1),
        "seconds": round(row.step.until - row.step.since, 1),
        "requests": users.requests,
        "users_seen": users.users,
        "treated": len(users.treated),
        "control": len(users.control),
        "holdback": len(users.holdback),
        "left_out": len(users.left_out),
        "contains_the_step_before": users.contains_the_step_before,
    }
