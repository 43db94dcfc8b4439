"""`funicular agent`: the composition root of the gateway pod's process beside Envoy. Settings -> adapters -> loops.

`main()` runs until SIGTERM or SIGINT, then drains. `main(["bootstrap"])` only writes the files that Envoy starts with: for
an init container, where Envoy is a sidecar; `main(["drain"])` is such a pod's preStop hook (drain.py). SIGHUP does
nothing. Nothing here decides anything.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import uvloop

from funicular.adapters.clock import SystemClock
from funicular.adapters.envoy_admin import EnvoyAdmin
from funicular.adapters.kube import KubeClient, discover, path_of
from funicular.agent import compiler as compiling
from funicular.agent import drain as hook
from funicular.agent.applier import Applier, write_empty
from funicular.agent.documents import document, secret_value
from funicular.agent.envoy import Envoy, command, drain, undrain
from funicular.agent.feedback import FeedbackBook
from funicular.agent.files import Files
from funicular.agent.identity import IdKeys
from funicular.agent.labels import read_labels
from funicular.agent.metrics import AgentMetrics
from funicular.agent.observe import Observer, is_ramping
from funicular.agent.policies import Policies, Record
from funicular.agent.ports import Compiler, PolicyKey
from funicular.agent.readiness import Readiness
from funicular.agent.reporter import Reporter
from funicular.agent.reports import ReportBook
from funicular.agent.secrets import SecretKeeper
from funicular.agent.server import AgentServer
from funicular.agent.watch import watch_for_ever
from funicular.api.base import API_VERSION, PLURAL
from funicular.api.report import Ack
from funicular.api.tenancy import EVERY, served
from funicular.errors import UserMustFix
from funicular.logs import configure
from funicular.settings import AgentSettings, agent_settings

log = logging.getLogger("funicular.agent")
BOOTSTRAP, PID_FILE = "bootstrap.json", "envoy.pid"
FOLDERS = ("cds", "rds", "runtime", "sds", "lua")
REFRESH = 2.0  # seconds between looks at the labels' and the signing key's files


def id_key_file(compiler: Compiler) -> str:
    return f"sds/{compiler.id_key}.json"


class Agent:
    """One gateway pod. `start` returns when Envoy may start, `run` ends only by cancellation."""

    def __init__(self, settings: AgentSettings, kube: KubeClient, compiler: Compiler) -> None:
        self._settings, self._kube, self.compiler = settings, kube, compiler
        self.files = Files(Path(settings.config_dir))
        self.admin = EnvoyAdmin(settings.admin_host, settings.admin_port)
        self.metrics = AgentMetrics()
        self.readiness = Readiness()
        self.feedback = FeedbackBook()
        self.policies = Policies(self.compiler, read_labels(settings.pod_labels_file))
        self._secrets = SecretKeeper(kube, self.files, self.compiler, lambda uses: self.applier.secrets_changed(uses))
        self.applier = Applier(self.policies, self.compiler, self.files, self.admin, self._secrets, self._acked)
        self._book = ReportBook(
            pod=settings.pod_name,
            namespace=settings.pod_namespace,
            uid=settings.pod_uid,
            session=secrets.token_hex(8),
        )
        self._observer = Observer(
            self.admin,
            compiler.translate,
            self.policies,
            self.feedback,
            self.metrics,
            self._book.ack,
            lambda: self.applier.in_step,
        )
        self._reporter = Reporter(
            kube,
            settings.operator_namespace,
            self._book,
            settings.token_file,
            self._observer.report,
            self._observer.has_ramps,
            self.metrics,
        )
        self._uids: dict[PolicyKey, str] = {}
        self._changed_at: dict[PolicyKey, float] = {}
        self._unlisted = {"" if name == EVERY else name for name in served(settings.pod_namespace, settings.namespaces)}
        self._synced = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._to_begin: set[PolicyKey] = set()
        self._keys = IdKeys("")
        self._server: AgentServer | None = None
        self._envoy: Envoy | None = None

    # --- start --------------------------------------------------------------------------------------------------------
    def write_start_files(self) -> None:
        """All that Envoy needs to start: raises UserMustFix when the folder cannot be written to."""
        self.files.prepare(*FOLDERS)
        prepare_files(self.files, self.compiler)
        self._keys = IdKeys(self._settings.id_key_file, secret_value(self.files.read(id_key_file(self.compiler))))
        self._write_id_key()
        self.applier.load()

    def _write_id_key(self) -> None:
        content, _ = document([self.compiler.secret(self.compiler.id_key, self._keys.current)])
        self.files.write(id_key_file(self.compiler), content, private=True)
        self.metrics.id_key_is_random.set(self._keys.is_random)
        if self._keys.is_random:
            log.warning("no signing key is configured: x-funicular-id of this pod ends with it")

    async def run(self) -> None:
        settings = self._settings
        self._server = AgentServer(
            feedback=self.feedback,
            keys=self._keys,
            clock=SystemClock(),
            metrics=self.metrics,
            render=self._observer.render,
            unready=self._unready,
        )
        await self._server.start(settings.pod_ip, settings.agent_port)
        hook.forget(self.files.root)
        async with asyncio.TaskGroup() as group:
            group.create_task(undrain(self.admin))
            if settings.envoy:
                bootstrap = self.files.root / BOOTSTRAP
                arguments = command(settings.envoy, bootstrap, settings.concurrency, settings.log_level)
                self._envoy = Envoy(arguments, self.files.root / PID_FILE, bootstrap, self.metrics.envoy_restarts.inc)
                self._envoy.check()
                group.create_task(self._envoy.run())
            for namespace in sorted(self._unlisted):
                group.create_task(self._watch(namespace))
            group.create_task(self._refresh_files())
            group.create_task(self._reporter.run())
            await self._synced.wait()
            group.create_task(self.applier.run())

    async def stop(self) -> None:
        """Drains, then ends Envoy if it is ours. The loops must still run: acknowledgements go on to the last."""
        self.readiness.is_draining = True
        least, most = hook.limits(hook.drained_seconds(self.files.root), self._settings.drain_seconds)
        await drain(self.admin, least=least, most=most)
        if self._envoy:
            await self._envoy.stop()

    async def close(self) -> None:
        if self._server:
            await self._server.stop()
        await self._secrets.close()
        await self.admin.close()
        await self._kube.close()

    # --- events -------------------------------------------------------------------------------------------------------
    async def _watch(self, namespace: str) -> None:
        def on_event(kind: str, item: Any) -> None:
            if kind == "RESYNC":
                changed = self.policies.resync(item, namespace)
                self._unlisted.discard(namespace)
                if not self._unlisted:
                    self._synced.set()
            else:
                changed = self.policies.event(kind, item)
            self._on_change(changed)

        await watch_for_ever(self._kube, path_of(API_VERSION, PLURAL, namespace or None), on_event)

    def _on_change(self, changed: set[PolicyKey]) -> None:
        now = asyncio.get_running_loop().time()
        for key in changed:
            record = self.policies.records.get(key)
            known = self._uids.get(key)
            if known and (record is None or record.uid != known):
                self._book.gone(known)
                del self._uids[key]
            if record is not None:
                self._uids[key] = record.uid
                self._changed_at.setdefault(key, now)
            else:
                self._changed_at.pop(key, None)
        if self._synced.is_set():
            self.applier.changed(changed)

    def _acked(self, record: Record, ack: Ack) -> None:
        at = self._changed_at.pop(record.key, None)
        if not self._book.acked(record.uid, ack):
            return
        if ack.error is not None:
            log.warning("policy %s, version %d: %s", "/".join(record.key), ack.version, ack.error)
        elif at is not None:
            self.metrics.ack_seconds.observe(asyncio.get_running_loop().time() - at)
        self._reporter.wake()
        if is_ramping(record):
            self._to_begin.add(record.key)
            task = asyncio.create_task(self._observer.begin(self._to_begin))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _refresh_files(self) -> None:
        while True:
            await asyncio.sleep(REFRESH)
            self._on_change(self.policies.relabel(read_labels(self._settings.pod_labels_file)))
            if self._keys.refresh():
                self._write_id_key()

    def _unready(self) -> dict[str, Any] | None:
        if hook.drained_seconds(self.files.root) is not None:
            self.readiness.is_draining = True
        return self.readiness.reason(
            synced=self._synced.is_set(),
            unsettled=self.applier.unsettled(),
            envoy_is_up=self.applier.envoy_is_up,
            in_step=self.applier.in_step,
        )


def prepare_files(files: Files, compiler: Compiler) -> None:
    """Without version or wrapping: the bootstrap is read once, by Envoy's command line."""
    for name, content in compiler.companions().items():
        files.write(name, content)
    files.write(BOOTSTRAP, orjson.dumps(compiler.bootstrap()))


