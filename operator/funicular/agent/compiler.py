"""The one place where the agent meets `funicular.compile`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from funicular.agent.ports import Compiled, Sample
from funicular.api.traffic import Traffic
from funicular.settings import AgentSettings


class EnvoyCompiler:
    """Implements ports.Compiler."""

    id_key = "id-key"

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings

    def policy(self, namespace: str, name: str, traffic: Traffic) -> Compiled:
        raise NotImplementedError

    def routes(self, by_model: Mapping[str, bytes]) -> Any:
        raise NotImplementedError

    def shares(self, layer: Mapping[str, int]) -> Any:
        raise NotImplementedError

    def secret(self, sds: str, value: str) -> Any:
        raise NotImplementedError

    def bootstrap(self) -> Any:
        raise NotImplementedError

    def translate(self, name: str, labels: Mapping[str, str]) -> Sample | None:
        raise NotImplementedError
