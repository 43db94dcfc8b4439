"""What a RoutingPolicy must fulfil beyond its types: one table of rules, each as CEL, as Python and as a sentence.

crd.py writes the CEL into the CRD, so that the API server refuses a bad manifest; lint.py runs the Python over a file. A
test holds both against the same bad manifests. It must not know how either of them walks the resource.

A rule stands at a model ("Step"), at one field of it ("Step.share") or at the object itself ("RoutingPolicy"), by the
names of the resource. `holds` and `naming` see plain JSON with defaults filled in, just as CEL does. An explanation with
names is an expression in CEL and a function here; `sentence` is what CEL falls back to when it has none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from funicular.api import duration, spec
from funicular.api.base import KIND

Value = Any


@dataclass(frozen=True, slots=True)
class Rule:
    """`cel` and `holds` are true of what is accepted. `member`: the field of the value that is to blame."""

    on: str
    cel: str
    sentence: str
    holds: Callable[[Value], bool]
    expression: str = ""
    naming: Callable[[Value], str] | None = None
    member: str = ""
    bounds: bool = False  # instead of the schema's minimum, maximum and multipleOf, whose words are the server's own

    def says(self, value: Value) -> str:
        return self.naming(value) if self.naming else self.sentence


@dataclass(frozen=True, slots=True)
class Transition:
    """A rule about an update: `cel` uses oldSelf, `holds` takes the new value and the old one."""

    on: str
    cel: str
    sentence: str
    holds: Callable[[Value, Value], bool]


def _pattern_of(annotated: Any) -> str:
    return next(str(item.pattern) for item in annotated.__metadata__ if getattr(item, "pattern", None))


PATTERNS: Mapping[str, str] = {
    duration.PATTERN: "must be a duration such as 50ms, 4s, 1h30m or 168h",
    _pattern_of(spec.Name): "must consist of lower-case letters, digits and '-', and neither begin nor end with '-'",
    _pattern_of(
        spec.Url
    ): "must be a URL such as https://api.example.com/v1: http or https, a host, and at most a port "
    "and a path, without user, query or fragment",
    _pattern_of(spec.HeaderName): "must be the name of a header, in lower case, such as x-user-id",
    _pattern_of(spec.ModelName): "must be printable ASCII without spaces, quotes or backslashes, and not empty",
    _pattern_of(spec.HeaderText): "must be printable ASCII on one line",
    _pattern_of(spec.BodyMember): "must be the name of a top-level member of the request's JSON body, such as user",
    _pattern_of(spec.LabelValue): "must be the value of a label: letters, digits, '-', '_' and '.'",
    _pattern_of(spec.Quantity): "must be a quantity as in a container's resources, such as 500m or 512Mi",
}
"""A sentence for each pattern of the models; crd.py makes a rule of it instead of the schema's `pattern`."""

LABEL = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
POLICY_NAME = r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"
LATENCY = ("LatencyP50", "LatencyP95", "LatencyP99", "TimeToFirstToken")
BOUNDS = ("max", "min", "allowedIncrease", "allowedDecrease", "allowedFromBaseline")


def matches(pattern: str, text: Value) -> bool:
    """As RE2's `matches` with ^ and $: unlike `re.match`, "$" is the very end."""
    return isinstance(text, str) and re.fullmatch(pattern, text) is not None


def raw(text: str) -> str:
    """A CEL string literal in which backslashes mean themselves."""
    return f'r"{text}"' if '"' not in text else f"r'{text}'"


def _one_of(*members: str) -> tuple[str, Callable[[Value], bool]]:
    cel = "[" + ", ".join(f"has(self.{member})" for member in members) + "].exists_one(set, set)"
    return cel, lambda value: sum(member in value for member in members) == 1


def _at_most_one_of(*members: str) -> tuple[str, Callable[[Value], bool]]:
    cel = "[" + ", ".join(f"has(self.{member})" for member in members) + "].filter(set, set).size() <= 1"
    return cel, lambda value: sum(member in value for member in members) <= 1


def _repeated(names: Iterable[str]) -> list[str]:
    names = list(names)
    return [name for position, name in enumerate(names) if names.count(name) > 1 and name not in names[:position]]


