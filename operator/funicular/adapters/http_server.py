"""What the three HTTP servers of ours have in common: a logger that knows whose mistake a request is.

aiohttp writes a traceback for each request that it cannot read, with what the client sent in it. Whoever reaches the port
could fill the log with it; so such requests are counted, and told of once in a while.
"""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

PAUSE = 10.0  # seconds between two lines


class UnreadableRequests(logging.Filter):
    """Turns records about requests that cannot be read into one short line each PAUSE; all others pass."""

    def __init__(self) -> None:
        super().__init__()
        self._untold = 0
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        exc = record.exc_info[1] if record.exc_info else None
        if not isinstance(exc, HttpProcessingError | web.RequestPayloadError):
            return True
        self._untold += 1
        if record.created < self._next:
            return False
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args = "%d requests could not be read, the last: %s", (self._untold, type(exc).__name__)
        record.exc_info = record.exc_text = None
        self._untold, self._next = 0, record.created + PAUSE
        return True


def http_logger(name: str) -> logging.Logger:
    """For `web.AppRunner(logger=...)`."""
    logger = logging.getLogger(f"{name}.http")
    if not any(isinstance(found, UnreadableRequests) for found in logger.filters):
        logger.addFilter(UnreadableRequests())
    return logger
