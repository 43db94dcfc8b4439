"""Runs classifiers: server-side apply of a Deployment and a Service for each revision. Called by the controller's apply."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

import orjson

from funicular.adapters.kube import KubeClient, path_of
from funicular.adapters.manifests import POLICY_LABEL, REVISION_LABEL, classifier_objects
from funicular.api.policy import Metadata
from funicular.api.revision import classifier_name
from funicular.api.spec import ClassifierStrategy
from funicular.errors import NotFound

Json = dict[str, Any]
APPLY = "application/apply-patch+yaml"
KINDS = (("apps/v1", "deployments"), ("v1", "services"))


class Classifiers:
    """Implements wiring.Workloads. Remembers what it wrote, so that an unchanged classifier costs no request."""

    def __init__(self, kube: KubeClient) -> None:
        self._kube = kube
        self._written: dict[tuple[str, str], str] = {}
        self._kept: dict[str, frozenset[str]] = {}  # by the policy's uid: what is known to be all that runs

    async def ensure(self, policy: Metadata, revision: str, classifier: ClassifierStrategy) -> None:
        if not classifier.image:
            return
        objects = classifier_objects(policy, revision, classifier)
        at = (policy.namespace, classifier_name(policy.name, revision))
        digest = hashlib.sha256(orjson.dumps(objects, option=orjson.OPT_SORT_KEYS)).hexdigest()
        if self._written.get(at) == digest:
            return
        self._kept.pop(policy.uid, None)
        for (version, plural), body in zip(KINDS, objects, strict=True):
            await self._kube.patch(
                path_of(version, plural, *at), body, content_type=APPLY, fieldManager="funicular", force="true"
            )
        self._written[at] = digest

    def vanished(self, namespace: str, name: str) -> None:
        """The Deployment was deleted by somebody: `ensure` writes again."""
        self._written.pop((namespace, name), None)

    async def retire(self, policy: Metadata, keep: frozenset[str]) -> None:
        if self._kept.get(policy.uid) == keep:
            return
        for version, plural in KINDS:
            found, _ = await self._kube.list_all(
                path_of(version, plural, policy.namespace),
                labelSelector=f"{POLICY_LABEL}={policy.uid},app.kubernetes.io/component=classifier",
            )
            for item in found:
                if item["metadata"]["labels"].get(REVISION_LABEL) not in keep:
                    name = item["metadata"]["name"]
                    self._written.pop((policy.namespace, name), None)
                    with suppress(NotFound):
                        await self._kube.delete(path_of(version, plural, policy.namespace, name))
        self._kept[policy.uid] = keep

    def forget(self, uid: str) -> None:
        self._kept.pop(uid, None)
