"""What each part of Argo CD is started with, what it finds in the cluster, and how one sees that it is ready.

Called by `ArgoCD`. Functions from a `Layout` to command lines and objects; it must not start anything itself.
"""

from __future__ import annotations

import http.client
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hack.argocd.parts import Parts

Json = dict[str, Any]
NAMESPACE = "argocd"
ORDER = ("redis", "repo-server", "application-controller", "server")
_PORTS = ("redis", "repo-server", "repo-server-metrics", "controller-metrics", "server", "server-metrics")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often Argo CD looks. Its own defaults are minutes (resync 120 s, self-heal's backoff 2 s doubling to 300 s)."""

    resync_seconds: int = 10
    self_heal_seconds: int | None = None
    """None: Argo CD's own backoff. A number: that long after each change, always."""


@dataclass(frozen=True, slots=True)
class Layout:
    folder: Path
    kubeconfig: Path
    first_port: int
    parts: Parts
    pace: Pace = Pace()

    def port(self, name: str) -> int:
        return self.first_port + _PORTS.index(name)

    @property
    def binaries(self) -> Path:
        """The folder on PATH: the roles of the one binary, git's wrapper, helm."""
        return self.folder / "bin"

    @property
    def server_url(self) -> str:
        return f"http://127.0.0.1:{self.port('server')}"


def environment(layout: Layout) -> dict[str, str]:
    """Everything that Argo CD would write in its image's places, below the folder; nothing of the caller's own."""
    own = {
        "HOME": "home",
        "TMPDIR": "tmp",
        "ARGOCD_TLS_DATA_PATH": "tls",
        "ARGOCD_SSH_DATA_PATH": "ssh",
        "ARGOCD_GNUPGHOME": "gnupg",
        "ARGOCD_GPG_DATA_PATH": "gpg",
        "ARGOCD_PLUGINSOCKFILEPATH": "plugins",
    }
    found = {name: str(layout.folder / place) for name, place in own.items()}
    if layout.parts.redis.libraries is not None:
        found["LD_LIBRARY_PATH"] = str(layout.parts.redis.libraries)
    return found | {
        "PATH": f"{layout.binaries}:/usr/local/bin:/usr/bin:/bin",
        "KUBECONFIG": str(layout.kubeconfig),  # the flag alone does not reach every client
        "ARGOCD_FAKE_IN_CLUSTER": "true",  # https://kubernetes.default.svc is the kubeconfig's cluster
        "ARGOCD_GPG_ENABLED": "false",
        "ARGOCD_ASK_PASS_SOCK": str(layout.folder / "askpass.sock"),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
    }


def folders(layout: Layout) -> tuple[Path, ...]:
    names = ("bin", "home", "tmp", "tls", "ssh", "gnupg", "gpg", "plugins", "logs")
    return tuple(layout.folder / name for name in names)


def commands(layout: Layout) -> dict[str, list[str]]:
    """By part, in the order in which they start. `env -i`: a process of ours starts with this environment alone."""
    redis = f"127.0.0.1:{layout.port('redis')}"
    repo_server = ["--repo-server", f"127.0.0.1:{layout.port('repo-server')}", "--repo-server-plaintext"]
    cluster = ["--kubeconfig", str(layout.kubeconfig), "--namespace", NAMESPACE]
    pace = ["--app-resync", str(layout.pace.resync_seconds), "--app-resync-jitter", "0"]
    if layout.pace.self_heal_seconds is not None:
        pace += ["--self-heal-backoff-timeout-seconds", "0"]
        pace += ["--self-heal-timeout-seconds", str(layout.pace.self_heal_seconds)]
    found = {
        "redis": [
            str(layout.parts.redis.binary),
            *("--port", str(layout.port("redis")), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--dir", str(layout.folder / "tmp")),
        ],
        "repo-server": [
            "argocd-repo-server",
            *("--address", "127.0.0.1", "--port", str(layout.port("repo-server"))),
            *("--metrics-address", "127.0.0.1", "--metrics-port", str(layout.port("repo-server-metrics"))),
            *("--redis", redis, "--disable-tls", "--client-ca-path", "", "--revision-cache-expiration", "2s"),
        ],
        "application-controller": [
            "argocd-application-controller",
            *(*cluster, *repo_server, "--redis", redis, "--metrics-port", str(layout.port("controller-metrics"))),
            *("--status-processors", "4", "--operation-processors", "2", *pace),
        ],
        "server": [
            "argocd-server",
            *(*cluster, *repo_server, "--redis", redis, "--insecure", "--disable-auth", "--address", "127.0.0.1"),
            *("--port", str(layout.port("server")), "--metrics-port", str(layout.port("server-metrics"))),
            *("--metrics-address", "127.0.0.1"),
        ],
    }
    variables = [f"{name}={value}" for name, value in environment(layout).items()]
    return {name: ["env", "-i", *variables, *command] for name, command in found.items()}


def objects(layout: Layout, settings: Mapping[str, str]) -> list[Json]:
    """The namespace and what the parts read in it. `settings` go over the argocd-cm that Argo CD is installed with."""
    config = layout.parts.module / "manifests" / "base" / "config"
    argocd_cm = yaml.safe_load((config / "argocd-cm.yaml").read_text())
    argocd_cm["data"] |= settings
    argocd_rbac_cm = yaml.safe_load((config / "argocd-rbac-cm.yaml").read_text())
    secret = {"server.secretkey": secrets.token_hex(32)}
    project = {
        "sourceRepos": ["*"],
        "destinations": [{"namespace": "*", "server": "*"}],
        "clusterResourceWhitelist": [{"group": "*", "kind": "*"}],
    }
    found = [
        argocd_cm,
        argocd_rbac_cm,
        {"apiVersion": "v1", "kind": "Secret", "metadata": _named("argocd-secret"), "stringData": secret},
        {"apiVersion": "argoproj.io/v1alpha1", "kind": "AppProject", "metadata": {"name": "default"}, "spec": project},
    ]
    for it in found:
        it["metadata"]["namespace"] = NAMESPACE
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, *found]


def _named(name: str) -> Json:
    return {"name": name, "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "argocd"}}


def is_ready(layout: Layout, part: str) -> bool:
    """Asked again and again while a part starts; answers at once."""
    if part == "redis":
        return _answers_ping(layout.port("redis"))
    metrics = {"repo-server": "repo-server-metrics", "application-controller": "controller-metrics"}
    return _is_healthy(layout.port(metrics.get(part, "server")))


def _answers_ping(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
