"""Every alert fires in the trouble that it is for, for nobody else, and ends when the trouble does: on a real Prometheus."""

from __future__ import annotations

import ast
import inspect
import random
import re
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from funicular.agent.exposition import Families, label_text
from funicular.agent.metrics import AgentMetrics
from funicular.controller.telemetry import OperatorTelemetry
from funicular.rollout.describe import phase_of
from funicular.rollout.transitions import State
from funicular.slo.model import REPLICATES, Outcome
from hack.dashboards import queries
from tests.chart.monitoring_rig import (
    History,
    Prometheus,
    alerts,
    eventually,
    in_full,
    prometheus,
    recorded,
    rule_groups,
    seconds,
)

RUNBOOKS = Path(__file__).parents[2] / "charts" / "funicular" / "runbooks"
ALERTS = alerts()


# --- what is written ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ALERTS.values(), ids=ALERTS.keys())
def test_an_alert_says_what_is_wrong_and_has_a_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"].endswith(".")
    assert len(rule["annotations"]["description"]) > 60
    book = (RUNBOOKS / f"{rule['alert']}.md").read_text()
    headings = [line for line in book.splitlines() if re.match("# Funicular|## ", line)]
    assert headings == [f"# {rule['alert']}", "## What it means", "## How to look", "## What to do"]
    assert book.splitlines()[2] == f"Severity {rule['labels']['severity']}, after {rule.get('for', 'no wait')}."


def test_there_is_no_runbook_without_an_alert_and_no_dead_link() -> None:
    books = {path.stem: path.read_text() for path in RUNBOOKS.glob("*.md")}
    assert books.keys() == ALERTS.keys()
    for book in books.values():
        for name, target in re.findall(r"\[(\w+)\]\((\w+)\.md\)", book):
            assert name == target
            assert target in books


def words_of_phase() -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(phase_of)))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_rules_and_dashboards_know_the_operators_words() -> None:
    phases = words_of_phase() | set(State) | {"Pending"}  # Pending: the status of a policy that was not yet reconciled
    expressions = [rule["expr"] for rule in ALERTS.values()] + [query.expr for query in queries()]
    for expr in expressions:
        for found in re.findall(r'phase[!=]?[=~]{1,2}"([\w|]+)"', expr):
            assert set(found.split("|")) <= phases, expr
        for found in re.findall(r'outcome!?="(\w+)"', expr):
            assert found in {*Outcome, "good", "bad"}, expr


# --- a play of four hours -------------------------------------------------------------------------------------------------
# Minutes from the beginning. Between FROM and UNTIL each policy and pod has the trouble that it is named after.

FROM, UNTIL, END = 60, 135, 270
LEADERLESS = range(215, 226)
HUNG = range(230, 252)
WEEK = 7 * 24 * 60
TROUBLES = {  # what is played -> the alert that it is for
    "reverted": "FunicularReverted",
    "degraded": "FunicularPolicyDegraded",
    "blocked": "FunicularPolicyBlocked",
    "conflicted": "FunicularPolicyBlocked",
    "approval": "FunicularAwaitingApproval",
    "stuck": "FunicularRampStuck",
    "ratio": "FunicularSampleRatioMismatch",
    "unmeasured": "FunicularMetricsUnavailable",
    "unscraped": "FunicularGatewayMetricsMissing",
    "out-of-sync": "FunicularGatewaysOutOfSync",
    "errors": "FunicularHighErrorRate",
    "fallback": "FunicularHighFallback",
    "undecided": "FunicularClassifierUnavailable",
    "anonymous": "FunicularRequestsWithoutUnit",
    "healthy": "",
}
FULL = ("ratio", "healthy")  # have users in all replicates


