"""What a container image means to the process node: a command on this machine.

Called by whoever starts a cluster (tests, demo) to say which images exist, and by the node to look one up.
It must not know Kubernetes objects: an image is a string here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Image:
    """A local stand-in for a container image.

    `entrypoint` plays the role of ENTRYPOINT: a container's `args` are appended to it, its `command` replaces it.
    `programs` maps the first word of such a `command` to a local command, as the image's own PATH would.
    `env` is the image's environment; a container's `env` wins. `cwd` is used unless the container sets `workingDir`.
    In `entrypoint`, `programs` and `env`, `$(POD_IP)` and the container's own variables are expanded.
    """

    entrypoint: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    programs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def normalised(table: Mapping[str, Image | Sequence[str]]) -> dict[str, Image]:
    """Accept plain commands as images, so that the common case is `{"name": ["program", "argument"]}`."""
    return {name: it if isinstance(it, Image) else Image(tuple(it)) for name, it in table.items()}


def find(table: Mapping[str, Image], reference: str) -> Image | None:
    """The entry for `reference`: exact, else without its digest, else without its tag too."""
    without_digest = reference.split("@", 1)[0]
    head, slash, tail = without_digest.rpartition("/")
    without_tag = head + slash + tail.split(":", 1)[0]
    for key in (reference, without_digest, without_tag):
        if key in table:
            return table[key]
    return None


def save(table: Mapping[str, Image], path: Path) -> None:
    """Write the table for the node, which is a process of its own."""
    document = {
        name: {
            "entrypoint": list(it.entrypoint),
            "env": dict(it.env),
            "cwd": it.cwd,
            "programs": {program: list(command) for program, command in it.programs.items()},
        }
        for name, it in table.items()
    }
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(document, indent=1))
    draft.replace(path)


def load(path: Path) -> dict[str, Image]:
    """The reverse of `save`; a bare list of strings is an entrypoint, so that the file can be written by hand."""
    raw: dict[str, Any] = json.loads(path.read_text())
    table: dict[str, Image] = {}
    for name, it in raw.items():
        if isinstance(it, list):
            table[name] = Image(tuple(it))
        else:
            table[name] = Image(
                tuple(it.get("entrypoint", ())),
                dict(it.get("env", {})),
                it.get("cwd"),
                {program: tuple(command) for program, command in it.get("programs", {}).items()},
            )
    return table
