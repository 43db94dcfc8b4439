"""Kills process groups when the process that started them is gone, however it went.

Started by `processes.Guard`, as a script, one per owner. The owner writes "+PGID" and "-PGID" lines to stdin; when stdin
ends, the owner is dead (or has closed it on purpose) and every group still known is killed. It imports nothing of ours:
it has to start in milliseconds and to outlive everything.
"""

import os
import signal
import sys


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        number = int(line[1:])
        if line[0] == "+":
            groups.add(number)
        else:
            groups.discard(number)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


if __name__ == "__main__":
    main()
