"""Envoy's series of ours -> the names and labels of 0001. Pure; the agent calls it once for each new series."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

PREFIX = "envoy_funicular_"
SCRAPE = r"^funicular\."  # `filter` of /stats/prometheus?usedonly&filter=...: everything
ARMS = r"^funicular\.(outcomes|slow)\."  # what feeds the fast-burn guard: asked every second while something ramps

_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_HISTOGRAMS = {"duration": "funicular_request_duration_seconds", "first_token": "funicular_time_to_first_token_seconds"}
_TOKENS = {
    f"{name}_{kind}": (f"funicular_{name}_total", kind)
    for name in ("tokens", "replicate_tokens")
    for kind in ("prompt", "completion")
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One series under the name of 0001; `factor` turns Envoy's unit into ours."""

    family: str
    labels: Mapping[str, str]
    factor: float = 1.0


def parse(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, labels and value of every sample of ours in the answer of /stats/prometheus."""
    for line in text.split("\n"):
        if line.startswith(PREFIX) and (found := _LINE.match(line)):
            yield found[1], {key: _plain(value) for key, value in _LABEL.findall(found[2] or "")}, float(found[3])


def _plain(value: str) -> str:
    return _ESCAPED.sub(lambda m: "\n" if m[1] == "n" else m[1], value) if "\\" in value else value


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """The whole answer by family and sorted labels; series that mean the same are added."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for name, labels, value in parse(text):
        if (sample := translate(name, labels)) is not None:
            family, key = found.setdefault(sample.family, {}), tuple(sorted(sample.labels.items()))
            family[key] = family.get(key, 0.0) + value * sample.factor
    return found


def translate(name: str, labels: Mapping[str, str]) -> Sample | None:
    """None: not one of 0001. Several series of Envoy may have the same meaning: their values are to be added."""
    if not name.startswith(PREFIX):
        return None
    name = name.removeprefix(PREFIX)
    if "h" in labels:
        return _histogram(name, labels)
    packed = labels.get("k") or labels.get("m")
    if not packed or packed.count(";") != 2:
        return None
    base = _base(packed)
    if name == "requests":
        code = labels.get("s", "0")
        code = "0" if code in ("", "-", "0") else f"{code[0]}xx"
        return Sample("funicular_requests_total", {**base, "candidate": _none(labels.get("c")), "code": code})
    if name == "decisions":
        return _decision(base, labels)
    if name == "outcomes":
        return Sample("funicular_outcomes_total", {**base, "replicate": labels["r"], "outcome": labels["o"]})
    if name == "slow":
        return Sample("funicular_slow_total", {**base, "replicate": labels["r"], "indicator": labels["i"]})
    if name in _TOKENS:
        family, kind = _TOKENS[name]
        more = {"replicate": labels["r"]} if "r" in labels else {}
        return Sample(family, {**base, **more, "candidate": _none(labels.get("c")), "kind": kind})
    return None


def _none(value: str | None) -> str:
    return "" if value is None or value == "-" else value


def _base(packed: str) -> dict[str, str]:
    full_name, revision, arm = packed.split(";")
    namespace, _, policy = full_name.partition("/")
    return {"namespace": namespace, "policy": policy, "revision": revision, "arm": arm}


def _decision(base: Mapping[str, str], labels: Mapping[str, str]) -> Sample | None:
    """Each request has one reason, so that they add up: rescued by the fallback, else without a unit, else the route's."""
    decision, _, reason = labels.get("d", "").partition(";")
    if not reason:
        return None
    reason, _, rescue = reason.partition(";")
    if rescue and labels.get("a", "").isdigit() and int(labels["a"]) > 1:
        reason = "fallback"
    elif labels.get("n") == "1":
        reason = "no_unit"
    return Sample("funicular_decisions_total", {**base, "decision": unquote(decision), "reason": reason})


def _histogram(name: str, labels: Mapping[str, str]) -> Sample | None:
    stem, _, part = name.rpartition("_")
    family = _HISTOGRAMS.get(stem)
    full_name, _, arm = labels["h"].partition(";")
    namespace, _, policy = full_name.partition("/")
    if family is None or not arm or part not in ("bucket", "sum", "count"):
        return None
    found = {"namespace": namespace, "policy": policy, "arm": arm}
    if part == "bucket":
        found["le"] = labels["le"] if labels["le"] == "+Inf" else f"{float(labels['le']) / 1000:g}"
    return Sample(f"{family}_{part}", found, 0.001 if part == "sum" else 1.0)


def zeros(
    namespace: str, policy: str, revision: str, arms: Iterable[str], indicators: Iterable[str]
) -> Iterator[Sample]:
    """The series that must exist from the start: the first event of a window is lost between no value and one."""
    indicators = tuple(indicators)
    for arm in arms:
        base = {"namespace": namespace, "policy": policy, "revision": revision, "arm": arm}
        for replicate in map(str, range(64)):
            for outcome in ("good", "bad"):
                yield Sample("funicular_outcomes_total", {**base, "replicate": replicate, "outcome": outcome})
            for indicator in indicators:
                yield Sample("funicular_slow_total", {**base, "replicate": replicate, "indicator": indicator})
