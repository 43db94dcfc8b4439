"""What each part of the cluster is started with, and how one sees that it is ready.

Called by `Cluster`, which starts and stops the processes. Functions from a `Layout` to a command line or to an answer;
it must not start anything itself.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from hack.cluster.pki import Pki

DISABLED_CONTROLLERS = (
    # Pods have loopback addresses here, which the API server refuses in endpoints: these three would only retry.
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    # No volumes, and no kubelet that asks for certificates.
    "persistentvolume-attach-detach-controller",
    "certificatesigningrequest-signing-controller",
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything of one cluster is: files below `folder`, ports on 127.0.0.1, the network 127.`network`.0.0/16.

    On a node in namespaces of its own (hack/node) the API server and Prometheus have other addresses.
    """

    folder: Path
    first_port: int
    network: int
    api_host: str = "127.0.0.1"
    prometheus_host: str = "127.0.0.1"

    @property
    def pki(self) -> Pki:
        return Pki(self.folder / "pki")

    def port(self, part: str) -> int:
        order = ("api", "etcd", "etcd-peer", "controller-manager", "scheduler", "prometheus", "dns", "kubelet")
        return self.first_port + order.index(part)

    @property
    def api_url(self) -> str:
        return f"https://{self.api_host}:{self.port('api')}"

    def kubeconfig(self, client: str) -> Path:
        return self.folder / ("kubeconfig" if client == "admin" else f"{client}.kubeconfig")


@dataclass(frozen=True, slots=True)
class PrometheusOptions:
    """How Prometheus is started.

    `scrape_interval` is a Prometheus duration; `web_config` a `--web.config.file` (TLS, passwords); `targets` are
    `host:port` scraped beside the pods, for processes that are none.
    """

    scrape_interval: str = "1s"
    web_config: Path | None = None
    targets: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    @property
    def scheme(self) -> str:
        if self.web_config is None:
            return "http"
        return "https" if "tls_server_config" in (yaml.safe_load(self.web_config.read_text()) or {}) else "http"


