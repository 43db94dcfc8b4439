"""The namespaces in which a node lives: processes, mounts, network and host name of its own, and its control groups.

Called by `Node`, which runs the node's parts in here. Whatever is started inside ends with process 1: one kill takes
processes, mounts, bridges and iptables rules with it. It must not know Kubernetes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network
from pathlib import Path

import psutil

from hack.cluster.guard import remove
from hack.cluster.processes import Component, Guard, spawn
from hack.node.errors import NodeFailed, NotPossibleHere
from hack.node.layout import NodeLayout

CGROUPS = Path("/sys/fs/cgroup")
PROGRAMS = ("ip", "mount", "nsenter", "sysctl", "unshare")

# Run as the first thing inside. A mount tree of its own: what the parts write to /run, /var/lib and /var/log is theirs alone.
PREPARE = """
hostname {name}
mount -t tmpfs tmpfs /run
for each in lib log; do
    mkdir -p /run/overlay/$each /run/overlay/work-$each
    mount -t overlay overlay -o lowerdir=/var/$each,upperdir=/run/overlay/$each,workdir=/run/overlay/work-$each /var/$each
done
mkdir -p /run/netns /run/containerd
echo '127.0.0.1 localhost {name}' > /run/hosts
mount --bind /run/hosts /etc/hosts
mount --make-rshared /
ip link set lo up
ip address add {node_ip}/{length} dev eth0
ip link set eth0 up
ip route add default via {host_ip}
sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1
# A dead part's connection to a dead pod would keep the network, and the interface on the host, for a minute more.
sysctl -qw net.ipv4.tcp_orphan_retries=1
# What no Service rule has taken is refused at once. It would go round between this and the host, and the kernel would
# remember that connection without the rule that comes a second later: its client would wait for half a minute.
for chain in FORWARD OUTPUT; do
    iptables --wait --append $chain --destination {services} --jump REJECT
