"""A policy that comes from git by an Application with automated prune and self-heal, and users of its endpoint.

Used by the e2e tests. `delivered` makes the Application with the first commit; whatever came of it is gone afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from funicular.api.status import Rejected
from hack.argocd import ArgoCD
from hack.argocd.application import Application, Resource, application
from hack.argocd.commands import NAMESPACE
from hack.argocd.recorder import Recorder, Row, recording
from hack.demo.stack import Stack
from hack.demo.timeline import Seen
from tests.integration.stack_fixtures import PATIENCE, Scene, is_stable, is_true, on_stage, revision, until

Json = dict[str, Any]
Files = Mapping[str, str | None]

CHART = """apiVersion: v2
name: policy
version: 0.1.0
"""
TEMPLATE = """apiVersion: routing.funicular.dev/v1alpha1
kind: RoutingPolicy
metadata:
  name: {{ .Values.name }}
  labels:
    app.kubernetes.io/instance: {{ .Release.Name }}
    app.kubernetes.io/managed-by: {{ .Release.Service }}
  {{- with .Values.commit }}
  annotations: {example.com/commit: {{ . | quote }}}
  {{- end }}
spec:
  {{- toYaml .Values.spec | nindent 2 }}
"""


def as_manifest(policy: Json) -> Files:
    return {"policy.yaml": yaml.safe_dump(policy, sort_keys=False)}


def as_chart(policy: Json) -> Files:
    """A chart of one template, as platform teams give to their tenants."""
    values = {"name": policy["metadata"]["name"], "spec": policy["spec"]}
    return {
        "Chart.yaml": CHART,
        "templates/policy.yaml": TEMPLATE,
        "values.yaml": yaml.safe_dump(values, sort_keys=False),
    }


def config_map(name: str, wave: int = 0, **data: str) -> str:
    metadata = {"name": name, "annotations": {"argocd.argoproj.io/sync-wave": str(wave)}}
    return yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


@dataclass
class Delivery:
    """The Application has the policy's name."""

    argo: ArgoCD
    scene: Scene
    recorder: Recorder
    files_of: Callable[[Json], Files]
    commits: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.scene.name

    async def commit(self, files: Files, message: str = "a change") -> str:
        """Into the Application's folder; Argo CD is told to look."""
        placed = {f"{self.name}/{name}": text for name, text in files.items()}
        self.commits.append(await asyncio.to_thread(self.argo.repository.commit, placed, message))
        await asyncio.to_thread(self.argo.refresh, self.name)
        return self.commits[-1]

    async def deliver(self, policy: Json, more: Files | None = None) -> str:
        """Commits it. Returns the policy's revision."""
        self.scene.manifests.append(policy)
        await self.commit({**self.files_of(policy), **(more or {})}, f"revision {revision(policy)}")
        return revision(policy)

    async def users(self, rate: float = 100.0) -> None:
        """From when all pods serve the endpoint."""
        await self.scene.wait(
            lambda it: bool(it.status.traffic and it.status.traffic.share.acked is not None), f"{self.name} is served"
        )
        await self.scene.stack.look()
        self.scene.load.set_targets(self.scene.stack.gateways())
        self.scene.load.set_rate(rate)

    async def promoted(self, of: str) -> Seen:
        return await self.scene.wait(
            lambda it: is_stable(it, of) and is_true(it, "Ready"), f"{of} of {self.name} is promoted", 2 * PATIENCE
        )

    async def rejected(self, of: str) -> Rejected:
        """Its traffic was taken back on all pods."""

        def is_back(it: Seen) -> bool:
            latched = any(rejected.revision == of for rejected in it.status.rejected)
            return latched and it.status.candidate is None and is_true(it, "GatewaysSynced")

        found = await self.scene.wait(is_back, f"{of} of {self.name} is rejected", 2 * PATIENCE)
        return next(it for it in found.status.rejected if it.revision == of)

    async def application(self, fact: Callable[[Application], bool], what: str) -> Application:
        return await asyncio.to_thread(self.argo.wait, self.name, fact, what, PATIENCE)

    async def row(self, fact: Callable[[Row], bool], what: str) -> Row:
        """The first row from now on (the present one too) of which it is true."""

        async def look() -> Row | None:
            last = self.recorder.rows[-1:]
            return last[0] if last and fact(last[0]) else None

        return await until(look, f"{what}; Argo CD says {self.recorder.rows[-1:]}")  # type: ignore[return-value]

    async def health(self, status: str, says: str = "") -> Row:
        """The application's and the policy's; and what the policy's message says."""

        def is_there(row: Row) -> bool:
            policy = row.policy
            return (
                row.application.health == status
                and policy is not None
                and policy.health == status
                and says in policy.message
            )

        return await self.row(is_there, f"{self.name} is {status} with {says!r}")

    async def resource(self) -> Resource:
        found = await asyncio.to_thread(self.argo.resources, self.name)
        return next(it for it in found if (it.kind, it.name) == ("RoutingPolicy", self.name))

    async def act(self, action: str) -> None:
        """Presses the button, when it can be pressed."""
        resource = await self.resource()

        async def is_offered() -> bool:
            return (await asyncio.to_thread(self.argo.actions, self.name, resource))[action]

        await until(is_offered, f"{action} is offered")
        await asyncio.to_thread(self.argo.run_action, self.name, resource, action)

    async def sync(self) -> None:
        """By hand, to its end."""
        before = await self._operation()
        await asyncio.to_thread(self.argo.sync, self.name)

        async def is_over() -> bool:
            now = await self._operation()
            return now != before and bool(now[1])

        await until(is_over, "the sync operation is over")

    async def quiet(self, seconds: float) -> None:
        """Nobody has written to the spec for so long."""

        async def is_quiet() -> bool:
            return time.time() - self.recorder.writes[-1].at >= seconds

        await until(is_quiet, f"no write to the spec for {seconds:g} s")

    async def _operation(self) -> tuple[str, str]:
        arguments = ("get", "applications.argoproj.io", self.name, "-n", NAMESPACE, "-o")
        times = "jsonpath={.status.operationState.startedAt} {.status.operationState.finishedAt}"
        began, _, ended = (await asyncio.to_thread(self.argo.kubectl, *arguments, times)).partition(" ")
        return began, ended


@contextlib.asynccontextmanager
async def delivered(
    argo: ArgoCD,
    stack: Stack,
    policy: Json,
    *,
    files_of: Callable[[Json], Files] = as_manifest,
    more: Files | None = None,
    ignore: Sequence[Mapping[str, Any]] = (),
    helm: Mapping[str, Any] | None = None,
) -> AsyncIterator[Delivery]:
    """`more` files beside the policy; `ignore` and `helm` as in `application`."""
    name = policy["metadata"]["name"]
    async with (
        on_stage(stack, name) as scene,
        recording(argo.url, name, stack.kube, stack.policy_path(name)) as recorder,
    ):
        files = {f"{name}/{path}": text for path, text in {**files_of(policy), **(more or {})}.items()}
        first = await asyncio.to_thread(argo.repository.commit, files, f"revision {revision(policy)}")
        url, namespace = argo.repository.url, stack.namespace
        manifest = application(name, url, name, namespace=namespace, ignore=ignore, helm=helm)
        await asyncio.to_thread(argo.apply, manifest)
        try:
            yield Delivery(argo, scene, recorder, files_of, [first])
        finally:
            await asyncio.to_thread(
                argo.kubectl, "delete", "applications.argoproj.io", name, "-n", NAMESPACE, "--timeout=60s"
            )
