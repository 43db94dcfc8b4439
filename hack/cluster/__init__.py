"""A real Kubernetes control plane on this machine, for tests, the demo and development; never part of the product.

Callers use `Cluster` (tests, demo, bench) or the command `python -m hack.cluster up|down|list|env`.
"""

from hack.cluster.cluster import Cluster
from hack.cluster.errors import BinaryMissing, BuildFailed, ClusterError, CommandFailed, NotReady
from hack.cluster.images import Image

__all__ = ["BinaryMissing", "BuildFailed", "Cluster", "ClusterError", "CommandFailed", "Image", "NotReady"]
