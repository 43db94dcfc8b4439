"""Argo CD as one object: start it beside a cluster, ask it, end it.

Called by tests and demonstrations. It knows folders, processes and readiness; what a part is started with stands in
`commands.py`. Everything here is synchronous and may be called from any thread (`asyncio.to_thread`).

    with ArgoCD.start(cluster.kubeconfig, folder) as argo:
        argo.repository.commit({"policy/policy.yaml": text}, "a policy")
        argo.apply(application("shop", argo.repository.url, "policy", namespace="shop"))
        argo.wait("shop", lambda it: it.sync == "Synced", "it is synced")
"""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from hack.argocd import commands, parts
from hack.argocd.application import Application, Resource
from hack.argocd.commands import NAMESPACE, Layout, Pace
from hack.argocd.repository import Repository
from hack.cluster import slots
from hack.cluster.errors import CommandFailed, NotReady
from hack.cluster.processes import Component, Guard

Json = dict[str, Any]


class ArgoCD:
    """Running parts. When the process that started them dies, even by SIGKILL, none of them survives it."""

    def __init__(self, kubeconfig: Path, folder: Path, pace: Pace) -> None:
        self.folder = folder.resolve()
        self._kubeconfig, self._pace = kubeconfig.resolve(), pace
        self._components: dict[str, Component] = {}
        self._guard: Guard | None = None
        self._slot: slots.Slot | None = None
        self._layout: Layout | None = None
        self._http: httpx.Client | None = None

    @classmethod
    def start(
        cls, kubeconfig: Path, folder: Path, *, settings: Mapping[str, str] | None = None, pace: Pace | None = None
    ) -> Self:
        """Returns when all parts are ready. `settings` go into argocd-cm, over what Argo CD is installed with.

        Raises BinaryMissing, BuildFailed, CommandFailed, NotReady."""
        argo = cls(kubeconfig, folder, pace or Pace())
        atexit.register(argo.stop)
        try:
            argo._start(dict(settings or {}))
        except BaseException:
            argo.stop()
            raise
        return argo

    def stop(self) -> None:
        """Ends the processes; logs stay, and so do the objects in the cluster (`uninstall`). Safe to call twice."""
        atexit.unregister(self.stop)
        for component in reversed(self._components.values()):
            component.request_stop()
        for component in reversed(self._components.values()):
            component.finish()
        if self._http is not None:
            self._http.close()
            self._http = None
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if self._slot is not None:
            self._slot.release()
            self._slot = None

    def uninstall(self) -> None:
        """Removes its objects from a cluster that lives on: Applications without what they manage, CRDs, namespace."""
        for item in json.loads(self.kubectl("get", "applications.argoproj.io", "-n", NAMESPACE, "-o", "json"))["items"]:
            patch = json.dumps({"metadata": {"finalizers": None}})
            name = item["metadata"]["name"]
            self.kubectl("patch", "applications.argoproj.io", name, "-n", NAMESPACE, "--type=merge", "-p", patch)
        for path in self._crds():
            self.kubectl("delete", "--ignore-not-found", "-f", str(path))
        self.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- what it is asked -----------------------------------------------------------------------------------------------
    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = 60) -> str:
        """As admin; returns stdout. Raises CommandFailed with what it said."""
        options = (f"--kubeconfig={self._kubeconfig}", f"--cache-dir={self.folder / 'kubectl-cache'}")
        return _run(self.layout.parts.kubectl, *options, *arguments, input=input, timeout=timeout)

    def helm(self, *arguments: str) -> str:
        """The helm that Argo CD renders charts with, by hand. Raises CommandFailed with what it said."""
        return _run(self.layout.parts.helm, *arguments)

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        """`kubectl apply` of objects, an Application for one."""
        self.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(manifests, sort_keys=False))

    def application(self, name: str) -> Application:
        """As it is now. Raises CommandFailed if there is none."""
        text = self.kubectl("get", "applications.argoproj.io", name, "-n", NAMESPACE, "-o", "json")
        return Application.of(json.loads(text))

    def resources(self, name: str) -> tuple[Resource, ...]:
        """What the application consists of, with each part's health and message: its tree, as the UI shows it."""
        found = self._ask("GET", f"/api/v1/applications/{name}/resource-tree").get("nodes") or ()
        return tuple(Resource.of(it) for it in found)

    def refresh(self, name: str) -> None:
        """Looks at git now."""
        mark = "argocd.argoproj.io/refresh=normal"
        self.kubectl("annotate", "applications.argoproj.io", name, "-n", NAMESPACE, mark, "--overwrite")

    def sync(self, name: str) -> None:
        """Asks for a sync operation, as the button does."""
        self._ask("POST", f"/api/v1/applications/{name}/sync", {"prune": True})

    def actions(self, name: str, resource: Resource) -> dict[str, bool]:
        """Action -> whether it can be run now."""
        answer = self._ask("GET", f"/api/v1/applications/{name}/resource/actions", params=resource.query())
        return {it["name"]: not it.get("disabled", False) for it in answer.get("actions") or ()}

    def run_action(self, name: str, resource: Resource, action: str) -> None:
        """As the button does it. Raises httpx.HTTPStatusError if it is refused."""
        self._ask(
            "POST",
            f"/api/v1/applications/{name}/resource/actions/v2",
            {**resource.query(), "name": name, "action": action},
        )

    def wait(self, name: str, fact: Callable[[Application], bool], what: str, timeout: float = 60) -> Application:
        """The first look at the application that fulfils `fact`. Raises TimeoutError with what it says instead."""
        deadline = time.monotonic() + timeout
        while not fact(found := self.application(name)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name}: {what}: not within {timeout:g} s; it is {found}")
            time.sleep(0.2)
        return found

    @property
    def layout(self) -> Layout:
        assert self._layout is not None, "Argo CD is not started"
        return self._layout

    @property
    def url(self) -> str:
        """Of its API server: no TLS, no password, this machine only."""
        return self.layout.server_url

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    # --- how it starts --------------------------------------------------------------------------------------------------
    def _start(self, settings: Mapping[str, str]) -> None:
        found = parts.ensure()
        self._slot, self._guard = slots.acquire(), Guard()
        self._layout = layout = Layout(self.folder, self._kubeconfig, self._slot.ports[0], found, self._pace)
        for folder in commands.folders(layout):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, parents=True)
        self._fill_path(layout)
        shutil.rmtree(self.folder / "git", ignore_errors=True)
        (self.folder / "git").mkdir()
        self.repository = Repository(self.folder / "git")
        self._install(settings)
        for name, command in commands.commands(layout).items():
            self._components[name] = Component(name, command, self.logs / f"{name}.log", self._guard, cwd=self.folder)
        for batch in (("redis",), tuple(name for name in commands.ORDER if name != "redis")):
            for name in batch:
                self._components[name].start()
            self._until_ready(batch)
        self._http = httpx.Client(base_url=layout.server_url, timeout=30)

    def _fill_path(self, layout: Layout) -> None:
        for name in commands.ORDER[1:]:
            (layout.binaries / f"argocd-{name}").symlink_to(layout.parts.argocd)
        (layout.binaries / "helm").symlink_to(layout.parts.helm)
        wrapper = layout.binaries / "git-verify-wrapper.sh"  # looked for even with GPG off
        shutil.copyfile(layout.parts.module / "hack" / wrapper.name, wrapper)
        wrapper.chmod(0o755)

    def _install(self, settings: Mapping[str, str]) -> None:
        for path in self._crds():
            self.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))
        self._until_served(commands.objects(self.layout, settings))

    def _until_served(self, objects: Sequence[Json], timeout: float = 60) -> None:
        """Applied when the API server serves, and can validate, the kinds that it was given a moment ago. That fact cannot be
        asked for: `kubectl wait` gives up on a CRD that has no conditions yet, and those say nothing of the schema."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.apply(*objects)
                return
            except CommandFailed:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _crds(self) -> Sequence[Path]:
        return sorted((self.layout.parts.module / "manifests" / "crds").glob("*-crd.yaml"))

    def _until_ready(self, names: Sequence[str], timeout: float = 90) -> None:
        pending, deadline = list(names), time.monotonic() + timeout
        while pending := [name for name in pending if not commands.is_ready(self.layout, name)]:
            for name in pending:
                component = self._components[name]
                if not component.is_running or time.monotonic() > deadline:
                    ended = "ended while starting" if not component.is_running else f"is not ready after {timeout:g} s"
                    raise NotReady(f"Argo CD's {name} {ended}. {component.log}:\n{component.last_lines()}")
            time.sleep(0.05)

    def _ask(self, method: str, path: str, body: Json | None = None, params: Mapping[str, str] | None = None) -> Json:
        assert self._http is not None, "Argo CD is not started"
        answer = self._http.request(method, path, json=body, params=params)
        answer.raise_for_status()
        found: Json = answer.json()
        return found


def _run(program: Path, *arguments: str, input: str | None = None, timeout: float = 60) -> str:
    result = subprocess.run(
        [str(program), *arguments], input=input, capture_output=True, text=True, timeout=timeout, check=False
    )
    if result.returncode:
        raise CommandFailed(f"{program.name} {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout
