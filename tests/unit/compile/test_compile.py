"""Rules of the compiler that need no Envoy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from funicular.api.spec import Price
from funicular.api.traffic import Share
from funicular.compile import Arm, GatewaySettings, arm_of, policy_clusters, policy_route, policy_secrets, policy_shares
from funicular.compile.assignment import REPLICATE_SEED, holdback_seed, replicate_of, share_seed
from funicular.compile.inputs import target_of
from funicular.settings import AgentSettings
from tests.unit.compile.builders import (
    make_classifier,
    make_credentials,
    make_policy,
    make_route,
    make_traffic,
    make_upstream,
)

SETTINGS = GatewaySettings("/run/funicular")
RAMP = make_traffic(make_route("aaaa"), make_route("bbbb", single="frontier"), holdback=1000)


@given(st.text(min_size=1), st.integers(0, 10_000), st.integers(0, 10_000))
def test_who_is_treated_at_a_share_is_treated_at_every_larger_one(unit: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    if arm_of(unit, "shop", "support", RAMP, low) is Arm.TREATMENT:
        assert arm_of(unit, "shop", "support", RAMP, high) is Arm.TREATMENT


@given(st.text(min_size=1))
def test_the_ends_of_the_ramp_treat_nobody_and_everybody_outside_the_holdback(unit: str) -> None:
    assert arm_of(unit, "shop", "support", RAMP, 0) is not Arm.TREATMENT
    assert arm_of(unit, "shop", "support", RAMP, 10_000) is not Arm.CONTROL


@given(st.text(min_size=1), st.integers(0, 10_000))
def test_the_holdback_does_not_depend_on_share_or_revision(unit: str, share: int) -> None:
    other = RAMP.model_copy(update={"candidate": make_route("cccc"), "share": Share(desired=share)})
    held = arm_of(unit, "shop", "support", RAMP) is Arm.HOLDBACK
    assert held == (arm_of(unit, "shop", "support", other) is Arm.HOLDBACK)


def test_no_unit_is_control() -> None:
    assert arm_of(None, "shop", "support", RAMP, 10_000) is Arm.CONTROL
    assert arm_of("", "shop", "support", RAMP, 10_000) is Arm.CONTROL


def test_replicates_are_what_the_contract_says() -> None:
    assert replicate_of("alice") == xxhash.xxh64(b"alice", seed=REPLICATE_SEED).intdigest() % 64


def test_seeds_differ_by_each_of_their_parts() -> None:
    seeds = {
        holdback_seed("a", "b", ""),
        holdback_seed("a", "b", "salt"),
        holdback_seed("a", "c", ""),
        holdback_seed("c", "b", ""),
        share_seed("a", "b", ""),
        share_seed("a", "b", "r"),
        share_seed("ab", "", "r"),
    }
    assert len(seeds) == 7
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def _values(tree: Any, key: str) -> Iterator[Any]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from _values(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from _values(value, key)


def test_the_share_stands_in_the_runtime_layer_and_nowhere_in_the_routes() -> None:
    low, high = (make_policy(RAMP.model_copy(update={"share": Share(desired=s), "version": s})) for s in (100, 5000))
    assert policy_route(low) == policy_route(high)
    assert policy_clusters(low, SETTINGS) == policy_clusters(high, SETTINGS)
    assert policy_shares(low) == {"funicular/share/shop/support/bbbb": 100}
    assert policy_shares(high) == {"funicular/share/shop/support/bbbb": 5000}


def test_routes_lead_only_to_clusters_that_the_policy_brings() -> None:
    frontier = make_upstream("frontier", credentials=make_credentials("a"))
    mini, other = (
        make_upstream("mini"),
        make_upstream("mini", model="newer", credentials=make_credentials("b", "x-key")),
    )
    stable = make_route("aaaa", frontier, mini, classifier=make_classifier())
    policy = make_policy(make_traffic(stable, make_route("bbbb", frontier, other, single="mini"), holdback=100))
    tree = policy_route(policy)
    named = {*_values(tree, "cluster"), *_values(tree, "cluster_name")}
    assert named == set(policy_clusters(policy, SETTINGS))


def test_one_name_for_two_upstreams_is_two_clusters_and_equal_ones_are_one() -> None:
    frontier, mini = make_upstream("frontier"), make_upstream("mini")
    same = make_policy(make_traffic(make_route("aaaa", frontier, mini), make_route("bbbb", frontier, mini)))
    assert len(policy_clusters(same, SETTINGS)) == 2
    changed = make_upstream("mini", model="another")
    other = make_policy(make_traffic(make_route("aaaa", frontier, mini), make_route("bbbb", frontier, changed)))
    assert len(policy_clusters(other, SETTINGS)) == 3


def test_every_candidate_strips_every_header_that_carries_a_key_in_the_policy() -> None:
    frontier = make_upstream("frontier", credentials=make_credentials("a", "x-first", ""))
    mini = make_upstream("mini", credentials=make_credentials("b", "x-second", ""))
    policy = make_policy(make_traffic(make_route("aaaa", frontier), make_route("bbbb", frontier, mini, single="mini")))
    for cluster in policy_clusters(policy, SETTINGS).values():
        removed = set(_values(cluster, "remove"))
        assert {"authorization", "x-api-key", "x-first", "x-second"} <= removed


def test_secrets_are_named_by_namespace_name_and_key() -> None:
    mini = make_upstream("mini", credentials=make_credentials("keys"))
    one, other = (make_policy(make_traffic(make_route("aaaa", mini)), namespace=ns) for ns in ("a", "b"))
    assert policy_secrets(one)[0].sds != policy_secrets(other)[0].sds
    assert policy_secrets(one) == policy_secrets(one)


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        pytest.param("http://vllm:8000/v1", "vllm:8000", "/v1", id="a Service with a port"),
        pytest.param("https://api.example.com/v1/", "api.example.com", "/v1", id="a closing slash is left out"),
        pytest.param("http://[::1]:80/a/b", "[::1]", "/a/b", id="an address of version 6"),
        pytest.param("http://plain", "plain", "", id="no path"),
    ],
)
def test_urls_come_apart(url: str, authority: str, path: str) -> None:
    target = target_of(url)
    assert (target.authority, target.path) == (authority, path)


@pytest.mark.parametrize("url", ["ftp://a/v1", "http:///v1", "http://a:99999/", "nothing"])
def test_a_url_that_is_none_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        target_of(url)


def test_a_route_to_an_unknown_candidate_is_refused() -> None:
    policy = make_policy(make_traffic(make_route("aaaa"), make_route("bbbb", single="nobody")))
    with pytest.raises(ValueError, match="nobody"):
        policy_route(policy)


def test_tokens_by_replicate_are_counted_where_there_are_prices() -> None:
    priced = make_upstream("frontier", price=Price(input_per_million=1, output_per_million=2))
    for upstream, counted in ((make_upstream("frontier"), False), (priced, True)):
        policy = make_policy(make_traffic(make_route("aaaa", upstream), make_route("bbbb", upstream)))
        assert ("shop/support;bbbb;control" in _values(policy_route(policy), "p")) is counted


def test_an_idle_policy_asks_for_no_unit_and_no_replicates() -> None:
    tree = policy_route(make_policy(make_traffic(holdback=100)))
    text = json.dumps(tree)
    assert '"units"' not in text
    assert "runtime_fraction" not in text
    assert '"m"' not in text


@pytest.mark.parametrize(
    ("pod_ip", "listens"),
    [("127.0.7.1", "127.0.7.1"), ("10.0.0.7", "0.0.0.0"), ("fd00::7", "::")],
)
def test_a_pod_on_loopback_keeps_to_its_own_address(pod_ip: str, listens: str) -> None:
    settings = GatewaySettings.of(AgentSettings(pod_ip=pod_ip))
    assert settings.listen_host == listens
    assert settings.agent_host == pod_ip


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://127.0.0.1:9901", id="Envoy's admin interface"),
        pytest.param("http://localhost:8081/v1", id="the agent"),
        pytest.param("http://[::1]:9902", id="Envoy's metrics"),
        pytest.param("http://169.254.169.254/v1", id="a cloud's metadata"),
    ],
)
def test_a_candidate_must_not_be_the_gateway_itself(url: str) -> None:
    upstream = make_upstream("frontier", url)
    policy = make_policy(make_traffic(make_route("aaaa", upstream)))
    with pytest.raises(ValueError, match="the URL of a candidate points to"):
        policy_clusters(policy, GatewaySettings(config_dir="/run"))
