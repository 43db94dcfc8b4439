"""The demo in the terminal: a live table on a terminal, plain lines elsewhere.

Fed by the timeline and the load's counters. It decides nothing; numbers come from the policy's status and from the load.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from funicular.api.status import VerdictStatus
from hack.demo.people import People
from hack.demo.timeline import Timeline
from hack.sim.load import Live as LoadCounters

Json = dict[str, Any]
COLOURS = {"Pass": "green", "Fail": "bold red", "Inconclusive": "yellow", "Error": "red"}
PLAIN_EVERY = 5.0
PER_CENT = ("errors", "p95", "thumbs-up", "sample-ratio")


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
        with RichLive(self._draw(), console=self.console, refresh_per_second=4, transient=True) as live:
            self._live = live
            try:
                while True:
                    await asyncio.sleep(0.5)
                    live.update(self._draw())
            finally:
                self._live = None
        # Not reached: cancelled above.

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
        parts = [f"{status.phase:<12}", f"share {_share(share.desired if share else None)}"]
        parts += [f"{v.slo} {v.outcome}" for v in status.verdicts if v.mode == "Enforce"]
        if load is not None:
            parts.append(f"{load.rate(time.time()):.0f} requests/s, {load.sent} sent, {load.failed} failed")
        return " | ".join(parts) + f" | {status.message}"

    # --- the table ----------------------------------------------------------------------------------------------------
    def _draw(self) -> Panel:
        title = f"Funicular  {time.time() - self._began:5.0f} s   story {self._timeline.story}"
        parts: list[RenderableType] = [
            self._state(),
            self._verdicts(),
            self._users(),
            self._events(),
            self._sentences(),
        ]
        return Panel(Group(*parts), title=title, title_align="left", border_style="blue")

    def _state(self) -> Table:
        status = self._timeline.status()
        share = status.traffic.share if status.traffic else None
        desired = share.desired if share and status.candidate else 0
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            "policy",
            Text(f"support-chat   {status.phase}", style="bold"),
            f"step {status.step_text or '-'}",
            f"gateways {status.gateways or '-'}",
        )
        grid.add_row(
            "share",
            ProgressBar(total=10_000, completed=desired, width=34),
            f"desired {_share(desired)}",
            f"acked {_share(share.acked if share and status.candidate else None)}   "
            f"observed {_share(share.observed if share and status.candidate else None)}",
        )
        revisions = f"stable {status.stable.revision if status.stable else '-'}"
        revisions += f"   ramps {status.candidate.revision}" if status.candidate else ""
        revisions += "".join(f"   rejected {r.revision}" for r in status.rejected)
        grid.add_row("revision", revisions)
        return grid

    def _verdicts(self) -> Table:
        table = Table(box=None, header_style="dim", padding=(0, 2))
        for name in ("SLO", "verdict", "treatment", "reference", "requests", "why"):
            table.add_column(name, justify="right" if name in ("treatment", "reference", "requests") else "left")
        for it in self._timeline.status().verdicts:
            table.add_row(
                it.slo + (" (observed)" if it.mode == "Observe" else ""),
                Text(f"{it.outcome} {it.reason}", style=COLOURS.get(it.outcome, "")),
                _value(it, it.estimate),
                _value(it, it.reference),
                f"{it.samples:,.0f}",
                Text(it.message[:90], style="dim", overflow="ellipsis", no_wrap=True),
            )
        return table

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
        for event in list(self._timeline.events)[-5:]:
            at = time.strftime("%H:%M:%S", time.localtime(event["seenAt"]))
            style = "red" if event.get("type") == "Warning" else "dim"
            text.append(f"{at} {event.get('reason')}: {str(event.get('note', ''))[:110]}\n", style=style)
        return text

    def _sentences(self) -> Text:
        text = Text()
        for at, said, style in self._said[-4:]:
            text.append(f"{at - self._began:6.1f} s  {said}\n", style=style)
        return text


def _share(basis_points: int | None) -> str:
    return "-" if basis_points is None else f"{basis_points / 100:g} %"


def _value(verdict: VerdictStatus, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if verdict.slo in PER_CENT else f"{value:.3g}"


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
