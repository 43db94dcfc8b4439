"""The report's plots as SVG, in colours that the page's style sheet decides: one drawing for light and for dark.

Called by the report. Colours are drawn as placeholders and replaced by CSS variables afterwards; text stays text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from hack.demo.findings import Findings, is_bad_treatment, sent_at
from hack.demo.measure import Series
from hack.demo.policies import LATENCY_BOUND_MS
from hack.demo.timeline import Seen
from hack.sim.outcomes import Outcome

COLOURS = {
    "text": "#010101",
    "grid": "#020202",
    "treatment": "#030303",
    "control": "#040404",
    "holdback": "#050505",
    "bad": "#060606",
    "good": "#070707",
    "faint": "#080808",
}
MARKS = (  # name, text, colour, where the text ends, row
    ("promoted", "promoted", "good", "right", 0),
    ("story2", "story 2", "faint", "left", 0),
    ("regression", "regression", "bad", "right", 0),
    ("verdict", "revert", "treatment", "left", 0),
    ("again", "applied again", "faint", "left", 1),
)
ARMS = ("holdback", "control", "treatment")
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": COLOURS["text"],
    "axes.edgecolor": COLOURS["grid"],
    "axes.labelcolor": COLOURS["text"],
    "xtick.color": COLOURS["text"],
    "ytick.color": COLOURS["text"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.6,
    "axes.titlelocation": "left",
    "svg.hashsalt": "funicular",
}
WIDTH = 9.6
GAP = "\N{NO-BREAK SPACE}"  # a plain one at the end of a text is nothing in SVG


def shares(found: Findings) -> str:
    """Share ordered, confirmed and observed."""

    def draw(axes: Axes) -> None:
        start, seen = _start(found), found.run.timeline.seen
        end = found.run.timeline.marks.get("end", seen[-1].at if seen else start)
        at = [*(it.at - start for it in seen), end - start]
        observed = [
            (it.at - start, it.status.traffic.share.observed / 100)
            for it in seen
            if it.status.traffic and it.status.candidate and it.status.traffic.share.observed is not None
        ]
        acked = [
            (it.at - start, it.status.traffic.share.acked / 100)
            for it in seen
            if it.status.traffic and it.status.candidate and it.status.traffic.share.acked is not None
        ]
        ordered = _until_the_end([it.share if _ramps_or_reverted(it) else math.nan for it in seen])
        stable = _until_the_end([100 - it.share if _is_stable(it, found.run.good) else math.nan for it in seen])
        axes.step(at, stable, where="post", color=COLOURS["control"], lw=2, label="promoted: all outside the holdback")
        axes.step(at, ordered, where="post", color=COLOURS["treatment"], lw=2, label="ordered")
        axes.fill_between(at, ordered, step="post", color=COLOURS["treatment"], alpha=0.12, lw=0)
        axes.scatter(*_columns(acked), s=9, color=COLOURS["good"], zorder=3, label="confirmed by all pods")
        axes.scatter(*_columns(observed), s=7, color=COLOURS["holdback"], zorder=3, label="observed in the metrics")
        axes.set_ylabel("share of the revision, %")
        axes.set_ylim(-3, 104)

    return _plot(found, draw, height=3.0)


def slo(found: Findings, name: str) -> str:
    """One SLO of the arms, with bands."""
    labels: Mapping[str, tuple[str, float]] = {
        "errors": ("bad answers, %", 100.0),
        "p95": (f"answers over {LATENCY_BOUND_MS} ms, %", 100.0),
        "thumbs-up": ("thumbs up, % of thumbs", 100.0),
        "cost": ("dollars per 1,000 requests", 1000.0),
    }
    label, factor = labels[name]
    measured = found.run.measured
    series = measured.slos[name] if measured else ()

    def draw(axes: Axes) -> None:
        start, named = _start(found), set()
        for arm in ARMS:
            for it in (s for s in series if s.arm == arm):
                for run in _unbroken(_while_it_had_traffic(it, found)):
                    at, values, low, high = run
                    x = [a - start for a in at]
                    axes.fill_between(
                        x, [factor * v for v in low], [factor * v for v in high], color=COLOURS[arm], alpha=0.16, lw=0
                    )
                    axes.plot(
                        x, [factor * v for v in values], color=COLOURS[arm], lw=1.6, label=None if arm in named else arm
                    )
                    named.add(arm)
        axes.set_ylabel(label)
        if name == "thumbs-up":
            axes.set_ylim(max(0, axes.get_ylim()[0]), 101)
        else:
            axes.set_ylim(0, max(axes.get_ylim()[1], 6.0 if name == "p95" else 0.0))
        if name == "p95":
            axes.axhline(5, color=COLOURS["bad"], lw=1, ls="--", label="bound: 5 %")

    return _plot(found, draw, height=2.6)


def revert(found: Findings) -> str:
    """The seconds around the verdict: requests that the bad revision answered, by when they were sent."""
    marks = found.run.timeline.marks
    if "verdict" not in marks:
        return ""
    bin_seconds, verdict = 0.25, marks["verdict"]
    since = min(marks.get("regression", verdict) - 3, verdict - 5)

    def draw(axes: Axes) -> None:
        counts: dict[int, list[int]] = {}
        for o in found.run.results.outcomes:
            if since <= sent_at(o) < verdict + 4 and is_bad_treatment(o, found.run.bad):
                counts.setdefault(int((sent_at(o) - verdict) // bin_seconds), [0, 0, 0])[_fate(o)] += 1
        bins = range(int((since - verdict) // bin_seconds), int(4 / bin_seconds))
        at, bottom = [b * bin_seconds for b in bins], [0] * len(bins)
        kinds = (
            ("good answer", "treatment"),
            ("failed there, rescued by the baseline", "holdback"),
            ("failed, slow or of no use", "bad"),
        )
        for fate, (label, colour) in enumerate(kinds):
            values = [counts.get(b, [0, 0, 0])[fate] for b in bins]
            axes.bar(
                at, values, bottom=bottom, width=bin_seconds, align="edge", color=COLOURS[colour], lw=0, label=label
            )
            bottom = [x + y for x, y in zip(bottom, values, strict=True)]
        axes.set_ylabel("requests in 0.25 s")
        axes.set_xlabel("seconds from the verdict")
        top = axes.get_ylim()[1]
        axes.set_ylim(0, top * 1.25)
        revert_ms = 1000 * (marks.get("reverted", verdict) - verdict)
        for key, text, colour in (
            ("regression", "regression", "bad"),
            ("verdict", f"verdict; all pods confirmed {revert_ms:.0f} ms later", "good"),
        ):
            if key in marks:
                axes.axvline(marks[key] - verdict, color=COLOURS[colour], lw=1.2, ls="--")
                axes.text(
                    marks[key] - verdict,
                    top * 1.17,
                    f"{GAP}{text}{GAP}",
                    color=COLOURS[colour],
                    fontsize=8,
                    ha="right" if key == "regression" else "left",
                )

    return _figure(draw, height=2.8)


def _fate(outcome: Outcome) -> int:
    """0: a good answer in time; 1: the same, though the cheap route had failed; 2: none."""
    slow = (outcome.latency - outcome.late) * 1000 > LATENCY_BOUND_MS
    if not outcome.ok or outcome.good is False or slow:
        return 2
    return 1 if outcome.provider_faults else 0


def users(found: Findings) -> str:
    """Treated users per step: those of the step before, and new ones."""

    def draw(axes: Axes) -> None:
        names, kept, fresh = [], [], []
        before: frozenset[str] = frozenset()
        story = 0
        for row in found.steps:
            if row.story != story:
                before, story = frozenset(), row.story
            names.append(f"story {row.story}\n{row.step.share:g} %")
            kept.append(len(row.users.treated & before))
            fresh.append(len(row.users.treated - before))
            before |= row.users.treated
        axes.bar(names, kept, color=COLOURS["treatment"], label="treated in an earlier step too")
        axes.bar(names, fresh, bottom=kept, color=COLOURS["treatment"], alpha=0.4, label="new in this step")
        for i, (a, b) in enumerate(zip(kept, fresh, strict=True)):
            axes.text(i, a + b, f"{a + b:,}", ha="center", va="bottom", fontsize=8)
        axes.set_ylabel("treated users seen in the step")
        axes.grid(visible=False, axis="x")

    return _figure(draw, height=2.6)


# --- drawing ----------------------------------------------------------------------------------------------------------
def _start(found: Findings) -> float:
    return found.run.timeline.marks.get("story1", found.run.timeline.seen[0].at if found.run.timeline.seen else 0.0)


def _ramps_or_reverted(it: Seen) -> bool:
    """While nothing ramps because the last one was promoted, there is no share to draw."""
    return it.share > 0 or bool(it.status.rejected)


def _is_stable(it: Seen, revision: str) -> bool:
    """It was promoted; a revision that never ramped (the first) has no holdback and no place in the drawing."""
    stable = it.status.stable
    candidate = it.status.candidate
    return stable is not None and stable.revision == revision and (candidate is None or candidate.revision != revision)


def _until_the_end(values: list[float]) -> list[float]:
    return values + values[-1:]


def _while_it_had_traffic(series: Series, found: Findings) -> Series:
    """After its revert a revision's windows hold hardly a request: the line would show those few."""
    until = found.run.timeline.marks.get("verdict")
    if until is None or series.revision != found.run.bad:
        return series
    return replace(series, points=tuple(p for p in series.points if p.at <= until))


