"""A real Argo CD on this machine without containers, for tests and demonstrations: `ArgoCD.start`. Never part of the product.

The application controller, repo-server, API server and Redis run as processes beside a cluster that is already there
(hack.cluster's, or any other kubeconfig); a bare git repository in the same folder plays the remote.
"""

from hack.argocd.argo import ArgoCD
from hack.argocd.repository import Repository

__all__ = ["ArgoCD", "Repository"]
