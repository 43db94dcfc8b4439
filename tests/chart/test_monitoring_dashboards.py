"""The dashboards: what Grafana would read, and that no panel stays empty on what the product really exports."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import generate_latest

from funicular.adapters.envoy_admin import EnvoyAdmin
from funicular.agent.feedback import FeedbackBook, parse
from funicular.agent.metrics import AgentMetrics
from funicular.agent.observe import Observer
from funicular.agent.policies import Record
from funicular.agent.ports import Sample
from funicular.api.report import Ack
from funicular.api.spec import Price
from funicular.compile.metrics import translate
from funicular.controller.telemetry import OperatorTelemetry
from hack.dashboards import FOLDER, as_json, boards, expressions, filled, queries
from tests.chart.monitoring_rig import History, Prometheus, alerts, in_full, prometheus, recorded
from tests.integration.envoy_rig import KEY, Rig, rig
from tests.unit.compile.builders import make_classifier, make_policy, make_route, make_traffic, make_upstream

NAMES = sorted(boards())
Json = dict[str, Any]
register_default_plugins()


def read(name: str) -> Json:
    return json.loads((FOLDER / f"{name}.json").read_text())


def lost(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """Paths of what `found` lacks or has another value of."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            yield from lost(value, found.get(key), f"{path}.{key}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for number, value in enumerate(wanted):
            yield from lost(value, found[number], f"{path}[{number}]")
    elif wanted != found:
        yield path


# --- what Grafana would read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_chart_ships_what_the_code_says(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == as_json(boards()[name])


@pytest.mark.parametrize("name", NAMES)
def test_grafanas_own_models_read_it_and_lose_nothing(name: str) -> None:
    again = json.loads(json.dumps(Dashboard.from_json(read(name)), cls=JSONEncoder))
    assert list(lost(read(name), again)) == []  # it may add defaults


@pytest.mark.parametrize("name", NAMES)
def test_panels_have_ids_titles_descriptions_and_do_not_overlap(name: str) -> None:
    panels = read(name)["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["targets"]


@pytest.mark.parametrize("name", NAMES)
def test_every_query_goes_to_the_chosen_data_source(name: str) -> None:
    board = read(name)
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert {"namespace", "policy"} <= variables.keys()
    for panel in board["panels"]:
        if panel["type"] == "row":
            continue
        places = [panel, *panel["targets"]]
        assert {json.dumps(place["datasource"], sort_keys=True) for place in places} == {
            '{"type": "prometheus", "uid": "${datasource}"}'
        }
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for title, expr in expressions(board):
        assert "$" not in filled(expr), title


def test_uids_differ_and_links_lead_to_the_others() -> None:
    found = [read(name) for name in NAMES]
    assert len({board["uid"] for board in found}) == len(found)
    assert all(set(board["links"][0]["tags"]) <= set(board["tags"]) for board in found)


# --- a real Envoy, the agent's own exposition, the operator's ------------------------------------------------------------


def observer_of(gateway: Rig, feedback: FeedbackBook, metrics: AgentMetrics) -> Observer:
    """The agent's /metrics for the rig's policy, which all have been acknowledged."""
    policy = gateway.policies[0]
    key = (policy.namespace, policy.name)
    record = Record(key, policy.uid, "", policy.traffic.version, traffic=policy.traffic)

    def translated(name: str, labels: Any) -> Sample | None:
        found = translate(name, labels)
        return Sample(found.family, found.labels, found.factor) if found else None

    return Observer(
        EnvoyAdmin("127.0.0.1", gateway.settings.admin_port),
        translated,
        SimpleNamespace(records={key: record}),  # type: ignore[arg-type]
        feedback,
        metrics,
        lambda uid: Ack(version=policy.traffic.version, error=None),
        lambda: True,
    )


@dataclass
class Expositions:
    gateway: str
    envoy: str
    operator: str


def operators() -> OperatorTelemetry:
    telemetry = OperatorTelemetry()
    telemetry.leading(True)
    state = {"revision": "bbbb", "phase": "Ramping", "desired": 5000, "acked": 5000, "observed": 4900}
    telemetry.policy("shop/support", **state, verdicts={"errors": "Pass", "sample-ratio": "Pass"})  # type: ignore[arg-type]
    telemetry.queue_depth(0, 1)
    return telemetry


async def two_readings(folder: Path) -> tuple[Expositions, Expositions]:
    """Before and after more traffic, votes and reconciles."""
    async with rig(folder) as gateway:
        frontier, mini, classifier = [await gateway.upstream(name) for name in ("frontier", "mini", "classifier")]

        async def label(_: web.Request) -> web.Response:
            return web.Response(headers={"x-funicular-label": "easy"})

        async def answer(_: web.Request) -> web.Response:
            if len(mini.seen) % 4 == 0:
                return web.Response(status=503)
            return web.json_response({"usage": {"prompt_tokens": 3, "completion_tokens": 2}})

        classifier.handler, mini.handler = label, answer
        price = Price(input_per_million=1.25, output_per_million=10)
        upstreams = [make_upstream(n.name, n.url, price=price) for n in (frontier, mini)]
        asked = make_classifier(f"http://127.0.0.1:{classifier.port}", timeout="2s")
        traffic = make_traffic(
            make_route("aaaa", upstreams[0]),
            make_route("bbbb", *upstreams, classifier=asked),
            5000,
            holdback=1000,
            latency_bounds={"LatencyP95": "1ms"},
        )
        await gateway.start(make_policy(traffic))
        feedback, telemetry, agent = FeedbackBook(), operators(), AgentMetrics()
        observer = observer_of(gateway, feedback, agent)
        found = []
        for _ in range(2):
            for number in range(120):
                said = await gateway.chat(f"user-{number}")
                identity = said.headers["x-funicular-id"]
                thumb = json.dumps({"id": identity, "thumb": "up" if number % 3 else "down"}).encode()
                feedback.take(*parse(thumb, (KEY.encode(),), time.time()), now=float("-inf"))
            agent.ack_seconds.observe(0.02)
            telemetry.reverted("shop/support", "Regressed")
            telemetry.acknowledged(0.1)
            telemetry.reconciled(0.01, "ok")
            telemetry.query_failed("MetricsUnavailable")
            await asyncio.sleep(1.1)  # Envoy's histograms show after a flush
            async with gateway.session.get(f"http://127.0.0.1:{gateway.settings.stats_port}/metrics") as page:
                envoy = await page.text()
            operator = generate_latest(telemetry.registry).decode()
            found.append(Expositions(await observer.render(), envoy, operator))
        await observer._admin.close()
        return found[0], found[1]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, float]]:
    """A ramp's metrics of the last ten minutes, and the instant at which they end."""
    before, after = asyncio.run(two_readings(tmp_path_factory.mktemp("envoy")))
    now = time.time()
    history = History()
    for back in range(600, -1, -15):
        shown = after if back <= 30 else before
        gateway = {"pod": "gateway-0", "instance": "10.0.0.1:8081"}
        history.add(shown.gateway, now - back, **gateway)
        history.add(shown.envoy, now - back, pod="gateway-0", instance="10.0.0.1:9902")
        history.add(shown.operator, now - back, pod="operator-0", instance="10.0.0.2:8086")
    with prometheus(tmp_path_factory.mktemp("prometheus"), history.text()) as (found, _):
        yield found, now


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.dashboard}: {query.panel}")
def test_no_panel_is_empty_during_a_ramp(played: tuple[Prometheus, float], query: Any) -> None:
    found, now = played
    answer = found.query(query.expr, now)
    assert any(math.isfinite(value) for _, value in answer), f"{query.expr}\ngives {answer}"


