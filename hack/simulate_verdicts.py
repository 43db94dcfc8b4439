"""How often the verdicts are wrong, by simulation: false reverts of whole rollouts, power, false passes.

    python hack/simulate_verdicts.py --runs 500 --seed 1

The traffic is made here, the judgement is the product's own `judge`. Users have a fixed activity (uniform or Zipf) and
a fixed propensity to bad events (beta-distributed with intra-class correlation rho), and are hashed into arms and
replicates; their requests are Poisson. Given the users, the counts of each arm and replicate are then Poisson with
summed rates, so nothing has to be drawn request by request.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import special

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "operator"))

from funicular.slo.fastburn import fast_burn
from funicular.slo.model import REPLICATES, ArmCounts, Budget, Evidence, Looks, Outcome, Question, Verdict
from funicular.slo.ratio import sample_ratio
from funicular.slo.verdicts import at_full_share, judge, split_budget

Array = NDArray[np.float64]
Random = np.random.Generator

SHARES = (0.01, 0.10, 0.50, 1.0)
HOLDBACK = 0.01
SLOS = 3
CHECKS = 25  # verdicts asked for in a step, at growing distances: it starts dense, as looks do


@dataclass(frozen=True)
class Traffic:
    """One cell of the grid. `zipf` 0: every user is equally active. `rate`: of bad events in control."""

    rho: float = 0.0
    zipf: float = 0.0
    users: int = 5000
    requests: float = 200_000.0  # of all arms in one step
    rate: float = 0.01
    cap: float = 0.0  # users send at most this many times the mean; 0: no cap

    @property
    def name(self) -> str:
        activity = f"Zipf {self.zipf:g}" if self.zipf else "uniform"
        return f"rho {self.rho:g}, {activity}" + (f", cap {self.cap:g}" if self.cap else "")


@dataclass(frozen=True)
class Users:
    """activity: requests per step, by user. propensity: of bad events, by SLO and user. position: 0..1, the ramp's hash."""

    activity: Array
    propensity: Array
    position: Array
    in_holdback: NDArray[np.bool_]
    replicate: NDArray[np.int64]


def draw_users(random: Random, traffic: Traffic, slos: int) -> Users:
    count = traffic.users
    activity = np.arange(1, count + 1, dtype=np.float64) ** -traffic.zipf
    activity /= activity.sum()
    if traffic.cap:
        activity = np.minimum(activity, traffic.cap / count)
        activity /= activity.sum()
    if traffic.rho:
        strength = (1 - traffic.rho) / traffic.rho
        propensity = random.beta(traffic.rate * strength, (1 - traffic.rate) * strength, size=(slos, count))
    else:
        propensity = np.full((slos, count), traffic.rate)
    return Users(
        activity * traffic.requests,
        propensity,
        random.random(count),
        random.random(count) < HOLDBACK,
        random.integers(0, REPLICATES, count),
    )


def step_evidence(
    random: Random, users: Users, slo: int, share: float, factor: float, checks: Array
) -> Iterator[Evidence]:
    """Cumulative evidence at `checks` (fractions of the step). `factor`: treatment's bad events over control's."""
    treated = ~users.in_holdback & (users.position < share)
    arms = {"treatment": treated, "control": ~users.in_holdback & ~treated, "holdback": users.in_holdback}
    series: dict[str, tuple[Array, Array]] = {}
    durations = np.diff(checks, prepend=0.0)[:, None]
    for name, members in arms.items():
        bad = np.minimum(users.propensity[slo] * (factor if name == "treatment" else 1.0), 1.0)
        where, activity = users.replicate[members], users.activity[members]
        bad_rate = np.bincount(where, activity * bad[members], REPLICATES)
        good_rate = np.bincount(where, activity * (1 - bad[members]), REPLICATES)
        x = random.poisson(bad_rate * durations).cumsum(axis=0)
        series[name] = (x + random.poisson(good_rate * durations).cumsum(axis=0), x)
    for index in range(len(checks)):
        counts = {
            name: ArmCounts(tuple(n[index].tolist()), tuple(x[index].tolist())) for name, (n, x) in series.items()
        }
        yield Evidence(counts["treatment"], counts["control"], counts["holdback"])


