"""What the chart makes for a Prometheus operator and Grafana's sidecar, and that it fits the pods that the chart makes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hack import chart
from tests.chart.conftest import rendered
from tests.chart.monitoring_rig import alerts, rule_groups

Json = dict[str, Any]
KINDS = ("PodMonitor", "PrometheusRule")


def of(kind: str, objects: tuple[Json, ...] | list[Json] | None = None) -> list[Json]:
    return [it for it in objects or rendered("everything for monitoring") if it["kind"] == kind]


def template(**monitoring: Any) -> list[Json]:
    return list(chart.template(values={"commonAnnotations": {"owner": "platform"}, "monitoring": monitoring}))


def test_nothing_of_it_without_being_asked() -> None:
    objects = template()
    assert not [it for kind in KINDS for it in of(kind, objects)]
    assert not [it for it in of("ConfigMap", objects) if "dashboard" in it["metadata"]["name"]]


def test_a_pod_monitor_selects_the_chart_s_pods_and_scrapes_ports_that_they_have() -> None:
    pods = [it["spec"]["template"] for it in of("Deployment")]
    for monitor in of("PodMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (pod,) = [it for it in pods if wanted <= it["metadata"]["labels"].items()]
        containers = pod["spec"]["containers"] + pod["spec"].get("initContainers", [])
        ports = {port["name"] for container in containers for port in container.get("ports", ())}
        endpoints = monitor["spec"]["podMetricsEndpoints"]
        assert {it["port"] for it in endpoints} == {port for port in ports if port.endswith("metrics")}
        assert all(it["honorLabels"] for it in endpoints)  # else the policy's namespace would be the pod's
    assert len(of("PodMonitor")) == len(pods) == 2


def test_all_rules_are_there_and_each_alert_has_its_runbook() -> None:
    (rule,) = of(
        "PrometheusRule", template(prometheusRule={"enabled": True, "runbookURL": "https://wiki.example/books/"})
    )
    found = [it for group in rule["spec"]["groups"] for it in group["rules"]]
    books = {it["alert"]: it["annotations"].pop("runbook_url") for it in found if "alert" in it}
    assert books == {name: f"https://wiki.example/books/{name}.md" for name in alerts()}
    assert rule["spec"]["groups"] == rule_groups("recording", "alerts")  # Prometheus' own {{ }} untouched


def test_a_dashboard_s_config_map_is_what_grafana_reads() -> None:
    found = [it for it in of("ConfigMap") if "dashboard" in it["metadata"]["name"]]
    texts = {name: json.loads(text) for it in found for name, text in it["data"].items()}
    assert {f"{board['uid']}.json" for board in texts.values()} == texts.keys()
    assert len(texts) == len(found) == 3


@pytest.mark.parametrize("what", ["podMonitor", "prometheusRule", "dashboards"])
def test_labels_of_the_values_come_beside_the_chart_s_own(what: str) -> None:
    objects = template(**{what: {"enabled": True, "labels": {"release": "kps"}}})
    made = [it for it in objects if it["metadata"].get("labels", {}).get("release") == "kps"]
    assert made
    for it in made:
        assert it["metadata"]["labels"]["app.kubernetes.io/name"] == "funicular"
        assert it["metadata"]["annotations"] == {"owner": "platform"}