async def serve(settings: AgentSettings) -> None:
    agent = Agent(settings, KubeClient(discover()), compiling.EnvoyCompiler(settings))
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    running: asyncio.Task[None] | None = None
    try:
        agent.write_start_files()
        running = asyncio.create_task(agent.run())
        stopping = asyncio.create_task(ended.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done():
            await agent.stop()
            running.cancel()
        await asyncio.gather(running, return_exceptions=False)
    except asyncio.CancelledError:
        pass
    finally:
        if running is not None:
            running.cancel()
        await agent.close()


def write_bootstrap(settings: AgentSettings) -> Path:
    """For an init container: everything that Envoy needs to start, empty where only the API server knows more."""
    compiler = compiling.EnvoyCompiler(settings)
    files = Files(Path(settings.config_dir))
    files.prepare(*FOLDERS)
    prepare_files(files, compiler)
    name = id_key_file(compiler)
    keys = IdKeys(settings.id_key_file, secret_value(files.read(name)))
    files.write(name, document([compiler.secret(compiler.id_key, keys.current)])[0], private=True)
    write_empty(files, compiler)
    return files.root / BOOTSTRAP


def _complaint(exc: BaseException) -> UserMustFix | None:
    if isinstance(exc, UserMustFix):
        return exc
    if isinstance(exc, BaseExceptionGroup):
        return next((found for inner in exc.exceptions if (found := _complaint(inner))), None)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    settings = agent_settings()
    configure(settings.log_level)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["drain"]:
        return hook.main(given[1:])
    try:
        if "bootstrap" in given:
            write_bootstrap(settings)
            return 0
        uvloop.run(serve(settings))
    except Exception as exc:
        complaint = _complaint(exc)
        if complaint is None:
            raise
        log.error(
            "%s: %s. Remedy: %s.", complaint.field or "settings", complaint, complaint.remedy or "see the message"
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
