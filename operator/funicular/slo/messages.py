"""Verdicts in one sentence with numbers, for people. Called by the verdicts; decides nothing."""

from __future__ import annotations

from funicular.slo.comparisons import BASELINE, MAXIMUM, Comparison
from funicular.slo.effective import Spread
from funicular.slo.model import Outcome, Question


def explain(
    question: Question,
    arm: Spread,
    comparison: Comparison,
    outcome: Outcome,
    reason: str,
    half_width: float,
    needed: float,
    borrowed_effect: float | None,
) -> str:
    """The sentence of a verdict. `half_width`: of the 95 % interval around the comparison's distance."""
    proportion = question.kind == "proportion"
    figures = _figures(question, comparison, half_width, proportion)
    sentence = f"{question.name}: {figures} over {arm.samples:,.0f} {question.trials}"
    sentence += _conclusion(question, arm, comparison, outcome, reason, needed, proportion)
    if not arm.has_replicates and borrowed_effect is not None:
        sentence += f" (a design effect of {borrowed_effect:.1f} is borrowed from the built-in counters)"
    return sentence


def _figures(question: Question, comparison: Comparison, half_width: float, proportion: bool) -> str:
    of = f" {question.of}" if question.of else ""
    low, high = comparison.distance - half_width, comparison.distance + half_width
    if comparison.name == MAXIMUM:
        low = max(low, 0.0) if proportion else low
        interval = f"{_value(low, proportion)} to {_value(high, proportion)}"
        allowed = _value(comparison.bound, proportion)
        return f"{_value(comparison.estimate, proportion)}{of} (95 % interval {interval}; allowed {allowed})"
    against = "the holdback" if comparison.name == BASELINE else "control"
    return (
        f"{_value(comparison.estimate, proportion)}{of} against {_value(comparison.reference or 0.0, proportion)} in {against}"
        f" (difference {_difference(comparison.distance, proportion)}, 95 % interval {_difference(low, proportion)} to"
        f" {_difference(high, proportion)}; allowed {_difference(comparison.bound, proportion)})"
    )


def _conclusion(
    question: Question,
    arm: Spread,
    comparison: Comparison,
    outcome: Outcome,
    reason: str,
    needed: float,
    proportion: bool,
) -> str:
    if outcome is Outcome.PASS:
        return ": within the bound"
    if outcome is Outcome.FAIL:
        return ": worse than allowed, beyond chance"
    if reason == "TooFewSamples":
        return f" of the {question.min_samples:,} wanted"
    if reason == "ControlFailsToo":
        reference = _value(comparison.reference or 0.0, proportion)
        return f": control is at {reference}, beyond the bound too, so the candidate is not shown to be the cause"
    if reason == "InformationSaturated":
        worth = comparison.clock
        return (
            f": they are worth {worth:,.0f} independent ones, since few users send most of them (about {arm.users:,.0f}"
            " effective users), and more requests of the same users will not settle it; a larger share, more users, a"
            " cap on heavy users or a wider bound would"
        )
    if needed > arm.samples:
        return f": not settled yet, about {needed:,.0f} expected to be enough"
    return ": not settled yet"


def _value(value: float, proportion: bool) -> str:
    return f"{100 * value:.3g} %" if proportion else f"{value:.4g}"


def _difference(value: float, proportion: bool) -> str:
    return f"{100 * value:+.2g} points" if proportion else f"{value:+.3g}"
