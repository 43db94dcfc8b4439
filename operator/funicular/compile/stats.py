"""Envoy's counters of ours: access loggers that turn the metadata of a request's last route into series.

Labels are packed (`k`: namespace/policy;revision;arm), because each label of a series costs time in every request; metrics.py
unpacks them. No label ever holds what a client sent.
"""

from __future__ import annotations

from funicular.compile.inputs import Json
from funicular.compile.protos import NO_UNIT, REPLICATE, SPACE, typed

PREFIX = "funicular"
DURATION_BOUNDS = 3  # most indicators of one policy that are bounds of the duration
FIRST_TOKEN = "TimeToFirstToken"  # noqa: S105
BUCKETS = (5, 10, 25, 50, 100, 250, 500, 1000, 2000, 4000, 8000, 15000, 30000, 60000)  # milliseconds
# One attempt, an answer below 500 that is not 429, and no flag but of a client that went away.
_GOOD = r"[-01]*;(0|[123]\d\d|4[013-9]\d|42[0-8]);(-|DC|DPE|DC,DPE)"


def _act(**what: Json) -> Json:
    return {"action": typed("act", "matching.actions.transform_stat.v3.TransformStat", **what)}


_VALUE = typed("value", "matching.common_inputs.stats.v3.StatTagValueInput")
_DROP = _act(drop_stat={})


def _tag(name: str, value: str, *, needed: bool = False) -> Json:
    """`needed`: without a value there is no sample."""
    if not needed:
        return {"name": name, "value_format": value}
    rules = {"matcher_tree": {"input": _VALUE, "exact_match_map": {"map": {"-": _DROP, "": _DROP}}}}
    return {"name": name, "value_format": value, "rules": rules}


def _outcome() -> Json:
    def to(value: str) -> Json:
        return _act(update_tag={"new_tag_value": value})

    good = {"single_predicate": {"input": _VALUE, "value_match": {"safe_regex": {"google_re2": {}, "regex": _GOOD}}}}
    return {
        "name": "o",
        "value_format": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%;%RESPONSE_CODE%;%RESPONSE_FLAGS%",
        "rules": {
            "matcher_list": {"matchers": [{"predicate": good, "on_match": to("good")}]},
            "on_no_match": to("bad"),
        },
    }


def _true(name: str, expression: str) -> Json:
    """Keeps the sample only where the expression holds."""
    keep = _act(update_tag={"new_tag_value": "true"})
    rules = {"matcher_tree": {"input": _VALUE, "exact_match_map": {"map": {"true": keep}}}, "on_no_match": _DROP}
    return {"name": name, "value_format": f"%CEL({expression})%", "rules": rules}


def _route(key: str, name: str, *, needed: bool = True) -> Json:
    return _tag(name, f"%METADATA(ROUTE:{SPACE}:{key})%", needed=needed)


def _logger(
    counters: list[Json] | None = None, histograms: list[Json] | None = None, only_if: Json | None = None
) -> Json:
    config = typed(
        "envoy.access_loggers.stats",
        "access_loggers.stats.v3.Config",
        stats_scope={"prefix": PREFIX},
        **({"counters": counters} if counters else {}),
        **({"histograms": histograms} if histograms else {}),
    )
    return {**config, **({"filter": only_if} if only_if else {})}


def _counter(name: str, tags: list[Json], value: str = "") -> Json:
    return {"stat": {"name": name, "tags": tags}, **({"value_format": value} if value else {"value_fixed": 1})}


def _histogram(name: str, value: str) -> Json:
    return {"stat": {"name": name, "tags": [_route("h", "h")]}, "unit": "Milliseconds", "value_format": value}


def _cel(expression: str) -> Json:
    return {
        "extension_filter": typed(
            "envoy.access_loggers.extension_filters.cel",
            "access_loggers.filters.cel.v3.ExpressionFilter",
            expression=expression,
        )
    }


def _present(key: str) -> Json:
    """Dynamic metadata of ours that is there: a value that is none would log an error for each request."""
    matcher = {"filter": SPACE, "path": [{"key": key}], "value": {"present_match": True}}
    return {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": False}}


def access_log() -> list[Json]:
    labels, measured = _route("k", "k"), _route("m", "m")
    candidate = _tag("c", f"%METADATA(CLUSTER:{SPACE}:candidate)%")
    replicate = _tag("r", f"%FILTER_STATE({REPLICATE}:PLAIN)%", needed=True)
    attempts = _tag("a", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%")
    no_unit = _tag("n", f"%FILTER_STATE({NO_UNIT}:PLAIN)%")
    code = _tag("s", "%RESPONSE_CODE%")
    until_body = "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:ms)%"

    def slow(*indicator: Json) -> Json:
        return _counter("slow", [measured, replicate, *indicator])

    tokens = [
        _counter(f"{name}_{kind}", [*tags, candidate], f"%DYNAMIC_METADATA({SPACE}:{kind}_tokens)%")
        for name, tags in (("tokens", [labels]), ("replicate_tokens", [_route("p", "m"), replicate]))
        for kind in ("prompt", "completion")
    ]
    return [
        _logger(
            [
                _counter("requests", [labels, candidate, code]),
                _counter("decisions", [labels, _route("d", "d"), attempts, no_unit]),
                _counter("outcomes", [measured, replicate, _outcome()]),
            ],
            [_histogram("duration", "%DURATION%")],
        ),
        _logger(
            histograms=[_histogram("first_token", until_body)], only_if=_cel('response.code_details == "via_upstream"')
        ),
        _logger(tokens, only_if=_present("completion_tokens")),
        _logger([slow(_tag("i", FIRST_TOKEN))], only_if=_present("late")),
        _logger(
            [
                slow(_route("i0", "i")),
                *(slow(_route(f"i{n}", "i"), _true("x", _over(n))) for n in range(1, DURATION_BOUNDS)),
            ],
            only_if=_cel(_over(0)),
        ),
    ]


def _over(number: int) -> str:
    """The bounds of a route rise: an answer that is within the first one is asked for no other."""
    return f'request.duration > duration(xds.route_metadata.filter_metadata["{SPACE}"]["b{number}"])'


def stats_config() -> Json:
    """Ours and what tells of the pod's health: Envoy's statistics of every cluster are 43 MB with 1,000 policies."""
    kept = (PREFIX, "http.", "listener", "cluster_manager", "runtime", "server", "main_thread", "workers")
    return {
        "histogram_bucket_settings": [{"match": {"prefix": f"{PREFIX}."}, "buckets": list(BUCKETS)}],
        "stats_matcher": {"inclusion_list": {"patterns": [{"prefix": prefix} for prefix in kept]}},
    }
