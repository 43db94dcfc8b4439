"""Policies that must be refused, with the field and the sentence: the API server (integration) and `lint` (unit) are held
against the same table. Each is the example policy with one fault; and odd ones that must be accepted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Spec = dict[str, Any]
EXAMPLES = Path(__file__).parents[3] / "hack" / "examples"
EXAMPLE = yaml.safe_load((EXAMPLES / "support-chat.yaml").read_text())
SLO = {"name": "extra", "mode": "Enforce"}


@dataclass(frozen=True)
class Bad:
    """`change` makes one fault; `field` and `sentence` are what both say of it (of a type error, only the field)."""

    id: str
    change: Callable[[Spec], object]
    field: str
    sentence: str = ""


def example(name: str = "support-chat") -> dict[str, Any]:
    body = copy.deepcopy(EXAMPLE)
    body["metadata"]["name"] = name
    return body


def changed(change: Callable[[Spec], object], name: str = "support-chat") -> dict[str, Any]:
    body = example(name)
    change(body["spec"])
    return body


def put(path: str, value: Any) -> Callable[[Spec], None]:
    """put("rollout.steps.0.share", 5)"""

    def change(spec: Spec) -> None:
        *parents, last = path.split(".")
        place: Any = spec
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = value

    return change


NAMED = (
    ("a name of 41 characters", "a" * 41),
    ("a name with a dot", "support.chat"),
    ("a name that begins with a digit", "1st-chat"),
)
NAME_SENTENCE = "a policy's name has at most 40 lower-case letters, digits and '-' and begins with a letter"


def drop(path: str) -> Callable[[Spec], None]:
    def change(spec: Spec) -> None:
        *parents, last = path.split(".")
        place: Any = spec
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        del place[int(last) if isinstance(place, list) else last]

    return change


def slo(**fields: Any) -> Callable[[Spec], None]:
    """One more SLO, at spec.slos[4]."""
    return lambda spec: spec["slos"].append({**SLO, **fields})


def single(candidate: str = "mini", **rollout: Any) -> Callable[[Spec], None]:
    def change(spec: Spec) -> None:
        spec["strategy"] = {"single": {"candidate": candidate}}
        spec["rollout"].update(rollout)

    return change


def without_quality(spec: Spec) -> None:
    single()(spec)
    spec["slos"] = [item for item in spec["slos"] if item["name"] != "thumbs-up"]


def observed_quality(spec: Spec) -> None:
    single()(spec)
    spec["slos"][1]["mode"] = "Observe"


def without_holdback(spec: Spec) -> None:
    single(holdback=0)(spec)
    del spec["slos"][1]["allowedFromBaseline"]


SECRET = {"name": "prometheus", "key": "token"}
DURATION = "must be a duration such as 50ms, 4s, 1h30m or 168h"
URL = "must be a URL such as https://api.example.com/v1: http or https, a host, and at most a port and a path"
NAME = "must consist of lower-case letters, digits and '-', and neither begin nor end with '-'"
HEADER = "must be the name of a header, in lower case, such as x-user-id"
MODEL = "must be printable ASCII without spaces, quotes or backslashes, and not empty"
LABEL_VALUE = "must be the value of a label: letters, digits, '-', '_' and '.'"
ONE_LINE = "must be printable ASCII on one line"
QUANTITY = "must be a quantity as in a container's resources, such as 500m or 512Mi"
PRICE = "a price is zero or more dollars per million tokens, never negative"
SHARE = "share is in per cent: above 0, at most 100, with at most two decimals"
HOLDBACK = "holdback is in per cent: 0 to 50, with at most two decimals"
RATE = "the bounds of a rate are shares between 0 and 1: write 0.01 for 1 %"
DIFFERENCE = "a difference is zero or more: write how much worse the treatment may be as a positive number"
RISE = "the shares of the steps must rise from step to step, for example 1, 10, 50, 100"
UNIT = "set exactly one of header, body and apiKey for each place of the unit"
CLASSIFIER = "spec.strategy.classifier"
GOOD_TOTAL = {"good": "sum(good)", "total": "sum(total)"}
FROM_BASELINE = "allowedFromBaseline is measured against the holdback: set rollout.holdback above 0, for example 1"

BAD = (
    Bad("no baseline", put("candidates.0.baseline", False), "spec.candidates",
        "no candidate is the baseline: set baseline: true at the one that is today's production model"),
    Bad("two baselines", put("candidates.1.baseline", True), "spec.candidates",
        "mini is a second baseline: keep baseline: true at exactly one"),
    Bad("two candidates of one name", lambda s: s["candidates"].append(dict(s["candidates"][1])), "spec.candidates",
        "two candidates are named mini: give each its own name"),
    Bad("a candidate's name in capitals", put("candidates.1.name", "Mini"), "spec.candidates[1].name", NAME),
    Bad("a negative price", put("candidates.1.price.inputPerMillion", -1), "spec.candidates[1].price.inputPerMillion", PRICE),
    Bad("a negative price of output", put("candidates.1.price.outputPerMillion", -0.1),
        "spec.candidates[1].price.outputPerMillion", PRICE),
    Bad("a URL without a scheme", put("candidates.1.url", "vllm:8000/v1"), "spec.candidates[1].url", URL),
    Bad("a URL of another scheme", put("candidates.1.url", "ftp://vllm/v1"), "spec.candidates[1].url", URL),
    Bad("a URL with a password", put("candidates.1.url", "https://me:secret@vllm/v1"), "spec.candidates[1].url", URL),
    Bad("a URL with a query", put("candidates.1.url", "https://vllm/v1?key=1"), "spec.candidates[1].url", URL),
    Bad("a URL with a port too high", put("candidates.1.url", "http://vllm:70000/v1"), "spec.candidates[1].url", URL),
    Bad("a model with a line break", put("candidates.1.model", "a\nb"), "spec.candidates[1].model", MODEL),
    Bad("no model at all", put("endpoint.model", ""), "spec.endpoint.model", MODEL),
    Bad("a key's prefix with a line break", put("candidates.0.credentials.prefix", "Bearer\r\n"),
        "spec.candidates[0].credentials.prefix", ONE_LINE),
    Bad("a key's header in capitals", put("candidates.0.credentials.header", "X-Api-Key"),
        "spec.candidates[0].credentials.header", HEADER),
    Bad("a timeout that is no duration", put("candidates.1.timeout", "1 minute"), "spec.candidates[1].timeout", DURATION),
    Bad("a timeout without a unit", put("candidates.1.timeout", "60"), "spec.candidates[1].timeout", DURATION),
    Bad("a selector's value that no label has", put("gateway.selector.matchLabels", {"app": "a b"}),
        "spec.gateway.selector.matchLabels[app]", LABEL_VALUE),
    Bad("no strategy", put("strategy", {}), "spec.strategy", "set exactly one strategy: classifier or single"),
    Bad("both strategies", put("strategy.single", {"candidate": "mini"}), "spec.strategy",
        "set exactly one strategy: classifier or single"),
    Bad("a classifier without image and url", drop("strategy.classifier.image"), CLASSIFIER,
        "set exactly one of image (the operator runs the classifier) and url (it runs already)"),
    Bad("a classifier with image and url", put("strategy.classifier.url", "http://classifier:8080"), CLASSIFIER,
        "set exactly one of image (the operator runs the classifier) and url (it runs already)"),
    Bad("a route to an unknown candidate", put("strategy.classifier.routes.easy", "tiny"), f"{CLASSIFIER}.routes",
        "label easy is routed to tiny, which is no candidate: name one of spec.candidates"),
    Bad("a label with a space", put("strategy.classifier.routes.very easy", "mini"), f"{CLASSIFIER}.routes",
        "a label of the classifier consists of at most 63 letters, digits, '-', '_' and '.'"),
    Bad("no routes", put("strategy.classifier.routes", {}), f"{CLASSIFIER}.routes"),
    Bad("a threshold over 1", put("strategy.classifier.threshold", 1.5), f"{CLASSIFIER}.threshold"),
    Bad("no replica", put("strategy.classifier.replicas", 0), f"{CLASSIFIER}.replicas"),
    Bad("a classifier's timeout that is no duration", put("strategy.classifier.timeout", "fast"), f"{CLASSIFIER}.timeout",
        DURATION),
    Bad("resources that are no quantity", put("strategy.classifier.resources.requests.cpu", "a lot"),
        f"{CLASSIFIER}.resources.requests[cpu]", QUANTITY),
    Bad("negative resources", put("strategy.classifier.resources.limits.cpu", -1),
        f"{CLASSIFIER}.resources.limits[cpu]", QUANTITY),
    Bad("single with an unknown candidate", single("tiny"), "spec.strategy.single.candidate",
        "tiny is no candidate: name one of spec.candidates"),
    Bad("single without holdback", without_holdback, "spec.rollout.holdback",
        "strategy single replaces a model for everyone and wants a holdback: set rollout.holdback above 0, for example 1"),
    Bad("single without quality SLO", without_quality, "spec.slos",
        "strategy single wants an enforced quality SLO: add one with indicator ThumbsUpRate, or set quality: true at a "
        "query of your own"),
    Bad("single with a quality SLO that only observes", observed_quality, "spec.slos",
        "strategy single wants an enforced quality SLO"),
    Bad("a unit with two places", put("assignment.units.0.body", "user"), "spec.assignment.units[0]", UNIT),
    Bad("a unit without a place", put("assignment.units.0", {}), "spec.assignment.units[0]", UNIT),
    Bad("apiKey false", put("assignment.units.3.apiKey", False), "spec.assignment.units[3].apiKey",
        "apiKey can only be true: leave the entry out instead"),
    Bad("a unit's header of ours", put("assignment.units.0.header", "x-funicular-user"), "spec.assignment.units[0].header",
        "headers named x-funicular-... are removed at the gateway: take a header of the application's own"),
    Bad("a unit's header in capitals", put("assignment.units.0.header", "X-User"), "spec.assignment.units[0].header", HEADER),
    Bad("a unit's path into the body", put("assignment.units.1.body", "metadata.user"), "spec.assignment.units[1].body",
        "must be the name of a top-level member of the request's JSON body, such as user"),
    Bad("no units", put("assignment.units", []), "spec.assignment.units"),
    Bad("a week in days", put("assignment.minDuration", "7d"), "spec.assignment.minDuration", DURATION),
    Bad("two SLOs of one name", put("slos.2.name", "errors"), "spec.slos",
        "two SLOs are named errors: give each its own name"),
    Bad("an SLO with indicator and query", slo(indicator="ErrorRate", query=GOOD_TOTAL, max=0.1), "spec.slos[4]",
        "set exactly one of indicator (built in) and query (your own PromQL)"),
    Bad("an SLO of nothing", slo(max=0.1), "spec.slos[4]",
        "set exactly one of indicator (built in) and query (your own PromQL)"),
    Bad("an SLO without a bound", slo(indicator="ErrorRate"), "spec.slos[4]",
        "an SLO needs a bound: set at least one of max, min, allowedIncrease, allowedDecrease and allowedFromBaseline"),
    Bad("a query with good alone", slo(query={"good": "sum(good)"}, min=0.9), "spec.slos[4].query",
        "set good and total together, or value alone"),
    Bad("a query with value and total", slo(query={"value": "v", "total": "t"}, max=1), "spec.slos[4].query",
        "set good and total together, or value alone"),
    Bad("a latency without bound", drop("slos.2.bound"), "spec.slos[2]",
        "a latency indicator needs its bound, a duration such as bound: 4s"),
    Bad("a latency with max", slo(indicator="LatencyP99", bound="9s", max=0.1), "spec.slos[4]",
        "a latency indicator besides bound takes only allowedIncrease and allowedFromBaseline: its largest value is bound, "
        "for example bound: 4s"),
    Bad("bound at a rate", slo(indicator="ErrorRate", bound="1s", max=0.1), "spec.slos[4].bound",
        "bound is a duration for latency indicators only: say max, min, allowedIncrease or allowedDecrease here"),
    Bad("a bound that is no duration", put("slos.2.bound", "4 s"), "spec.slos[2].bound", DURATION),
    Bad("an error rate with min", slo(indicator="ErrorRate", min=0.1), "spec.slos[4]",
        "ErrorRate takes only max, allowedIncrease and allowedFromBaseline: less is better"),
    Bad("thumbs up with max", slo(indicator="ThumbsUpRate", max=0.9), "spec.slos[4]",
        "ThumbsUpRate takes only min, allowedDecrease and allowedFromBaseline: more is better"),
    Bad("cost with allowedDecrease", slo(indicator="CostPerRequest", allowedDecrease=1), "spec.slos[4]",
        "CostPerRequest takes only max, allowedIncrease and allowedFromBaseline: less is better"),
    Bad("a negative cost", slo(indicator="CostPerRequest", max=-1), "spec.slos[4].max",
        "the largest cost of a request is zero or more dollars"),
    Bad("good and total with max", slo(query=GOOD_TOTAL, max=0.9), "spec.slos[4]",
        "a query of good and total takes only min, allowedDecrease and allowedFromBaseline: more good events are better"),
    Bad("a value with a difference", slo(query={"value": "v"}, allowedIncrease=1), "spec.slos[4]",
        "a query of one value takes only max and min: without counts there is no comparison of the arms"),
    Bad("a rate in per cent", put("slos.0.max", 5), "spec.slos[0]", RATE),
    Bad("a good share in per cent", slo(query=GOOD_TOTAL, min=95), "spec.slos[4]", RATE),
    Bad("a negative difference", put("slos.0.allowedIncrease", -0.1), "spec.slos[0].allowedIncrease", DIFFERENCE),
    Bad("a negative decrease", put("slos.1.allowedDecrease", -0.1), "spec.slos[1].allowedDecrease", DIFFERENCE),
    Bad("a negative distance from the baseline", put("slos.1.allowedFromBaseline", -0.1),
        "spec.slos[1].allowedFromBaseline", DIFFERENCE),
    Bad("min above max", slo(query={"value": "v"}, min=2, max=1), "spec.slos[4]",
        "min is above max, so that nothing could pass: exchange them"),
    Bad("quality at an error rate", put("slos.0.quality", True), "spec.slos[0].quality",
        "quality marks a query of your own: of the built-in indicators only ThumbsUpRate speaks of quality"),
    Bad("from the baseline without holdback", put("rollout.holdback", 0), "spec.rollout.holdback", FROM_BASELINE),
    Bad("no samples", put("slos.0.minSamples", 0), "spec.slos[0].minSamples"),
    Bad("steps that fall", put("rollout.steps.1.share", 0.5), "spec.rollout.steps", RISE),
    Bad("steps that stay", put("rollout.steps.1.share", 1), "spec.rollout.steps", RISE),
    Bad("a last step below 100", put("rollout.steps.3.share", 90), "spec.rollout.steps",
        "the last step must have share 100: add a step {share: 100}"),
    Bad("no steps", put("rollout.steps", []), "spec.rollout.steps"),
    Bad("a step of nothing", put("rollout.steps.0.share", 0), "spec.rollout.steps[0].share", SHARE),
    Bad("a negative step", put("rollout.steps.0.share", -1), "spec.rollout.steps[0].share", SHARE),
    Bad("a step over 100", put("rollout.steps.3.share", 101), "spec.rollout.steps[3].share", SHARE),
    Bad("a step with three decimals", put("rollout.steps.0.share", 0.125), "spec.rollout.steps[0].share", SHARE),
    Bad("half of all users held back, and more", put("rollout.holdback", 51), "spec.rollout.holdback", HOLDBACK),
    Bad("a holdback with three decimals", put("rollout.holdback", 0.001), "spec.rollout.holdback", HOLDBACK),
    Bad("bake in the middle", put("rollout.steps.1.bake", "1h"), "spec.rollout.steps",
        "bake belongs to the last step only: say minDuration for the others"),
    Bad("maxDuration below minDuration", put("rollout.steps.2.maxDuration", "95h59m"), "spec.rollout.steps[2].maxDuration",
        "maxDuration must not be shorter than minDuration"),
    Bad("a step's duration in words", put("rollout.steps.0.minDuration", "a day"), "spec.rollout.steps[0].minDuration",
        DURATION),
    Bad("a mode that does not exist", put("slos.0.mode", "Warn"), "spec.slos[0].mode"),
    Bad("hold in lower case", put("rollout.onInconclusive", "hold"), "spec.rollout.onInconclusive"),
    Bad("a revert rate of 1", put("rollout.falseRevertRate", 1), "spec.rollout.falseRevertRate"),
    Bad("two ways to log in", put("prometheus.auth", {"bearer": {"secretRef": SECRET},
                                                      "basic": {"username": SECRET, "password": SECRET}}),
        "spec.prometheus.auth", "set at most one of bearer, basic and oauth2"),
    Bad("a token from nowhere", put("prometheus.auth", {"bearer": {}}), "spec.prometheus.auth.bearer",
        "set exactly one of secretRef and file for the token"),
    Bad("a header without a value", put("prometheus.headers", [{"name": "x-scope-orgid"}]), "spec.prometheus.headers[0]",
        "set exactly one of value and secretRef for a header"),
    Bad("a header with a line break", put("prometheus.headers", [{"name": "x-a", "value": "a\nb"}]),
        "spec.prometheus.headers[0].value", ONE_LINE),
    Bad("two CAs", put("prometheus.tls", {"caRef": {"name": "ca"}, "caSecretRef": SECRET}), "spec.prometheus.tls",
        "set at most one of caRef and caSecretRef"),
    Bad("a client certificate without its key", put("prometheus.tls", {"certRef": SECRET}), "spec.prometheus.tls",
        "a client certificate needs certRef and keyRef together"),
    Bad("Prometheus without a URL", drop("prometheus.url"), "spec.prometheus.url"),
    Bad("no Prometheus", drop("prometheus"), "spec.prometheus"),
    Bad("a text for a number", put("rollout.steps.0.minSamples", "300"), "spec.rollout.steps[0].minSamples"),
    Bad("a number for a text", put("candidates.1.model", 4), "spec.candidates[1].model"),
    Bad("a latency's max as a duration", put("slos.2.max", "4s"), "spec.slos[2].max"),
)  # fmt: skip

NULL = Bad("a price that is null", put("candidates.1.price", None), "spec.candidates[1].price",
           "must not be null: leave the field out, or give it a value")  # fmt: skip
"""Refused by server-side apply; a plain create takes null for absent."""

UNKNOWN = (
    Bad("a misspelt field", put("rollout.holdbak", 1), "spec.rollout.holdbak"),
    Bad("a field in snake_case", put("assignment.min_duration", "1h"), "spec.assignment.min_duration"),
    Bad("an unknown field in a list", put("rollout.steps.0.percent", 1), "spec.rollout.steps[0].percent"),
    Bad("a strategy of a later version", put("strategy.cascade", {}), "spec.strategy.cascade"),
)
"""Fields that do not exist: the API server refuses them where its field validation is strict, as kubectl's is."""