def _decimals(value: float) -> bool:
    return abs(value * 100 - int(value * 100 + 0.5)) < 1e-6


_ROUNDED = "double(int(self * 100.0 + 0.5))"
_TWO_DECIMALS = f"self * 100.0 - {_ROUNDED} < 0.000001 && {_ROUNDED} - self * 100.0 < 0.000001"


def _exists_one(rule: str) -> str:
    return f"self.all(a, self.exists_one(b, b.{rule} == a.{rule}))"


def _unique(on: str, what: str) -> Rule:
    return Rule(
        on=on,
        cel=_exists_one("name"),
        sentence=f"two {what} have one name: give each its own",
        expression=f"self.map(a, !self.exists_one(b, b.name == a.name), 'two {what} are named ' + a.name + "
        "': give each its own name')[0]",
        holds=lambda value: not _repeated(item["name"] for item in value),
        naming=lambda value: f"two {what} are named {_repeated(i['name'] for i in value)[0]}: give each its own name",
    )


# ---- candidates ----------------------------------------------------------------------------------------------------


def _baselines(candidates: Value) -> list[str]:
    return [c["name"] for c in candidates if c.get("baseline")]


CANDIDATES = (
    Rule(
        on="RoutingPolicySpec.candidates",
        cel="self.exists(c, c.baseline)",
        sentence="no candidate is the baseline: set baseline: true at the one that is today's production model",
        holds=lambda value: bool(_baselines(value)),
    ),
    Rule(
        on="RoutingPolicySpec.candidates",
        cel="self.filter(c, c.baseline).size() <= 1",
        sentence="two candidates are the baseline: keep baseline: true at exactly one",
        expression="self.map(c, c.baseline, c.name + ' is a second baseline: keep baseline: true at exactly one')[1]",
        holds=lambda value: len(_baselines(value)) <= 1,
        naming=lambda value: f"{_baselines(value)[1]} is a second baseline: keep baseline: true at exactly one",
    ),
    _unique("RoutingPolicySpec.candidates", "candidates"),
    *(
        Rule(
            on=f"Price.{field}",
            cel="self >= 0.0",
            sentence="a price is zero or more dollars per million tokens, never negative",
            holds=lambda value: value >= 0,
            bounds=True,
        )
        for field in ("inputPerMillion", "outputPerMillion")
    ),
)

# ---- strategy ------------------------------------------------------------------------------------------------------

_ROUTES = "self.strategy.classifier.routes"
_LOST = f"{_ROUTES}.filter(label, !self.candidates.exists(c, c.name == {_ROUTES}[label]))"
_ONE_STRATEGY, _has_one_strategy = _one_of("classifier", "single")
_ONE_CLASSIFIER, _has_one_classifier = _one_of("image", "url")


def _names(policy: Value) -> set[str]:
    return {c["name"] for c in policy["candidates"]}


def _lost_routes(policy: Value) -> list[tuple[str, str]]:
    routes = policy["strategy"].get("classifier", {}).get("routes", {})
    return [(label, name) for label, name in sorted(routes.items()) if name not in _names(policy)]


def _says_lost_route(policy: Value) -> str:
    label, name = _lost_routes(policy)[0]
    return f"label {label} is routed to {name}, which is no candidate: name one of spec.candidates"


def _single(policy: Value) -> str | None:
    single: Mapping[str, str] | None = policy["strategy"].get("single")
    return single["candidate"] if single else None


def _is_quality(slo: Value) -> bool:
    return slo["mode"] == "Enforce" and (slo.get("indicator") == "ThumbsUpRate" or bool(slo.get("quality")))


