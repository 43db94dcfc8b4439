"""Envoy's counters as they come at `/stats/prometheus`, made monotone across Envoy's restarts. Pure.

Called by the scraper. A restart is seen by Envoy's uptime in the same answer, or by a counter that fell; then what was
counted before becomes an offset of every series. It must not know what the series mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

UPTIME = "envoy_server_uptime"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_SLACK = 3.0  # seconds by which uptime, set at each flush, lags behind


def split(series: str) -> tuple[str, Mapping[str, str]]:
    """`name{a="b"}` -> name and labels."""
    name, brace, rest = series.partition("{")
    if not brace:
        return series, {}
    return name, {key: _unescape(value) for key, value in _LABEL.findall(rest)}


def _unescape(value: str) -> str:
    return _ESCAPED.sub(lambda m: "\n" if m[1] == "n" else m[1], value) if "\\" in value else value


def parse(text: str) -> Iterator[tuple[str, float]]:
    """Series and value of each sample. Lines that are none are left out."""
    for line in text.split("\n"):
        if not line or line[0] == "#":
            continue
        series, _, value = line.rpartition(" ")
        try:
            yield series, float(value)
        except ValueError:
            continue


class Monotone:
    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._offsets: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._uptime = -1.0
        self._read_at = 0.0
        self.resets = 0

    def read(
        self, text: str, now: float, prefix: str, is_kept: Callable[[str], bool] = lambda _: True
    ) -> Iterable[str]:
        """One answer, read at `now` (seconds, any steady clock): its series. Those with another prefix are left out.

        What is not kept ends with the Envoy that counted it: series of policies that are gone must not pile up."""
        fresh: dict[str, float] = {}
        uptime = -1.0
        for series, value in parse(text):
            if series.startswith(prefix):
                fresh[series] = value
            elif series.startswith(UPTIME):
                uptime = value
        if self._has_restarted(fresh, uptime, now):
            self.resets += 1
            old = {series: self._offsets.get(series, 0.0) + value for series, value in self._last.items()}
            self._offsets = {series: value for series, value in (self._offsets | old).items() if is_kept(series)}
            self._last = {}
        if uptime >= 0:
            self._uptime = uptime
        self._read_at = now
        self._last.update(fresh)
        if self._offsets:
            offsets = self._offsets
            self.values = {**offsets, **{s: v + offsets.get(s, 0.0) for s, v in self._last.items()}}
        else:
            self.values = self._last
        return fresh

    def _has_restarted(self, fresh: Mapping[str, float], uptime: float, now: float) -> bool:
        if uptime >= 0 and self._uptime >= 0 and uptime < self._uptime + (now - self._read_at) - _SLACK:
            return True
        last = self._last  # sums of histograms are approximate, and may fall a little
        return any(value < last.get(series, 0.0) and "_sum{" not in series for series, value in fresh.items())
