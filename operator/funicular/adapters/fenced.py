"""A Kubernetes client that cannot write unless the Lease is held: the one that everything in a term is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from funicular.adapters.kube import Access, KubeClient

Json = dict[str, Any]


class FencedClient(KubeClient):
    """`check` raises when this process may not write. The timeout of a call must be shorter than the time between our own
    deadline and the end of the Lease for others: a write that is under way when the fence falls is then over in time."""

    def __init__(self, access: Access, check: Callable[[], None], *, limit: int = 16, timeout: float = 5.0) -> None:
        super().__init__(access, limit=limit, timeout=timeout)
        self._check = check

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Json:
        if method != "GET":
            self._check()
        return await super().request(method, path, body, params=params, content_type=content_type)
