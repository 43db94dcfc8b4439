"""Nothing of a real Argo CD survives whoever started it, however that went."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hack.argocd import ArgoCD
from hack.argocd.commands import ORDER
from hack.cluster import Cluster

pytestmark = pytest.mark.timeout(1200)  # of which the first, on a new machine, builds the binaries
STARTS = """
import sys, threading
from collections.abc import Iterator
from pathlib import Path
from hack.argocd import ArgoCD
argo = ArgoCD.start(Path(sys.argv[1]), Path(sys.argv[2]))
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cluster")
    with Cluster.start("argocd-processes", folder=folder, node=False, prometheus=False) as cluster:
        yield cluster.kubeconfig


def _of(folder: Path) -> list[psutil.Process]:
    """The processes that run in this folder."""
    found = []
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"] and Path(process.info["cwd"]).is_relative_to(folder):
            found.append(process)
    return found


def test_stopped_and_started_again_in_the_same_cluster(kubeconfig: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with ArgoCD.start(kubeconfig, tmp_path) as argo:
            assert len(_of(tmp_path)) >= len(ORDER)
            argo.uninstall()
        assert not _of(tmp_path)
        argo.stop()  # once more is no mistake


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_its_owner_is_killed(kubeconfig: Path, tmp_path: Path, number: signal.Signals) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", STARTS, str(kubeconfig), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    with owner.stdout:
        assert owner.stdout.readline() == "ready\n"
    started = _of(tmp_path)
    assert len(started) >= len(ORDER)
    owner.send_signal(number)
    owner.wait()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
