"""Settings of the three processes, read once at start from the environment. Never at import."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """Environment: FUNICULAR_<FIELD IN CAPITALS>."""

    pod_name: str = ""
    pod_namespace: str = "default"
    pod_ip: str = "127.0.0.1"
    namespaces: str = ""  # whose policies and gateway pods are looked at; comma-separated; empty: all
    gateway_namespaces: str = ""  # whose gateway pods may serve other namespaces; comma-separated; empty: the own one
    report_port: int = 8085
    metrics_port: int = 8086  # /metrics, /healthz, /readyz
    lease_seconds: float = 15.0
    renew_seconds: float = 2.0
    relist_seconds: float = 60.0
    idle_check_seconds: float = 60.0  # drift screening of all policies that do not ramp
    workers: int = 16
    check_tokens: bool = True
    tokens_dir: str = "/etc/funicular/tokens"  # what spec.prometheus.auth.bearer.file may name a file of
    log_level: str = "INFO"


@dataclass(frozen=True, slots=True)
class AgentSettings:
    pod_name: str = ""
    pod_namespace: str = "default"
    pod_uid: str = ""
    pod_ip: str = "127.0.0.1"
    pod_labels_file: str = ""  # the downward API's labels file: key="value" lines
    operator_namespace: str = "default"  # where the Lease lies
    namespaces: str = ""  # whose policies are served besides the own namespace's; comma-separated; "*": all
    config_dir: str = "/run/funicular"  # Envoy's files; written here, read by Envoy
    gateway_port: int = 8080  # applications
    agent_port: int = 8081  # /metrics, /healthz, /readyz, feedback (from Envoy)
    admin_port: int = 9901  # Envoy's admin interface, on 127.0.0.1 or the pod's own loopback address only
    admin_host: str = "127.0.0.1"
    id_key_file: str = ""  # signs x-funicular-id; the same on all pods of a gateway
    token_file: str = ""  # projected token with the operator's audience
    dns_resolver: str = ""  # host:port for Envoy; empty: the system's
    envoy: str = ""  # path of the binary: the agent then runs Envoy itself; empty: a sidecar does
    ca_file: str = "/etc/ssl/certs/ca-certificates.crt"  # whom Envoy trusts behind https URLs of candidates
    body_limit: int = 8 << 20
    concurrency: int = 1
    drain_seconds: float = (
        25.0  # the longest wait for open requests, preStop hook included; below the pod's grace period
    )
    log_level: str = "INFO"


Settings = TypeVar("Settings", OperatorSettings, AgentSettings)
_CONVERT: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "bool": lambda text: text.lower() in ("1", "true", "yes"),
}


def _read(kind: type[Settings], environ: Mapping[str, str] | None) -> Settings:
    environ = os.environ if environ is None else environ
    found: dict[str, Any] = {}
    for item in fields(kind):
        text = environ.get(f"FUNICULAR_{item.name.upper()}")
        if text is not None:
            found[item.name] = _CONVERT.get(str(item.type), str)(text)
    return kind(**found)


def operator_settings(environ: Mapping[str, str] | None = None) -> OperatorSettings:
    return _read(OperatorSettings, environ)


def agent_settings(environ: Mapping[str, str] | None = None) -> AgentSettings:
    return _read(AgentSettings, environ)