class Play:
    """Counters that rise by the minute, as operator and gateways would show them."""

    def __init__(self) -> None:
        self.history = History()
        self.random = random.Random(7)
        self.operator = OperatorTelemetry()
        self.agents = {name: AgentMetrics() for name in ("well", "envoy-down", "rejects", "unheard", "random-key")}
        self.gateway = Families()

    def minute(self, number: int, at: float) -> None:
        sick = FROM <= number < UNTIL
        self._policies(number, sick)
        self._work(number, sick)
        self._agents(sick)
        gateway = self._without("unscraped") if sick else self.gateway
        self.history.add(gateway.render(), at, pod="well", instance="well:8081")
        self.history.add(
            generate_latest(self.operator.registry).decode(), at, pod="operator-0", instance="operator-0:8086"
        )
        for pod, metrics in self.agents.items():
            self.history.add(metrics.render(), at, namespace="gateways", pod=pod, instance=f"{pod}:8081")
        self.history.add("up 1", at, pod="well", instance="well:8081")
        self.history.add(f"up {int(not sick)}", at, pod="gone", instance="gone:8081")
        if not sick:
            self.history.add(self.agents["well"].render(), at, namespace="gateways", pod="gone", instance="gone:8081")

    def _policies(self, number: int, sick: bool) -> None:
        leads = number not in LEADERLESS
        self.operator.leading(leads)
        for name in TROUBLES if leads else ():
            self.operator.policy(f"shop/{name}", **self._state(name, number, sick))
            self._traffic(name, sick)

    def _state(self, name: str, number: int, sick: bool) -> dict[str, Any]:
        phases = {
            "degraded": "Degraded",
            "blocked": "Blocked",
            "conflicted": "Conflicted",
            "approval": "AwaitingApproval",
        }
        phase, outcome, acked = "Ramping", "Pass", 1000
        if sick:
            phase = phases.get(name, phase)
            outcome = {"unmeasured": "Error", "stuck": "Inconclusive"}.get(name, outcome)
        if name == "reverted" and number >= FROM:
            phase = "Reverted"  # and it stays
        is_acked = not (sick and name in ("out-of-sync", "conflicted"))  # a conflicted policy is served by nobody
        return {
            "revision": "r2",
            "phase": phase,
            "desired": acked,
            "acked": acked if is_acked else None,
            "observed": acked,
            "verdicts": {"errors": outcome},
        }

    def _traffic(self, name: str, sick: bool) -> None:
        """A hundred requests a minute."""
        base = {"namespace": "shop", "policy": name, "revision": "r2", "arm": "treatment"}

        def count(metric: str, amount: float, **labels: str) -> None:
            self.gateway.add(metric, label_text({**base, **labels}), amount)

        failed = 30 if sick and name == "errors" else 2
        count("funicular_requests_total", 100 - failed, candidate="mini", code="2xx")
        count("funicular_requests_total", failed, candidate="mini", code="5xx")
        special = {"fallback": "fallback", "undecided": "no_answer", "anonymous": "no_unit"}.get(name, "unknown_label")
        odd = 40 if sick and name in ("fallback", "undecided", "anonymous") else 1
        count("funicular_decisions_total", 100 - odd, decision="easy", reason="classified")
        count("funicular_decisions_total", odd, decision="none", reason=special)
        share = 0.3 if sick and name == "ratio" else 0.1
        for replicate in range(REPLICATES if name in FULL else 1):
            treated = sum(self.random.random() < share for _ in range(40))
            for arm, amount in (("treatment", treated), ("control", 40 - treated)):
                count("funicular_outcomes_total", amount, arm=arm, replicate=str(replicate), outcome="good")
                count("funicular_outcomes_total", 0, arm=arm, replicate=str(replicate), outcome="bad")

    def _without(self, policy: str) -> Families:
        there = Families()
        for name, samples in self.gateway.samples.items():
            there.samples[name] = {text: v for text, v in samples.items() if f'policy="{policy}"' not in text}
        return there

    def _work(self, number: int, sick: bool) -> None:
        if number in HUNG:
            self.operator.queue_depth(0, 1)
            return
        self.operator.queue_depth(3 if sick else 0, 0)
        self.operator.reconciled(0.01, "error" if sick else "ok")
        if sick:
            self.operator.query_failed("MetricsUnavailable")

    def _agents(self, sick: bool) -> None:
        for name, metrics in self.agents.items():
            metrics.envoy_up.set(not (sick and name == "envoy-down"))
            metrics.rejected.set(2 if sick and name == "rejects" else 0)
            metrics.id_key_is_random.set(sick and name == "random-key")
            (metrics.reports_failed if sick and name == "unheard" else metrics.reports_sent).inc()


@dataclass
class Played:
    prometheus: Prometheus
    begin: float

    def firing(self, rule: dict[str, Any]) -> dict[tuple[tuple[str, str], ...], list[float]]:
        """By its labels: the minutes in which the alert fires, as Prometheus would have it, evaluated once a minute."""
        wait, found = seconds(rule.get("for", "")) / 60, {}
        for labels, instants in self.prometheus.over(in_full(rule["expr"]), self.begin, self.begin + 60 * END, 60):
            minutes = [round((at - self.begin) / 60) for at in instants]
            since = {m: m for m in minutes}
            for m in minutes:
                since[m] = since.get(m - 1, m)
            fires = [float(m) for m in minutes if m - since[m] >= wait]
            if fires:
                found[tuple(sorted(labels.items()))] = fires
        return found


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    begin = time.time() // 60 * 60 - 60 * (END + 5)
    play = Play()
    week_ago = 'funicular_operator_share_desired{namespace="shop",policy="stuck"} 1000'
    for number in range(FROM - WEEK, 0, 4):  # has been at this share for long before the play
        play.history.add(week_ago, begin + 60 * number, pod="operator-0", instance="operator-0:8086")
    for number in range(END + 1):
        play.minute(number, begin + 60 * number)
    with prometheus(tmp_path_factory.mktemp("prometheus"), play.history.text()) as (found, _):
        yield Played(found, begin)


