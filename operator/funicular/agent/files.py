"""Envoy's files: written beside and renamed into place, and only when their content differs.

Called by the applier and the keeper of secrets. Envoy watches the folders, so a rename is what it notices. This module
knows nothing of what stands in the files.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from funicular.errors import UserMustFix


class Files:
    """The files below `root`. Remembers what was written, so that an unchanged document costs no rename."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, bytes] = {}

    def prepare(self, *folders: str) -> None:
        """Creates the folders. Raises UserMustFix when they cannot be written to: the agent must not start half."""
        for folder in ("", *folders):
            path = self.root / folder
            try:
                path.mkdir(mode=0o700 if folder == "sds" else 0o755, parents=True, exist_ok=True)
                probe = path / ".probe"
                probe.touch()
                probe.unlink()
            except OSError as exc:
                raise UserMustFix(
                    f"{path} cannot be written to: {exc.strerror}",
                    field="FUNICULAR_CONFIG_DIR",
                    remedy="mount an emptyDir there, shared by the agent and Envoy",
                ) from exc

    def read(self, name: str) -> bytes | None:
        """What stands there now, also from an earlier process; None: nothing."""
        try:
            content = (self.root / name).read_bytes()
        except OSError:
            return None
        self._known[name] = content
        return content

    def write(self, name: str, content: bytes, *, private: bool = False, force: bool = False) -> bool:
        """True: the file was replaced; `force` replaces it with the same, for an Envoy that missed the first."""
        known = self._known.get(name)
        if known is None:
            known = self.read(name)
        if known == content and not force:
            return False
        path = self.root / name
        temporary = path.with_name(f".{path.name}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o644)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            temporary.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self._known[name] = content
        return True

    def write_if_absent(self, name: str, content: bytes, *, private: bool = False) -> bool:
        return self.read(name) is None and self.write(name, content, private=private)

    def remove(self, name: str) -> None:
        self._known.pop(name, None)
        (self.root / name).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        return sorted(p.name for p in (self.root / folder).iterdir() if not p.name.startswith("."))
