"""Verbs: what a person asks of a running policy. An annotation each, so that GitOps leaves them alone; all bound to a revision.

`routing.funicular.dev/verb: "<verb> <revision> <id> [by]"`: `id` is any token that makes the request unique; a request
with the id of `status.lastVerb` is done already. `*` as the revision means whatever ramps, for interactive use only where
the writer has just shown the revision to a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from funicular.api.base import GROUP

ANNOTATION = f"{GROUP}/verb"
LONGEST = 128  # characters of a revision, id or name: they are kept in status, which has an upper size

HOW_TO_ASK = (
    "write `<verb> <revision> <any unique id> [who]`, as `kubectl funicular` does; verbs: "
    "abort, pause, resume, promote, approve, retry"
)


class Verb(StrEnum):
    ABORT = "abort"
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    APPROVE = "approve"
    RETRY = "retry"


@dataclass(frozen=True, slots=True)
class Request:
    verb: Verb
    revision: str
    id: str
    by: str = ""

    def annotation(self) -> str:
        return " ".join(part for part in (self.verb.value, self.revision, self.id, self.by) if part)


def unreadable(annotation: str) -> str:
    """The id under which a text that is no request is answered once: no request can have it, ids hold no spaces."""
    return f"not understood: {annotation}"


def parse(annotation: str) -> Request | None:
    """None for a text that is no request: the operator says so in an Event and goes on."""
    parts = annotation.split()
    if not 3 <= len(parts) <= 4 or parts[0] not in list(Verb) or any(len(part) > LONGEST for part in parts):
        return None
    return Request(Verb(parts[0]), parts[1], parts[2], parts[3] if len(parts) == 4 else "")
