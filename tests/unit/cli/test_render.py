from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from funicular.cli.render import events, listing, panel, status_of, value_text
from funicular.errors import FunicularError
from tests.unit.cli.bodies import NOW, REVISION, bare, policy_body


def text_of(renderable: RenderableType, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(renderable)
    return out.getvalue()


def test_the_panel_says_everything_about_a_ramp() -> None:
    text = text_of(panel(policy_body(), NOW))
    assert "shop/support-chat  Ramping" in text
    assert "step 2/4 at 10 %: errors inconclusive, 412 of 1000 samples, about 9 min" in text
    assert "baseline-0123456789, since 2 d" in text
    assert "2/4 at 10 %: 412 of 1000 samples, 40 min to go at least" in text
    assert "10 % ordered, confirmed: 10 %, observed: 9.94 %" in text
    assert "badbadbad0: errors rose" in text
    assert "spec.prometheus.url: connection refused" in text
    (errors,) = [line for line in text.splitlines() if "Inconclusive" in line]
    for part in ("1.23 %", "1.1 %", "-0.4 % .. 0.66 %", "412 of 1000"):
        assert part in errors
    assert "cost (observed)" in text
    assert "$0.0012" in text
    assert text.index("StepStarted") < text.index("Ramped  "), "the latest first"


def test_the_panel_of_a_policy_that_nobody_has_seen() -> None:
    text = text_of(panel(bare(), NOW))
    assert "Pending" in text
    assert "the operator has not seen this policy yet" in text


def test_the_panel_says_that_pods_have_not_confirmed() -> None:
    body = policy_body()
    body["status"]["traffic"]["share"]["acked"] = None
    assert "confirmed: not by all pods yet" in text_of(panel(body, NOW))


def test_a_message_is_never_taken_for_markup() -> None:
    assert "[bold]x[/bold]" in text_of(panel(policy_body(message="[bold]x[/bold]"), NOW))


def test_the_panel_fits_a_narrow_terminal() -> None:
    assert all(len(line) <= 80 for line in text_of(panel(policy_body(), NOW), width=80).splitlines())


def test_the_listing() -> None:
    header, row, second = text_of(listing([policy_body(), bare()], NOW, namespaces=False, wide=False)).splitlines()
    assert header.split() == ["NAME", "PHASE", "STEP", "SHARE", "SLO", "GATEWAYS", "AGE"]
    assert row.split() == ["support-chat", "Ramping", "2/4", "10", "%", "errors", "3/3", "3", "d"]
    assert second.split()[:3] == ["support-chat", "Pending", "-"]


def test_the_wide_listing_names_revisions() -> None:
    text = text_of(listing([policy_body()], NOW, namespaces=True, wide=True))
    assert text.split()[0] == "NAMESPACE"
    assert REVISION in text
    assert "about 9 min" in text


def test_nothing_ramps_no_step() -> None:
    """The operator may leave the last step's facts behind."""
    assert "2/4" not in text_of(listing([policy_body(candidate=None)], NOW, namespaces=False, wide=False))


def test_events_have_a_person() -> None:
    first, second = text_of(events(status_of(policy_body()).history, NOW)).splitlines()[1:]
    assert "StepStarted" in first
    assert "ann" in first
    assert "5 h" in second


@pytest.mark.parametrize(
    ("value", "slo", "text"),
    [
        pytest.param(None, {}, "-", id="nothing"),
        pytest.param(0.0123, {"indicator": "ErrorRate"}, "1.23 %", id="a rate"),
        pytest.param(0.0012, {"indicator": "CostPerRequest"}, "$0.0012", id="dollars"),
        pytest.param(1234.0, {"query": {"value": "v"}}, "1234", id="a value"),
        pytest.param(0.5, {"query": {"good": "g", "total": "t"}}, "50 %", id="good of total"),
    ],
)
def test_values_have_units(value: float | None, slo: dict[str, object], text: str) -> None:
    assert value_text(value, slo) == text


def test_a_status_of_another_version_is_one_sentence() -> None:
    with pytest.raises(FunicularError, match=r"status\.step\.\w+ of support-chat is not what this version"):
        status_of(policy_body(step={"index": 1}))
