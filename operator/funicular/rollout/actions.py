"""What a decision asks of the world, as data. `apply` carries them out in order; each is idempotent and safe to repeat."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from funicular.api.spec import ClassifierStrategy
from funicular.api.status import Status


@dataclass(frozen=True, slots=True)
class EnsureFinalizer:
    pass


@dataclass(frozen=True, slots=True)
class DropFinalizer:
    pass


@dataclass(frozen=True, slots=True)
class RunClassifiers:
    """Deployment and Service for each of `run`; those of revisions outside `keep` are removed."""

    run: tuple[tuple[str, ClassifierStrategy], ...]
    keep: frozenset[str]


@dataclass(frozen=True, slots=True)
class RecordRevision:
    """A good spec into a ControllerRevision."""

    name: str
    revision: str
    spec: dict[str, Any]


@dataclass(frozen=True, slots=True)
class WriteStatus:
    status: Status


@dataclass(frozen=True, slots=True)
class RestoreSpec:
    """The spec of a ControllerRevision back into the object."""

    controller_revision: str
    rejected: str  # only if the object's spec still is this revision


@dataclass(frozen=True, slots=True)
class Emit:
    """A Kubernetes Event."""

    reason: str
    message: str
    warning: bool = False


Action = EnsureFinalizer | DropFinalizer | RunClassifiers | RecordRevision | WriteStatus | RestoreSpec | Emit


@dataclass(frozen=True, slots=True)
class Decision:
    status: Status
    actions: tuple[Action, ...]
    look_again_at: datetime | None = None
