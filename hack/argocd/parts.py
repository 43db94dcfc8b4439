"""Where Argo CD's parts come from: its binary, the files of its module, Redis.

Called by `ArgoCD`. What is not on this machine is built or downloaded once, into the cache folder of hack.cluster; nothing
is installed. It must not know what the parts are started with.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hack.cluster import binaries
from hack.cluster.errors import BinaryMissing

MODULE = "github.com/argoproj/argo-cd/v3"
# Debian's redis-server is a link into redis-tools; beside it, the libraries that a small machine may lack.
REDIS_PACKAGES = ("redis-server", "redis-tools", "libatomic1", "libjemalloc2", "liblzf1")
FILES = (
    "manifests/crds/application-crd.yaml",
    "manifests/crds/appproject-crd.yaml",
    "manifests/crds/applicationset-crd.yaml",
    "manifests/base/config/argocd-cm.yaml",
    "manifests/base/config/argocd-rbac-cm.yaml",
    "hack/git-verify-wrapper.sh",
)


@dataclass(frozen=True, slots=True)
class Redis:
    """The server, and the folder of libraries that it needs if it was not installed here."""

    binary: Path
    libraries: Path | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    argocd: Path
    helm: Path
    kubectl: Path
    module: Path  # holds FILES
    redis: Redis


def ensure() -> Parts:
    """Finds, builds or downloads everything: minutes the first time. Raises BinaryMissing, BuildFailed."""
    found = binaries.ensure(["argocd", "helm", "kubectl"])
    return Parts(found["argocd"], found["helm"], found["kubectl"], module_files(), redis())


def module_files() -> Path:
    """FILES of the module that the binary is built from; go.sum vouches for them."""
    version = next(tool.version for tool in binaries.ON_REQUEST if tool.name == "argocd")
    folder = binaries.cache_folder() / "argocd" / f"files-{version}"
    if folder.is_dir():
        return folder
    if shutil.which("go") is None:
        raise BinaryMissing("the manifests of Argo CD come from its Go module, and the go command is not on PATH")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".files-") as scratch:
        for name in ("go.mod", "go.sum"):
            shutil.copyfile(binaries.TOOLS_FOLDER / "argocd" / name, Path(scratch) / name)
        answer = subprocess.run(
            ["go", "mod", "download", "-json", MODULE],
            cwd=scratch,
            env=os.environ | {"GOTOOLCHAIN": binaries.GO_TOOLCHAIN, "GOFLAGS": "-mod=readonly"},
            check=True,
            capture_output=True,
            text=True,
        )
        source, draft = Path(json.loads(answer.stdout)["Dir"]), Path(scratch) / "files"
        for name in FILES:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, draft / name)  # not their read-only mode
        _move(draft, folder)
    return folder


def redis() -> Redis:
    """The one on PATH, else Debian's packages, unpacked into the cache."""
    if installed := shutil.which("redis-server"):
        return Redis(Path(installed))
    folder = binaries.cache_folder() / "argocd" / "redis"
    if not folder.is_dir():
        _download_redis(folder)
    (libraries,) = {path.parent for path in folder.glob("usr/lib/*/libjemalloc.so.2")}
    return Redis(folder / "usr/bin/redis-server", libraries)


def _download_redis(folder: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise BinaryMissing("redis-server is not on PATH, and there is no apt-get to download it with: install Redis")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".redis-") as scratch:
        packages, draft = Path(scratch) / "packages", Path(scratch) / "root"
        packages.mkdir()
        if not _apt("download", *REDIS_PACKAGES, into=packages):
            # No package lists here, or old ones: fetch them beside the system's own.
            state = Path(scratch) / "apt"
            (state / "lists" / "partial").mkdir(parents=True)
            options = (f"-oDir::State::Lists={state / 'lists'}", f"-oDir::Cache={state}")
            if not (
                _apt(*options, "update", into=packages) and _apt(*options, "download", *REDIS_PACKAGES, into=packages)
            ):
                raise BinaryMissing("redis-server is not on PATH and cannot be downloaded with apt-get: install Redis")
        for package in packages.glob("*.deb"):
            subprocess.run(["dpkg", "--extract", str(package), str(draft)], check=True, capture_output=True)
        _move(draft, folder)


def _apt(*arguments: str, into: Path) -> bool:
    command = ["apt-get", "--quiet", "-oAPT::Sandbox::User=root", *arguments]
    return subprocess.run(command, cwd=into, capture_output=True, check=False).returncode == 0


def _move(draft: Path, folder: Path) -> None:
    """Into place by one rename; if another process was quicker, its copy is as good."""
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
