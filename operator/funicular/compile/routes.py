"""Policies -> the route configuration (RDS): the arm is a route, the path to it a tree of matchers.

model -> [holdback] -> [share] -> label of the classifier. What a request turned out to be (arm, decision, why) stands in
the metadata of the route it ended on, so that nothing has to be computed for a request but its hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from funicular.api.duration import seconds
from funicular.api.spec import UnitSource
from funicular.api.traffic import Route
from funicular.compile.assignment import Arm, holdback_seed, share_seed
from funicular.compile.clusters import classifier_cluster, is_address, relay_cluster, upstream_cluster
from funicular.compile.inputs import GatewaySettings, Json, PolicyTraffic, target_of, upstream_of
from funicular.compile.protos import (
    API,
    EXT_AUTHZ,
    MODEL,
    NOT_ASKED,
    OTHER,
    PER_ROUTE,
    REPLICATE,
    SPACE,
    UNIT,
    exact_map,
    header_input,
    seconds_text,
    state_input,
    typed,
    when_present,
)
from funicular.compile.replies import ROUTE, direct, loop_detected, model, models, unknown_model, unknown_path
from funicular.compile.stats import FIRST_TOKEN

LUA = "envoy.filters.http.lua"
LABEL, THRESHOLD = "x-funicular-label", "x-funicular-threshold"
NAME = "policies"
# RFC 8586: a candidate's name may lead to this gateway again, which nobody can know beforehand. Each attempt adds an entry,
# and a gateway in front of another one is no loop.
LOOP, HOPS = "cdn-loop", 5
_BACK_OFF = {"base_interval": "0.001s", "max_interval": "0.002s"}
_FALLBACK = {
    "retry_on": "5xx,reset,connect-failure,refused-stream,retriable-status-codes",
    "retriable_status_codes": [408, 429],
    "num_retries": 1,
    "refresh_cluster_on_retry": True,
    "retry_back_off": _BACK_OFF,
}
_AGAIN = {  # where another host may do, and the provider cannot have seen the request; keeping the body costs 100 us a MB
    "retry_on": "connect-failure,refused-stream,reset-before-request",
    "num_retries": 1,
    "retry_back_off": _BACK_OFF,
}


def unit_sources(units: tuple[UnitSource, ...]) -> str:
    """As lua/downstream.lua reads it: kind and name, in order; `h` header, `b` member of the body."""
    found = []
    for unit in units:
        if unit.header is not None:
            found.append(f"h{unit.header}")
        elif unit.body is not None:
            found.append(f"b{unit.body}")
        elif unit.api_key:
            found.append("hauthorization")
    return " ".join(found)


class _Arms:
    """The routes of one policy."""

    def __init__(self, policy: PolicyTraffic) -> None:
        self._policy, self._traffic = policy, policy.traffic
        bounds = dict(self._traffic.latency_bounds) if self._traffic.is_measured else {}
        self._is_priced = any(upstream.price for route in policy.revisions() for upstream in route.upstreams)
        first_token = bounds.pop(FIRST_TOKEN, None)
        self._lua: Json = {}
        if self._traffic.is_measured:
            self._lua["units"] = unit_sources(self._traffic.units)
        if first_token is not None:
            self._lua["ttft"] = seconds(first_token)
        self._bounds: Json = {}
        for number, name in enumerate(sorted(bounds, key=lambda name: seconds(bounds[name]))):
            self._bounds[f"i{number}"] = name
            self._bounds[f"b{number}"] = seconds_text(seconds(bounds[name]))

    # --- one route ----------------------------------------------------------------------------------------------------
    def _labels(self, arm: Arm) -> str:
        return f"{self._policy.full_name};{self._traffic.compared.revision};{arm}"

    def _chat(self, arm: Arm, decision: str, reason: str) -> Json:
        labels = self._labels(arm)
        fun: Json = {
            "k": labels,
            "h": f"{self._policy.full_name};{arm}",
            "d": f"{quote(decision, safe='')};{reason}",
        }
        if self._traffic.is_measured:
            fun.update({"m": labels, **self._bounds})
            if self._is_priced:
                fun["p"] = labels
        return {"filter_metadata": {SPACE: fun, **({LUA: self._lua} if self._lua else {})}}

    def _action(self, name: str, metadata: Json, target: Json, **fields: Any) -> Json:
        route = {"timeout": "0s", **target}
        fields = {"typed_per_filter_config": NOT_ASKED, **fields}
        message = {"name": name, "match": {"prefix": "/"}, "metadata": metadata, "route": route, **fields}
        return {"action": {"name": "route", "typed_config": {"@type": API + ROUTE, **message}}}

    def _baseline(self, route: Route) -> Json:
        baseline = upstream_of(route, route.baseline)
        retry: Json = {"per_try_timeout": seconds_text(seconds(baseline.timeout))}
        if not is_address(target_of(baseline.url).host):
            retry.update(_AGAIN)
        return {"cluster": upstream_cluster(self._policy, baseline), "retry_policy": retry}

    def _candidate(self, route: Route, name: str) -> Json:
        """The candidate first, the baseline when it fails before its answer has begun."""
        if name == route.baseline:
            return self._baseline(route)
        candidate, baseline = upstream_of(route, name), upstream_of(route, route.baseline)
        relay = relay_cluster(self._policy, route, candidate)
        first, last = relay or upstream_cluster(self._policy, candidate), upstream_cluster(self._policy, baseline)
        groups = [{"name": str(i), "clusters": [{"cluster_name": c, "weight": 1}]} for i, c in enumerate((first, last))]
        plugin = typed(
            "envoy.router.cluster_specifier_plugin.priority_group",
            "router.cluster_specifiers.priority_group.v3.PriorityGroupClusterSpecifier",
            priority_groups=groups,
        )
        retry = {**_FALLBACK, "per_try_timeout": seconds_text(seconds((baseline if relay else candidate).timeout))}
        return {"inline_cluster_specifier_plugin": {"extension": plugin}, "retry_policy": retry}

    # --- subtrees -----------------------------------------------------------------------------------------------------
    def _to(self, route: Route, arm: Arm, name: str, decision: str, reason: str) -> Json:
        if name != route.baseline:
            reason += ";fallback"  # here a second attempt means that the baseline rescued the first
        return self._action(f"{arm}/{name}", self._chat(arm, decision, reason), self._candidate(route, name))

    def strategy(self, route: Route, arm: Arm) -> Json:
        """One revision's strategy: what becomes of a request of `arm`."""
        if route.classifier is not None:
            return self._classified(route, arm)
        return self._to(route, arm, route.single or route.baseline, "none", "not_asked")

    def _classified(self, route: Route, arm: Arm) -> Json:
        """A request without a label is on the last route, which asks; the answer's label leads it to another one."""
        classifier = route.classifier
        assert classifier is not None
        service = {
            "server_uri": {
                "uri": classifier.url,
                "cluster": classifier_cluster(classifier.url),
                "timeout": seconds_text(seconds(classifier.timeout)),
            },
            "path_override": f"{target_of(classifier.url).path}/v1/classify",
            "authorization_request": {"headers_to_add": [{"key": THRESHOLD, "value": repr(classifier.threshold)}]},
            "authorization_response": {"allowed_upstream_headers": {"patterns": [{"exact": LABEL}]}},
        }
        ask = {EXT_AUTHZ: {"@type": PER_ROUTE, "check_settings": {"http_service": service}}}
        metadata = self._chat(arm, "none", "no_answer")
        asking = self._action(f"{arm}/ask", metadata, self._baseline(route), typed_per_filter_config=ask)
        known = {
            label: self._to(route, arm, name, label, "classified") for label, name in sorted(classifier.routes.items())
        }
        unknown = self._to(route, arm, route.baseline, "other", "unknown_label")
        others = {
            "matcher": {
                "matcher_list": {"matchers": [when_present(header_input(LABEL), unknown)]},
                "on_no_match": asking,
            }
        }
        return {"matcher": exact_map(header_input(LABEL), known, others)}

    def holdback(self) -> Json:
        stable = self._traffic.stable
        return self._to(stable, Arm.HOLDBACK, stable.baseline, "none", "not_asked")

    def other(self) -> Json:
        """Other paths than chat completions: the baseline, outside of every comparison."""
        metadata = {"filter_metadata": {SPACE: {"k": self._labels(Arm.CONTROL)}}}
        return self._action("other", metadata, self._baseline(self._traffic.stable))


