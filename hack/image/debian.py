"""Debian's packages as files: downloaded with apt into a folder of our own, and unpacked without being installed.

Called by layers. The system's list of sources is read, its state is left alone. No package's scripts run: what they would
have done (certificates, users) `prepare_root` does.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.image.errors import ImageError

DEBIAN = "12"
CODENAME = "bookworm"
ARCHITECTURE = "amd64"

# For every image. As in Google's distroless images: no shell, no package manager.
BASE_PACKAGES = ("base-files", "ca-certificates", "libc6", "libgcc-s1", "netbase", "tzdata")
# The interpreter, and what the extension modules of the standard library and of the wheels link to.
PYTHON_PACKAGES = (
    "libbz2-1.0", "libcrypt1", "libexpat1", "libffi8", "liblzma5", "libpython3.11-minimal", "libpython3.11-stdlib",
    "libssl3", "libstdc++6", "libuuid1", "media-types", "python3.11-minimal", "zlib1g",
)  # fmt: skip

# What containers do not need. Copyright files stay, as their licences ask.
UNUSED = (
    "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug", "usr/share/perl5", "usr/share/gdb",
    "usr/share/gcc", "usr/share/base-files", "usr/share/binfmts", "usr/share/python3.11", "usr/share/zoneinfo/posix",
    "usr/share/zoneinfo/right", "usr/share/info", "usr/sbin", "usr/lib/x86_64-linux-gnu/gconv", "etc/ca-certificates",
    "etc/update-motd.d", "etc/default", "etc/profile.d", "lib/systemd", "usr/lib/systemd", "usr/games", "usr/src",
    "usr/lib/python3.11/pydoc_data", "usr/lib/python3.11/test", "usr/lib/python3.11/idlelib",
    "usr/lib/python3.11/lib2to3", "usr/lib/python3.11/ensurepip", "usr/lib/python3.11/venv",
    # Parts of the standard library whose shared libraries are left out, so that a use fails at its import.
    "usr/lib/python3.11/curses", "usr/lib/python3.11/sqlite3",
    *(
        f"usr/lib/python3.11/lib-dynload/{name}.cpython-311-x86_64-linux-gnu.so"
        for name in ("_curses", "_curses_panel", "_dbm", "_sqlite3", "nis", "readline")
    ),
)  # fmt: skip

USERS = {
    "etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/nonexistent:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnonroot:x:65532:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """One .deb. `sha256` is that of the file, which apt has checked against the archive's signed index."""

    name: str
    version: str
    architecture: str
    sha256: str
    file: Path


def check_machine() -> None:
    """Raises ImageError where packages of another release would be mixed with wheels for this one."""
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    is_debian = release.get("ID") == "debian" and release.get("VERSION_ID") == DEBIAN
    if not is_debian or platform.machine() != "x86_64":
        found = f"{release.get('PRETTY_NAME', 'an unknown system')} on {platform.machine()}"
        raise ImageError(
            f"images are built from the packages of Debian {DEBIAN} on x86_64, and this is {found}: "
            "use a container engine and hack/image/Dockerfile"
        )
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise ImageError(f"there is no {program}")


def download(names: Sequence[str], folder: Path) -> list[DebianPackage]:
    """The newest versions that the system's sources offer, in `folder`, which also holds apt's own state."""
    state = folder / "apt"
    packages = folder / "packages"
    for needed in (state / "lists" / "partial", state / "cache" / "archives" / "partial", packages):
        needed.mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "APT::Architecture": ARCHITECTURE,
    }
    if os.geteuid() == 0:
        options["APT::Sandbox::User"] = "root"  # apt's own user may not read this folder
    apt = ["apt-get", "-qq", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
    _run([*apt, "update"], packages)
    _run([*apt, "download", *names], packages)
    found = [_describe(file) for file in sorted(packages.glob("*.deb"))]
    missing = set(names) - {package.name for package in found}
    if missing:
        raise ImageError(f"apt did not download {', '.join(sorted(missing))}")
    return found


def unpack(packages: Sequence[DebianPackage], root: Path) -> None:
    """Their content, without what UNUSED names, and their control data where scanners look in images like this."""
    for package in packages:
        _run(["dpkg-deb", "--extract", str(package.file), str(root)], root.parent)
        control = _run(["dpkg-deb", "--field", str(package.file)], root.parent)
        record = root / "var" / "lib" / "dpkg" / "status.d" / package.name
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(control)
    for unused in UNUSED:
        path = root / unused
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in sorted((root / "usr" / "share" / "doc").glob("*/*")):
        if path.name != "copyright" and path.is_file():
            path.unlink()


def prepare_root(root: Path) -> None:
    """What the packages' scripts would have done."""
    for folder in ("tmp", "proc", "sys", "dev", "run", "etc/ssl/certs", "usr/local/bin"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = "".join(path.read_text() for path in certificates)
    if bundle.count("BEGIN CERTIFICATE") < len(certificates) or not certificates:
        raise ImageError("the package ca-certificates holds no certificates")
    (root / "etc/ssl/certs/ca-certificates.crt").write_text(bundle)
    shutil.rmtree(root / "usr/share/ca-certificates")
    for name, content in USERS.items():
        (root / name).write_text(content)


def _describe(file: Path) -> DebianPackage:
    fields = _run(["dpkg-deb", "--showformat=${Package} ${Version} ${Architecture}", "--show", str(file)], file.parent)
    name, version, architecture = fields.split()
    return DebianPackage(name, version, architecture, hashlib.sha256(file.read_bytes()).hexdigest(), file)


def _run(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"{' '.join(command[:1])} {command[-1]} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
