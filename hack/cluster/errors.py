"""Everything that hack/cluster raises on purpose.

ClusterError
 +-- BinaryMissing    the user must install something (the message says what)
 +-- BuildFailed      a tool did not compile; the message holds the end of the compiler's output
 +-- NotReady         a part did not come up in time or died; the message holds the end of its log
 +-- AlreadyRunning   the folder belongs to a cluster that is running
 +-- CommandFailed    kubectl refused; the message holds what it said
"""


class ClusterError(Exception):
    """The root: catch this to catch all."""


class BinaryMissing(ClusterError):
    """A binary is nowhere to be found and cannot be built here."""


class BuildFailed(ClusterError):
    """The Go compiler refused."""


class NotReady(ClusterError):
    """A part of the cluster did not become ready."""


class AlreadyRunning(ClusterError):
    """Another process runs a cluster in this folder."""


class CommandFailed(ClusterError):
    """kubectl ended with an error."""
