"""A RoutingPolicy as it comes from the API server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from funicular.api.spec import RoutingPolicySpec
from funicular.api.status import Status
from funicular.errors import InvalidPolicy

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Metadata:
    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    created: str
    deleted: datetime | None
    finalizers: tuple[str, ...]
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    metadata: Metadata
    spec: RoutingPolicySpec
    status: Status


def parse_metadata(body: Mapping[str, Any]) -> Metadata:
    meta = body["metadata"]
    deleted = meta.get("deletionTimestamp")
    return Metadata(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        generation=meta.get("generation", 1),
        resource_version=meta.get("resourceVersion", ""),
        created=meta.get("creationTimestamp", ""),
        deleted=datetime.fromisoformat(deleted) if deleted else None,
        finalizers=tuple(meta.get("finalizers", ())),
        labels=dict(meta.get("labels") or {}),
        annotations=dict(meta.get("annotations") or {}),
    )


def parse_status(body: Mapping[str, Any]) -> Status:
    return Status.model_validate(body.get("status") or {})


def parse_policy(body: Mapping[str, Any]) -> RoutingPolicy:
    """Raises InvalidPolicy with the field's path: an object that an older CRD let through."""
    try:
        spec = RoutingPolicySpec.model_validate(body["spec"])
    except ValidationError as exc:
        first = exc.errors()[0]
        path = ".".join(str(part) for part in ("spec", *first["loc"]))
        raise InvalidPolicy(f"{path}: {first['msg']}", field=path, remedy="correct the field and apply again") from exc
    return RoutingPolicy(parse_metadata(body), spec, parse_status(body))
