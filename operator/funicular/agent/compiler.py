"""The one place where the agent meets `funicular.compile`: settings and traffic in, serialised parts out."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import orjson

from funicular import compile as envoy
from funicular.agent.ports import Compiled, Sample, SecretUse
from funicular.api.traffic import Traffic
from funicular.settings import AgentSettings


class EnvoyCompiler:
    """Implements ports.Compiler."""

    id_key = envoy.ID_KEY

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = envoy.GatewaySettings.of(settings)

    def policy(self, namespace: str, name: str, traffic: Traffic) -> Compiled:
        policy = envoy.PolicyTraffic(namespace, name, traffic)
        clusters = envoy.policy_clusters(policy, self._settings)
        return Compiled(
            model=traffic.endpoint,
            route=orjson.dumps(envoy.policy_route(policy)),
            clusters={cluster: orjson.dumps(content) for cluster, content in clusters.items()},
            shares=envoy.policy_shares(policy),
            secrets=tuple(SecretUse(use.sds, use.namespace, use.name, use.key) for use in envoy.policy_secrets(policy)),
        )

    def routes(self, by_model: Mapping[str, bytes]) -> Any:
        parts = {model: orjson.Fragment(route) for model, route in by_model.items()}
        return envoy.route_configuration(parts, self._settings)

    def shares(self, layer: Mapping[str, int]) -> Any:
        return envoy.share_layer(layer)

    def secret(self, sds: str, value: str) -> Any:
        return envoy.secret(sds, value)

    def bootstrap(self) -> Any:
        return envoy.bootstrap(self._settings)

    def companions(self) -> Mapping[str, bytes]:
        folder = resources.files("funicular.compile") / "lua"
        return {f"lua/{name}": (folder / name).read_bytes() for name in envoy.LUA_FILES}

    def translate(self, name: str, labels: Mapping[str, str]) -> Sample | None:
        found = envoy.translate(name, labels)
        return Sample(found.family, found.labels, found.factor) if found else None
