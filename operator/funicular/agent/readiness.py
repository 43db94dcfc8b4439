"""Whether this pod may get traffic: pure. Called by the server for `/readyz`.

Ready once the initial list is done and Envoy took, or refused with a reason, every policy of it. From then on only Envoy's
own state counts: a pod that left its Service at each change of a policy would take users' connections along.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NAMED = 20


class Readiness:
    def __init__(self) -> None:
        self.is_draining = False
        self._was_ready = False

    def reason(
        self, *, synced: bool, unsettled: Sequence[str], envoy_is_up: bool, in_step: bool
    ) -> dict[str, Any] | None:
        """None: ready."""
        if self.is_draining:
            return {"reason": "the pod is shutting down"}
        if not envoy_is_up:
            return {"reason": "Envoy does not answer"}
        if self._was_ready:
            return None
        if not synced:
            return {"reason": "the policies are not read yet"}
        if unsettled:
            return {"reason": "Envoy has not taken all policies yet", "policies": list(unsettled[:NAMED])}
        if not in_step:
            return {"reason": "Envoy does not serve by the newest files yet"}
        self._was_ready = True
        return None
