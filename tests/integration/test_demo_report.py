"""The demo's report on made observations, its drawings, and an interrupted demo. The whole demo is `make demo`'s business."""

from __future__ import annotations

import io
import json
import re
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from funicular.api.status import Rejected, RevisionStatus, Status, StepStatus, Timings, VerdictStatus
from funicular.api.traffic import Route, Share, Traffic
from hack.demo import plots, report
from hack.demo.findings import Run, as_json, find
from hack.demo.interrupt_check import interrupted_after
from hack.demo.live import Screen
from hack.demo.measure import WINDOW, Measured, Money, Point, Series, wilson
from hack.demo.policies import REGRESSIONS
from hack.demo.stories import Check
from hack.demo.timeline import Seen, Timeline
from hack.sim.outcomes import AnswerId, Failure, Outcome, Results

START = 1_800_000_000.0
GOOD, BAD = "0000000001", "0000000002"


def instant(second: float) -> datetime:
    return datetime.fromtimestamp(START + second, UTC)


def seen(second: float, candidate: str | None, share: int, started: float | None = None, **more: object) -> Seen:
    """The policy at a second: `candidate` ramps at `share` basis points since `started`."""
    stable = Route(revision=GOOD, upstreams=(), baseline="frontier")
    ramping = Route(revision=candidate, upstreams=(), baseline="frontier") if candidate else None
    traffic = Traffic(
        version=1,
        revision=candidate or GOOD,
        share=Share(desired=share, acked=share, observed=share),
        endpoint="support-chat",
        selector={},
        units=(),
        stable=stable,
        candidate=ramping,
    )
    step = None
    if candidate and started is not None:
        step = StepStatus(index=0, of=2, share=share, entered_at=instant(started - 0.2), started_at=instant(started))
    now = RevisionStatus(revision=candidate) if candidate else None
    fields = {"traffic": traffic, "step": step, "candidate": now, "stable": RevisionStatus(revision=GOOD), **more}
    return Seen(START + second, 1, {}, Status(**fields))


def answered(second: float, user: str, arm: str, revision: str, *, candidate: str = "mini", **more: object) -> Outcome:
    raw = f"demo/support-chat;{revision};{arm};{candidate};7;{int(START + second)};0"
    found = Outcome(
        f"{user}-{second}", START + second, 0.0, user, "x-user-id", "http://gateway", "easy", False, 200, latency=0.05
    )
    found.answer, found.good = AnswerId.parse(raw), True
    for name, value in more.items():
        setattr(found, name, value)
    return found


@pytest.fixture
def run() -> Run:
    """Two steps of the bad revision; at 24 it turns bad, at 26 it is reverted."""
    timeline = Timeline()
    reverted = {
        "reverted_at": instant(26),
        "timings": Timings(decision_to_acked_ms=80.0),
        "rejected": (Rejected(revision=BAD, at=instant(26), reason="Regressed", message="errors: 30 % against 0 %"),),
    }
    timeline.seen += [
        seen(1, None, 0),
        seen(10, BAD, 100, started=10.0),
        seen(20, BAD, 1000, started=20.0),
        seen(26.05, None, 0, **reverted),
        seen(30, None, 0, **reverted),
    ]
    for name, second in {
        "story1": 0,
        "promoted": 2,
        "story2": 8,
        "regression": 24,
        "verdict": 26,
        "reverted": 26.08,
        "again": 35,
        "end": 40,
    }.items():
        timeline.mark(name, START + second)
    outcomes = [
        answered(12, "a", "treatment", BAD),
        answered(12, "b", "control", BAD),
        answered(21, "a", "treatment", BAD),
        answered(22, "b", "treatment", BAD),
        answered(23, "c", "holdback", BAD, candidate="frontier"),
        answered(25.99, "a", "control", GOOD),  # under way when the share was taken: nobody can say what held for it
        *(answered(3 + i / 10, "d", "control", GOOD) for i in range(10)),
        *(answered(28 + i / 10, "d", "control", GOOD) for i in range(10)),
    ]
    points = tuple(Point(START + s, 0.02, *wilson(0.02, 200), 200.0) for s in range(10, 26))
    measured = Measured(
        {
            name: tuple(Series(arm, BAD, points) for arm in ("treatment", "control"))
            for name in ("errors", "p95", "thumbs-up", "cost")
        },
        Money(baseline=3.0, real=2.0),
    )
    checks = (Check("the good candidate was promoted", True, ""), Check("the bad revision was reverted", True, ""))
    return Run(timeline, Results(outcomes), measured, REGRESSIONS["errors"], GOOD, BAD, checks, 10.0, 40.0, 0)


def test_the_numbers_are_those_of_what_was_seen(run: Run) -> None:
    numbers = as_json(find(run))
    assert numbers["ok"]
    assert (numbers["promoted"], numbers["reverted"]) == (True, True)
    assert (numbers["verdict_seconds"], numbers["revert_ms"]) == (2.0, 80.0)
    assert (numbers["money_saved"], numbers["requests_sent"], numbers["requests_lost"]) == (1.0, 26, 0)
    assert [(row["share"], row["treated"]) for row in numbers["users_per_step"]] == [(1.0, 1), (10.0, 2)]
    assert numbers["nested"]
    assert numbers["users_per_step"][0]["ordered_to_effect_ms"] == pytest.approx(200, abs=1)


