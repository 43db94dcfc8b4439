"""Which namespaces a gateway pod serves, and whom the operator believes that it serves others."""

from __future__ import annotations

import pytest

from funicular.api.tenancy import EVERY, named, reaches, served


@pytest.mark.parametrize(
    ("text", "namespaces"),
    [
        pytest.param("", {"own"}, id="nothing said: its own"),
        pytest.param("a, b,", {"own", "a", "b"}, id="its own and those it names"),
        pytest.param("own", {"own"}, id="its own, twice"),
        pytest.param("a,*", {EVERY}, id="all"),
    ],
)
def test_a_gateway_serves_its_own_namespace_and_those_it_names(text: str, namespaces: set[str]) -> None:
    assert served("own", text) == namespaces


@pytest.mark.parametrize(
    ("gateway", "serves", "counts"),
    [
        pytest.param("shop", "", True, id="in the policy's own namespace"),
        pytest.param("shop", "else", True, id="whatever else it says"),
        pytest.param("gateways", "a,shop", True, id="in a trusted namespace, and it names the policy's"),
        pytest.param("gateways", "*", True, id="in a trusted namespace, and it names all"),
        pytest.param("gateways", "", False, id="in a trusted namespace, and it names nobody"),
        pytest.param("gateways", "a", False, id="in a trusted namespace, and it names another"),
        pytest.param("evil", "shop", False, id="elsewhere, though it names the policy's"),
        pytest.param("evil", "*", False, id="elsewhere, though it names all"),
    ],
)
def test_a_pod_counts_for_a_policy(gateway: str, serves: str, counts: bool) -> None:
    assert reaches(gateway, named(serves), "shop", {"gateways"}) is counts
