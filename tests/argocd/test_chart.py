"""The chart's ConfigMap for Argo CD holds the scripts of the folder, word for word."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.argocd.customizations import ACTIONS_KEY, FOLDER, HEALTH_KEY, settings
from hack.cluster import binaries

pytestmark = pytest.mark.timeout(600)  # of which the first, on a new machine, builds Helm
CHART = FOLDER.parents[3]


@pytest.fixture(scope="module")
def helm() -> Path:
    return binaries.ensure(["helm"])["helm"]


def _rendered(helm: Path, **values: Any) -> list[dict[str, Any]]:
    """The documents that the template makes."""
    given = ",".join(f"argocd.customizations.{key}={str(value).lower()}" for key, value in values.items())
    answer = subprocess.run(
        [str(helm), "template", "shop", str(CHART), "--namespace", "routing", "--set", given],
        check=True,
        capture_output=True,
        text=True,
    )
    found = [it for it in yaml.safe_load_all(answer.stdout) if it and it["kind"] == "ConfigMap"]
    return [it for it in found if any(key.startswith("resource.customizations") for key in it["data"])]


@pytest.mark.parametrize("switch", [False, True])
def test_the_keys_are_those_of_the_folder(helm: Path, switch: bool) -> None:
    (found,) = _rendered(helm, enabled=True, progressingWhileRamping=switch)
    wanted = settings(progressing_while_ramping=switch)
    assert found["data"].keys() == wanted.keys() == {HEALTH_KEY, ACTIONS_KEY}
    assert found["data"][HEALTH_KEY].strip() == wanted[HEALTH_KEY].strip()
    assert _stripped(found["data"][ACTIONS_KEY]) == _stripped(wanted[ACTIONS_KEY])
    assert (found["metadata"]["name"], found["metadata"]["namespace"]) == ("shop-funicular-argocd", "routing")


def test_it_can_be_a_patch_of_argocd_cm(helm: Path) -> None:
    (found,) = _rendered(helm, enabled=True, configMapName="argocd-cm", configMapNamespace="argocd")
    labels = {"app.kubernetes.io/part-of": "argocd"}
    assert found["metadata"] == {"name": "argocd-cm", "namespace": "argocd", "labels": labels}


def test_by_default_there_is_none(helm: Path) -> None:
    assert not _rendered(helm, enabled=False)


def _stripped(text: str) -> dict[str, Any]:
    """The scripts without the empty lines at their ends, which YAML keeps or not."""
    found = yaml.safe_load(text)
    return {
        "discovery.lua": found["discovery.lua"].strip(),
        **{it["name"]: it["action.lua"].strip() for it in found["definitions"]},
    }
