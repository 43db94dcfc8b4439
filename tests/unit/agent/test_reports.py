"""Reports as a state machine, counts since a version, readiness."""

from __future__ import annotations

from funicular.agent.counts import CountBook
from funicular.agent.readiness import Readiness
from funicular.agent.reporter import address
from funicular.agent.reports import HEARTBEAT, LONGEST_BACKOFF, ReportBook
from funicular.api.report import Ack


def book() -> ReportBook:
    return ReportBook(pod="p", namespace="n", uid="u", session="s")


def test_the_first_report_is_full_and_later_ones_hold_what_changed() -> None:
    made = book()
    made.acked("a", Ack(version=1))
    first = made.compose({})
    assert first.full
    made.sent(first, resync=False, now=10.0)
    assert made.due(10.0) == HEARTBEAT
    assert not made.acked("a", Ack(version=1))
    assert made.acked("b", Ack(version=1))
    assert made.due(10.0) == 0
    second = made.compose({})
    assert not second.full
    assert set(second.acks) == {"b"}
    made.sent(second, resync=False, now=11.0)
    assert made.compose({}).acks == {}


def test_what_changes_while_a_report_travels_is_sent_next() -> None:
    made = book()
    made.acked("a", Ack(version=1))
    report = made.compose({})
    made.acked("a", Ack(version=2))
    made.sent(report, resync=False, now=0.0)
    assert made.compose({}).acks == {"a": Ack(version=2)}


def test_failures_back_off_to_two_seconds_and_then_everything_is_told() -> None:
    made = book()
    made.acked("a", Ack(version=1))
    made.sent(made.compose({}), resync=False, now=0.0)
    waits = []
    for _ in range(12):
        made.failed(0.0)
        waits.append(made.due(0.0))
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_BACKOFF
    assert made.compose({}).full


def test_a_resync_is_answered_in_full_at_once() -> None:
    made = book()
    made.acked("a", Ack(version=1))
    made.sent(made.compose({}), resync=True, now=0.0)
    assert made.due(0.0) == 0
    assert made.compose({}).full


def test_another_leader_ends_the_back_off() -> None:
    made = book()
    made.failed(0.0)
    made.resync()
    assert made.due(0.0) == 0


def test_counts_are_those_since_the_version() -> None:
    counts = CountBook()
    assert counts.changed("a", {}) is None
    counts.begin("a", 3, "r2", {("control", 7, "n"): 10})
    first = counts.changed("a", {("control", 7, "n"): 12, ("control", 7, "bad"): 1, ("treatment", 99, "n"): 5})
    assert first is not None
    assert (first.version, first.revision, set(first.arms)) == (3, "r2", {"control"})
    assert (first.arms["control"].n[7], first.arms["control"].bad[7], sum(first.arms["control"].slow)) == (2, 1, 0)
    same = {("control", 7, "n"): 12.0, ("control", 7, "bad"): 1.0}
    assert counts.changed("a", same) is None
    counts.forget_sent()
    assert counts.changed("a", same) is not None
    counts.keep([])
    assert counts.changed("a", same) is None


def test_the_leader_is_found_by_the_lease() -> None:
    url = "routing.funicular.dev/report-url"

    def lease(holder: str, value: str) -> dict[str, object]:
        return {"metadata": {"annotations": {url: value}}, "spec": {"holderIdentity": holder}}

    assert address(lease("x", "http://1.2.3.4:8085")) == "http://1.2.3.4:8085/v1/report"
    assert address(lease("x", "http://1.2.3.4:8085/v1/report")) == "http://1.2.3.4:8085/v1/report"
    assert address(lease("", "http://1.2.3.4:8085")) is None
    assert address(lease("x", "")) is None
    assert address({}) is None


def test_a_pod_is_ready_once_all_is_taken_and_stays_so_while_envoy_serves() -> None:
    ready = Readiness()
    assert ready.reason(synced=False, unsettled=[], envoy_is_up=True, in_step=True)
    assert ready.reason(synced=True, unsettled=["n/a"], envoy_is_up=True, in_step=True) == {
        "reason": "Envoy has not taken all policies yet",
        "policies": ["n/a"],
    }
    assert ready.reason(synced=True, unsettled=[], envoy_is_up=True, in_step=True) is None
    assert ready.reason(synced=True, unsettled=["n/a"], envoy_is_up=True, in_step=False) is None
    assert ready.reason(synced=True, unsettled=[], envoy_is_up=False, in_step=False)
    ready.is_draining = True
    assert ready.reason(synced=True, unsettled=[], envoy_is_up=True, in_step=True)
