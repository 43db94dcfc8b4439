"""Envoy's admin interface, as the agent needs it: which files Envoy has taken, its counters, draining.

Called by funicular.agent only. It knows Envoy's statistics by name and nothing of policies. With 1,000 policies a text
read-out takes 2 ms of Envoy's main thread and a regular expression over all statistics 6 ms: so the first is what is
polled for acknowledgements, and the second is asked only where a file may have been refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import aiohttp
import orjson

from funicular.errors import GatewayUnavailable

CLUSTERS, ROUTES, SHARES = "clusters", "routes", "shares"  # the three kinds of files
_OF_STAT = {"cluster_manager.cds": CLUSTERS, "runtime": SHARES}
_REFUSALS = r"^(cluster_manager\.cds|http\.[^.]+\.rds\.[^.]+|runtime)\.update_(rejected|failure)$"
_WARMING = r"^cluster_manager\.warming_clusters$"
_ACTIVE = r"^http\.gateway\.downstream_rq_active$"  # not the admin interface's: the question itself is a request there


def kind_of(prefix: str) -> str | None:
    """`http.gateway.rds.policies` -> ROUTES"""
    return _OF_STAT.get(prefix) or (ROUTES if ".rds." in prefix else None)


@dataclass(frozen=True, slots=True)
class Refusals:
    """How often Envoy refused a file of each kind since it started."""

    counts: dict[str, int] = field(default_factory=dict)

    def since(self, earlier: Refusals, kind: str) -> bool:
        """Counters of a restarted Envoy begin again, so any other value than before but zero is a refusal."""
        now = self.counts.get(kind, 0)
        return now != 0 and now != earlier.counts.get(kind, 0)


class EnvoyAdmin:
    """Every call raises GatewayUnavailable when Envoy does not answer within `timeout` seconds."""

    def __init__(self, host: str, port: int, *, timeout: float = 5.0) -> None:
        self.base = f"http://{host}:{port}"
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session:
            await self._session.close()

    async def _call(self, method: str, path: str, params: dict[str, str] | None = None) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=8))
        try:
            async with self._session.request(
                method, self.base + path, params=params, timeout=self._timeout, skip_auto_headers=("user-agent",)
            ) as answer:
                text = await answer.read()
                if answer.status >= 400:
                    raise GatewayUnavailable(f"Envoy's admin {path}: {answer.status}")
                return text
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise GatewayUnavailable(f"Envoy's admin {path}: {type(exc).__name__}") from exc

    async def versions(self) -> dict[str, str]:
        """`version_info` of the file of each kind that Envoy serves by."""
        text = await self._call("GET", "/stats", {"type": "TextReadouts", "format": "json"})
        found: dict[str, str] = {}
        for item in orjson.loads(text)["stats"]:
            prefix, _, last = item["name"].rpartition(".")
            if last == "version_text" and (kind := kind_of(prefix)):
                found[kind] = item["value"]
        return found

    async def _numbers(self, pattern: str) -> dict[str, int]:
        text = await self._call("GET", "/stats", {"filter": pattern, "format": "json"})
        return {item["name"]: int(item["value"]) for item in orjson.loads(text)["stats"] if "name" in item}

    async def refusals(self) -> Refusals:
        counts: dict[str, int] = {}
        for name, value in (await self._numbers(_REFUSALS)).items():
            if kind := kind_of(name.rpartition(".")[0]):
                counts[kind] = counts.get(kind, 0) + value
        return Refusals(counts)

    async def warming(self) -> int:
        """Clusters that Envoy has read but does not serve by yet: their names are being resolved."""
        return sum((await self._numbers(_WARMING)).values())

    async def warming_names(self) -> set[str]:
        text = await self._call("GET", "/config_dump", {"resource": "dynamic_warming_clusters"})
        found = set()
        for item in orjson.loads(text).get("configs") or []:
            found.add((item.get("cluster") or {}).get("name", ""))
        return found

    async def active_requests(self) -> int:
        return sum((await self._numbers(_ACTIVE)).values())

    async def prometheus(self, pattern: str) -> str:
        """Counters and histograms in Prometheus' text format, those that were never used left out."""
        return (await self._call("GET", "/stats/prometheus", {"usedonly": "", "filter": pattern})).decode()

    async def is_ready(self) -> bool:
        try:
            return await self._call("GET", "/ready") == b"LIVE\n"
        except GatewayUnavailable:
            return False

    async def fail_healthcheck(self) -> None:
        """Envoy closes connections after their present request, and its own health check answers 503."""
        await self._call("POST", "/healthcheck/fail")

    async def pass_healthcheck(self) -> None:
        """Takes back `fail_healthcheck`."""
        await self._call("POST", "/healthcheck/ok")

    async def quit(self) -> None:
        await self._call("POST", "/quitquitquit")
