from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from hack import chart
from tests.chart.value_sets import SETS

Json = dict[str, Any]


@cache
def rendered(name: str) -> tuple[Json, ...]:
    return tuple(chart.template(values=SETS[name]))


@pytest.fixture(params=list(SETS))
def objects(request: pytest.FixtureRequest) -> tuple[Json, ...]:
    """All objects of the chart, hooks too, once for each set of values."""
    return rendered(request.param)