STRATEGY = (
    Rule(
        on="Strategy",
        cel=_ONE_STRATEGY,
        sentence="set exactly one strategy: classifier or single",
        holds=_has_one_strategy,
    ),
    Rule(
        on="ClassifierStrategy",
        cel=_ONE_CLASSIFIER,
        sentence="set exactly one of image (the operator runs the classifier) and url (it runs already)",
        holds=_has_one_classifier,
    ),
    Rule(
        on="ClassifierStrategy.routes",
        cel=f"self.all(label, label.matches({raw(LABEL)}))",
        sentence="a label of the classifier consists of at most 63 letters, digits, '-', '_' and '.'",
        holds=lambda value: all(matches(LABEL, label) for label in value),
    ),
    Rule(
        on="RoutingPolicySpec",
        member="strategy.classifier.routes",
        cel=f"!has(self.strategy.classifier) || {_LOST}.size() == 0",
        sentence="a label is routed to what is no candidate: name one of spec.candidates",
        expression=f"{_LOST}.map(label, 'label ' + label + ' is routed to ' + {_ROUTES}[label] + "
        "', which is no candidate: name one of spec.candidates')[0]",
        holds=lambda value: not _lost_routes(value),
        naming=_says_lost_route,
    ),
    Rule(
        on="RoutingPolicySpec",
        member="strategy.single.candidate",
        cel="!has(self.strategy.single) || self.candidates.exists(c, c.name == self.strategy.single.candidate)",
        sentence="single.candidate is no candidate: name one of spec.candidates",
        expression="self.strategy.single.candidate + ' is no candidate: name one of spec.candidates'",
        holds=lambda value: _single(value) is None or _single(value) in _names(value),
        naming=lambda value: f"{_single(value)} is no candidate: name one of spec.candidates",
    ),
    Rule(
        on="RoutingPolicySpec",
        member="rollout.holdback",
        cel="!has(self.strategy.single) || self.rollout.holdback > 0.0",
        sentence="strategy single replaces a model for everyone and wants a holdback: set rollout.holdback above 0, "
        "for example 1",
        holds=lambda value: _single(value) is None or value["rollout"]["holdback"] > 0,
    ),
    Rule(
        on="RoutingPolicySpec",
        member="slos",
        cel="!has(self.strategy.single) || self.slos.exists(s, s.mode == 'Enforce' && "
        "((has(s.indicator) && s.indicator == 'ThumbsUpRate') || (has(s.quality) && s.quality)))",
        sentence="strategy single wants an enforced quality SLO: add one with indicator ThumbsUpRate, or set "
        "quality: true at a query of your own",
        holds=lambda value: _single(value) is None or any(_is_quality(slo) for slo in value["slos"]),
    ),
)

# ---- assignment ----------------------------------------------------------------------------------------------------

_ONE_UNIT, _has_one_unit = _one_of("header", "body", "apiKey")

ASSIGNMENT = (
    Rule(
        on="UnitSource",
        cel=_ONE_UNIT,
        sentence="set exactly one of header, body and apiKey for each place of the unit",
        holds=_has_one_unit,
    ),
    Rule(
        on="UnitSource.apiKey",
        cel="self",
        sentence="apiKey can only be true: leave the entry out instead",
        holds=lambda value: value is True,
    ),
    Rule(
        on="UnitSource.header",
        cel="!self.startsWith('x-funicular-')",
        sentence="headers named x-funicular-... are removed at the gateway: take a header of the application's own",
        holds=lambda value: not value.startswith("x-funicular-"),
    ),
)

# ---- SLOs ----------------------------------------------------------------------------------------------------------

_ONE_QUESTION, _has_one_question = _one_of("indicator", "query")


def _is_latency(slo: Value) -> bool:
    return slo.get("indicator") in LATENCY


def _cel_set(members: Iterable[str]) -> str:
    return " || ".join(f"has(self.{member})" for member in members)


def _allowed(
    on: str, when: str, is_about: Callable[[Value], bool], takes: tuple[str, ...], name: str, hint: str
) -> Rule:
    """Whoever `is_about` speaks of takes no other bounds than `takes`."""
    others = [bound for bound in BOUNDS if bound not in takes]
    return Rule(
        on=on,
        cel=f"!({when}) || !({_cel_set(others)})",
        sentence=f"{name} takes only {', '.join(takes[:-1])} and {takes[-1]}: {hint}",
        holds=lambda slo: not is_about(slo) or not any(bound in slo for bound in others),
    )


def _share_bounds(slo: Value) -> bool:
    return all(slo[bound] <= 1 for bound in BOUNDS if bound in slo) and all(slo.get(b, 0) >= 0 for b in ("max", "min"))


