"""wrk as the load: bodies of a given size, made once; many users; its numbers as data. wrk is in C and never the bottleneck."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from hack.bench.machine import run, wrk_binary
from hack.cluster.errors import ClusterError

USERS = 64
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}

SCRIPT = """
local requests, i = {}, 0
init = function(args)
  local file = assert(io.open("%(body)s", "rb"))
  local body = file:read("*a")
  file:close()
  for user = 1, %(users)d do
    requests[user] = wrk.format("POST", "/v1/chat/completions",
      {["content-type"] = "application/json", ["x-user-id"] = "user-" .. user, ["authorization"] = "Bearer sk-bench"}, body)
  end
end
request = function()
  i = i %% %(users)d + 1
  return requests[i]
end
"""


@dataclass(frozen=True, slots=True)
class Shot:
    """One run of wrk. Latencies in milliseconds."""

    requests: int
    rate: float
    p50: float
    p99: float
    failed: int
    cpu_us: float | None = None  # of the subject's own process, a request

    @property
    def is_clean(self) -> bool:
        return self.failed == 0 and self.rate > 0


class Wrk:
    def __init__(self, folder: Path, core: str, model: str) -> None:
        self._folder, self._core, self._model = folder, core, model

    def shoot(self, url: str, size: int, seconds: float, connections: int) -> Shot:
        """Raises ClusterError if wrk fails; answers that are no 2xx are counted."""
        command = [
            wrk_binary(),
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--latency",
            "--timeout",
            "10s",
        ]
        out = run([*command, "-s", str(self._script(size)), url], core=self._core, timeout=seconds + 30)
        return parse(out)

    def _script(self, size: int) -> Path:
        script = self._folder / f"body-{size}.lua"
        if not script.exists():
            body = self._folder / f"body-{size}.json"
            body.write_text(body_of(size, self._model))
            script.write_text(SCRIPT % {"body": body, "users": USERS if size < 500_000 else 4})
        return script


def body_of(size: int, model: str) -> str:
    """A chat request of about `size` bytes: a system prompt, some turns, the last question."""
    turn = "I have read the manual twice and still cannot tell which of the settings makes the pump stop at night. "
    messages = [{"role": "system", "content": "You are a friendly support agent."}]
    bare = len(json.dumps({"model": model, "messages": messages}))
    filler = (turn * (max(0, size - bare) // len(turn) + 1))[: max(10, size - bare - 120)]
    messages.append({"role": "user", "content": filler})
    return json.dumps({"model": model, "messages": messages, "temperature": 0.2})


def parse(out: str) -> Shot:
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    if rate is None:
        raise ClusterError(f"wrk said something unexpected:\n{out}")
    requests = re.search(r"(\d+) requests in", out)
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    broken = sum(map(int, sockets.groups())) if sockets else 0
    return Shot(
        int(requests[1]) if requests else 0,
        float(rate[1]),
        _quantile(out, "50%"),
        _quantile(out, "99%"),
        broken + (int(failed[1]) if failed else 0),
    )


def _quantile(out: str, name: str) -> float:
    found = re.search(rf"{name}\s+([\d.]+)(us|ms|s|m)", out)
    return float(found[1]) * _UNITS[found[2]] if found else float("nan")
