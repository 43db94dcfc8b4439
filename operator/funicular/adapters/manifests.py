"""The Kubernetes objects that the operator owns, as plain data. Pure: workloads.py and history.py send them.

A classifier is a Deployment and a Service of the same name for each revision, so that the stable revision's stays warm
while a candidate's comes up. Its security context is what the `restricted` Pod Security Standard asks for.
"""

from __future__ import annotations

import re
from typing import Any

from funicular.api.base import API_VERSION, GROUP, KIND
from funicular.api.policy import Metadata
from funicular.api.revision import CLASSIFIER_PORT, classifier_name
from funicular.api.spec import ClassifierStrategy

Json = dict[str, Any]
MANAGED = "app.kubernetes.io/managed-by=funicular"
CLASSIFIER_LABEL = f"{GROUP}/classifier"
REVISION_LABEL = f"{GROUP}/revision"
POLICY_LABEL = f"{GROUP}/policy-uid"
LEAST_REQUESTS = {"cpu": "100m", "memory": "128Mi"}  # of a classifier's pod, where its policy names none


def owner_reference(policy: Metadata) -> Json:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": policy.name,
        "uid": policy.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def labels_of(policy: Metadata, revision: str, component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "funicular",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/managed-by": "funicular",
        "app.kubernetes.io/instance": re.sub(r"[^A-Za-z0-9]+$", "", policy.name[:63]),
        POLICY_LABEL: policy.uid,
        REVISION_LABEL: revision,
    }


def classifier_objects(policy: Metadata, revision: str, classifier: ClassifierStrategy) -> tuple[Json, Json]:
    """Deployment and Service; `classifier.image` is set."""
    name = classifier_name(policy.name, revision)
    labels = {**labels_of(policy, revision, "classifier"), CLASSIFIER_LABEL: name}
    metadata = {
        "name": name,
        "namespace": policy.namespace,
        "labels": labels,
        "ownerReferences": [owner_reference(policy)],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": classifier.replicas,
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": 120,
            "selector": {"matchLabels": {CLASSIFIER_LABEL: name}},
            "template": {"metadata": {"labels": labels}, "spec": _pod(classifier)},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "selector": {CLASSIFIER_LABEL: name},
            "ports": [{"name": "http", "port": CLASSIFIER_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }
    return deployment, service


def _resources(classifier: ClassifierStrategy) -> Json:
    """A pod that requests nothing gets the CPU that others leave, and a late answer is none: so there is a least request."""
    given: Json = classifier.resources.model_dump(exclude_defaults=True)
    named = {**given.get("requests", {}), **given.get("limits", {})}  # a limit alone is also the request
    least = {name: amount for name, amount in LEAST_REQUESTS.items() if name not in named}
    return {**given, "requests": {**least, **given.get("requests", {})}}


def _pod(classifier: ClassifierStrategy) -> Json:
    own = {"FUNICULAR_CLASSIFIER_PORT", "FUNICULAR_CLASSIFIER_HOST"}
    container: Json = {
        "name": "classifier",
        "image": classifier.image,
        "ports": [{"name": "http", "containerPort": CLASSIFIER_PORT, "protocol": "TCP"}],
        "env": [
            {"name": "FUNICULAR_CLASSIFIER_PORT", "value": str(CLASSIFIER_PORT)},
            {"name": "FUNICULAR_CLASSIFIER_HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            *({"name": e.name, "value": e.value} for e in classifier.env if e.name not in own),
        ],
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": "http"},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
            "failureThreshold": 3,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "http"},
            "initialDelaySeconds": 10,
            "periodSeconds": 10,
            "timeoutSeconds": 3,
            "failureThreshold": 6,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - inside the container
    }
    container["resources"] = _resources(classifier)
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }


def controller_revision(policy: Metadata, name: str, revision: str, number: int, spec: Json) -> Json:
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": name,
            "namespace": policy.namespace,
            "labels": labels_of(policy, revision, "revision"),
            "ownerReferences": [owner_reference(policy)],
        },
        "data": spec,
        "revision": number,
    }
