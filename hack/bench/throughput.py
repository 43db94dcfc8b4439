"""Requests a second, in one run and interleaved: plain Envoy, our control arm, our treatment arm, LiteLLM, on one upstream.

Called by the bench's main. Every round shoots at every subject once, so that a noisy neighbour hits all of them; a ratio is
taken within its round, and of the rounds the smallest, the median and the largest are told.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from funicular.api.traffic import WHOLE
from hack.bench import litellm, upstream
from hack.bench.gateway import MODEL, PORT, Gateway
from hack.bench.machine import Machine, cores, status_of, wait_for
from hack.bench.wrk import Shot, Wrk
from hack.cluster.processes import Component

Json = dict[str, Any]
SIZES = {"2 kB": 2_000, "100 kB": 100_000, "1 MB": 1_000_000}
CONNECTIONS = {"2 kB": 32, "100 kB": 16, "1 MB": 8}
MANY = 1000
PATHS = ("upstream", "plain", "control", "litellm", "treatment", "treatment-reference")
HEADLINE = {  # with bodies of 2 kB and one policy
    "control_vs_envoy": ("control", "plain"),
    "treatment_vs_control": ("treatment", "control"),
    "treatment_reference_vs_control": ("treatment-reference", "control"),
    "control_vs_litellm": ("control", "litellm"),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to shoot at: a path from wrk to the upstream, with bodies of one size."""

    path: str  # one of PATHS
    size: str
    policies: int
    at: str  # host:port
    part: Component = field(compare=False)

    @property
    def name(self) -> str:
        return f"{self.path}, {self.size}" + (f", {self.policies:,} policies" if self.policies > 1 else "")


@dataclass(frozen=True, slots=True)
class Place:
    """A process that listens."""

    at: str
    part: Component


@dataclass(frozen=True, slots=True)
class Spread:
    smallest: float
    median: float
    largest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = sorted(values)
        return cls(found[0], statistics.median(found), found[-1])

    def as_json(self) -> Json:
        return {"min": round(self.smallest, 4), "median": round(self.median, 4), "max": round(self.largest, 4)}