def mixed_quantities(spec: Spec) -> None:
    spec["strategy"]["classifier"]["resources"] = {"requests": {"cpu": 2, "memory": "1.5Gi"}, "limits": {"cpu": "1e3"}}


def odd_label(spec: Spec) -> None:
    spec["strategy"]["classifier"]["routes"]["Easy_1.b-2"] = "mini"


GOOD: tuple[tuple[str, Callable[[Spec], object]], ...] = (
    ("the example", lambda spec: None),
    ("a number of CPUs and a quantity", mixed_quantities),
    ("an IPv6 address", put("candidates.1.url", "http://[2001:db8::1]:8000/v1")),
    ("a URL without a path", put("candidates.1.url", "http://vllm")),
    ("a share of two decimals that binary cannot hold", put("rollout.steps.0.share", 0.07)),
    ("a single step", put("rollout.steps", [{"share": 100}])),
    ("a duration of several parts", put("rollout.steps.0.minDuration", "1h30m15.5s")),
    ("everything that has a default, as null", put("rollout.onRegression", None)),
    ("single with holdback and quality SLO", single()),
    ("a value between two bounds, below zero", slo(query={"value": "v"}, min=-2, max=-1)),
    ("an unprefixed key", put("candidates.0.credentials.prefix", "")),
    ("a label of every allowed kind", odd_label),
    ("no SLO", put("slos", [])),
)
