"""Kills process groups when the process that started them is gone, however it went.

Started by `processes.Guard`, as a script, one per owner. The owner writes "+PGID" and "-PGID" lines to stdin; when stdin
ends, the owner is dead (or has closed it on purpose) and every group still known is killed, the oldest first. Then the
control groups that the owner named in "/PATH" lines are removed, which works only when the last process in them is gone.
It imports nothing of ours: it has to start in milliseconds and to outlive everything.
"""

import os
import signal
import sys
import time

PATIENCE = 10.0


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: dict[int, None] = {}
    cgroups: list[str] = []
    for line in sys.stdin:
        if line[0] == "/":
            cgroups.append(line.rstrip("\n"))
            continue
        number = int(line[1:])
        if line[0] == "+":
            groups[number] = None
        else:
            groups.pop(number, None)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    deadline = time.monotonic() + PATIENCE
    while not all(remove(path) for path in cgroups) and time.monotonic() < deadline:
        time.sleep(0.02)


def remove(cgroup: str) -> bool:
    """Whether it is gone, with all below it."""
    for folder, _, _ in os.walk(cgroup, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            continue
    return not os.path.exists(cgroup)


if __name__ == "__main__":
    main()
