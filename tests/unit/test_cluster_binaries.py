"""Where binaries are looked for, in which order, and what is said when there are none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from hack.cluster import binaries
from hack.cluster.errors import BinaryMissing


def make_binary(folder: Path, name: str = "etcd") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.touch(mode=0o755)
    return path


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("FUNICULAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)


def test_assets_win_over_path_and_path_over_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert binaries.find("etcd") is None
    version = next(tool.version for tool in binaries.TOOLS if tool.name == "etcd")
    cached = make_binary(tmp_path / "cache" / "bin" / f"etcd-{version}")
    assert binaries.find("etcd") == cached
    on_path = make_binary(tmp_path / "path")
    assert binaries.find("etcd") == on_path
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    assert binaries.find("etcd") == on_path, "a folder without the binary hides nothing"
    in_assets = make_binary(tmp_path / "assets")
    assert binaries.find("etcd") == in_assets


def test_without_go_the_error_says_what_to_install(tmp_path: Path) -> None:
    make_binary(tmp_path / "path", "etcd")
    with pytest.raises(BinaryMissing, match=r"^kube-apiserver: not in .*Install Go"):
        binaries.ensure(["etcd", "kube-apiserver"])


@pytest.mark.parametrize("tool", [*binaries.TOOLS, *binaries.ON_REQUEST], ids=lambda tool: tool.name)
def test_every_tool_has_a_locked_module(tool: binaries.Tool) -> None:
    folder = binaries.TOOLS_FOLDER / tool.name
    required = (folder / "go.mod").read_text()
    assert all(package in required for package in tool.packages.values())
    assert (folder / "go.sum").stat().st_size > 0


def test_who_asks_for_a_cluster_and_a_node_compiles_kubernetes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[tuple[str, list[str]]] = []

    def build(tool: binaries.Tool, names: Sequence[str], _: object) -> None:
        builds.append((tool.name, sorted(names)))
        for name in names:
            make_binary(tmp_path / "cache" / "bin" / f"{tool.name}-{tool.version}", name)

    make_binary(tmp_path / "path", "go")
    monkeypatch.setattr(binaries, "_build", build)
    binaries.ensure(["kubelet"])
    binaries.ensure(["kubelet", "kube-proxy", *binaries.CLUSTER_BINARIES])
    kubernetes = [names for tool, names in builds if tool == "kubernetes"]
    assert kubernetes == [
        ["kubelet"],
        ["kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl"],
    ]
