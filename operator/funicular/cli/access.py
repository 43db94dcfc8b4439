"""How the commands reach the cluster: credentials, the present namespace, one policy. Called by show.py and verbs.py."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from funicular.api.base import API_VERSION, PLURAL
from funicular.errors import NotFound, UserMustFix

if TYPE_CHECKING:
    from funicular.adapters.kube import KubeClient

Json = dict[str, Any]
Answer = TypeVar("Answer")
CONTEXT = "FUNICULAR_CONTEXT"

Namespace = Annotated[
    str | None, typer.Option("-n", "--namespace", help="Namespace; default: that of the kubeconfig's context.")
]


def _names(incomplete: str) -> list[str]:
    """For the shell's completion: silent about every failure."""
    try:
        found = with_cluster(lambda kube: policies(kube, present_namespace()))
    except Exception:
        return []
    return [body["metadata"]["name"] for body in found if body["metadata"]["name"].startswith(incomplete)]


Name = Annotated[str, typer.Argument(help="Name of the policy.", autocompletion=_names)]


def present_namespace() -> str:
    """Of the kubeconfig's context; in a pod, the pod's."""
    from kubernetes import config
    from kubernetes.config import ConfigException

    own = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
    if chosen_context() is None and "KUBECONFIG" not in os.environ and os.path.exists(own):
        with open(own) as file:
            return file.read().strip()
    try:
        contexts, active = config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
    except ConfigException as exc:
        raise UserMustFix(f"no cluster is configured: {exc}", remedy="set KUBECONFIG") from exc
    wanted = chosen_context()
    found = next((it for it in contexts if it["name"] == wanted), None) if wanted else active
    if found is None:
        known = ", ".join(sorted(it["name"] for it in contexts))
        raise UserMustFix(f"the kubeconfig has no context {wanted}", remedy=f"name one of: {known}")
    return str(found["context"].get("namespace") or "default")


def chosen_context() -> str | None:
    """What --context said."""
    return os.environ.get(CONTEXT) or None


def with_cluster(work: Callable[[KubeClient], Awaitable[Answer]]) -> Answer:
    """Runs `work` with a client; raises FunicularError."""
    from kubernetes.config import ConfigException

    from funicular.adapters.kube import KubeClient, discover

    async def session() -> Answer:
        async with KubeClient(access, timeout=10) as kube:
            return await work(kube)

    try:
        access = discover(chosen_context())
    except ConfigException as exc:
        raise UserMustFix(f"no cluster is configured: {exc}", remedy="set KUBECONFIG") from exc
    return asyncio.run(session())


def path(namespace: str | None, name: str | None = None) -> str:
    from funicular.adapters.kube import path_of

    return path_of(API_VERSION, PLURAL, namespace, name)


async def policies(kube: KubeClient, namespace: str | None) -> list[Json]:
    try:
        found, _ = await kube.list_all(path(namespace))
    except NotFound as exc:
        raise UserMustFix("the cluster does not know RoutingPolicies", remedy=_INSTALL) from exc
    kind = {"apiVersion": API_VERSION, "kind": "RoutingPolicy"}  # the items of a list come without
    return [{**kind, **body} for body in found]


async def policy(kube: KubeClient, namespace: str, name: str) -> Json:
    if not name:
        raise UserMustFix("the policy's name is empty", remedy="funicular get lists them")
    try:
        return await kube.get(path(namespace, name))
    except NotFound as exc:
        await policies(kube, namespace)  # says so if it is the kind that is missing
        raise NotFound(f"there is no RoutingPolicy {name} in namespace {namespace}") from exc


_INSTALL = "install them: funicular crd | kubectl apply --server-side -f -"
