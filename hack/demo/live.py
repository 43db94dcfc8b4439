"""The demo in the terminal: a live table on a terminal, plain lines elsewhere.

Fed by the timeline and the load's counters. It decides nothing; numbers come from the policy's status and from the load.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from funicular.api.status import Status, VerdictStatus
from hack.demo.people import People
from hack.demo.policies import LATENCY_BOUND_MS
from hack.demo.timeline import Timeline, without_name
from hack.sim.load import Live as LoadCounters

Json = dict[str, Any]
COLOURS = {"Pass": "green", "Fail": "bold red", "Inconclusive": "yellow", "Error": "red"}
PLAIN_EVERY = 5.0
COUNTED = {  # what the verdict's numbers are the share of; dollars for the rest
    "errors": "failed",
    "p95": f"over {LATENCY_BOUND_MS} ms",
    "thumbs-up": "down",
    "sample-ratio": "treated",
}
ORDER = ("Fail", "Error", "Inconclusive", "Pass")
OTHER_LINES = 20  # of the panel, without the reasons


class Screen:
    """`say` may be called at any time; `run` draws until it is cancelled."""

    def __init__(self, console: Console, timeline: Timeline) -> None:
        self.console = console
        self._timeline = timeline
        self._people = People()
        self._load: LoadCounters | None = None
        self._said: list[tuple[float, str, str]] = []
        self._began = time.time()
        self._live: RichLive | None = None

    def watch(self, load: LoadCounters, people: People) -> None:
        self._load, self._people = load, people

    def say(self, text: str, style: str = "bold") -> None:
        """What happens next, in a sentence."""
        now = time.time()
        self._said.append((now, text, style))
        if self._live is None:
            self.console.print(f"[{now - self._began:6.1f} s] {text}", style=style, markup=False, highlight=False)

    def event(self, event: Json) -> None:
        warning = event.get("type") == "Warning"
        text = f"{event.get('reason')}: {event.get('note', '')}"
        if self._live is None:
            self.say(f"Event {text}", "red" if warning else "dim")

    async def run(self) -> None:
        """A table twice a second on a terminal, else a line every five seconds and at each change of phase."""
        if not self.console.is_terminal:
            await self._run_plainly()
            return
        with RichLive(self._draw(), console=self.console, refresh_per_second=4) as live:
            self._live = live
            try:
                while True:
                    await asyncio.sleep(0.5)
                    live.update(self._draw())
            finally:
                self._live = None

    async def _run_plainly(self) -> None:
        shown, last = ("", ""), 0.0
        while True:
            await asyncio.sleep(0.25)
            status, now = self._timeline.status(), time.time()
            state = (status.phase, status.step_text)
            if status.message and (state != shown or now - last > PLAIN_EVERY):
                shown, last = state, now
                self.say(self._line(), "default")

    def _line(self) -> str:
        status, load = self._timeline.status(), self._load
        share = status.traffic.share if status.traffic else None
        if _is_promoted(status):
            parts = ["promoted (all outside the holdback)"]
        else:
            parts = [f"{status.phase:<12}", f"share {_share(share.desired if share else None)}"]
        verdicts = self._timeline.verdicts()
        parts += [f"{v.slo} {v.outcome}" for v in verdicts.rows if v.mode == "Enforce"]
        if load is not None:
            parts.append(f"{load.rate(time.time()):.0f} requests/s, {load.sent} sent, {load.failed} failed")
        return " | ".join(parts) + f" | {status.message}"

    # --- the table ----------------------------------------------------------------------------------------------------
    def _draw(self) -> Panel:
        title = f"Funicular  {time.time() - self._began:5.0f} s   story {self._timeline.story}"
        parts: list[RenderableType] = [
            self._state(),
            *self._verdicts(),
            self._users(),
            self._events(),
            self._sentences(),
        ]
        return Panel(Group(*parts), title=title, title_align="left", border_style="blue")

    def _state(self) -> Table:
        status = self._timeline.status()
        share = status.traffic.share if status.traffic else None
        desired = share.desired if share and status.candidate else 0
        promoted = _is_promoted(status)
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            "policy",
            Text(f"support-chat   {status.phase}", style="bold"),
            f"step {status.step_text or '-'}",
            f"gateways {status.gateways or '-'}",
        )
        if promoted:
            bar = ProgressBar(total=100, completed=100, width=30, complete_style="green", finished_style="green")
            grid.add_row("share", bar, Text("promoted", style="green"), "all outside the holdback")
        else:
            grid.add_row(
                "share",
                ProgressBar(total=10_000, completed=desired, width=30),
                f"desired {_share(desired)}",
                f"acked {_share(share.acked if share and status.candidate else None)}   "
                f"observed {_share(share.observed if share and status.candidate else None)}",
            )
        revisions = f"stable {status.stable.revision if status.stable else '-'}"
        revisions += f"   ramps {status.candidate.revision}" if status.candidate else ""
        grid.add_row(
            "revision", revisions, *(Text(f"rejected {r.revision}", style="red") for r in status.rejected[-1:])
        )
        return grid

    def _verdicts(self) -> list[RenderableType]:
        """The numbers of each SLO, and below them as many of the reasons in full as there is room for, the worst first."""
        found = self._timeline.verdicts()
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        for name in ("SLO (what counts)", "verdict", "treatment", "reference", "requests"):
            table.add_column(name, justify="right" if name in ("treatment", "reference", "requests") else "left")
        for it in found.rows:
            table.add_row(
                _label(it),
                Text(f"{it.outcome} {it.reason}", style=COLOURS.get(it.outcome, "")),
                _value(it, it.estimate),
                _value(it, it.reference),
                f"{it.samples:,.0f}",
                style="on grey11" if found.of and it.outcome == "Fail" else "",
            )
        parts: list[RenderableType] = [table, self._reasons(found.rows)]
        if found.of:
            title = f"the last verdicts of revision {found.of}, which was reverted for the first of them"
            parts.insert(0, Text(title, style="bold red"))
        return parts

    def _reasons(self, rows: Sequence[VerdictStatus]) -> Table:
        grid = Table.grid(padding=(0, 2))
        room = max(1, self.console.height - OTHER_LINES)
        for it in sorted(rows, key=lambda it: (it.outcome not in ORDER[:1], it.mode != "Enforce", _rank(it))):
            message = without_name(it.message, it.slo)
            lines = math.ceil(len(message) / max(20, self.console.width - 20))
            if lines > room and grid.row_count:
                break
            room -= lines
            failed = it.outcome == "Fail"
            grid.add_row(it.slo, Text(message, style=COLOURS["Fail"] if failed else "dim", overflow="fold"))
        return grid

    def _users(self) -> Table:
        grid, load = Table.grid(padding=(0, 2)), self._load
        arms = self._people.by_arm()
        grid.add_row("users", "   ".join(f"{arm} {arms.get(arm, 0):,}" for arm in ("treatment", "control", "holdback")))
        if load is not None:
            grid.add_row(
                "requests",
                f"{load.rate(time.time()):.0f}/s   sent {load.sent:,}   failed {load.failed}   "
                f"p50 {load.latency(0.5) * 1e3:.0f} ms   p95 {load.latency(0.95) * 1e3:.0f} ms   "
                f"thumbs up {load.votes_up:,} down {load.votes_down:,}",
            )
        return grid

    def _events(self) -> Text:
        text = Text("\n")
        for event in list(self._timeline.events)[-3:]:
            at = time.strftime("%H:%M:%S", time.localtime(event["seenAt"]))
            style = "red" if event.get("type") == "Warning" else "dim"
            text.append(f"{at} {event.get('reason')}: {_cut(str(event.get('note', '')))}\n", style=style)
        return text

    def _sentences(self) -> Text:
        text = Text()
        for at, said, style in self._said[-4:]:
            text.append(f"{at - self._began:6.1f} s  {said}\n", style=style)
        return text


def _share(basis_points: int | None) -> str:
    return "-" if basis_points is None else f"{basis_points / 100:g} %"


def _is_promoted(status: Status) -> bool:
    return status.phase == "Promoted" and status.candidate is None


def _rank(verdict: VerdictStatus) -> int:
    return ORDER.index(verdict.outcome) if verdict.outcome in ORDER else 0


def _label(verdict: VerdictStatus) -> str:
    counted = COUNTED.get(verdict.slo, "$ each")
    return f"{verdict.slo} ({counted}{', observed' if verdict.mode == 'Observe' else ''})"


def _value(verdict: VerdictStatus, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if verdict.slo in COUNTED else f"{value:.3g}"


def _cut(text: str, length: int = 110) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


@contextlib.asynccontextmanager
async def beside(*coroutines: Any) -> Any:
    """Runs them as tasks while the block runs, then cancels them. What one of them dies of is raised afterwards."""
    tasks = [asyncio.ensure_future(it) for it in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