def run_step(
    evidences: Iterator[Evidence], question: Question, budget: Budget, *, full: bool, stop_at_pass: bool = False
) -> list[Verdict]:
    """The verdicts of one SLO in one step, in order, up to a Fail (or a Pass, if that ends it)."""
    verdicts: list[Verdict] = []
    looks = Looks()
    for evidence in evidences:
        asked, shown = at_full_share(question, evidence) if full else (question, evidence)
        verdict = judge(asked, shown, budget, looks)
        looks = verdict.looks
        verdicts.append(verdict)
        if verdict.outcome is Outcome.FAIL or (stop_at_pass and verdict.outcome is Outcome.PASS):
            break
    return verdicts


def spaced(checks: int = CHECKS) -> Array:
    """Instants of a step: a geometric beginning and an even end."""
    return np.unique(
        np.concatenate([np.geomspace(0.01, 0.2, checks // 3), np.linspace(0.2, 1.0, checks - checks // 3)])
    )


def rollout_reverts(seed: int, traffic: Traffic, question: Question, budget: Budget, factor: float = 1.0) -> bool:
    """Whether one rollout over all steps and SLOs is reverted by any verdict."""
    random = np.random.default_rng(seed)
    users = draw_users(random, traffic, SLOS)
    for share in SHARES:
        for slo in range(SLOS):
            evidences = step_evidence(random, users, slo, share, factor, spaced())
            if run_step(evidences, question, budget, full=share == 1.0)[-1].outcome is Outcome.FAIL:
                return True
    return False


def false_reverts(seed: int, traffic: Traffic, allowed: float, factor: float) -> bool:
    question = Question("errors", allowed_increase=allowed)
    return rollout_reverts(seed, traffic, question, BUDGET, factor)


BUDGET = split_budget(0.01, 0.05, len(SHARES), SLOS)


def fixed_samples(share: float, alpha: float, before: float = 0.01, after: float = 0.02) -> float:
    """Treatment samples of a pooled z test with power 0.9: the measure of all sequential ones."""
    ratio = share / (1 - share)
    pooled = (ratio * after + before) / (1 + ratio)
    z, z_power = -float(special.ndtri(alpha)), float(special.ndtri(0.9))
    null = z * np.sqrt(pooled * (1 - pooled) * (1 + ratio))
    alternative = z_power * np.sqrt(after * (1 - after) + ratio * before * (1 - before))
    return float(((null + alternative) / (after - before)) ** 2)


def samples_to_fail(seed: int, traffic: Traffic, share: float, horizon: float, allowed: float = 0.0) -> float:
    """Errors 1 -> 2 %: treated samples at the Fail, in units of the fixed test's; infinite if none within `horizon`."""
    full = share == 1.0
    fixed = fixed_samples(1 - HOLDBACK if full else share, BUDGET.alpha)
    in_treatment = (1 - HOLDBACK) * share
    traffic = replace(traffic, requests=fixed * horizon / in_treatment)
    random = np.random.default_rng(seed)
    users = draw_users(random, traffic, 1)
    evidences = step_evidence(random, users, 0, share, 2.0, np.linspace(0.02, 1, 50))
    last = run_step(evidences, Question("errors", allowed_increase=allowed), BUDGET, full=full)[-1]
    return last.samples / fixed if last.outcome is Outcome.FAIL else np.inf


def samples_to_pass(seed: int, traffic: Traffic, share: float, factor: float, question: Question) -> float:
    """Treated samples at the first Pass; infinite if there is none in the step."""
    random = np.random.default_rng(seed)
    users = draw_users(random, traffic, 1)
    evidences = step_evidence(random, users, 0, share, factor, spaced(50))
    last = run_step(evidences, question, BUDGET, full=False, stop_at_pass=True)[-1]
    return last.samples if last.outcome is Outcome.PASS else np.inf


def seconds_to_burn(seed: int, traffic: Traffic, treated_rate: float, failing: float, horizon: float) -> float:
    """Seconds from the first treated request to the fast-burn verdict at `treated_rate` requests a second."""
    random = np.random.default_rng(seed)
    users = draw_users(random, replace(traffic, rate=failing), 1)
    treated = ~users.in_holdback & (users.position < 0.01)
    if not treated.any():
        return np.inf
    activity = users.activity[treated] / users.activity[treated].sum()
    replicate, propensity = users.replicate[treated], users.propensity[0][treated]
    count = random.poisson(treated_rate * horizon)
    moments = np.sort(random.random(count)) * horizon
    who = random.choice(activity.size, count, p=activity)
    n, x = np.zeros(REPLICATES), np.zeros(REPLICATES)
    for moment, user, failed in zip(moments, who, random.random(count) < propensity[who], strict=True):
        n[replicate[user]] += 1
        x[replicate[user]] += failed
        if failed and fast_burn(ArmCounts(tuple(n.tolist()), tuple(x.tolist())), HEALTHY_CONTROL) is not None:
            return float(moment)
    return np.inf


HEALTHY_CONTROL = ArmCounts((100.0,) * REPLICATES, (1.0,) * REPLICATES)


def ratio_alarms(seed: int, traffic: Traffic) -> bool:
    """Whether the sample-ratio check raises a false alarm at any step of a rollout."""
    random = np.random.default_rng(seed)
    users = draw_users(random, traffic, 1)
    for share in SHARES:
        looks = Looks()
        for evidence in step_evidence(random, users, 0, share, 1.0, np.geomspace(0.01, 1, 8)):
            verdict = sample_ratio(evidence.treatment, evidence.control, round(share * 10_000), looks)
            looks = verdict.looks
            if verdict.outcome is Outcome.FAIL:
                return True
    return False


def interval(hits: int, runs: int) -> tuple[float, float]:
    """95 % interval of a share, in per cent (Clopper and Pearson)."""
    low = float(special.betaincinv(hits, runs - hits + 1, 0.025)) if hits else 0.0
    high = float(special.betaincinv(hits + 1, runs - hits, 0.975)) if hits < runs else 1.0
    return 100 * low, 100 * high


def percent(hits: NDArray[np.bool_]) -> str:
    low, high = interval(int(hits.sum()), hits.size)
    return f"{100 * hits.mean():6.2f} % [{low:.2f}, {high:.2f}]"


GRID = [
    Traffic(rho=rho, zipf=zipf) for rho, zipf in ((0, 0), (0, 1.1), (0.05, 1.1), (0.05, 1.5), (0.3, 1.1), (0.3, 1.5))
]
CAPPED = Traffic(rho=0.05, zipf=1.1, cap=5)


@dataclass(frozen=True)
class Simulation:
    """Runs one row after the other, each with the same seeds."""

    pool: ProcessPoolExecutor
    seeds: range

    def __call__(self, work: Callable[..., float], **cell: object) -> Array:
        return np.array(list(self.pool.map(partial(work, **cell), self.seeds, chunksize=20)), dtype=np.float64)

    def section(self, title: str) -> None:
        print(f"{title} ({len(self.seeds)} runs a row; 95 % intervals)", flush=True)


def report_false_reverts(simulate: Simulation) -> None:
    simulate.section("False reverts of a whole rollout, 4 steps x 3 SLOs, promised: 1 %")
    rows = [("as good as control, nothing allowed", 0.0, 1.0, traffic) for traffic in [*GRID, CAPPED]]
    rows += [("worse by the 0.2 points allowed", 0.002, 1.2, traffic) for traffic in (GRID[0], GRID[2])]
    for name, allowed, factor, traffic in rows:
        hits = simulate(false_reverts, traffic=traffic, allowed=allowed, factor=factor)
        print(f"  {name:36} {traffic.name:24} {percent(hits > 0)}", flush=True)


def report_power(simulate: Simulation) -> None:
    simulate.section("Errors 1 -> 2 % in one step; n: samples of a pooled z test of the same alpha with power 0.9")
    many_users = Traffic(users=20_000)
    rows = [(many_users, share, 1.5, 0.0) for share in SHARES] + [(many_users, 0.1, 1.5, 0.002)]
    for traffic, share, horizon, allowed in [*rows, (CAPPED, 0.5, 9.0, 0.0), (GRID[2], 0.5, 9.0, 0.0)]:
        found = simulate(samples_to_fail, traffic=traffic, share=share, horizon=horizon, allowed=allowed)
        print(
            f"  {traffic.name:24} share {share:4.0%}, allowed {allowed:.1%}: {percent(found <= horizon)} within"
            f" {horizon:g} n, {np.mean(found <= 1.2):.2f} within 1.2 n, mean {np.mean(np.minimum(found, horizon)):.2f} n",
            flush=True,
        )


def report_passes(simulate: Simulation) -> None:
    simulate.section("Pass in one step of 100,000 requests (20,000 for the maximum); false ones promised: 5 %")
    margin, below = Question("errors", allowed_increase=0.005), Question("errors", maximum=0.01)
    step, short = Traffic(requests=100_000), Traffic(requests=20_000)
    for name, traffic, share, factor, question in (
        ("false: worse by the margin", step, 0.1, 1.5, margin),
        ("false: worse by the margin", step, 0.5, 1.5, margin),
        ("false: worse by the margin", replace(CAPPED, requests=100_000), 0.5, 1.5, margin),
        ("false: by twice the margin", step, 0.1, 2.0, margin),
        ("false: at the maximum", short, 0.5, 1.0, below),
        ("true: as good as control", step, 0.1, 1.0, margin),
        ("true: half the maximum", replace(short, rate=0.005), 0.5, 1.0, below),
    ):
        found = simulate(samples_to_pass, traffic=traffic, share=share, factor=factor, question=question)
        print(
            f"  {name:28} {traffic.name:24} share {share:4.0%}: {percent(np.isfinite(found))},"
            f" median of {np.median(found):,.0f} treated requests",
            flush=True,
        )


def report_fast_burn(simulate: Simulation) -> None:
    simulate.section(
        "Fast burn at 0.2 treated requests/s: seconds until half of them failing is seen; 5 % failing for an hour"
    )
    for traffic in (GRID[0], replace(GRID[0], zipf=1.1), Traffic(rho=0.3, zipf=1.1)):
        cell = {"traffic": traffic, "treated_rate": 0.2, "horizon": 3_600.0}
        found = simulate(seconds_to_burn, failing=0.5, **cell)
        false = simulate(seconds_to_burn, failing=0.05, **cell)
        p90 = np.quantile(found, 0.9, method="lower")
        print(
            f"  {traffic.name:24} median {np.median(found):.0f}, p90 {p90:.0f}; false {percent(np.isfinite(false))}",
            flush=True,
        )


def report_sample_ratio(simulate: Simulation) -> None:
    simulate.section("Sample ratio: false alarms of a whole rollout, promised: 0.01 %")
    for traffic in (GRID[0], GRID[1], Traffic(zipf=1.5)):
        print(f"  {traffic.name:24} {percent(simulate(ratio_alarms, traffic=traffic) > 0)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=int, default=500, help="simulated rollouts a row (500: about 5 minutes of one core)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    started = time.perf_counter()
    first = arguments.seed * 1_000_000
    with ProcessPoolExecutor(arguments.jobs) as pool:
        simulate = Simulation(pool, range(first, first + arguments.runs))
        report_false_reverts(simulate)
        report_power(simulate)
        report_passes(simulate)
        report_fast_burn(simulate)
        report_sample_ratio(simulate)
    print(f"{time.perf_counter() - started:.0f} s, seed {arguments.seed}")


if __name__ == "__main__":
    main()