_HAS_INDICATOR = "has(self.indicator) && "
_IS_LATENCY = f"{_HAS_INDICATOR}self.indicator in {list(LATENCY)}"
_IS_SHARE = "(has(self.indicator) && self.indicator != 'CostPerRequest') || (has(self.query) && has(self.query.good))"
_QUERY_VALUE = "has(self.query) && has(self.query.value)"
_QUERY_GOOD = "has(self.query) && has(self.query.good)"


def _is_value(slo: Value) -> bool:
    return "value" in slo.get("query", {})


def _is_good(slo: Value) -> bool:
    return "good" in slo.get("query", {})


def _is_share(slo: Value) -> bool:
    return slo.get("indicator", "CostPerRequest") != "CostPerRequest" or _is_good(slo)


def _is(indicator: str) -> tuple[str, Callable[[Value], bool]]:
    return f"{_HAS_INDICATOR}self.indicator == '{indicator}'", lambda slo: slo.get("indicator") == indicator


SLOS = (
    _unique("RoutingPolicySpec.slos", "SLOs"),
    Rule(
        on="Slo",
        cel=_ONE_QUESTION,
        sentence="set exactly one of indicator (built in) and query (your own PromQL)",
        holds=_has_one_question,
    ),
    Rule(
        on="Query",
        cel="has(self.value) ? !has(self.good) && !has(self.total) : has(self.good) && has(self.total)",
        sentence="set good and total together, or value alone",
        holds=lambda query: (
            ("good" in query, "total" in query, "value" in query) in ((True, True, False), (False, False, True))
        ),
    ),
    Rule(
        on="Slo",
        cel=f"!({_IS_LATENCY}) || has(self.bound)",
        sentence="a latency indicator needs its bound, a duration such as bound: 4s",
        holds=lambda slo: not _is_latency(slo) or "bound" in slo,
    ),
    Rule(
        on="Slo",
        member="bound",
        cel=f"!has(self.bound) || ({_IS_LATENCY})",
        sentence="bound is a duration for latency indicators only: say max, min, allowedIncrease or allowedDecrease here",
        holds=lambda slo: "bound" not in slo or _is_latency(slo),
    ),
    Rule(
        on="Slo",
        cel=f"({_IS_LATENCY}) || {_cel_set(BOUNDS)}",
        sentence="an SLO needs a bound: set at least one of max, min, allowedIncrease, allowedDecrease and "
        "allowedFromBaseline",
        holds=lambda slo: _is_latency(slo) or any(bound in slo for bound in BOUNDS),
    ),
    _allowed(
        "Slo",
        _IS_LATENCY,
        _is_latency,
        ("allowedIncrease", "allowedFromBaseline"),
        "a latency indicator besides bound",
        "its largest value is bound, for example bound: 4s",
    ),
    _allowed(
        "Slo",
        *_is("ErrorRate"),
        ("max", "allowedIncrease", "allowedFromBaseline"),
        "ErrorRate",
        "less is better",
    ),
    _allowed(
        "Slo",
        *_is("CostPerRequest"),
        ("max", "allowedIncrease", "allowedFromBaseline"),
        "CostPerRequest",
        "less is better",
    ),
    _allowed(
        "Slo",
        *_is("ThumbsUpRate"),
        ("min", "allowedDecrease", "allowedFromBaseline"),
        "ThumbsUpRate",
        "more is better",
    ),
    _allowed(
        "Slo",
        _QUERY_GOOD,
        _is_good,
        ("min", "allowedDecrease", "allowedFromBaseline"),
        "a query of good and total",
        "more good events are better",
    ),
    _allowed(
        "Slo",
        _QUERY_VALUE,
        _is_value,
        ("max", "min"),
        "a query of one value",
        "without counts there is no comparison of the arms",
    ),
    Rule(
        on="Slo",
        cel=f"!({_IS_SHARE}) || ("
        + " && ".join(f"(!has(self.{b}) || self.{b} <= 1.0)" for b in BOUNDS)
        + " && "
        + " && ".join(f"(!has(self.{b}) || self.{b} >= 0.0)" for b in ("max", "min"))
        + ")",
        sentence="the bounds of a rate are shares between 0 and 1: write 0.01 for 1 %",
        holds=lambda slo: not _is_share(slo) or _share_bounds(slo),
    ),
    Rule(
        on="Slo",
        member="max",
        cel=f"!({_is('CostPerRequest')[0]}) || !has(self.max) || self.max >= 0.0",
        sentence="the largest cost of a request is zero or more dollars",
        holds=lambda slo: slo.get("indicator") != "CostPerRequest" or slo.get("max", 0) >= 0,
    ),
    *(
        Rule(
            on=f"Slo.{bound}",
            cel="self >= 0.0",
            sentence="a difference is zero or more: write how much worse the treatment may be as a positive number",
            holds=lambda value: value >= 0,
            bounds=True,
        )
        for bound in ("allowedIncrease", "allowedDecrease", "allowedFromBaseline")
    ),
    Rule(
        on="Slo",
        cel="!has(self.min) || !has(self.max) || self.min <= self.max",
        sentence="min is above max, so that nothing could pass: exchange them",
        holds=lambda slo: "min" not in slo or "max" not in slo or slo["min"] <= slo["max"],
    ),
    Rule(
        on="Slo",
        member="quality",
        cel="!has(self.quality) || !has(self.indicator) || self.quality == (self.indicator == 'ThumbsUpRate')",
        sentence="quality marks a query of your own: of the built-in indicators only ThumbsUpRate speaks of quality",
        holds=lambda slo: (
            "quality" not in slo or "indicator" not in slo or slo["quality"] == (slo["indicator"] == "ThumbsUpRate")
        ),
    ),
    Rule(
        on="RoutingPolicySpec",
        member="rollout.holdback",
        cel="self.rollout.holdback > 0.0 || !self.slos.exists(s, has(s.allowedFromBaseline))",
        sentence="allowedFromBaseline is measured against the holdback: set rollout.holdback above 0, for example 1",
        holds=lambda value: (
            value["rollout"]["holdback"] > 0 or not any("allowedFromBaseline" in slo for slo in value["slos"])
        ),
    ),
)

