"""What is compiled, and the names that tie Envoy's files together. Used by every module of this package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from funicular.api.spec import Credentials
from funicular.api.traffic import Route, Traffic, Upstream
from funicular.settings import AgentSettings

Json = dict[str, Any]
ID_KEY = "id-key"  # SDS name of the key that signs x-funicular-id


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Of the pod, not of a policy: all of it stands in the bootstrap or in every cluster, and never changes at run time."""

    config_dir: str
    listen_host: str = "0.0.0.0"
    gateway_port: int = 8080
    agent_host: str = "127.0.0.1"
    agent_port: int = 8081
    admin_host: str = "127.0.0.1"
    admin_port: int = 9901
    stats_port: int = 9902
    body_limit: int = 8 << 20
    dns_resolver: str = ""
    ca_file: str = "/etc/ssl/certs/ca-certificates.crt"

    @classmethod
    def of(cls, agent: AgentSettings, **fields: Any) -> GatewaySettings:
        """A pod with an address of its own listens on all of them (kubectl port-forward comes in on loopback); a pod that
        lives on a loopback address shares the network with others, and may have nothing but that address."""
        own = agent.pod_ip.startswith("127.")
        everywhere = "::" if ":" in agent.pod_ip else "0.0.0.0"
        return cls(
            **{
                "config_dir": agent.config_dir.rstrip("/"),
                "listen_host": agent.pod_ip if own else everywhere,
                "gateway_port": agent.gateway_port,
                "agent_host": agent.pod_ip,
                "agent_port": agent.agent_port,
                "admin_host": agent.admin_host,
                "admin_port": agent.admin_port,
                "body_limit": agent.body_limit,
                "dns_resolver": agent.dns_resolver,
                "ca_file": agent.ca_file,
                **fields,
            }
        )


@dataclass(frozen=True, slots=True)
class SecretUse:
    """A Secret's key, and the SDS name (also the file's: CONFIG_DIR/sds/NAME.json) under which Envoy reads it."""

    sds: str
    namespace: str
    name: str
    key: str


@dataclass(frozen=True)
class PolicyTraffic:
    """One policy. Not slotted: what is derived from it is kept with it."""

    namespace: str
    name: str
    traffic: Traffic
    uid: str = ""

    @property
    def full_name(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def share_key(self) -> str:
        """Names policy and revision: routes and shares are two files, and a share must never meet another revision's route."""
        return f"funicular/share/{self.full_name}/{self.traffic.compared.revision}"

    @property
    def holdback_key(self) -> str:
        return f"funicular/holdback/{self.full_name}"

    def revisions(self) -> Iterator[Route]:
        yield self.traffic.stable
        if self.traffic.candidate is not None:
            yield self.traffic.candidate

    @cached_property
    def credential_headers(self) -> tuple[str, ...]:
        """Every header that carries a key in this policy: an attempt on one upstream may meet another's."""
        found = {u.credentials.header for r in self.revisions() for u in r.upstreams if u.credentials is not None}
        return tuple(sorted(found))


def upstream_of(route: Route, name: str) -> Upstream:
    """Raises ValueError when the route names an upstream that it does not have."""
    for upstream in route.upstreams:
        if upstream.name == name:
            return upstream
    raise ValueError(f"revision {route.revision} has no candidate {name!r}")


def digest(*parts: Any) -> str:
    """Names by content: equal content of two revisions is one cluster, whose connections live on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def secret_use(namespace: str, credentials: Credentials) -> SecretUse:
    ref = credentials.secret_ref
    return SecretUse(f"{ref.name[:40]}-{digest(namespace, ref.name, ref.key)}", namespace, ref.name, ref.key)


@dataclass(frozen=True, slots=True)
class Target:
    """A base URL taken apart."""

    tls: bool
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def target_of(url: str) -> Target:
    """Raises ValueError for a URL without a host or with a port that is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http or https URL")
    tls = parts.scheme == "https"
    return Target(tls, parts.hostname, parts.port or (443 if tls else 80), parts.path.rstrip("/"))