done
"""


def check() -> None:
    """Raises NotPossibleHere with what is missing on this machine."""
    if os.geteuid() != 0:
        raise NotPossibleHere("a node needs root: it makes namespaces, mounts and network interfaces")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise NotPossibleHere(f"a node needs {', '.join(missing)} (Debian: apt install util-linux iproute2 procps)")
    unshared = ["unshare", "--fork", "--pid", "--mount", "--net", "--uts", "--mount-proc", "true"]
    result = subprocess.run(unshared, capture_output=True, text=True, check=False)
    if result.returncode:
        raise NotPossibleHere(f"a node needs namespaces, which cannot be had here: {result.stderr.strip()}")
    if "overlay" not in Path("/proc/filesystems").read_text():
        raise NotPossibleHere("a node needs the kernel's overlay file system (modprobe overlay)")


class Sandbox:
    """Process 1, the veth pair to this machine, and the control groups of one node."""

    def __init__(self, layout: NodeLayout, guard: Guard, environment: Mapping[str, str]) -> None:
        self._layout = layout
        self._guard = guard
        self._environment = [f"{name}={value}" for name, value in environment.items()]
        self._unshare: subprocess.Popen[bytes] | None = None
        self._init = 0

    def open(self, init: Path) -> None:
        """`init` is the program that becomes process 1: it must collect orphans and do nothing else."""
        layout = self._layout
        for hierarchy in _hierarchies():
            cgroup = hierarchy / layout.cgroup
            # One that a killed owner's killed guard left: the slot is ours, so nobody lives there.
            remove(str(cgroup))
            self._guard.remove_at_end(cgroup)
            _create(cgroup)
        with (layout.logs / "sandbox.log").open("ab") as log:
            # With an end of unshare, however it comes, process 1 ends.
            options = ["--fork", "--kill-child=KILL", "--pid", "--mount", "--net", "--uts", "--mount-proc"]
            command = ["unshare", *options, "--propagation=private", str(init), "-P"]
            self._unshare = spawn(command, guard=self._guard, output=log, cwd="/")
        self._init = self._await_init(init.name)
        self._connect()
        prepare = PREPARE.format(
            name=layout.name,
            node_ip=layout.node_ip,
            host_ip=layout.host_ip,
            length=layout.link.prefixlen,
            services=layout.services,
        )
        self.run("sh", "-euc", prepare)

    @property
    def pid(self) -> int:
        """Of unshare, whose process group ends the sandbox when it is killed; 0 while there is none."""
        return self._unshare.pid if self._unshare else 0

    @property
    def files(self) -> Path:
        """The file system as the inside sees it, from outside."""
        return Path(f"/proc/{self._init}/root")

    def command(self, *command: str) -> list[str]:
        """The same command, run inside."""
        inside = ["nsenter", f"--target={self._init}", "--mount", "--net", "--pid", "--uts"]
        return [*inside, "--", "env", *self._environment, *command]

    def run(self, *command: str, timeout: float = 120) -> str:
        """Run a command inside and return its output. Raises NodeFailed."""
        result = subprocess.run(
            self.command(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if result.returncode:
            raise NodeFailed(f"{command[0]} ended with {result.returncode} inside the node:\n{result.stderr.strip()}")
        return result.stdout

    def close(self) -> None:
        """Kill everything inside; returns when it is gone, but for the control groups, which go with the guard."""
        if self._unshare is None:
            return
        os.killpg(self._unshare.pid, signal.SIGKILL)
        # Process 1 is collected only after every process of its namespace: then mounts and interfaces go.
        self._unshare.wait(timeout=30)
        _wait_while(lambda: _is_alive(self._init), "the node's process 1")
        self._guard.forget(self._unshare.pid)
        self._unshare = None
        # The kernel takes a dead network namespace apart in the background.
        link = Path("/sys/class/net", self._layout.link_name)
        _wait_while(link.exists, f"the interface {link.name}")

    def _await_init(self, name: str, timeout: float = 10) -> int:
        """Process id of process 1 once it is itself: before, its namespaces are not all there."""
        assert self._unshare is not None
        deadline = time.monotonic() + timeout
        parent = psutil.Process(self._unshare.pid)
        while time.monotonic() < deadline and self._unshare.poll() is None:
            for child in parent.children():
                if child.name() == name:
                    return child.pid
            time.sleep(0.005)
        raise NodeFailed(f"the node's process 1 did not start; see {self._layout.logs / 'sandbox.log'}")

    def _connect(self) -> None:
        layout, link = self._layout, self._layout.link_name
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(self._init))
        _ip("address", "add", f"{layout.host_ip}/{layout.link.prefixlen}", "dev", link)
        _ip("link", "set", link, "up")
        for network in (layout.pods, layout.services):
            _ip("route", "add", str(network), "via", str(layout.node_ip))


class Inside(Component):
    """A part that runs in a sandbox."""

    def __init__(self, name: str, command: Sequence[str], log: Path, guard: Guard, sandbox: Sandbox) -> None:
        super().__init__(name, sandbox.command(*command), log, guard, cwd=Path("/"))

    def finish(self, grace: float = 3.0) -> None:
        """As for every part; and since nsenter, which we can wait for, dies before the part itself, wait for that too."""
        group = self.pid
        super().finish(grace)
        if group is not None:
            _wait_while(lambda: _has_members(group), f"{self.name}'s process group")


def is_free(network: IPv4Network) -> bool:
    """Whether no route of this machine leads into `network`, but for the default one."""
    destinations = (line.split() for line in _ip("-4", "route", "show").splitlines())
    known = [IPv4Network(words[0]) for words in destinations if words and words[0][0].isdigit()]
    return not any(network.overlaps(it) for it in known)


def _hierarchies() -> list[Path]:
    """The one of cgroup v2, or all of cgroup v1, with the one of v2 that may stand beside them."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [folder for folder in CGROUPS.iterdir() if (folder / "cgroup.procs").exists()]


def _create(cgroup: Path) -> None:
    cgroup.mkdir()
    # In cgroup v1 a new cpuset is empty, and nothing may run in it.
    if (cgroup / "cpuset.cpus").exists() and (cgroup / "tasks").exists():
        for name in ("cpuset.cpus", "cpuset.mems"):
            (cgroup / name).write_text((cgroup.parent / name).read_text())
        (cgroup / "cgroup.clone_children").write_text("1")


def _ip(*arguments: str) -> str:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise NodeFailed(f"ip {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_while(condition: Callable[[], bool], what: str, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while condition():
        if time.monotonic() > deadline:
            raise NodeFailed(f"{what} is still there {timeout:g} s after its end")
        time.sleep(0.01)
