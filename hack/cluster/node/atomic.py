"""Writes a volume's files the way kubelet does: a reader sees all old or all new ones, and watchers see one rename.

Called by `volumes.py`. `folder/..data` is a symbolic link to a folder of one version; `folder/KEY` links to
`..data/KEY`. It must not know where files come from.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_DATA = "..data"


@dataclass(frozen=True, slots=True)
class VolumeFile:
    content: bytes
    mode: int = 0o644


def write_atomically(folder: Path, files: Mapping[str, VolumeFile]) -> bool:
    """Make `folder` hold exactly `files` (by relative path); returns whether anything changed."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / _DATA
    if data.exists() and _present(data) == dict(files):
        return False
    version = Path(tempfile.mkdtemp(prefix="..", dir=folder))
    version.chmod(0o755)
    for name, file in files.items():
        target = version / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch(mode=0o600)
        target.write_bytes(file.content)
        target.chmod(file.mode)
    old = folder / os.readlink(data) if data.is_symlink() else None
    link = folder / "..data_tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(version.name)
    link.replace(data)
    tops = {Path(name).parts[0] for name in files}
    for top in tops:
        if not (folder / top).is_symlink():
            (folder / top).symlink_to(f"{_DATA}/{top}")
    for entry in folder.iterdir():
        if entry.is_symlink() and not entry.name.startswith("..") and entry.name not in tops:
            entry.unlink()
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    return True


def _present(data: Path) -> dict[str, VolumeFile]:
    root = data.resolve()
    return {
        str(path.relative_to(root)): VolumeFile(path.read_bytes(), path.stat().st_mode & 0o777)
        for path in root.rglob("*")
        if path.is_file()
    }
