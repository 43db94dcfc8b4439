"""Argo CD's own judgement of a policy in a file, by its binary and without a cluster."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hack.argocd.customizations import settings
from hack.cluster import binaries

Ask = Callable[..., str]


@pytest.fixture(scope="session")
def argocd() -> Path:
    """Built if it is nowhere: minutes, once."""
    return binaries.ensure(["argocd"])["argocd"]


@pytest.fixture(scope="session")
def ask(argocd: Path, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """`ask("health", file)`: what `argocd admin settings resource-overrides` says with the chart's Lua in its argocd-cm."""
    folder = tmp_path_factory.mktemp("argocd")

    def run(command: str, file: Path, *arguments: str, progressing_while_ramping: bool = False) -> str:
        config = folder / f"argocd-cm-{progressing_while_ramping}.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": "argocd-cm", "labels": {"app.kubernetes.io/part-of": "argocd"}},
                    "data": settings(progressing_while_ramping=progressing_while_ramping),
                }
            )
        )
        answer = subprocess.run(
            [
                *(str(argocd), "admin", "settings", "resource-overrides", command, str(file), *arguments),
                *("--argocd-cm-path", str(config)),
            ],
            # What an action made of the object is printed whole, under a header, instead of a difference.
            env=os.environ | {"KUBECTL_EXTERNAL_DIFF": "tail -n +1", "HOME": str(folder)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    return run
