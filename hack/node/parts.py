"""What each part of a node is started with, and the configuration files it reads.

Called by `Node`, which starts and stops the processes. Functions from a `NodeLayout` to a command line or to the text of a
file; they start nothing. Parts that are the same in hack/cluster come from there.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from hack.cluster import controlplane
from hack.node.layout import CLUSTER_DOMAIN, NodeLayout

PAUSE_IMAGE = "funicular.local/pause:1"
RUNTIME_SOCKET = "/run/containerd/containerd.sock"

CLIENTS: dict[str, tuple[str, str | None]] = {
    "admin": ("admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", None),
    "kube-scheduler": ("system:kube-scheduler", None),
    "kube-proxy": ("system:kube-proxy", None),
}
FRONT_PROXY = "front-proxy-client"


def kube_apiserver(binary: Path, layout: NodeLayout) -> list[str]:
    """With the admission of a real cluster: hack/cluster leaves some of it out."""
    control_plane = layout.control_plane
    pki, front = control_plane.pki, control_plane.pki.folder / "front-proxy"
    return [
        str(binary),
        f"--etcd-servers=http://127.0.0.1:{control_plane.port('etcd')}",
        "--bind-address=0.0.0.0",
        f"--advertise-address={layout.node_ip}",
        f"--secure-port={control_plane.port('api')}",
        f"--tls-cert-file={pki.cert('server')}",
        f"--tls-private-key-file={pki.key('server')}",
        f"--client-ca-file={pki.ca}",
        f"--service-account-key-file={pki.folder / 'sa.pub'}",
        f"--service-account-signing-key-file={pki.key('sa')}",
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={layout.services}",
        "--allow-privileged=true",
        f"--kubelet-certificate-authority={pki.ca}",
        f"--kubelet-client-certificate={pki.cert('admin')}",
        f"--kubelet-client-key={pki.key('admin')}",
        "--kubelet-preferred-address-types=InternalIP",
        # For metrics-server, which is an API server behind this one.
        f"--requestheader-client-ca-file={front / 'ca.crt'}",
        f"--requestheader-allowed-names={FRONT_PROXY}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={front / f'{FRONT_PROXY}.crt'}",
        f"--proxy-client-key-file={front / f'{FRONT_PROXY}.key'}",
        "--enable-aggregator-routing=true",
        "--profiling=false",
    ]


def kube_controller_manager(binary: Path, layout: NodeLayout) -> list[str]:
    control_plane = layout.control_plane
    pki = control_plane.pki
    return [
        str(binary),
        *_kubeconfigs(layout, "kube-controller-manager"),
        f"--service-account-private-key-file={pki.key('sa')}",
        f"--root-ca-file={pki.ca}",
        f"--cluster-signing-cert-file={pki.ca}",
        f"--cluster-signing-key-file={pki.key('ca')}",
        f"--requestheader-client-ca-file={pki.folder / 'front-proxy' / 'ca.crt'}",
        f"--secure-port={control_plane.port('controller-manager')}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        # Its default of 20 a second delays the first pod by 5 seconds.
        "--kube-api-qps=300",
        "--kube-api-burst=600",
        "--profiling=false",
    ]


def kube_scheduler(binary: Path, layout: NodeLayout) -> list[str]:
    return [*controlplane.kube_scheduler(binary, layout.control_plane), "--bind-address=0.0.0.0"]


def etcd(binary: Path, layout: NodeLayout) -> list[str]:
    """On the node's loopback only: it asks nobody for a password."""
    return controlplane.etcd(binary, layout.control_plane)


def containerd(binary: Path, layout: NodeLayout) -> list[str]:
    return [str(binary), f"--config={layout.folder / 'containerd.toml'}"]


def kubelet(binary: Path, layout: NodeLayout) -> list[str]:
    return [
        str(binary),
        f"--config={layout.folder / 'kubelet.yaml'}",
        f"--kubeconfig={layout.control_plane.kubeconfig('kubelet')}",
        f"--root-dir={layout.folder / 'kubelet'}",
        f"--cert-dir={layout.folder / 'kubelet'}",
        f"--node-ip={layout.node_ip}",
        f"--hostname-override={layout.name}",
    ]


def kube_proxy(binary: Path, layout: NodeLayout) -> list[str]:
    return [
        str(binary),
        f"--kubeconfig={layout.control_plane.kubeconfig('kube-proxy')}",
        "--proxy-mode=iptables",
        f"--cluster-cidr={layout.pods}",
        f"--hostname-override={layout.name}",
        "--nodeport-addresses=primary",
        "--iptables-min-sync-period=100ms",
        # These would write to the kernel's settings, which belong to the whole machine.
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    ]


def kube_router(binary: Path, layout: NodeLayout) -> list[str]:
    """Only its firewall: kube-proxy does the Services, and one node needs no routes."""
    return [
        str(binary),
        f"--kubeconfig={layout.control_plane.kubeconfig('admin')}",
        "--run-firewall=true",
        "--run-router=false",
        "--run-service-proxy=false",
        f"--hostname-override={layout.name}",
        f"--service-cluster-ip-range={layout.services}",
        "--iptables-sync-period=30s",
    ]


def containerd_config(layout: NodeLayout, cni: Path) -> str:
    """TOML; a JSON string is a TOML string."""
    text = json.dumps
    return f"""version = 2
root = {text(str(layout.folder / "containerd"))}
state = "/run/containerd/state"
oom_score = 0
[grpc]
  address = {text(RUNTIME_SOCKET)}
[plugins."io.containerd.internal.v1.opt"]
  path = {text(str(layout.folder / "containerd" / "opt"))}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {text(PAUSE_IMAGE)}
  # Without the right to lower its own score (a container, a small virtual machine) no pod would start.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {text(str(cni))}
    conf_dir = {text(str(layout.folder / "cni"))}
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
"""


def cni_config(layout: NodeLayout) -> str:
    bridge = {
        "type": "bridge",
        "bridge": "pods0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/cni",
            "ranges": [[{"subnet": str(layout.pods)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, portmap]}, indent=1)


def kubelet_config(layout: NodeLayout) -> str:
    pki = layout.control_plane.pki
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki.ca)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki.cert("kubelet-server")),
        "tlsPrivateKeyFile": str(pki.key("kubelet-server")),
        "containerRuntimeEndpoint": f"unix://{RUNTIME_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}",
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "clusterDNS": [str(layout.dns_ip)],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": str(layout.folder / "resolv.conf"),
        "podLogsDir": str(layout.logs / "pods"),
        "readOnlyPort": 0,
        "serializeImagePulls": False,
        # The images come from archives and cannot be pulled again: none is ever collected.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        # Tests kill containers: five minutes of back-off would only be waited for.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
    }
    return yaml.safe_dump(config, sort_keys=False)


def _kubeconfigs(layout: NodeLayout, client: str) -> list[str]:
    path = layout.control_plane.kubeconfig(client)
    return [f"--kubeconfig={path}", f"--authentication-kubeconfig={path}", f"--authorization-kubeconfig={path}"]
