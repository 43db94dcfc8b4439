"""Each claim of the threat model names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
MODEL = CHECKOUT / "hack" / "designs" / "0003-threat-model.md"


def test_each_claim_names_a_test_that_exists() -> None:
    rows = [line for line in MODEL.read_text().splitlines() if line.startswith("| ") and not line.startswith("| claim")]
    claims = [row for row in rows if not row.startswith(("| ---", "| (not defended)"))]
    there = {
        name
        for file in (CHECKOUT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert claims
    for claim in claims:
        named = re.findall(r"`(test_\w+)`", claim)
        assert named, claim
        assert set(named) <= there, claim