def policies(alert: str) -> set[str]:
    also = {"FunicularReverted": {"degraded"}}  # a revision that was taken back is the reason for it
    return {name for name, what in TROUBLES.items() if what == alert} | also.get(alert, set())


PODS = {
    "FunicularAgentDown": "gone",
    "FunicularEnvoyDown": "envoy-down",
    "FunicularConfigRejected": "rejects",
    "FunicularReportsFailing": "unheard",
    "FunicularIdKeyRandom": "random-key",
    "FunicularOperatorQueueStuck": "operator-0",
    "FunicularReconcileErrors": "operator-0",
}
LINGERS = {"FunicularSampleRatioMismatch": 60, "FunicularRequestsWithoutUnit": 30}  # minutes that the window looks back


@pytest.mark.parametrize("rule", ALERTS.values(), ids=ALERTS.keys())
def test_it_fires_in_its_trouble_for_whom_it_is_and_ends(played: Played, rule: dict[str, Any]) -> None:
    name = rule["alert"]
    if name == "FunicularNoLeader":
        begin, end = LEADERLESS.start, LEADERLESS.stop
    else:
        begin, end = FROM, UNTIL
    found = played.firing(rule)
    if expected := policies(name):
        assert {dict(labels)["policy"] for labels in found} == expected
    elif name in PODS:
        assert {dict(labels)["pod"] for labels in found} == {PODS[name]}
    else:
        assert len(found) == 1
    wait, slack = seconds(rule.get("for", "")) / 60, LINGERS.get(name, 15)
    for labels, minutes in found.items():
        minutes = [minute for minute in minutes if minute < HUNG.start]
        assert begin <= minutes[0] - wait <= begin + max(slack, 20), labels
        assert minutes[-1] <= end + slack, labels


def test_a_reconcile_that_hangs_is_noticed(played: Played) -> None:
    ((_, minutes),) = played.firing(ALERTS["FunicularOperatorQueueStuck"]).items()
    assert [minute for minute in minutes if minute in HUNG]
    assert minutes[-1] < END


def test_a_revert_is_told_for_an_hour_although_the_phase_stays(played: Played) -> None:
    found = played.firing(ALERTS["FunicularReverted"])
    ((_, minutes),) = [item for item in found.items() if ("policy", "reverted") in item[0]]
    assert (minutes[0], minutes[-1]) == pytest.approx((FROM, FROM + 60), abs=6)


# --- Prometheus' own rule manager -----------------------------------------------------------------------------------------


def test_prometheus_takes_the_rules_and_an_alert_comes_and_goes(tmp_path: Path) -> None:
    groups = rule_groups("recording", "alerts")
    for rule in (rule for group in groups for rule in group["rules"] if "for" in rule):
        rule["for"] = "1s"
    agent, operator = AgentMetrics(), OperatorTelemetry()
    operator.leading(True)
    agent.envoy_up.set(0)

    def page() -> str:
        return agent.render() + generate_latest(operator.registry).decode()

    with prometheus(tmp_path, page(), {"groups": groups}) as (found, exporter):

        def state(name: str) -> set[str]:
            return {alert["state"] for alert in found.get("alerts")["alerts"] if alert["labels"]["alertname"] == name}

        eventually(lambda: state("FunicularEnvoyDown") == {"firing"}, "the alert fires")
        assert not state("FunicularNoLeader")
        agent.envoy_up.set(1)
        operator.leading(False)
        exporter.text = page()
        eventually(lambda: state("FunicularNoLeader") == {"firing"}, "the other alert fires")
        assert not state("FunicularEnvoyDown")
        rules = [rule for group in found.get("rules")["groups"] for rule in group["rules"]]
        assert len(rules) == len(ALERTS) + len(recorded())
        assert {rule["health"] for rule in rules} == {"ok"}
        assert not [rule["lastError"] for rule in rules if rule.get("lastError")]
