"""The container runtime and the network tools, from Debian's packages, unpacked into the cache and never installed.

Called by `Node` and by `python -m hack.node binaries`. apt works on a state folder of its own, with the system's sources:
neither the system's package lists nor its packages change. It must not know what the programs are started with.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.binaries import cache_folder
from hack.node.errors import NotPossibleHere

PACKAGES = (
    "catatonit",  # the node's process 1, and the pause container
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "ipset",
    "iptables",
    "runc",
    # The shared libraries of these, beyond what every Debian has.
    "libip4tc2",
    "libip6tc2",
    "libipset13",
    "libmnl0",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "libnftnl11",
    "libseccomp2",
    "libxtables12",
)


@dataclass(frozen=True, slots=True)
class Programs:
    """A folder that looks like `/` with the packages in it."""

    root: Path

    def program(self, name: str) -> Path:
        return next(path for folder in self._folders if (path := folder / name).exists())

    @property
    def cni(self) -> Path:
        return self.root / "usr" / "lib" / "cni"

    @property
    def environment(self) -> dict[str, str]:
        """What the programs need to find each other and their libraries."""
        libraries = self.root / "usr" / "lib" / _multiarch()
        path = [str(folder) for folder in self._folders]
        return {
            "PATH": os.pathsep.join(
                [*path, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            ),
            "LD_LIBRARY_PATH": str(libraries),
            "XTABLES_LIBDIR": str(libraries / "xtables"),
        }

    @property
    def _folders(self) -> tuple[Path, Path]:
        return self.root / "usr" / "sbin", self.root / "usr" / "bin"


def ensure(report: Callable[[str], None] = lambda _: None) -> Programs:
    """Download and unpack what is not in the cache yet: 37 MB, 10 seconds, once.

    Raises NotPossibleHere where there is no apt, or where it cannot get the packages.
    """
    release = platform.freedesktop_os_release()
    folder = cache_folder() / f"{release.get('ID', 'linux')}-{release.get('VERSION_CODENAME', 'unknown')}"
    listed = folder / "packages.txt"
    with _alone(folder):
        if not listed.exists() or listed.read_text().split() != list(PACKAGES):
            for program in ("apt-get", "dpkg-deb"):
                if shutil.which(program) is None:
                    raise NotPossibleHere(
                        f"a node needs {program}: containerd and the network tools come from Debian's packages, "
                        f"and this is {release.get('PRETTY_NAME', 'an unknown system')}"
                    )
            report(f"Downloading {len(PACKAGES)} Debian packages (containerd and what it needs) into {folder}")
            _unpack_all(folder / "root")
            listed.write_text("\n".join(PACKAGES) + "\n")
    return Programs(folder / "root")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unpack_all(root: Path) -> None:
    """Renamed into place when it is whole."""
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".unpack-") as scratch:
        apt = Path(scratch) / "apt"
        for name in ("state/lists/partial", "cache/archives/partial", "packages"):
            (apt / name).mkdir(parents=True)
        options = {
            "Dir::State": apt / "state",
            "Dir::State::status": "/var/lib/dpkg/status",
            "Dir::Cache": apt / "cache",
            "APT::Sandbox::User": "root",  # its own user may not read this folder
            "Acquire::Languages": "none",
            "Acquire::Retries": 3,
        }
        command = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
        _run([*command, "update"], apt)
        _run([*command, "download", *PACKAGES], apt / "packages")
        whole = Path(scratch) / "root"
        for package in sorted((apt / "packages").glob("*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(whole)], apt)
        # What Debian's alternatives would do at installation.
        for name in (
            "iptables",
            "iptables-save",
            "iptables-restore",
            "ip6tables",
            "ip6tables-save",
            "ip6tables-restore",
        ):
            (whole / "usr" / "sbin" / name).symlink_to("xtables-nft-multi")
        shutil.rmtree(root, ignore_errors=True)
        whole.rename(root)


def _run(command: list[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise NotPossibleHere(f"{' '.join(command[:1] + command[-2:])} failed:\n{result.stderr.strip()}")


def _multiarch() -> str:
    return f"{platform.machine()}-linux-gnu"
