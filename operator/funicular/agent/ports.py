"""What the agent needs of the compiler, and what it gets: the seam between `agent` and `compile`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from funicular.api.traffic import Traffic

PolicyKey = tuple[str, str]  # namespace, name


@dataclass(frozen=True, slots=True, order=True)
class SecretUse:
    """One key of a Secret, and the name of the SDS file by which Envoy reads it."""

    sds: str
    namespace: str
    name: str
    key: str

    def __str__(self) -> str:
        return f"Secret {self.namespace}/{self.name}, key {self.key}"


@dataclass(frozen=True, slots=True)
class Compiled:
    """One policy's parts of Envoy's files, serialised: joining 1,000 of them costs milliseconds, compiling them a second."""

    model: str
    route: bytes
    clusters: Mapping[str, bytes]
    shares: Mapping[str, int]
    secrets: tuple[SecretUse, ...]

    def routes_like(self, other: Compiled | None) -> bool:
        """True: only shares differ, so that the file of shares alone has to be written."""
        return (
            other is not None
            and self.route == other.route
            and self.model == other.model
            and self.clusters == other.clusters
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """One of Envoy's series under the name and labels of 0001; `factor` turns milliseconds into seconds."""

    family: str
    labels: Mapping[str, str]
    factor: float = 1.0


Translate = Callable[[str, Mapping[str, str]], Sample | None]
"""Name and labels as Envoy shows them -> ours; None: not for users."""


class Compiler(Protocol):
    @property
    def id_key(self) -> str:
        """Name of the SDS resource with the key that signs x-funicular-id."""

    def translate(self, name: str, labels: Mapping[str, str]) -> Sample | None:
        """The meaning of one of Envoy's series."""

    def policy(self, namespace: str, name: str, traffic: Traffic) -> Compiled:
        """Raises for traffic that cannot be compiled: that policy alone keeps what it had."""

    def routes(self, by_model: Mapping[str, bytes]) -> Any:
        """The route configuration of all policies' parts; may hold orjson.Fragment."""

    def shares(self, layer: Mapping[str, int]) -> Any:
        """The runtime layer, from basis points by key."""

    def secret(self, sds: str, value: str) -> Any:
        """The SDS resource of one value."""

    def bootstrap(self) -> Any:
        """What Envoy starts with; never changes while it runs."""

    def companions(self) -> Mapping[str, bytes]:
        """Files that the bootstrap and the clusters name, by path below the config folder."""
