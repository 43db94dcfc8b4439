"""Which addresses, names and files one node has.

Made by `Node` when it has its slot; read by every other module here. It starts and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from hack.cluster.controlplane import Layout

FIRST_NETWORK = 50
API_PORT = 6443
CLUSTER_DOMAIN = "cluster.local"


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """Everything of one node: files below `folder`, addresses in 10.(50 + `slot`).0.0/16."""

    name: str
    folder: Path
    slot: int

    @property
    def network(self) -> IPv4Network:
        """All addresses of the node, its pods and its Services."""
        return IPv4Network(f"10.{FIRST_NETWORK + self.slot}.0.0/16")

    @property
    def link(self) -> IPv4Network:
        """Between this machine and the node."""
        return self._part(0, 30)

    @property
    def host_ip(self) -> IPv4Address:
        return self.link[1]

    @property
    def node_ip(self) -> IPv4Address:
        return self.link[2]

    @property
    def pods(self) -> IPv4Network:
        return self._part(16, 22)

    @property
    def services(self) -> IPv4Network:
        return self._part(32, 20)

    @property
    def api_service_ip(self) -> IPv4Address:
        """Of the Service `kubernetes`: the API server takes the first address of the range."""
        return self.services[1]

    @property
    def dns_ip(self) -> IPv4Address:
        return self.services[10]

    @property
    def link_name(self) -> str:
        """The veth interface on this machine."""
        return f"funicular{self.slot}"

    @property
    def cgroup(self) -> str:
        """In every hierarchy: above all pods' own."""
        return f"funicular-node-{self.slot}"

    @property
    def control_plane(self) -> Layout:
        """The same node as hack/cluster's command lines see it."""
        return Layout(
            self.folder,
            first_port=API_PORT,
            network=0,
            api_host=str(self.node_ip),
            prometheus_host=str(self.host_ip),
        )

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def images(self) -> Path:
        """The node's own images, as archives."""
        return self.folder / "images"

    def _part(self, third: int, length: int) -> IPv4Network:
        return IPv4Network(f"10.{FIRST_NETWORK + self.slot}.{third}.0/{length}")
