"""The store: who is served, what garbage does, and that one policy's change compiles one policy."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from funicular.agent.labels import parse_labels, selects
from funicular.agent.policies import Policies
from funicular.agent.ports import Compiled, Sample
from funicular.api.traffic import Traffic

LABELS = {"app": "gateway", "zone": "a"}


class Fake:
    """Compiles to what it was given."""

    id_key = "id-key"

    def __init__(self) -> None:
        self.compiled: list[str] = []

    def policy(self, namespace: str, name: str, traffic: Traffic) -> Compiled:
        self.compiled.append(name)
        if traffic.salt == "bad":
            raise KeyError("bad")
        return Compiled(traffic.endpoint, b"{}", {}, {"share": traffic.share.desired}, ())

    def routes(self, by_model: Any) -> Any: ...
    def shares(self, layer: Any) -> Any: ...
    def secret(self, sds: str, value: str) -> Any: ...
    def bootstrap(self) -> Any: ...
    def companions(self) -> Any: ...
    def translate(self, name: str, labels: Any) -> Sample | None: ...


def traffic(version: int = 1, **more: Any) -> dict[str, Any]:
    upstream = {"name": "frontier", "url": "http://x/v1", "model": "m"}
    return {
        "version": version,
        "revision": "r1",
        "share": {"desired": 0},
        "endpoint": "support",
        "selector": {"app": "gateway"},
        "units": [{"header": "x-user-id"}],
        "stable": {"revision": "r1", "upstreams": [upstream], "baseline": "frontier"},
        **more,
    }


def policy(name: str, found: Any, *, uid: str = "", created: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    meta = {"namespace": "n", "name": name, "uid": uid or name, "creationTimestamp": created}
    return {"metadata": meta, "status": {"traffic": found} if found is not None else {}}


@pytest.fixture
def store() -> Policies:
    return Policies(Fake(), LABELS)


def test_a_change_compiles_that_policy_alone(store: Policies) -> None:
    fake = store._compiler
    assert isinstance(fake, Fake)
    store.resync([policy(f"p{i}", traffic(endpoint=f"m{i}")) for i in range(10)])
    fake.compiled.clear()
    assert store.event("MODIFIED", policy("p3", traffic(2, endpoint="m3"))) == {("n", "p3")}
    assert store.event("MODIFIED", policy("p3", traffic(2, endpoint="m3"))) == set()
    assert fake.compiled == ["p3"]


def test_a_resync_forgets_what_is_gone_in_its_namespace_alone(store: Policies) -> None:
    store.resync([policy("a", traffic(endpoint="a")), policy("b", traffic(endpoint="b"))])
    assert store.resync([], "elsewhere") == set()
    assert store.resync([policy("a", traffic(endpoint="a"))], "n") == {("n", "b")}
    assert list(store.records) == [("n", "a")]


@pytest.mark.parametrize(
    ("found", "served"),
    [
        pytest.param(traffic(), True, id="its labels are among ours"),
        pytest.param(traffic(selector={"app": "other"}), False, id="another value"),
        pytest.param(traffic(selector={"app": "gateway", "zone": "b"}), False, id="one of two differs"),
        pytest.param(traffic(selector={}), False, id="an empty selector selects nobody"),
        pytest.param(None, False, id="no traffic yet"),
    ],
)
def test_only_policies_that_select_this_pod_are_kept(store: Policies, found: Any, served: bool) -> None:
    store.put(policy("a", found))
    assert bool(store.records) == served


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(traffic(2, salt="bad"), id="the compiler raises"),
        pytest.param(traffic(2, stable=3), id="a wrong type"),
        pytest.param({**traffic(), "version": "two"}, id="a version that is no number"),
        pytest.param("text", id="text"),
        pytest.param([1], id="a list"),
    ],
)
def test_garbage_keeps_the_last_good_version_and_carries_an_error(store: Policies, garbage: Any) -> None:
    store.put(policy("a", traffic(1, share={"desired": 5})))
    store.put(policy("b", traffic(1, endpoint="b")))
    store.put(policy("a", garbage))
    record = store.records["n", "a"]
    assert record.error
    assert record.compiled is not None
    assert record.compiled.shares == {"share": 5}
    assert store.records["n", "b"].error is None
    store.put(policy("a", traffic(3)))
    assert store.records["n", "a"].error is None
    assert store.records["n", "a"].version == 3


def test_an_endpoint_belongs_to_the_first_and_passes_on_when_it_goes(store: Policies) -> None:
    store.put(policy("a", traffic()))
    store.put(policy("b", traffic(7)))
    assert "served by policy n/a" in (store.records["n", "b"].error or "")
    changed = store.event("DELETED", policy("a", traffic()))
    assert changed == {("n", "a"), ("n", "b")}
    assert store.records["n", "b"].error is None


def test_a_policy_made_anew_under_its_name_is_another(store: Policies) -> None:
    store.put(policy("a", traffic(9), uid="one"))
    store.put(policy("a", traffic(1), uid="two"))
    assert store.records["n", "a"].uid == "two"
    assert store.records["n", "a"].version == 1


def test_who_came_first_has_the_endpoint_however_the_list_is_sorted(store: Policies) -> None:
    first, second = policy("z", traffic()), policy("a", traffic())
    first["metadata"]["creationTimestamp"], second["metadata"]["creationTimestamp"] = "2026-01-01", "2026-01-02"
    store.resync([second, first])
    assert store.records["n", "z"].error is None
    assert "served by policy n/z" in (store.records["n", "a"].error or "")


def test_new_labels_of_the_pod_select_anew(store: Policies) -> None:
    store.put(policy("a", traffic(selector={"app": "other"})))
    assert store.relabel({"app": "other"}) == {("n", "a")}
    assert store.relabel({"app": "other"}) == set()
    assert store.relabel({"app": "third"}) == {("n", "a")}
    assert store.records == {}


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        pytest.param('a="b"\nc/d="e"', {"a": "b", "c/d": "e"}, id="two lines"),
        pytest.param('a="b\\"c\\n"', {"a": 'b"c\n'}, id="escapes"),
        pytest.param('\n\nnothing\n="x"\nbroken="\n', {}, id="what cannot be read is left out"),
    ],
)
def test_labels_of_the_downward_api(text: str, labels: dict[str, str]) -> None:
    assert parse_labels(text) == labels


def test_a_selector_wants_all_its_labels() -> None:
    assert selects({"a": "1"}, {"a": "1", "b": "2"})
    assert not selects({"a": "1", "c": "3"}, {"a": "1", "b": "2"})
    assert not selects({}, {"a": "1"})


def test_objects_are_plain_json() -> None:
    assert orjson.loads(orjson.dumps(policy("a", traffic())))["metadata"]["name"] == "a"
