"""A real Kubernetes node with real pods on this machine, in namespaces of its own; for e2e tests, never part of the product.

Callers use `Node` (tests, the demo) or the command `python -m hack.node up|down|env|list|binaries`. Where no containers are
needed, hack/cluster does with less: no root, and pods that are processes.
"""

from hack.node.node import Node

__all__ = ["Node"]
