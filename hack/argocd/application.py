"""What Argo CD says of an application and of the objects in it, and the manifest of an Application.

Called by `ArgoCD` and whoever asks it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from hack.argocd.commands import NAMESPACE
from hack.argocd.repository import BRANCH

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Application:
    """One look."""

    sync: str  # Synced, OutOfSync, Unknown
    health: str  # Healthy, Progressing, Degraded, Suspended, Missing, Unknown
    revision: str  # the commit that `sync` was compared with
    operation: str  # phase of the last or present operation: Running, Succeeded, Failed, Error; empty: none yet
    synced: str  # the commit of that operation
    said: str  # its message
    problems: tuple[str, ...] = ()  # the conditions

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Self:
        status = body.get("status") or {}
        operation = status.get("operationState") or {}
        return cls(
            (status.get("sync") or {}).get("status", ""),
            (status.get("health") or {}).get("status", ""),
            (status.get("sync") or {}).get("revision", ""),
            operation.get("phase", ""),
            (operation.get("syncResult") or {}).get("revision", ""),
            operation.get("message", ""),
            tuple(it.get("message", "") for it in status.get("conditions") or ()),
        )

    def is_at(self, commit: str) -> bool:
        """This commit is in the cluster, and nothing is on its way."""
        return self.sync == "Synced" and self.revision == commit and self.operation != "Running"


@dataclass(frozen=True, slots=True)
class Resource:
    """One object of an application."""

    group: str
    version: str
    kind: str
    namespace: str
    name: str
    health: str = ""
    message: str = ""

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Self:
        health = node.get("health") or {}
        group, version, kind = (str(node.get(key, "")) for key in ("group", "version", "kind"))
        namespace, name = str(node.get("namespace", "")), str(node.get("name", ""))
        return cls(group, version, kind, namespace, name, health.get("status", ""), health.get("message", ""))

    def query(self) -> dict[str, str]:
        """As Argo CD's API wants it named."""
        return {
            "group": self.group,
            "version": self.version,
            "kind": self.kind,
            "namespace": self.namespace,
            "resourceName": self.name,
        }


def application(
    name: str,
    url: str,
    path: str,
    *,
    namespace: str,
    ignore: Sequence[Mapping[str, Any]] = (),
    options: Sequence[str] = (),
    helm: Mapping[str, Any] | None = None,
) -> Json:
    """An Application with automated prune and self-heal. `ignore` is its ignoreDifferences, `options` its syncOptions."""
    source: Json = {"repoURL": url, "path": path, "targetRevision": BRANCH}
    if helm is not None:
        source["helm"] = dict(helm)
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Application",
        "metadata": {"name": name, "namespace": NAMESPACE, "finalizers": ["resources-finalizer.argocd.argoproj.io"]},
        "spec": {
            "project": "default",
            "source": source,
            "destination": {"server": "https://kubernetes.default.svc", "namespace": namespace},
            "syncPolicy": {"automated": {"prune": True, "selfHeal": True}, "syncOptions": list(options)},
            **({"ignoreDifferences": [dict(it) for it in ignore]} if ignore else {}),
        },
    }
