"""Locked wheels: downloaded with their hashes checked, and installed into a folder for the image's Python.

Called by layers. pip downloads, because it says which file it took; uv installs. The Python that runs this may be another
one than the image's.
"""

from __future__ import annotations

import email
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import parse_wheel_filename

from hack.image.errors import ImageError

PYTHON = "3.11"
GLIBC_MINOR = 36  # Debian 12
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC_MINOR, 4, -1)),
    *(f"{name}_x86_64" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")),
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """One downloaded file. `license`: the SPDX expression that it declares, or nothing."""

    name: str
    version: str
    sha256: str
    license: str
    file: Path


def download(requirements: Path, folder: Path) -> list[Wheel]:
    """Exactly what `requirements` pins, by its hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    abis = [part for abi in ("cp311", "abi3", "none") for part in ("--abi", abi)]
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes",
          "--no-deps", "--only-binary", ":all:", "--python-version", PYTHON, "--implementation", "cp",
          *abis, *platforms, "--dest", str(folder), "--requirement", str(requirements)])  # fmt: skip
    return [_describe(file) for file in sorted(folder.glob("*.whl"))]


def build(checkout: Path, folder: Path) -> Wheel:
    """Funicular's own wheel."""
    _run([sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)], checkout)
    files = sorted(folder.glob("*.whl"))
    if len(files) != 1:
        raise ImageError(f"hatchling wrote {len(files)} wheels into {folder}")
    return _describe(files[0])


def install(wheels: Sequence[Wheel], app: Path) -> None:
    app.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--no-config", "--link-mode", "copy",
          "--no-index", "--python-version", PYTHON, "--python-platform", f"x86_64-manylinux_2_{GLIBC_MINOR}",
          "--target", str(app), *(str(wheel.file) for wheel in wheels)])  # fmt: skip
    (app / ".lock").unlink(missing_ok=True)


def pinned(lock: Path, package: str) -> str:
    """The lines of a lock that pin one package."""
    found = re.search(rf"^{re.escape(package)}==(?:.*\\\n)*.*\n", lock.read_text(), re.MULTILINE)
    if found is None:
        raise ImageError(f"{lock.name} does not pin {package}")
    return found[0]


def _describe(file: Path) -> Wheel:
    name, version, _, _ = parse_wheel_filename(file.name)
    with zipfile.ZipFile(file) as archive:
        metadata = next(it for it in archive.namelist() if it.endswith(".dist-info/METADATA"))
        declared = email.message_from_bytes(archive.read(metadata)).get("License-Expression", "")
    return Wheel(str(name), str(version), hashlib.sha256(file.read_bytes()).hexdigest(), str(declared), file)


def _run(command: Sequence[str], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"{' '.join(command[1:4])} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
