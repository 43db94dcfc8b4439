"""How a policy looks in a terminal: rich renderables made of an object of the API server. No I/O, no clock; `now` is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from funicular.api.duration import readable
from funicular.api.policy import parse_status
from funicular.api.status import HistoryEntry, Status, VerdictStatus
from funicular.errors import FunicularError

Json = Mapping[str, Any]

PHASE_STYLES = {
    "Promoted": "green",
    "Baseline": "green",
    "Ramping": "cyan",
    "Preparing": "cyan",
    "AwaitingApproval": "yellow",
    "Paused": "yellow",
    "Blocked": "yellow",
    "Reverting": "red",
    "Reverted": "red",
    "Degraded": "red",
    "Invalid": "red",
    "Conflicted": "red",
}
OUTCOME_STYLES = {"Pass": "green", "Fail": "bold red", "Error": "red", "Inconclusive": "yellow"}
NORMAL = {"Reconciling": None, "Stalled": "False", "Regressed": "False"}  # of a condition; all others: True
LAST = 5


def status_of(body: Json) -> Status:
    try:
        return parse_status(body)
    except ValidationError as exc:
        place = ".".join(map(str, exc.errors()[0]["loc"]))
        name = body["metadata"]["name"]
        raise FunicularError(f"status.{place} of {name} is not what this version of funicular understands") from exc


def percent(basis_points: float | None) -> str:
    return "-" if basis_points is None else f"{basis_points / 100:g} %"


def age(then: datetime | None, now: datetime) -> str:
    return "-" if then is None else readable(max(0.0, (now - then).total_seconds()))


def phase(status: Status) -> Text:
    return Text(status.phase, style=PHASE_STYLES.get(status.phase, ""))


def step_text(status: Status) -> str:
    return f"{status.step.index + 1}/{status.step.of}" if status.step and status.candidate else "-"


def listing(bodies: Sequence[Json], now: datetime, *, namespaces: bool, wide: bool) -> RenderableType:
    """As `kubectl get rp`, with colours."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    wanted = [*(["NAMESPACE"] if namespaces else []), "NAME", "PHASE", "STEP", "SHARE", "SLO", "GATEWAYS", "AGE"]
    for column in [*wanted, *(["STABLE", "CANDIDATE", "MESSAGE"] if wide else [])]:
        table.add_column(column, overflow="fold")
    for body in bodies:
        status, meta = status_of(body), body["metadata"]
        created = meta.get("creationTimestamp")
        row: list[RenderableType] = [meta["namespace"]] if namespaces else []
        row += [meta["name"], phase(status), step_text(status)]
        row += [percent(status.traffic.share.desired if status.traffic else None), status.tightest or "-"]
        row += [status.gateways or "-", age(datetime.fromisoformat(created) if created else None, now)]
        if wide:
            row += [_revision(status.stable), _revision(status.candidate), status.message]
        table.add_row(*row)
    return table


def panel(body: Json, now: datetime) -> RenderableType:
    """Everything about one policy that fits a screen."""
    status, meta = status_of(body), body["metadata"]
    parts: list[RenderableType] = [
        Text(status.message or "the operator has not seen this policy yet"),
        "",
        _facts(status, now),
    ]
    if status.verdicts:
        parts += ["", verdicts(status.verdicts, body.get("spec") or {})]
    if status.conditions:
        parts += ["", _conditions(status, now)]
    if status.history:
        parts += ["", events(status.history[-LAST:], now)]
    title = Text.assemble((f"{meta['namespace']}/{meta['name']}", "bold"), "  ", phase(status))
    return Panel(Group(*parts), title=title, title_align="left", padding=(1, 2))


def _revision(found: Any) -> str:
    return found.revision if found else "-"


def _facts(status: Status, now: datetime) -> Table:
    grid = Table.grid(padding=(0, 3))
    stable = status.stable
    grid.add_row("stable", Text(f"{stable.revision}, since {age(stable.since, now)}" if stable else "-"))
    if status.candidate:
        grid.add_row("candidate", Text(status.candidate.revision + (", paused" if status.paused else "")))
    step = status.step
    if step is not None and status.candidate:
        samples = f"{step.samples:.0f} of {step.min_samples} samples"
        until = f", {age(now, step.min_until)} to go at least" if step.min_until and step.min_until > now else ""
        grid.add_row("step", Text(f"{step_text(status)} at {percent(step.share)}: {samples}{until}"))
    if status.traffic is not None:
        share = status.traffic.share
        acked = percent(share.acked) if share.acked is not None else "not by all pods yet"
        grid.add_row(
            "share", Text(f"{percent(share.desired)} ordered, confirmed: {acked}, observed: {percent(share.observed)}")
        )
        grid.add_row("holdback", Text(percent(status.traffic.holdback)))
    grid.add_row("gateways", Text(status.gateways or "-"))
    for rejected in status.rejected[-LAST:]:
        grid.add_row(Text("rejected", style="red"), Text(f"{rejected.revision}: {rejected.message or rejected.reason}"))
    return grid


def verdicts(found: Sequence[VerdictStatus], spec: Json) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("SLO", "VERDICT", "TREATMENT", "REFERENCE", "INTERVAL", "SAMPLES", "WHY"):
        table.add_column(column, justify="right" if column in ("TREATMENT", "REFERENCE", "SAMPLES") else "left")
    declared = {slo["name"]: slo for slo in spec.get("slos", ())}
    for verdict in found:
        slo = declared.get(verdict.slo, {})
        low, high = value_text(verdict.low, slo), value_text(verdict.high, slo)
        table.add_row(
            Text(verdict.slo + (" (observed)" if verdict.mode == "Observe" else "")),
            Text(verdict.outcome, style=OUTCOME_STYLES.get(verdict.outcome, "")),
            value_text(verdict.estimate, slo),
            value_text(verdict.reference, slo),
            "-" if verdict.low is None and verdict.high is None else f"{low} .. {high}",
            f"{verdict.samples:.0f}" + (f" of {verdict.needed:.0f}" if verdict.needed > verdict.samples else ""),
            Text(verdict.message or verdict.reason),
        )
    return table


def value_text(value: float | None, slo: Json) -> str:
    """Dollars for a cost, a bare number for a query's value; everything else is a share of requests."""
    if value is None:
        return "-"
    if slo.get("indicator") == "CostPerRequest":
        return f"${value:.4g}"
    if "value" in (slo.get("query") or {}):
        return f"{value:.4g}"
    return f"{value * 100:.3g} %"


def _conditions(status: Status, now: datetime) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"):
        table.add_column(column)
    for condition in status.conditions:
        normal = NORMAL.get(condition.type, "True")
        style = "" if normal is None or condition.status == normal else "yellow"
        since = age(condition.last_transition_time, now)
        words = Text(condition.status, style=style)
        table.add_row(condition.type, words, condition.reason, since, Text(condition.message))
    return table


def events(entries: Sequence[HistoryEntry], now: datetime) -> Table:
    """The latest first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("AGO", "EVENT", "REVISION", "SHARE", "BY", "MESSAGE"):
        table.add_column(column)
    for entry in reversed(entries):
        row = [entry.event, entry.revision, percent(entry.share), entry.by or "-"]
        table.add_row(age(entry.at, now), *row, Text(entry.message))
    return table