def test_a_request_that_no_provider_failed_is_lost(run: Run) -> None:
    broken = answered(22, "e", "control", BAD, failure=Failure.STATUS, status=503)
    theirs = answered(22.5, "f", "control", BAD, failure=Failure.STATUS, status=503)
    run.results.outcomes += [broken, theirs]
    run.results.attribute([{theirs.number: ["error"]}])
    numbers = as_json(find(run))
    assert (numbers["requests_failed"], numbers["requests_lost"], numbers["ok"]) == (2, 1, False)
    assert numbers["requests_failed_by_providers"] == 1
    assert "user" not in numbers["lost"][0] or broken.number in numbers["lost"][0]


def test_a_treated_user_who_falls_out_at_the_next_step_is_told(run: Run) -> None:
    run.results.outcomes.append(answered(21.5, "a", "control", BAD))
    numbers = as_json(find(run))
    assert (numbers["nested"], numbers["ok"]) == (False, False)


def test_untreated_users_thrown_back_to_the_frontier_are_told(run: Run) -> None:
    run.results.outcomes += [answered(29 + i / 20, "d", "control", GOOD, candidate="frontier") for i in range(20)]
    found = find(run)
    assert [c.ok for c in found.checks if "thrown back" in c.name] == [False]


def test_a_request_to_the_bad_revision_after_the_revert_is_told(run: Run) -> None:
    run.results.outcomes.append(answered(27, "a", "treatment", BAD))
    assert [c.ok for c in find(run).checks if "after the revert" in c.name] == [False]


def test_the_verdict_that_reverted_is_shown_until_the_end(run: Run) -> None:
    timeline = run.timeline
    verdicts = (
        VerdictStatus(slo="p95", outcome="Pass", reason="WithinBound", estimate=0.0, samples=50),
        VerdictStatus(slo="errors", outcome="Inconclusive", reason="TooFewSamples", estimate=0.2, samples=50),
    )
    timeline.seen.insert(3, seen(25, BAD, 1000, started=20.0, verdicts=verdicts))
    shown = timeline.verdicts()
    assert shown.of == BAD
    assert [(it.slo, it.outcome, it.estimate) for it in shown.rows] == [("errors", "Fail", 0.3), ("p95", "Pass", 0.0)]
    screen = Screen(Console(width=80, height=24, file=io.StringIO(), force_terminal=True), timeline)
    screen.console.print(screen._draw())
    assert isinstance(screen.console.file, io.StringIO)
    assert "Fail Regressed" in screen.console.file.getvalue()


def test_when_the_last_request_was_sent_is_told_from_the_verdict(run: Run) -> None:
    run.results.outcomes.append(answered(26.021, "a", "treatment", BAD))
    said = [c.seen for c in find(run).checks if "after the revert" in c.name]
    assert said == ["the last one was sent 21 ms after the verdict, before the last pod confirmed at 80 ms"]


def test_the_summary_wraps_between_words(run: Run, tmp_path: Path) -> None:
    out = io.StringIO()
    numbers = as_json(find(run))
    report.summary(numbers, Console(width=80, file=out, force_terminal=True, color_system=None), tmp_path)
    words = {word for check in numbers["checks"] for word in f"{check['name']}: {check['seen']}".split()}
    assert words <= set(out.getvalue().split())


def test_the_page_is_one_file_without_network(run: Run, tmp_path: Path) -> None:
    report.write(find(run), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', page)
    assert "url(http" not in page
    assert "@import" not in page
    assert page.count("<svg") == 7
    assert "seconds from the first apply" in page
    assert json.loads((tmp_path / "report.json").read_text())["regression"] == "errors"
    assert len((tmp_path / "timeline.jsonl").read_text().splitlines()) == len(run.timeline.seen)


def test_drawings_take_their_colours_from_the_page(run: Run) -> None:
    drawing = plots.shares(find(run))
    assert "var(--treatment)" in drawing
    assert not any(colour in drawing for colour in plots.COLOURS.values())


def test_a_run_that_broke_off_has_a_report_too(tmp_path: Path) -> None:
    timeline = Timeline()
    timeline.mark("story1", START)
    timeline.seen.append(seen(1, None, 0))
    broken = Run(
        timeline, Results(), None, REGRESSIONS["thumbs"], GOOD, BAD, (), 1.0, 2.0, 0, broken="there is no policy"
    )
    numbers = report.write(find(broken), tmp_path)
    assert (numbers["ok"], numbers["promoted"], numbers["verdict_seconds"]) == (False, False, None)
    assert "there is no policy" in (tmp_path / "report.html").read_text()


def test_a_band_is_never_empty_and_stays_a_share() -> None:
    low, high = wilson(0.0, 20)
    assert low == 0.0
    assert 0.1 < high < 0.2
    assert WINDOW > 0


@pytest.mark.parametrize(
    ("seconds", "number"),
    [
        pytest.param(4.0, signal.SIGINT, id="while the control plane starts"),
        pytest.param(14.0, signal.SIGTERM, id="while the stories are told"),
    ],
)
def test_an_interrupted_demo_leaves_nothing_behind(seconds: float, number: signal.Signals, tmp_path: Path) -> None:
    code, _, _, left = interrupted_after(seconds, number, tmp_path)
    assert left == []
    assert code in (128 + number, -number)
