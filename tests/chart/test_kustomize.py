"""charts/kustomize is the chart's default output, and the written files are what `make chart` would write now."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack import chart
from hack.cluster import binaries

Json = dict[str, Any]


def by_identity(objects: list[Json]) -> dict[tuple[str, ...], Json]:
    return {(it["kind"], it["metadata"].get("namespace", ""), it["metadata"]["name"]): it for it in objects}


@pytest.fixture(scope="module")
def built() -> dict[tuple[str, ...], Json]:
    """What `kubectl apply -k` would send."""
    kubectl = binaries.ensure(["kubectl"])["kubectl"]
    text = subprocess.run([kubectl, "kustomize", chart.KUSTOMIZE], check=True, capture_output=True, text=True).stdout
    return by_identity([document for document in yaml.safe_load_all(text) if document])


def test_nothing_written_is_stale(capsys: pytest.CaptureFixture[str]) -> None:
    assert chart.main(["--check"]) == 0, capsys.readouterr().err


def test_the_kustomization_is_the_charts_default_output(built: dict[tuple[str, ...], Json]) -> None:
    """But for the namespace, which Helm makes, and what only `helm test` uses."""
    assert built.pop(("Namespace", "", chart.NAMESPACE))
    assert built == by_identity(chart.plain_objects())


def test_there_is_no_secret_in_it_and_nothing_that_says_helm(built: dict[tuple[str, ...], Json]) -> None:
    assert not [identity for identity in built if identity[0] == "Secret"]
    for it in built.values():
        assert "helm" not in yaml.safe_dump(it["metadata"]).lower()


def test_a_value_without_a_sentence_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "values.yaml").write_text("# -- Said.\na: 1\nb:\n  c: 2\n")
    monkeypatch.setattr(chart, "CHART", tmp_path)
    with pytest.raises(chart.Undocumented, match=r"line 4: b\.c has no sentence"):
        chart.documented_values()