class Throughput:
    """`run` returns the part of bench.json; `gateways` stay up until the machine ends, for the shares' part."""

    def __init__(
        self,
        machine: Machine,
        say: Callable[[str], None],
        *,
        rounds: int,
        seconds: float,
        with_litellm: bool,
        quick: bool,
    ) -> None:
        self._machine, self._say = machine, say
        self._rounds, self._seconds, self._quick = rounds, seconds, quick
        self._with_litellm = with_litellm
        self._core, self._rest = cores()
        self._shots: dict[Subject, list[Shot]] = {}
        self.many: Gateway | None = None

    def run(self) -> Json:
        subjects = self._prepare()
        wrk = Wrk(self._machine.folder, self._rest, MODEL)
        for number in range(self._rounds):
            self._say(f"round {number + 1} of {self._rounds}: {len(subjects)} subjects, {self._seconds:g} s each")
            for it in subjects:
                self._shots.setdefault(it, []).append(self._shoot(wrk, it))
        return self._results()

    def _shoot(self, wrk: Wrk, it: Subject) -> Shot:
        used = self._machine.cpu_seconds(it.part)
        shot = wrk.shoot(f"http://{it.at}", SIZES[it.size], self._seconds, CONNECTIONS[it.size])
        used = self._machine.cpu_seconds(it.part) - used
        return replace(shot, cpu_us=1e6 * used / shot.requests if shot.requests else None)

    # --- what is shot at ----------------------------------------------------------------------------------------------
    def _prepare(self) -> list[Subject]:
        core, rest = self._core, self._rest
        provider = self._envoy("upstream", lambda host: upstream.provider(host, PORT), rest)
        instant = self._envoy("classifier", lambda host: upstream.classifier(host, PORT), rest)
        host, _, port = provider.at.partition(":")
        plain = self._envoy("plain", lambda own: upstream.proxy(own, PORT, host, int(port)), core)
        reference = self._reference()
        paths: dict[tuple[str, int], Place] = {("upstream", 1): provider, ("plain", 1): plain}
        for count in (1, MANY):
            self._say(f"our gateway with {count:,} {'policy' if count == 1 else 'policies'}")
            gateways = {
                name: self._gateway(f"{name}-{count}", count, provider, instant, share)
                for name, share in (("control", 0), ("treatment", WHOLE))
            }
            self._check(gateways)
            paths |= {(name, count): Place(f"{it.host}:{PORT}", it.envoy) for name, it in gateways.items()}
            if count == MANY:
                self.many = gateways["treatment"]
        asked = self._gateway("treatment-reference", 1, provider, reference, WHOLE)
        paths["treatment-reference", 1] = Place(f"{asked.host}:{PORT}", asked.envoy)
        found = [
            Subject(path, size, count, place.at, place.part)
            for size in SIZES
            for (path, count), place in paths.items()
            if not (self._quick and path == "treatment-reference" and size != "2 kB")
        ]
        # What is compared stands side by side, so that a noisy neighbour hits both.
        return sorted(
            found + self._litellm(provider),
            key=lambda it: (list(SIZES).index(it.size), it.policies, PATHS.index(it.path)),
        )

    def _gateway(self, name: str, policies: int, provider: Place, classifier: Place, share: int) -> Gateway:
        return Gateway(
            self._machine,
            name,
            policies=policies,
            upstream=provider.at,
            classifier=classifier.at,
            share=share,
            core=self._core,
        )

    def _check(self, gateways: dict[str, Gateway]) -> None:
        for name, it in gateways.items():
            wait_for(f"the {name} arm", lambda it=it, name=name: it.arm("user-1") == name)  # type: ignore[misc]
        wait_for("the instant classifier", lambda: gateways["treatment"].answered_by("user-1") == "mini")

    def _litellm(self, provider: Place) -> list[Subject]:
        if not self._with_litellm:
            return []
        command = litellm.install(self._say)
        if command is None:
            return []
        self._say("starting LiteLLM")
        found = litellm.start(self._say, self._machine, command, provider.at, MODEL, core=self._core)
        sizes = ("2 kB",) if self._quick else ("2 kB", "100 kB")
        return [Subject("litellm", size, 1, *found) for size in sizes] if found else []

    def _envoy(self, name: str, config: Callable[[str], Json], core: str) -> Place:
        host = self._machine.address()
        path = self._machine.folder / f"{name}.json"
        path.write_text(json.dumps(config(host)))
        part = self._machine.envoy(name, path, core=core)
        wait_for(name, lambda: status_of(host, PORT, "/") is not None, part)
        return Place(f"{host}:{PORT}", part)

    def _reference(self) -> Place:
        host = self._machine.address()
        command = [sys.executable, "-m", "funicular.classifier", "serve", "--host", host, "--port", str(PORT)]
        part = self._machine.start("reference-classifier", command, core=self._rest)
        wait_for("the reference classifier", lambda: status_of(host, PORT, "/readyz") == 200, part, timeout=60)
        return Place(f"{host}:{PORT}", part)

    # --- what came of it ----------------------------------------------------------------------------------------------
    def _results(self) -> Json:
        rows = [
            {
                "path": it.path,
                "size": it.size,
                "policies": it.policies,
                "requests_per_second": Spread.of(s.rate for s in shots).as_json(),
                "p50_ms": round(statistics.median(s.p50 for s in shots), 3),
                "p99_ms": round(statistics.median(s.p99 for s in shots), 3),
                "cpu_us": round(statistics.median([s.cpu_us for s in shots if s.cpu_us is not None] or [0.0]), 1),
                "failed": sum(s.failed for s in shots),
            }
            for it, shots in self._shots.items()
        ]
        ratios: Json = {}
        for size in SIZES:
            for count in (1, MANY):
                ratios[f"control_vs_envoy, {size}, {count}"] = self._ratio("control", count, "plain", 1, size)
                ratios[f"treatment_vs_control, {size}, {count}"] = self._ratio(
                    "treatment", count, "control", count, size
                )
            ratios[f"treatment_reference_vs_control, {size}, 1"] = self._ratio(
                "treatment-reference", 1, "control", 1, size
            )
            ratios[f"control_vs_litellm, {size}, 1"] = self._ratio("control", 1, "litellm", 1, size)
        return {
            "rows": rows,
            "by_cpu": self._by_cpu(),
            "of_the_best_rounds": self._of_the_best(),
            "ratios": {name: it.as_json() for name, it in ratios.items() if it is not None},
        }

    def _by_cpu(self) -> dict[str, float | None]:
        """The headline's ratios from the subject's own CPU time a request, which a busy machine distorts least."""

        def cheap(path: str) -> float | None:
            found = [1 / s.cpu_us for s in self._of(path, 1, "2 kB") if s.cpu_us]
            return statistics.median(found) if found else None

        return self._headline(cheap)

    def _of_the_best(self) -> dict[str, float | None]:
        """The headline's ratios of each subject's best round: what others do on the machine can only slow it down."""

        def best(path: str) -> float | None:
            return max((s.rate for s in self._of(path, 1, "2 kB") if s.is_clean), default=None)

        return self._headline(best)

    @staticmethod
    def _headline(value: Callable[[str], float | None]) -> dict[str, float | None]:
        found = {name: (value(a), value(b)) for name, (a, b) in HEADLINE.items()}
        return {name: round(a / b, 4) if a and b else None for name, (a, b) in found.items()}

    def _ratio(self, path: str, count: int, other: str, other_count: int, size: str) -> Spread | None:
        above, below = self._of(path, count, size), self._of(other, other_count, size)
        values = [a.rate / b.rate for a, b in zip(above, below, strict=False) if a.is_clean and b.is_clean]
        return Spread.of(values) if values else None

    def _of(self, path: str, count: int, size: str) -> list[Shot]:
        return next((s for it, s in self._shots.items() if (it.path, it.policies, it.size) == (path, count, size)), [])
