"""The base of every model of the resource: strict, frozen, camelCase outside and snake_case inside."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

GROUP = "routing.funicular.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "RoutingPolicy"
PLURAL = "routingpolicies"
FINALIZER = f"{GROUP}/gateways"
GATEWAY_LABEL = f"{GROUP}/gateway"  # on every gateway pod: what the operator watches


class Model(BaseModel):
    """Unknown fields are errors; instances are values."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class StatusModel(BaseModel):
    """As `Model`, but what a newer version wrote into a status is ignored rather than refused."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True)
