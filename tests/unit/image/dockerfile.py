"""The Dockerfile, taken apart into its stages: for tests that hold it against the other builder."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

from hack.image.recipes import CHECKOUT

DOCKERFILE = CHECKOUT / "hack" / "image" / "Dockerfile"


@dataclass
class Stage:
    """One FROM and what follows. `run` holds commands as their arguments, `copied` sources of the build's context."""

    name: str
    base: str
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = ""
    entrypoint: tuple[str, ...] = ()
    run: list[list[str]] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    copied_from: list[tuple[str, str, str]] = field(default_factory=list)


def stages(path: Path = DOCKERFILE) -> dict[str, Stage]:
    """By name. A stage has what its base has, as an image has."""
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in DockerfileParser(path=str(path), cache_content=True, env_replace=False).structure:
        name, value = line["instruction"], line["value"]
        if name == "FROM":
            base, _, called = value.partition(" AS ")
            stage = Stage(called, base)
            if base in found:
                parent = found[base]
                stage.env, stage.labels = dict(parent.env), dict(parent.labels)
                stage.user, stage.workdir = parent.user, parent.workdir
            found[called] = stage
        elif name not in ("COMMENT", "ARG"):
            assert stage is not None, line
            _read(stage, name, value)
    return found


def _read(stage: Stage, name: str, value: str) -> None:
    if name == "ENV":
        stage.env |= dict(word.split("=", 1) for word in shlex.split(value))
    elif name == "LABEL":
        stage.labels |= dict(word.split("=", 1) for word in shlex.split(value))
    elif name == "USER":
        stage.user = value
    elif name == "WORKDIR":
        stage.workdir = value
    elif name == "ENTRYPOINT":
        stage.entrypoint = tuple(json.loads(value))
    elif name == "RUN":
        stage.run.append(json.loads(value))  # the exec form only: the last stages have no shell
    elif name == "COPY":
        *sources, target = value.split()
        if sources[0].startswith("--from="):
            (source,) = sources[1:]
            stage.copied_from.append((sources[0].removeprefix("--from="), source, target))
        else:
            stage.copied += sources
    else:
        raise AssertionError(f"the tests do not know {name}: {value}")