def _columns(rows: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in rows], [y for _, y in rows]


def _unbroken(series: Series) -> list[tuple[list[float], list[float], list[float], list[float]]]:
    """Stretches without gaps."""
    found: list[tuple[list[float], list[float], list[float], list[float]]] = []
    last = -10.0
    for p in series.points:
        if p.at - last > 3:
            found.append(([], [], [], []))
        for column, value in zip(found[-1], (p.at, p.value, p.low, p.high), strict=True):
            column.append(value)
        last = p.at
    return found


def _plot(found: Findings, draw: Callable[[Axes], None], height: float) -> str:
    """Over the whole run, with the instants marked."""

    def with_marks(axes: Axes) -> None:
        draw(axes)
        start, marks = _start(found), found.run.timeline.marks
        low, high = axes.get_ylim()
        axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= high])
        axes.set_ylim(low, high + 0.2 * (high - low))
        for key, text, colour, side, row in (it for it in MARKS if it[0] in marks):
            at, y = marks[key] - start, high + (0.03 + 0.1 * row) * (high - low)
            axes.axvline(at, color=COLOURS[colour], lw=1.1, ls="--")
            axes.text(at, y, f"{GAP}{text}{GAP}", color=COLOURS[colour], fontsize=8, ha=side)
        axes.set_xlabel("seconds from the first apply")
        axes.set_xlim(0, marks.get("end", found.run.timeline.seen[-1].at if found.run.timeline.seen else start) - start)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))

    return _figure(with_marks, height)


def _figure(draw: Callable[[Axes], None], height: float) -> str:
    matplotlib.use("svg")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes: Any = figure.subplots()
        draw(axes)
        axes.set_axisbelow(True)
        handles, _ = axes.get_legend_handles_labels()
        if handles:
            figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=8)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return themed(out.getvalue())


def themed(svg: str) -> str:
    """Placeholders become CSS variables, the size follows the page."""
    svg = svg[svg.index("<svg") :]
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Several drawings on one page: their ids must differ.
    prefix = f"p{abs(hash(svg)) % 10**8}-"
    svg = re.sub(r'id="', f'id="{prefix}', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", svg)