def etcd(binary: Path, layout: Layout) -> list[str]:
    client, peer = (f"http://127.0.0.1:{layout.port(part)}" for part in ("etcd", "etcd-peer"))
    return [
        str(binary),
        "--name=etcd",
        f"--data-dir={layout.folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=etcd={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def kube_apiserver(binary: Path, layout: Layout) -> list[str]:
    pki = layout.pki
    return [
        str(binary),
        f"--etcd-servers=http://127.0.0.1:{layout.port('etcd')}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--external-hostname=127.0.0.1",
        # The address of the API server is a loopback one as well: no endpoints for the service "kubernetes".
        "--endpoint-reconciler-type=none",
        f"--secure-port={layout.port('api')}",
        f"--cert-dir={layout.folder / 'pki'}",
        f"--tls-cert-file={pki.cert('server')}",
        f"--tls-private-key-file={pki.key('server')}",
        f"--client-ca-file={pki.ca}",
        # Nobody has this name: there is no aggregation, but its clients look for the CA and complain without it.
        f"--requestheader-client-ca-file={pki.ca}",
        "--requestheader-allowed-names=front-proxy-client",
        f"--service-account-key-file={pki.folder / 'sa.pub'}",
        f"--service-account-signing-key-file={pki.key('sa')}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        "--authorization-mode=Node,RBAC",
        "--service-cluster-ip-range=10.96.0.0/16",
        # The node is usable from its first heartbeat on; the taint would cost seconds on every start.
        "--disable-admission-plugins=TaintNodesByCondition",
        "--allow-privileged=true",
        f"--kubelet-client-certificate={pki.cert('admin')}",
        f"--kubelet-client-key={pki.key('admin')}",
        "--kubelet-preferred-address-types=InternalIP",
        "--profiling=false",
    ]


def kube_controller_manager(binary: Path, layout: Layout) -> list[str]:
    return [
        str(binary),
        *_kubeconfig_arguments(layout, "kube-controller-manager"),
        "--bind-address=127.0.0.1",
        f"--secure-port={layout.port('controller-manager')}",
        f"--cert-dir={layout.folder / 'pki' / 'kube-controller-manager'}",
        f"--service-account-private-key-file={layout.pki.key('sa')}",
        f"--root-ca-file={layout.pki.ca}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        "--kube-api-qps=300",
        "--kube-api-burst=600",
        "--node-monitor-period=1s",
        "--node-monitor-grace-period=20s",
        "--controllers=" + ",".join(["*", *(f"-{name}" for name in DISABLED_CONTROLLERS)]),
        "--profiling=false",
    ]


def kube_scheduler(binary: Path, layout: Layout) -> list[str]:
    return [
        str(binary),
        *_kubeconfig_arguments(layout, "kube-scheduler"),
        "--bind-address=127.0.0.1",
        f"--secure-port={layout.port('scheduler')}",
        f"--cert-dir={layout.folder / 'pki' / 'kube-scheduler'}",
        "--leader-elect=false",
        "--kube-api-qps=300",
        "--kube-api-burst=600",
        "--profiling=false",
    ]


def prometheus(binary: Path, layout: Layout, options: PrometheusOptions) -> list[str]:
    command = [
        str(binary),
        f"--config.file={layout.folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={layout.folder / 'prometheus'}",
        "--storage.tsdb.retention.time=2d",
        f"--web.listen-address={layout.prometheus_host}:{layout.port('prometheus')}",
        "--web.enable-lifecycle",
        "--log.level=warn",
        *options.arguments,
    ]
    return [*command, f"--web.config.file={options.web_config}"] if options.web_config else command


def prometheus_config(layout: Layout, options: PrometheusOptions, kubeconfig: Path | None = None) -> str:
    """Scrape every container port named `...metrics` of pods annotated `prometheus.io/scrape: "true"`.

    `kubeconfig` names a cluster that is not ours.
    """
    discovery: dict[str, object] = {"role": "pod"}
    if kubeconfig is not None:
        discovery["kubeconfig_file"] = str(kubeconfig)
    else:
        pki = layout.pki
        discovery["api_server"] = layout.api_url
        discovery["tls_config"] = {
            "ca_file": str(pki.ca),
            "cert_file": str(pki.cert("admin")),
            "key_file": str(pki.key("admin")),
        }
    annotation = "__meta_kubernetes_pod_annotation_prometheus_io"
    relabel = [
        {"source_labels": [f"{annotation}_scrape"], "regex": "true", "action": "keep"},
        {"source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": ".*metrics", "action": "keep"},
        {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "Pending|Succeeded|Failed", "action": "drop"},
        {"source_labels": [f"{annotation}_path"], "regex": "(.+)", "target_label": "__metrics_path__"},
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
        {
            "source_labels": ["__meta_kubernetes_pod_label_app_kubernetes_io_component"],
            "target_label": "component",
        },
    ]
    jobs: list[dict[str, object]] = [
        {"job_name": "pods", "honor_labels": True, "kubernetes_sd_configs": [discovery], "relabel_configs": relabel}
    ]
    if options.targets:
        jobs.append({"job_name": "processes", "static_configs": [{"targets": list(options.targets)}]})
    config = {
        "global": {"scrape_interval": options.scrape_interval, "scrape_timeout": options.scrape_interval},
        "scrape_configs": jobs,
    }
    return yaml.safe_dump(config, sort_keys=False)


def process_node(layout: Layout, *, kubeconfig: Path, images: Path, probe_period: float | None) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "hack.cluster.node",
        f"--kubeconfig={kubeconfig}",
        f"--folder={layout.folder}",
        f"--network={layout.network}",
        f"--dns-port={layout.port('dns')}",
        f"--kubelet-port={layout.port('kubelet')}",
        f"--images={images}",
    ]
    return command if probe_period is None else [*command, f"--probe-period={probe_period}"]


def _kubeconfig_arguments(layout: Layout, client: str) -> list[str]:
    path = layout.kubeconfig(client)
    return [
        f"--kubeconfig={path}",
        f"--authentication-kubeconfig={path}",
        f"--authorization-kubeconfig={path}",
    ]


def admin_context(layout: Layout) -> ssl.SSLContext:
    """The admin's identity towards the API server, for `status_of`."""
    context = ssl.create_default_context()
    if layout.pki.ca.exists():
        context.load_verify_locations(layout.pki.ca)
        context.load_cert_chain(layout.pki.cert("admin"), layout.pki.key("admin"))
    return context


def readiness(layout: Layout, options: PrometheusOptions) -> Mapping[str, Callable[[], bool]]:
    """For each part, a question that is answered at once: is it ready?"""
    admin = admin_context(layout)
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    api = layout.api_url
    prometheus_url = f"{options.scheme}://{layout.prometheus_host}:{layout.port('prometheus')}/-/ready"
    return {
        "etcd": lambda: is_listening(layout.port("etcd")),
        "kube-apiserver": lambda: status_of(f"{api}/readyz", admin) == 200,
        # The fact that matters: without the default service account no pod can be created.
        "kube-controller-manager": lambda: (
            status_of(f"{api}/api/v1/namespaces/default/serviceaccounts/default", admin) == 200
        ),
        "kube-scheduler": lambda: status_of(f"https://127.0.0.1:{layout.port('scheduler')}/readyz", unverified) == 200,
        # With a password in web_config it says 401; that it answers must do then.
        "prometheus": lambda: status_of(prometheus_url, unverified) in (200, 401),
        "process-node": lambda: is_listening(layout.port("dns")),
    }


def is_listening(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def status_of(url: str, context: ssl.SSLContext) -> int | None:
    """HTTP status of GET `url`; None while nothing answers."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=2, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=2)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
