"""The order of files: the two rules of plan.py."""

from __future__ import annotations

import pytest

from funicular.agent.plan import Clusters, layer
from funicular.agent.ports import Compiled


def part(route: str, shares: dict[str, int], *clusters: str) -> Compiled:
    return Compiled("m", route.encode(), dict.fromkeys(clusters, b"{}"), shares, ())


A, B = ("n", "a"), ("n", "b")


@pytest.mark.parametrize(
    ("wanted", "installed", "expected"),
    [
        pytest.param({A: part("x", {"k": 5})}, {A: part("x", {"k": 1})}, {"k": 5}, id="same routes: the new share"),
        pytest.param({A: part("y", {"j": 5})}, {}, {}, id="not installed: its keys are not read yet"),
        pytest.param(
            {A: part("y", {})}, {A: part("x", {"k": 9})}, {"k": 9}, id="promotion: the key stays while routes read it"
        ),
        pytest.param({A: part("y", {"k": 9})}, {A: part("x", {"k": 1})}, {"k": 1}, id="a rise waits for the routes"),
        pytest.param({A: part("y", {"k": 0})}, {A: part("x", {"k": 9})}, {"k": 0}, id="a fall does not wait"),
        pytest.param(
            {}, {A: part("x", {"k": 9})}, {"k": 9}, id="a policy that goes keeps its share until its route went"
        ),
        pytest.param(
            {A: part("x", {"k": 2}), B: part("y", {"j": 3})},
            {A: part("x", {"k": 1}), B: part("z", {"j": 1})},
            {"k": 2, "j": 1},
            id="each policy for itself",
        ),
    ],
)
def test_shares_follow_routes_but_may_fall_before_them(
    wanted: dict[tuple[str, str], Compiled], installed: dict[tuple[str, str], Compiled], expected: dict[str, int]
) -> None:
    assert layer(wanted, installed, None) == expected


def test_an_earlier_process_shares_stay_until_its_routes_are_known() -> None:
    found = {"k": 9, "gone": 4}
    assert layer({A: part("x", {"k": 2, "new": 1})}, {}, found) == {"k": 2, "gone": 4}


def test_a_cluster_stands_before_its_route_and_stays_after_it() -> None:
    clusters = Clusters({"old": b"1"}, {})
    wanted = {A: part("x", {}, "new")}
    assert clusters.union(wanted) == {"new": b"{}", "old": b"1"}
    clusters.standing = clusters.union(wanted)
    clusters.used(wanted, 100.0, 90.0)
    assert clusters.next_due() == 190.0
    assert clusters.due(189.0) == set()
    assert clusters.due(190.0) == {"old"}
    clusters.retire({"old"})
    assert clusters.standing == {"new": b"{}"}
    assert clusters.next_due() is None


def test_a_cluster_that_is_used_again_is_not_retired() -> None:
    clusters = Clusters({"c": b"1"}, {})
    clusters.used({}, 0.0, 10.0)
    clusters.used({A: part("x", {}, "c")}, 5.0, 10.0)
    assert clusters.due(100.0) == set()
