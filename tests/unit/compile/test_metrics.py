"""Envoy's series -> those of 0001."""

from __future__ import annotations

import pytest

from funicular.compile.ack import CLUSTERS, ROUTES, SHARES, versions
from funicular.compile.metrics import Sample, parse, samples, translate, zeros

BASE = {"namespace": "shop", "policy": "support", "revision": "bbbb", "arm": "treatment"}
PACKED = "shop/support;bbbb;treatment"


@pytest.mark.parametrize(
    ("name", "labels", "family", "more"),
    [
        pytest.param(
            "requests",
            {"k": PACKED, "c": "mini", "s": "503"},
            "requests_total",
            {"candidate": "mini", "code": "5xx"},
            id="code",
        ),
        pytest.param(
            "requests",
            {"k": PACKED, "c": "", "s": "0"},
            "requests_total",
            {"candidate": "", "code": "0"},
            id="no answer",
        ),
        pytest.param(
            "outcomes",
            {"m": PACKED, "r": "7", "o": "bad"},
            "outcomes_total",
            {"replicate": "7", "outcome": "bad"},
            id="bad",
        ),
        pytest.param(
            "slow",
            {"m": PACKED, "r": "7", "i": "LatencyP95"},
            "slow_total",
            {"replicate": "7", "indicator": "LatencyP95"},
            id="slow",
        ),
        pytest.param(
            "tokens_prompt",
            {"k": PACKED, "c": "mini"},
            "tokens_total",
            {"candidate": "mini", "kind": "prompt"},
            id="tokens",
        ),
        pytest.param(
            "replicate_tokens_completion",
            {"m": PACKED, "c": "mini", "r": "3"},
            "replicate_tokens_total",
            {"candidate": "mini", "kind": "completion", "replicate": "3"},
            id="tokens by replicate",
        ),
    ],
)
def test_series_get_the_names_of_the_contract(
    name: str, labels: dict[str, str], family: str, more: dict[str, str]
) -> None:
    assert translate(f"envoy_funicular_{name}", labels) == Sample(f"funicular_{family}", {**BASE, **more})


@pytest.mark.parametrize(
    ("d", "a", "n", "decision", "reason"),
    [
        pytest.param("easy;classified;fallback", "1", "", "easy", "classified", id="a label that is known"),
        pytest.param("easy;classified;fallback", "2", "", "easy", "fallback", id="rescued by the baseline"),
        pytest.param("hard;classified", "2", "", "hard", "classified", id="the baseline asked twice is no fallback"),
        pytest.param("none;no_answer", "1", "", "none", "no_answer", id="the classifier was silent"),
        pytest.param("other;unknown_label", "1", "", "other", "unknown_label", id="a label that no route has"),
        pytest.param("none;not_asked", "1", "1", "none", "no_unit", id="nobody to assign"),
        pytest.param("very%20easy%3B;classified", "1", "", "very easy;", "classified", id="a label with a separator"),
    ],
)
def test_every_request_has_one_reason(d: str, a: str, n: str, decision: str, reason: str) -> None:
    found = translate("envoy_funicular_decisions", {"k": PACKED, "d": d, "a": a, "n": n})
    assert found == Sample("funicular_decisions_total", {**BASE, "decision": decision, "reason": reason})


def test_histograms_are_in_seconds() -> None:
    labels = {"h": "shop/support;control"}
    base = {"namespace": "shop", "policy": "support", "arm": "control"}
    family = "funicular_request_duration_seconds"
    assert translate("envoy_funicular_duration_bucket", {**labels, "le": "250"}) == Sample(
        f"{family}_bucket", {**base, "le": "0.25"}
    )
    assert translate("envoy_funicular_duration_bucket", {**labels, "le": "+Inf"}) == Sample(
        f"{family}_bucket", {**base, "le": "+Inf"}
    )
    assert translate("envoy_funicular_duration_sum", labels) == Sample(f"{family}_sum", base, 0.001)
    assert translate("envoy_funicular_first_token_count", labels) == Sample(
        "funicular_time_to_first_token_seconds_count", base
    )


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        pytest.param("envoy_http_downstream_rq", {"k": PACKED}, id="not ours"),
        pytest.param("envoy_funicular_requests", {}, id="without labels"),
        pytest.param("envoy_funicular_requests", {"k": "-"}, id="an answer of the gateway's own"),
        pytest.param("envoy_funicular_unheard_of", {"k": PACKED}, id="of another version"),
    ],
)
def test_what_is_not_in_the_contract_is_left_out(name: str, labels: dict[str, str]) -> None:
    assert translate(name, labels) is None


def test_series_that_mean_the_same_are_added() -> None:
    text = (
        "# TYPE envoy_funicular_requests counter\n"
        f'envoy_funicular_requests{{k="{PACKED}",c="mini",s="500"}} 2\n'
        f'envoy_funicular_requests{{k="{PACKED}",c="mini",s="503"}} 3\n'
        "envoy_server_uptime 12\n"
    )
    key = tuple(sorted({**BASE, "candidate": "mini", "code": "5xx"}.items()))
    assert samples(text) == {"funicular_requests_total": {key: 5.0}}


def test_escaped_labels_are_read_as_they_were() -> None:
    text = 'envoy_funicular_x{a="q\\"q",b="s\\\\n",c="l\\nl"} 1\n'
    assert list(parse(text)) == [("envoy_funicular_x", {"a": 'q"q', "b": "s\\n", "c": "l\nl"}, 1.0)]


def test_zeros_cover_all_replicates() -> None:
    found = list(zeros("shop", "support", "bbbb", ("treatment", "control"), ("LatencyP95",)))
    assert len(found) == 2 * 64 * (2 + 1)
    assert len({(sample.family, tuple(sorted(sample.labels.items()))) for sample in found}) == len(found)


def test_versions_are_read_from_text_readouts() -> None:
    text = (
        'cluster_manager.cds.version_text: "5"\n'
        'http.gateway.rds.policies.version_text: "abc"\n'
        'runtime.version_text: ""\n'
        'listener_manager.lds.version_text: "9"\n'
    )
    assert versions(text) == {CLUSTERS: "5", ROUTES: "abc"}
    assert SHARES not in versions(text)
