"""The kubeconfig that a container finds in its environment, in the place of in-cluster configuration.

Called by `pods.py`. Clients look for the service account's files at one absolute path, which a process without a mount
namespace does not have; so each container with that mount gets `KUBECONFIG`, with the (renewed) token as a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ACCOUNT_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


def write_pod_kubeconfig(path: Path, mounts: Mapping[str, str], pod: Mapping[str, Any], api_url: str) -> bool:
    """Write it if the container mounts its service account; returns whether it does."""
    local = mounts.get(ACCOUNT_MOUNT)
    if local is None:
        return False
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "pod", "cluster": {"server": api_url, "certificate-authority": f"{local}/ca.crt"}}],
        "users": [{"name": "pod", "user": {"tokenFile": f"{local}/token"}}],
        "contexts": [
            {
                "name": "pod",
                "context": {"cluster": "pod", "user": "pod", "namespace": pod["metadata"]["namespace"]},
            }
        ],
        "current-context": "pod",
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document))
    return True