def _hashed_below(key: str, default: int, seed: int, then: Json) -> Json:
    """`then` for the units whose xxh64(unit, seed) % 10000 is below the numerator at `key`; no unit: never."""
    fraction = {"runtime_key": key, "default_value": {"numerator": default, "denominator": "TEN_THOUSAND"}}
    match = typed(
        "hash",
        "matching.input_matchers.runtime_fraction.v3.RuntimeFraction",
        seed=str(seed),
        runtime_fraction=fraction,
    )
    return {"predicate": {"single_predicate": {"input": state_input(UNIT), "custom_match": match}}, "on_match": then}


def policy_route(policy: PolicyTraffic) -> Json:
    """The subtree of one policy, to stand below its model. Raises ValueError for traffic that contradicts itself."""
    traffic = policy.traffic
    arms = _Arms(policy)
    control = arms.strategy(traffic.stable, Arm.CONTROL)
    split = []
    if traffic.holdback and traffic.is_measured:
        seed = holdback_seed(policy.namespace, policy.name, traffic.salt)
        split.append(_hashed_below(policy.holdback_key, traffic.holdback, seed, arms.holdback()))
    if traffic.candidate is not None:
        seed = share_seed(policy.namespace, policy.name, traffic.candidate.revision)
        split.append(_hashed_below(policy.share_key, 0, seed, arms.strategy(traffic.candidate, Arm.TREATMENT)))
    if split:
        control = {"matcher": {"matcher_list": {"matchers": split}, "on_no_match": control}}
    return {"matcher": exact_map(state_input(OTHER), {"1": arms.other()}, control)}