# ---- rollout -------------------------------------------------------------------------------------------------------

_DURATION = raw(duration.PATTERN)


def _seconds(text: str) -> float:
    """Of a text that is no duration: zero; that has a sentence of its own."""
    return duration.seconds(text) if matches(duration.PATTERN, text) else 0.0


def _cel_seconds(member: str) -> str:
    return f"(self.{member}.matches({_DURATION}) ? duration(self.{member}) : duration('0s'))"


def _shares(steps: Value) -> list[float]:
    return [step["share"] for step in steps]


ROLLOUT = (
    Rule(
        on="Rollout.steps",
        cel="self.map(s, s.share).isSorted() && self.all(a, self.exists_one(b, b.share == a.share))",
        sentence="the shares of the steps must rise from step to step, for example 1, 10, 50, 100",
        holds=lambda steps: all(a < b for a, b in zip(_shares(steps), _shares(steps)[1:], strict=False)),
    ),
    Rule(
        on="Rollout.steps",
        cel="size(self) == 0 || self[size(self) - 1].share == 100.0",
        sentence="the last step must have share 100: add a step {share: 100}",
        holds=lambda steps: not steps or steps[-1]["share"] == 100,
    ),
    Rule(
        on="Rollout.steps",
        cel="!self.exists(s, s.share == 100.0) || self.all(s, s.share == 100.0 || !s.bake.matches('[1-9]'))",
        sentence="bake belongs to the last step only: say minDuration for the others",
        holds=lambda steps: (
            not any(step["share"] == 100 for step in steps)
            or all(step["share"] == 100 or not re.search("[1-9]", step["bake"]) for step in steps)
        ),
    ),
    Rule(
        on="Step.share",
        cel=f"self > 0.0 && self <= 100.0 && {_TWO_DECIMALS}",
        sentence="share is in per cent: above 0, at most 100, with at most two decimals",
        holds=lambda value: 0 < value <= 100 and _decimals(value),
        bounds=True,
    ),
    Rule(
        on="Rollout.holdback",
        cel=f"self >= 0.0 && self <= 50.0 && {_TWO_DECIMALS}",
        sentence="holdback is in per cent: 0 to 50, with at most two decimals",
        holds=lambda value: 0 <= value <= 50 and _decimals(value),
        bounds=True,
    ),
    Rule(
        on="Step",
        member="maxDuration",
        cel=f"!has(self.maxDuration) || {_cel_seconds('maxDuration')} >= {_cel_seconds('minDuration')}",
        sentence="maxDuration must not be shorter than minDuration",
        holds=lambda step: "maxDuration" not in step or _seconds(step["maxDuration"]) >= _seconds(step["minDuration"]),
    ),
)

