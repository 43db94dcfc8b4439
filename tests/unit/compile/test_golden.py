"""What the compiler writes, word for word. FUNICULAR_UPDATE_GOLDEN=1 writes the files anew: read the difference."""

from __future__ import annotations

import json
import os

import pytest

from tests.unit.compile.cases import CASES, GOLDEN, golden


@pytest.mark.parametrize("name", CASES)
def test_the_compiled_files_are_those_that_were_reviewed(name: str) -> None:
    path = GOLDEN / f"{name}.json"
    text = json.dumps(golden(name), indent=1, sort_keys=True) + "\n"
    if os.environ.get("FUNICULAR_UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text
