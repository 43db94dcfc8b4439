"""One container of a Pod: start it, probe it, restart it with back-off, end it with grace.

Called by `pods.py`, which decides the order of containers and writes the status that `view` shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from hack.cluster import images
from hack.cluster.node import probes
from hack.cluster.node.environment import (
    ConfigMissing,
    Lookup,
    PathRewriter,
    PodFacts,
    command_line,
    container_environment,
    expand,
)
from hack.cluster.node.probes import Target
from hack.cluster.node.running import Running
from hack.cluster.node.status import ContainerView, desired_delay
from hack.cluster.processes import Guard

Object = dict[str, Any]


class ImageMissing(Exception):
    """No such image in the table."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a container gets from its Pod and node. `images` is a file, read at each start: images may come later."""

    facts: Callable[[], PodFacts]
    lookup: Lookup
    mounts: Callable[[Object], Mapping[str, str]]
    folder: Path
    log: Path
    images: Path
    base_environment: Mapping[str, str]
    guard: Guard
    session: aiohttp.ClientSession
    probe_period: float | None
    changed: Callable[[], None]


class Container:
    """A container over all its restarts."""

    def __init__(
        self,
        spec: Object,
        around: Surroundings,
        *,
        restart: str,
        init: bool = False,
        before: Object | None = None,
    ) -> None:
        self.spec = spec
        self.sidecar = init and spec.get("restartPolicy") == "Always"
        self._init = init
        self._restart_policy = restart
        self._around = around
        self._state: Object = {"waiting": {"reason": "PodInitializing"}}
        self._last_state: Object = {}
        self._ready = self._started = False
        self._restarts = 0
        self._container_id = ""
        self._running: Running | None = None
        self._stopping = asyncio.Event()
        self._has_started = asyncio.Event()
        self._target: Target | None = None
        if before and before.get("containerID"):
            self._adopt_history(before)

    def view(self) -> ContainerView:
        done = "terminated" in self._state and self._state["terminated"]["exitCode"] == 0
        return ContainerView(
            name=self.spec["name"],
            image=self.spec.get("image", ""),
            state=self._state,
            last_state=self._last_state,
            ready=self._ready or (done and self._init and not self.sidecar),
            started=self._started,
            restart_count=self._restarts,
            container_id=self._container_id,
            sidecar=self.sidecar,
        )

    async def until_started(self) -> None:
        """Returns once the startup probe (or the start, if there is none) has succeeded."""
        await self._has_started.wait()

    async def run(self) -> int:
        """Run until the restart policy or `stop` says that it was the last time; returns the last exit code."""
        delay = 0.0
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            began = loop.time()
            code = await self._run_once()
            if code is not None and (self._stopping.is_set() or not self._is_restarted_after(code)):
                return code
            if self._stopping.is_set():
                return 0
            delay = desired_delay(delay, loop.time() - began if code is not None else 0)
            if code is not None:
                self._last_state = self._state
                self._set_state({"waiting": _waiting("CrashLoopBackOff", f"back-off {delay:g}s restarting container")})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
            if self._stopping.is_set():
                if self._last_state and "waiting" in self._state:
                    self._set_state(self._last_state)
                return code or 0
            if code is not None:
                self._restarts += 1
        return 0

    async def stop(self, grace: float) -> None:
        """preStop, SIGTERM, and SIGKILL after `grace` seconds in all; no restart afterwards."""
        self._stopping.set()
        await self._end(grace)

    async def _run_once(self) -> int | None:
        """Start and wait for the end. None: it could not be started, and its state says why."""
        try:
            self._running = running = self._start()
        except ImageMissing as missing:
            again = self._state.get("waiting", {}).get("reason") == "ErrImagePull"
            self._set_state({"waiting": _waiting("ImagePullBackOff" if again else "ErrImagePull", str(missing))})
            return None
        except ConfigMissing as missing:
            self._set_state({"waiting": _waiting("CreateContainerConfigError", str(missing))})
            return None
        except OSError as error:
            self._set_state({"terminated": _terminated(128, "StartError", now(), "", str(error))})
            return 128
        started_at = now()
        self._container_id = f"process://{running.pid}-{started_at}"
        self._set_state({"running": {"startedAt": started_at}})
        attending = asyncio.create_task(self._attend(running))
        try:
            code = await running.wait()
        except asyncio.CancelledError:
            running.kill()
            raise
        finally:
            attending.cancel()
            await asyncio.gather(attending, return_exceptions=True)
            self._ready = self._started = False
        reason = "Completed" if code == 0 else "Error"
        self._set_state({"terminated": _terminated(code, reason, started_at, self._container_id)})
        return code

    def _start(self) -> Running:
        around, spec = self._around, self.spec
        image = images.find(images.load(around.images), spec.get("image", ""))
        if image is None:
            raise ImageMissing(f'Back-off pulling image "{spec.get("image")}": not in the process node\'s table')
        facts = around.facts()
        mounts = around.mounts(spec)
        rewrite = PathRewriter(mounts)
        own = container_environment(spec, facts, around.lookup, rewrite)
        defaults = {**around.base_environment, "POD_IP": facts.ip}
        if local := mounts.get("/tmp"):
            defaults["TMPDIR"] = local
        variables = defaults | own
        environment = {**defaults, **{name: expand(value, variables) for name, value in image.env.items()}, **own}
        command = command_line(spec, image.entrypoint, image.programs, environment, rewrite)
        if not command:
            raise FileNotFoundError("neither the container nor its image names a command")
        cwd = rewrite(spec["workingDir"]) if spec.get("workingDir") else image.cwd or str(around.folder)
        if not Path(cwd).is_dir():
            cwd = str(around.folder)
        self._target = Target(
            spec,
            facts.ip,
            rewrite,
            environment,
            {name: tuple(expand(word, environment) for word in words) for name, words in image.programs.items()},
            cwd,
            around.guard,
            around.log,
            around.session,
        )
        return Running(command, around.guard, around.log, cwd, environment)

    async def _attend(self, running: Running) -> None:
        """postStart and probes of one run; cancelled when it ends."""
        target = self._target
        assert target is not None
        hook = (self.spec.get("lifecycle") or {}).get("postStart")
        if hook and not await probes.ask(hook, target, timeout=60):
            await self._end(grace=2)
            return
        if probe := self.spec.get("startupProbe"):
            await self._watch(probe, target, running, self._note_started, once=True)
        else:
            self._note_started(True)
        watching = []
        if probe := self.spec.get("readinessProbe"):
            watching.append(self._watch(probe, target, running, self._note_ready))
        else:
            self._note_ready(True)
        if probe := self.spec.get("livenessProbe"):
            watching.append(self._watch(probe, target, running, self._note_alive))
        async with asyncio.TaskGroup() as group:
            for coroutine in watching:
                group.create_task(coroutine)

    async def _watch(
        self, probe: Object, target: Target, running: Running, on_change: Callable[[bool], None], once: bool = False
    ) -> None:
        period = self._around.probe_period
        annotations = self._around.facts().pod["metadata"].get("annotations") or {}
        if own := annotations.get("cluster.funicular.dev/probe-period"):
            period = float(own)
        await probes.watch(probe, target, running, period=period, on_change=on_change, once=once)

    def _note_started(self, started: bool) -> None:
        if started:
            self._started = True
            self._has_started.set()
            self._around.changed()
        else:
            self._kill_unhealthy()

    def _note_ready(self, ready: bool) -> None:
        if ready != self._ready:
            self._ready = ready
            self._around.changed()

    def _note_alive(self, alive: bool) -> None:
        if not alive:
            self._kill_unhealthy()

    def _kill_unhealthy(self) -> None:
        """A failed liveness or startup probe ends the run; `run` starts the next one."""
        grace = float(self._around.facts().pod["spec"].get("terminationGracePeriodSeconds", 30))
        self._ending = asyncio.create_task(self._end(grace))

    async def _end(self, grace: float) -> None:
        running, target = self._running, self._target
        if running is None or running.has_ended:
            return
        deadline = asyncio.get_running_loop().time() + grace
        if (hook := (self.spec.get("lifecycle") or {}).get("preStop")) and target is not None and grace > 0:
            await probes.ask(hook, target, timeout=grace)
        if grace > 0:
            number = (self.spec.get("lifecycle") or {}).get("stopSignal")
            running.terminate(signal.Signals[number] if number else signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(running.wait(), max(0.0, deadline - asyncio.get_running_loop().time()))
        running.kill()
        await running.wait()

    def _is_restarted_after(self, code: int) -> bool:
        if self.sidecar or (self._restart_policy == "Always" and not self._init):
            return True
        return self._restart_policy != "Never" and code != 0

    def _adopt_history(self, before: Object) -> None:
        """The node is new and the Pod is not: its processes died with the old node."""
        self._restarts = int(before.get("restartCount") or 0) + 1
        state = before.get("state") or {}
        started_at = (state.get("running") or {}).get("startedAt") or now()
        self._last_state = (
            {"terminated": state["terminated"]}
            if "terminated" in state
            else {"terminated": _terminated(137, "ContainerStatusUnknown", started_at, before["containerID"])}
        )

    def _set_state(self, state: Object) -> None:
        self._state = state
        self._around.changed()


def now() -> str:
    """The present as the API writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _waiting(reason: str, message: str) -> Object:
    return {"reason": reason, "message": message}


def _terminated(code: int, reason: str, started_at: str, container_id: str, message: str = "") -> Object:
    terminated: Object = {
        "exitCode": code,
        "reason": reason,
        "startedAt": started_at,
        "finishedAt": now(),
        "containerID": container_id,
    }
    if code > 128:
        terminated["signal"] = code - 128
    return terminated | ({"message": message} if message else {})
