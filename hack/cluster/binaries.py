"""Finds the binaries that a cluster needs, and builds those that are nowhere.

Called by `Cluster` and the command line. Order: the folder `KUBEBUILDER_ASSETS`, PATH, the cache, a build into the cache
from the pinned modules in `tools/`. It must not know what the binaries are started with.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from hack.cluster.errors import BinaryMissing, BuildFailed

GO_TOOLCHAIN = "go1.27.3"
KUBERNETES = "v1.37.2"
TOOLS_FOLDER = Path(__file__).parent / "tools"

_VERSION_PACKAGE = "k8s.io/component-base/version"


@dataclass(frozen=True, slots=True)
class Tool:
    """One pinned Go module in `tools/<name>` and the binaries that come out of it."""

    name: str
    version: str
    packages: Mapping[str, str]
    compiled_packages: int
    """How many packages a cold build compiles: the length of the progress bar, nothing else."""
    minutes: str
    linker_flags: str = "-s -w"
    tags: str = ""


# What a cluster needs; and, of Kubernetes, what only hack/node needs: in one module, so that whoever asks for both
# compiles what they share once.
TOOLS: tuple[Tool, ...] = (
    Tool(
        "etcd",
        "v3.7.3",
        {"etcd": "go.etcd.io/etcd/server/v3"},
        compiled_packages=579,
        minutes="about a minute",
    ),
    Tool(
        "kubernetes",
        KUBERNETES,
        {
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubectl",
                "kubelet",
                "kube-proxy",
            )
        },
        compiled_packages=2800,
        minutes="5 to 12 minutes on two cores, for kubelet and kube-proxy alone 1 to 2",
        linker_flags=(
            f"-s -w -X {_VERSION_PACKAGE}.gitVersion={KUBERNETES}"
            f" -X {_VERSION_PACKAGE}.gitMajor=1 -X {_VERSION_PACKAGE}.gitMinor=37"
        ),
    ),
    Tool(
        "prometheus",
        "v3.16.0",
        {"prometheus": "github.com/prometheus/prometheus/cmd/prometheus"},
        compiled_packages=1288,
        minutes="2 to 5 minutes on two cores",
        tags="remove_all_sd,enable_kubernetes_sd",
    ),
)

# Built only when somebody asks for them by name.
ON_REQUEST: tuple[Tool, ...] = (
    Tool(
        "coredns",
        "v1.15.0",
        {"coredns": "github.com/coredns/coredns"},
        compiled_packages=1414,
        minutes="1 to 2 minutes on two cores",
    ),
    # With a newer kube-openapi than its own, which under Go 1.27 writes schemas that the API server cannot read: then
    # `kubectl apply` of a List is refused for as long as metrics-server runs.
    Tool(
        "metrics-server",
        "v0.9.0",
        {"metrics-server": "sigs.k8s.io/metrics-server/cmd/metrics-server"},
        compiled_packages=1341,
        minutes="1 to 2 minutes on two cores",
    ),
    # Enforces NetworkPolicies; hack/node uses nothing else of it.
    Tool(
        "kube-router",
        "v2.1.0",
        {"kube-router": "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"},
        compiled_packages=939,
        minutes="1 to 2 minutes on two cores",
    ),
    Tool(
        "helm",
        "v3.22.0",
        {"helm": "helm.sh/helm/v3/cmd/helm"},
        compiled_packages=976,
        minutes="1 to 2 minutes on two cores",
        linker_flags="-s -w -X helm.sh/helm/v3/internal/version.version=v3.22.0",
    ),
    # One binary in the roles of all of Argo CD's parts, by the name it is called by: hack/argocd.
    Tool(
        "argocd",
        "v3.6.1",
        {"argocd": "github.com/argoproj/argo-cd/v3/cmd"},
        compiled_packages=2325,
        minutes="3 to 5 minutes on two cores",
        linker_flags="-s -w -X github.com/argoproj/argo-cd/v3/common.version=3.6.1",
    ),
)

CLUSTER_BINARIES = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "prometheus",
)


def cache_folder() -> Path:
    """`$FUNICULAR_CACHE`, else `$XDG_CACHE_HOME/funicular`, else `~/.cache/funicular`: always outside the checkout."""
    if own := os.environ.get("FUNICULAR_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "funicular"


def find(name: str) -> Path | None:
    """Where `name` is on this machine, without building anything."""
    candidates = []
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        candidates.append(Path(assets) / name)
    if on_path := shutil.which(name):
        candidates.append(Path(on_path))
    candidates.append(_target(_tool_for(name), name))
    return next((path for path in candidates if os.access(path, os.X_OK) and path.is_file()), None)


def ensure(names: Sequence[str]) -> dict[str, Path]:
    """Path of each binary; builds what is missing, which takes minutes the first time and says so on stderr.

    Raises BinaryMissing if a build is needed and there is no Go, BuildFailed if it does not compile.
    """
    missing = [name for name in names if find(name) is None]
    if missing:
        if shutil.which("go") is None:
            raise BinaryMissing(
                f"{', '.join(missing)}: not in $KUBEBUILDER_ASSETS, not on PATH and not in {cache_folder() / 'bin'}; "
                "building needs the go command, version 1.21 or newer, which is not on PATH either. "
                "Install Go (Debian, Ubuntu: apt install golang-go) or set KUBEBUILDER_ASSETS to a folder with them."
            )
        console = Console(stderr=True)
        with _one_builder_at_a_time(console):
            for tool in (*TOOLS, *ON_REQUEST):
                wanted = [name for name in tool.packages if name in missing and find(name) is None]
                if wanted:
                    _build(tool, wanted, console)
    found = {name: find(name) for name in names}
    return {name: path for name, path in found.items() if path is not None}


def _tool_for(name: str) -> Tool:
    return next(tool for tool in (*TOOLS, *ON_REQUEST) if name in tool.packages)


def _target(tool: Tool, name: str) -> Path:
    return cache_folder() / "bin" / f"{tool.name}-{tool.version}" / name


@contextlib.contextmanager
def _one_builder_at_a_time(console: Console) -> Iterator[None]:
    folder = cache_folder() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("Another process is building the cluster's binaries; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(tool: Tool, names: Sequence[str], console: Console) -> None:
    """Compile `names` in a copy of the module (Go would touch go.mod in the checkout) and rename them into place."""
    title = f"Building {', '.join(names)} {tool.version}"
    console.print(f"{title}: {tool.minutes}, once; kept in {_target(tool, names[0]).parent}")
    with tempfile.TemporaryDirectory(dir=cache_folder() / "bin", prefix=".build-") as scratch:
        for file in ("go.mod", "go.sum"):
            shutil.copyfile(TOOLS_FOLDER / tool.name / file, Path(scratch) / file)
        output: list[str] = []
        with _progress(console) as progress, _go_build(tool, names, Path(scratch)) as process:
            bar = progress.add_task(title, total=tool.compiled_packages)
            assert process.stderr is not None
            for line in process.stderr:
                output.append(line.rstrip())
                progress.advance(bar)
            progress.update(bar, completed=tool.compiled_packages)
        if process.returncode:
            raise BuildFailed(f"{title} failed (go build ended with {process.returncode}):\n" + "\n".join(output[-25:]))
        _target(tool, names[0]).parent.mkdir(parents=True, exist_ok=True)
        for name in names:
            os.replace(Path(scratch) / "out" / name, _target(tool, name))


def _go_build(tool: Tool, names: Sequence[str], scratch: Path) -> subprocess.Popen[str]:
    (scratch / "out").mkdir()
    (scratch / "tmp").mkdir()
    # A folder as -o names each binary after its package, which etcd's package (".../v3") does not allow.
    single = len(names) == 1
    command = ["go", "build", "-v", "-trimpath", "-ldflags", tool.linker_flags]
    command += ["-tags", tool.tags] if tool.tags else []
    command += ["-o", str(scratch / "out" / names[0]) if single else str(scratch / "out") + "/"]
    command += [tool.packages[name] for name in names]
    overrides = {
        "GOTOOLCHAIN": GO_TOOLCHAIN,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "GOWORK": "off",
        "GOTMPDIR": str(scratch / "tmp"),  # goes with the scratch folder, also when Go is killed
    }
    return subprocess.Popen(
        command,
        cwd=scratch,
        env=os.environ | overrides,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} packages"),
        TimeElapsedColumn(),
        console=console,
        disable=not sys.stderr.isatty(),
    )