def route_configuration(by_model: Mapping[str, Any], settings: GatewaySettings) -> Json:
    """All policies' subtrees by model (each a dict, or an orjson.Fragment of one)."""
    names = sorted(by_model)
    paths = {
        "/healthz": direct("healthz", 200, "ok\n", as_json=False),
        "/v1/models": direct("models", 200, models(names)),
        "/v1/feedback": _feedback(),
        **{f"/v1/models/{quote(name)}": direct("model", 200, json.dumps(model(name))) for name in names},
    }
    matcher: Json = {
        "matcher_list": {"matchers": [when_present(state_input(MODEL), unknown_model())]},
        "on_no_match": {"matcher": exact_map(header_input(":path"), paths, unknown_path())},
    }
    if by_model:
        matcher = exact_map(state_input(MODEL), dict(by_model), {"matcher": matcher})
    passed_often = {"safe_regex": {"google_re2": {}, "regex": rf"(?s)(.*\bfunicular\b){{{HOPS},}}.*"}}
    loops = {"single_predicate": {"input": header_input(LOOP), "value_match": passed_often}}
    matcher = {
        "matcher_list": {"matchers": [{"predicate": loops, "on_match": loop_detected()}]},
        "on_no_match": {"matcher": matcher},
    }
    identity = (
        f"%METADATA(ROUTE:{SPACE}:k)%;%METADATA(CLUSTER:{SPACE}:candidate)%;"
        f"%FILTER_STATE({REPLICATE}:PLAIN)%;%START_TIME(%s.%6f)%"
    )
    host = {
        "name": "all",
        "domains": ["*"],
        "request_body_buffer_limit": str(settings.body_limit),
        "request_headers_to_add": [
            {"header": {"key": LOOP, "value": "funicular"}}
        ],  # one more, after those that are there
        "response_headers_to_add": [
            {
                "header": {"key": "x-funicular-id", "value": identity},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
        "matcher": matcher,
    }
    return {
        "@type": API + "envoy.config.route.v3.RouteConfiguration",
        "name": NAME,
        "max_direct_response_body_size_bytes": 4 << 20,
        "virtual_hosts": [host],
    }


def _feedback() -> Json:
    """Counted by the agent."""
    target = {"cluster": "agent", "timeout": "5s"}
    fields: Json = {"match": {"prefix": "/"}, "route": target, "typed_per_filter_config": NOT_ASKED}
    return {"action": typed("route", ROUTE, name="feedback", **fields)}
