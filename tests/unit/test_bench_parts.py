"""The benchmark's parts that can be wrong without anyone noticing: what wrk says, bodies, ratios, headline keys."""

from __future__ import annotations

import json

import pytest

from funicular.api.traffic import WHOLE
from hack.bench.__main__ import headline
from hack.bench.gateway import MODEL, traffic
from hack.bench.reverts import quantile
from hack.bench.throughput import Spread
from hack.bench.wrk import body_of, parse
from hack.cluster.errors import ClusterError

SAID = """Running 1s test @ http://127.10.250.3:8080
  1 threads and 32 connections
  Latency Distribution
     50%    1.51ms
     75%    2.36ms
     90%    4.41ms
     99%  950.00us
  12947 requests in 1.00s, 6.91MB read
  Socket errors: connect 0, read 3, write 0, timeout 1
  Non-2xx or 3xx responses: 2
Requests/sec:  12938.91
Transfer/sec:      6.90MB
"""


def test_what_wrk_says_is_understood() -> None:
    shot = parse(SAID)
    assert (shot.requests, shot.rate, shot.p50, shot.p99, shot.failed) == (
        12947,
        12938.91,
        1.51,
        pytest.approx(0.95),
        6,
    )
    assert not shot.is_clean


def test_something_else_is_an_error() -> None:
    with pytest.raises(ClusterError, match="unexpected"):
        parse("unable to connect to 127.0.0.1:1 Connection refused")


@pytest.mark.parametrize("size", [2_000, 100_000, 1_000_000])
def test_a_body_has_its_size_and_is_a_request(size: int) -> None:
    body = body_of(size, MODEL)
    assert abs(len(body) - size) < 200
    assert json.loads(body)["model"] == MODEL


def test_a_spread_keeps_the_extremes() -> None:
    assert Spread.of([3.0, 1.0, 2.0]).as_json() == {"min": 1.0, "median": 2.0, "max": 3.0}
    assert quantile(range(100), 0.95) == 95


def test_only_the_first_policy_is_under_load() -> None:
    first, other = traffic(0, "127.0.0.1:1", None, WHOLE), traffic(7, "127.0.0.1:1", None, 0)
    assert (first.endpoint, other.endpoint) == (MODEL, f"{MODEL}-7")
    assert first.is_measured


def test_keys_are_there_though_parts_were_left_out() -> None:
    found = headline({})
    assert {
        "control_vs_envoy",
        "control_vs_litellm",
        "treatment_vs_control",
        "revert_ms_p50",
        "revert_ms_p95",
    } <= found.keys()
    assert set(found.values()) == {None}