# ---- prometheus ----------------------------------------------------------------------------------------------------

_ONE_AUTH, _has_one_auth = _at_most_one_of("bearer", "basic", "oauth2")
_ONE_BEARER, _has_one_bearer = _one_of("secretRef", "file")
_ONE_VALUE, _has_one_value = _one_of("value", "secretRef")
_ONE_CA, _has_one_ca = _at_most_one_of("caRef", "caSecretRef")

PROMETHEUS = (
    Rule(
        on="PrometheusAuth",
        cel=_ONE_AUTH,
        sentence="set at most one of bearer, basic and oauth2",
        holds=_has_one_auth,
    ),
    Rule(
        on="BearerAuth",
        cel=_ONE_BEARER,
        sentence="set exactly one of secretRef and file for the token",
        holds=_has_one_bearer,
    ),
    Rule(
        on="PrometheusHeader",
        cel=_ONE_VALUE,
        sentence="set exactly one of value and secretRef for a header",
        holds=_has_one_value,
    ),
    Rule(
        on="PrometheusTls",
        cel=_ONE_CA,
        sentence="set at most one of caRef and caSecretRef",
        holds=_has_one_ca,
    ),
    Rule(
        on="PrometheusTls",
        cel="has(self.certRef) == has(self.keyRef)",
        sentence="a client certificate needs certRef and keyRef together",
        holds=lambda tls: ("certRef" in tls) == ("keyRef" in tls),
    ),
)

OBJECT = (
    Rule(
        on=KIND,
        member="metadata.name",
        cel=f"self.metadata.name.matches({raw(POLICY_NAME)})",
        sentence="a policy's name has at most 40 lower-case letters, digits and '-' and begins with a letter: the "
        "classifier's Service is named after it",
        holds=lambda policy: matches(POLICY_NAME, policy["metadata"]["name"]),
    ),
)

RULES: tuple[Rule, ...] = (*OBJECT, *CANDIDATES, *STRATEGY, *ASSIGNMENT, *SLOS, *ROLLOUT, *PROMETHEUS)


# ---- updates -------------------------------------------------------------------------------------------------------


def _ramps(policy: Value) -> bool:
    return (policy.get("status") or {}).get("candidate") is not None


def _place(policy: Value) -> tuple[Value, Value]:
    assignment = policy["spec"]["assignment"]
    return assignment["units"], assignment["salt"]


_RAMPS = "has(oldSelf.status) && has(oldSelf.status.candidate) && oldSelf.status.candidate != null"
_KEPT = " && ".join(f"self.spec.assignment.{field} == oldSelf.spec.assignment.{field}" for field in ("units", "salt"))

TRANSITIONS: tuple[Transition, ...] = (
    # A status write leaves the spec alone, so the second part holds: this rule never stands in the operator's way.
    Transition(
        on=KIND,
        cel=f"!({_RAMPS}) || ({_KEPT})",
        sentence="spec.assignment.units and spec.assignment.salt decide who is treated and cannot change while a revision "
        "ramps: wait until it is promoted, or abort it (funicular abort) and then apply again",
        holds=lambda new, old: not _ramps(old) or _place(new) == _place(old),
    ),
    Transition(
        on="Endpoint.model",
        cel="self == oldSelf",
        sentence="endpoint.model is fixed once the policy exists: create a new policy for another endpoint",
        holds=lambda new, old: bool(new == old),
    ),
)