@pytest.mark.parametrize("query", queries("no-such-namespace"), ids=lambda query: f"{query.dashboard}: {query.panel}")
def test_the_variables_choose(played: tuple[Prometheus, float], query: Any) -> None:
    found, now = played
    if "no-such-namespace" in query.expr:
        assert not [value for labels, value in found.query(query.expr, now) if labels or value]


def test_a_dashboards_figures_are_right(played: tuple[Prometheus, float]) -> None:
    found, now = played
    by_panel = {(query.dashboard, query.panel): query.expr for query in queries(window="10m")}
    shares = {labels["revision"]: value for labels, value in found.query(by_panel["rollout", "Policies"], now)}
    assert shares == {"bbbb": 0.5}
    (_, baseline), (_, real), (_, saved) = (
        found.query(filled(expr, window="10m"), now)[0]
        for title, expr in expressions(read("cost"))
        if title == "By policy"
    )
    assert saved == pytest.approx(baseline - real)
    ((_, score),) = found.query(by_panel["rollout", "Errors: treatment less control, in standard errors"], now)
    assert score > 3  # the cheap model fails every fourth time, the control never


# --- rules speak of what there is ----------------------------------------------------------------------------------------


def selectors(node: Any) -> Iterator[Json]:
    """Vector selectors of an expression, as Prometheus parsed it."""
    if isinstance(node, dict):
        if node.get("type") == "vectorSelector":
            yield node
        for value in node.values():
            yield from selectors(value)
    elif isinstance(node, list):
        for value in node:
            yield from selectors(value)


RULES = {**{name: in_full(rule["expr"]) for name, rule in alerts().items()}, **recorded()}


@pytest.mark.parametrize("expr", RULES.values(), ids=RULES.keys())
def test_a_rule_names_metrics_and_labels_that_are_exported(played: tuple[Prometheus, float], expr: str) -> None:
    found, _ = played
    for selector in selectors(found.get("parse_query", query=expr)):
        name = selector["name"]
        answer = found.query(f"last_over_time({name}[10m])", time.time())
        assert answer, f"nothing exports {name}"
        labels = {label for metric, _ in answer for label in metric}
        wanted = {matcher["name"] for matcher in selector["matchers"]} - {"__name__"}
        assert wanted <= labels, f"{name} has {labels}"


@pytest.mark.parametrize("expr", recorded().values(), ids=recorded().keys())
def test_a_recording_rule_records(played: tuple[Prometheus, float], expr: str) -> None:
    found, now = played
    assert any(math.isfinite(value) for _, value in found.query(expr, now))
