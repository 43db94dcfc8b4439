"""What hack/node raises beside hack/cluster's errors.

ClusterError (hack/cluster/errors.py)
 +-- NotPossibleHere   this machine cannot run a node; the message says what is missing and what would help
 +-- NodeFailed        a command that builds the node up, or works on it, failed; the message holds what it said
"""

from hack.cluster.errors import ClusterError


class NotPossibleHere(ClusterError):
    """No root, no namespaces, no Debian packages."""


class NodeFailed(ClusterError):
    """A step of the node's own failed."""
