"""Our gateway without a cluster: the files that an agent would write, made by its own compiler, and an Envoy that reads them.

Called by the bench. One policy is the one under load (`model: bench`), the others only stand there, each with a candidate
that ramps, so that nothing is left out of the routes.
"""

from __future__ import annotations

import http.client
import json
import time

import orjson

from funicular.adapters.envoy_admin import CLUSTERS, ROUTES, SHARES
from funicular.agent.applier import FILE
from funicular.agent.compiler import EnvoyCompiler
from funicular.agent.documents import document
from funicular.agent.files import Files
from funicular.agent.main import write_bootstrap
from funicular.agent.ports import Compiled
from funicular.api.spec import Price, UnitSource
from funicular.api.traffic import WHOLE, ClassifierRoute, Route, Share, Traffic, Upstream
from funicular.settings import AgentSettings
from hack.bench.machine import Machine, status_of, wait_for

MODEL = "bench"
PORT = 8080


def traffic(number: int, upstream: str, classifier: str | None, share: int) -> Traffic:
    """Policy `number`; 0 is the one under load. Control: everything to the baseline; treatment: the classifier decides."""
    upstreams = tuple(
        Upstream(
            name=name,
            url=f"http://{upstream}/v1",
            model=f"{name}-model",
            price=Price(input_per_million=a, output_per_million=b),
        )
        for name, a, b in (("frontier", 1.25, 10.0), ("mini", 0.1, 0.4))
    )
    stable = Route(revision=f"baseline-{number:06d}", upstreams=upstreams[:1], baseline="frontier")
    asked = ClassifierRoute(
        url=f"http://{classifier or upstream}",
        threshold=0.5,
        timeout="200ms",
        routes={"easy": "mini", "hard": "frontier"},
    )
    candidate = Route(revision=f"{number:010d}", upstreams=upstreams, baseline="frontier", classifier=asked)
    return Traffic(
        version=1,
        revision=candidate.revision,
        share=Share(desired=share),
        endpoint=MODEL if number == 0 else f"{MODEL}-{number}",
        selector={"app.kubernetes.io/component": "gateway"},
        units=(UnitSource(header="x-user-id"), UnitSource(body="user")),
        stable=stable,
        candidate=candidate,
        latency_bounds={"LatencyP95": "4s"},
    )


class Gateway:
    """One Envoy of ours. `host`:PORT is where applications go."""

    def __init__(
        self,
        machine: Machine,
        name: str,
        *,
        policies: int,
        upstream: str,
        classifier: str | None = None,
        share: int = WHOLE,
        core: str,
    ) -> None:
        self.host = machine.address()
        folder = machine.folder / name
        settings = AgentSettings(
            pod_ip=self.host, admin_host=self.host, config_dir=str(folder), gateway_port=PORT, log_level="ERROR"
        )
        self._compiler = EnvoyCompiler(settings)
        bootstrap = write_bootstrap(settings)
        self._files = Files(folder)
        started = time.perf_counter()
        self.parts: dict[str, Compiled] = {}
        for i in range(policies):
            own = traffic(i, upstream, classifier, share if i == 0 else 0)
            self.parts[own.endpoint] = self._compiler.policy("bench", f"policy-{i}", own)
        self.compile_seconds = time.perf_counter() - started
        self._write_all()
        self.envoy = machine.envoy(name, bootstrap, core=core)
        wait_for(f"gateway {name}", lambda: self._versions_are_taken(), self.envoy, timeout=60)

    def _write_all(self) -> None:
        clusters = {name: content for part in self.parts.values() for name, content in part.clusters.items()}
        content, self._clusters = document([orjson.Fragment(it) for _, it in sorted(clusters.items())])
        self._files.write(FILE[CLUSTERS], content)
        content, self._routes = document([self._compiler.routes({m: part.route for m, part in self.parts.items()})])
        self._files.write(FILE[ROUTES], content)
        self._layer = {key: value for part in self.parts.values() for key, value in part.shares.items()}
        self.set_share(None)

    def set_share(self, share: int | None, model: str = MODEL) -> str:
        """Writes the file of shares; returns its version."""
        if share is not None:
            key = next(it for it in self.parts[model].shares if "/share/" in it)
            self._layer[key] = share
        content, version = document([self._compiler.shares(self._layer)])
        self._files.write(FILE[SHARES], content)
        self._shares = version
        return version

    def _versions_are_taken(self) -> bool:
        if status_of(self.host, 9901, "/ready") != 200:
            return False
        return self.arm() is not None

    def arm(self, user: str = "somebody") -> str | None:
        """The arm that one request gets, by its id; None: the policy is not served."""
        connection = http.client.HTTPConnection(self.host, PORT, timeout=2)
        try:
            body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hello"}]})
            connection.request(
                "POST", "/v1/chat/completions", body, {"content-type": "application/json", "x-user-id": user}
            )
            found = connection.getresponse().getheader("x-funicular-id")
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return found.split(";")[2] if found else None

    def answered_by(self, user: str = "somebody") -> str | None:
        """The candidate that answers."""
        connection = http.client.HTTPConnection(self.host, PORT, timeout=2)
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hello"}]})
        try:
            connection.request(
                "POST", "/v1/chat/completions", body, {"content-type": "application/json", "x-user-id": user}
            )
            found = connection.getresponse().getheader("x-funicular-id")
        finally:
            connection.close()
        return found.split(";")[3] if found else None


def share_changes(gateway: Gateway, times: int) -> list[float]:
    """Milliseconds from writing the file of shares until a request is treated, or no more."""
    found = []
    for i in range(times):
        share, wanted = ((0, "control"), (WHOLE, "treatment"))[i % 2]
        began = time.perf_counter()
        gateway.set_share(share)
        while gateway.arm() != wanted:
            if time.perf_counter() - began > 10:
                raise TimeoutError(f"a share of {share} is not in effect after 10 s")
            time.sleep(0.001)
        found.append(1000 * (time.perf_counter() - began))
    return found
