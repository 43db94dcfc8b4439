"""Who manages an object from git, if anyone: then its spec is not ours to write. Pure.

A label alone proves nothing (Helm charts set Argo CD's label too, and a copied object carries a foreign tracking id), so
the whole tracking id is compared with the object itself.
"""

from __future__ import annotations

from funicular.api.base import GROUP, KIND
from funicular.api.policy import Metadata

ARGO_TRACKING = "argocd.argoproj.io/tracking-id"
FLUX = (("kustomize.toolkit.fluxcd.io", "Flux Kustomization"), ("helm.toolkit.fluxcd.io", "Flux HelmRelease"))


def managed_by(metadata: Metadata) -> str | None:
    """`Argo CD application shop`, `Flux Kustomization flux-system/apps`, or None."""
    application, _, rest = metadata.annotations.get(ARGO_TRACKING, "").partition(":")
    if application and rest == f"{GROUP}/{KIND}:{metadata.namespace}/{metadata.name}":
        return f"Argo CD application {application}"
    for prefix, what in FLUX:
        name, namespace = metadata.labels.get(f"{prefix}/name"), metadata.labels.get(f"{prefix}/namespace")
        if name and namespace:
            return f"{what} {namespace}/{name}"
    return None
