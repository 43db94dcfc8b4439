"""Watches of the Kubernetes API that never end: what KubeClient.watch gives up on, these report and try again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from funicular.adapters.kube import KubeClient
from funicular.errors import FunicularError

log = logging.getLogger(__name__)
AGAIN = 5.0  # seconds until a refused watch is tried again: RBAC or the CRD may come later


async def watch_for_ever(
    kube: KubeClient,
    path: str,
    on_event: Callable[[str, Any], None],
    *,
    on_refusal: Callable[[FunicularError], None] | None = None,
    **params: str,
) -> None:
    """Calls `on_event("RESYNC", [objects])` and `on_event(kind, object)`. Must be cancelled to end."""
    while True:
        try:
            async with aclosing(kube.watch(path, **params)) as events:  # type: ignore[type-var]
                async for kind, item in events:
                    on_event(kind, item)
        except FunicularError as exc:
            log.warning("watch of %s: %s", path, exc)
            if on_refusal:
                on_refusal(exc)
        except (ValueError, KeyError, TypeError, OSError) as exc:  # not what an API server sends; or a full disk
            log.warning("watch of %s: %s: %s", path, type(exc).__name__, exc)
        await asyncio.sleep(AGAIN)
