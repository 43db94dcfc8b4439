"""hack/node itself: what the other tests here take for granted of a node, and that nothing of it stays.

Its pods run kubectl, which is one static program: `kubectl proxy` serves HTTP, `kubectl get --raw` asks for it.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dnslib
import httpx
import psutil
import pytest

from hack.cluster import binaries
from hack.cluster.errors import CommandFailed
from hack.node import Node, archives
from hack.node.__main__ import main

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

NAMESPACE = "restricted"
IMAGE = "funicular.local/kubectl:1"
PATIENCE = 30.0

SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def make_pod(name: str, **security: object) -> dict[str, object]:
    container = {
        "name": "main",
        "image": IMAGE,
        "args": ["proxy", "--address=0.0.0.0", "--port=8080", "--accept-hosts=.*"],
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 1},
        "securityContext": SECURITY | security,
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def make_service(name: str) -> dict[str, object]:
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": "http"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def make_network_policy(name: str, **spec: object) -> dict[str, object]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], **spec},
    }


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    archive = tmp_path_factory.mktemp("images") / "kubectl.tar"
    archives.write(archive, IMAGE, binaries.ensure(["kubectl"])["kubectl"])
    folder = tmp_path_factory.mktemp("node")
    with Node.start("tests", folder=folder, images=[archive], metrics_server=False) as node:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        node.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
        node.apply([make_pod("web"), make_service("web"), make_pod("client")])
        in_namespace(node, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=30s")
        yield node


def in_namespace(node: Node, *arguments: str) -> str:
    return node.kubectl(f"--namespace={NAMESPACE}", *arguments)


def fetch_from_pod(node: Node, url: str, pod: str = "client") -> str:
    """What `url` answers to a pod. Raises CommandFailed."""
    server, slash, path = url.partition("/version")
    asked = ["get", "--raw", slash + path or "/", f"--server={server}", "--request-timeout=3s"]
    return in_namespace(node, "exec", pod, "--", "/kubectl", *asked)


def await_true(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.05)


def container_status(node: Node, pod: str) -> dict[str, object]:
    found = json.loads(in_namespace(node, "get", "pod", pod, "--output=json"))
    status: dict[str, object] = found["status"]["containerStatuses"][0]
    return status


def cluster_ip(node: Node) -> str:
    return in_namespace(node, "get", "service", "web", "--output=jsonpath={.spec.clusterIP}")


def test_a_pod_that_keeps_to_restricted_pod_security_runs_and_no_other(node: Node) -> None:
    assert "Ready" in node.kubectl("get", "node", node.name, "--no-headers")
    assert container_status(node, "web")["ready"] is True
    with pytest.raises(CommandFailed, match=r'violates PodSecurity "restricted'):
        node.apply(make_pod("greedy", allowPrivilegeEscalation=True))


@pytest.mark.parametrize("host", ["web", f"web.{NAMESPACE}.svc.cluster.local", "the Service's address"])
def test_a_pod_reaches_a_service(node: Node, host: str) -> None:
    host = cluster_ip(node) if host.startswith("the") else host
    assert "v1.37" in fetch_from_pod(node, f"http://{host}/version")


def test_this_machine_reaches_services_and_their_names(node: Node) -> None:
    address, _, port = node.dns.partition(":")
    question = dnslib.DNSRecord.question(f"web.{NAMESPACE}.svc.cluster.local")
    answer = dnslib.DNSRecord.parse(question.send(address, int(port), timeout=5))
    assert [str(it.rdata) for it in answer.rr] == [cluster_ip(node)]
    assert httpx.get(f"http://{answer.rr[0].rdata}/version").status_code == 200
    unknown = dnslib.DNSRecord.parse(dnslib.DNSRecord.question("example.com").send(address, int(port), timeout=5))
    assert unknown.header.rcode == dnslib.RCODE.NXDOMAIN


def test_a_pod_reaches_prometheus_which_scrapes_pods(node: Node) -> None:
    assert "Prometheus" in in_namespace(
        node, "exec", "client", "--", "/kubectl", "get", "--raw", "/-/ready", f"--server={node.prometheus_url}"
    )

    def is_scraped() -> bool:
        answer = httpx.get(f"{node.prometheus_url}/api/v1/query", params={"query": 'up{namespace="kube-system"} == 1'})
        return len(answer.json()["data"]["result"]) == 1

    await_true(is_scraped, "CoreDNS is scraped")


def test_a_network_policy_shuts_out_who_is_not_let_in(node: Node) -> None:
    def is_let_in(pod: str = "client") -> bool:
        try:
            return "v1.37" in fetch_from_pod(node, "http://web/version", pod)
        except CommandFailed:
            return False

    assert is_let_in()
    node.apply(make_network_policy("nobody"))
    await_true(lambda: not is_let_in(), "nobody is let in")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{cluster_ip(node)}/version", timeout=2)
    client = {"podSelector": {"matchLabels": {"app": "client"}}}
    node.apply(make_network_policy("client", ingress=[{"from": [client]}]))
    await_true(is_let_in, "the client is let in")
    in_namespace(node, "delete", "networkpolicy", "--all")
    await_true(lambda: httpx.get(f"http://{cluster_ip(node)}/version").status_code == 200, "all are let in again")


def test_a_killed_container_is_started_again(node: Node) -> None:
    before = container_status(node, "web")
    node.kill_container("web", "main", namespace=NAMESPACE)
    await_true(lambda: container_status(node, "web")["restartCount"] == 1, "the container was restarted")
    in_namespace(node, "wait", "--for=condition=Ready", "pod/web", "--timeout=30s")
    assert container_status(node, "web")["containerID"] != before["containerID"]


def test_pods_survive_a_killed_kubelet_runtime_and_api_server(node: Node) -> None:
    before = container_status(node, "web")
    address = cluster_ip(node)
    for part in ("kubelet", "containerd", "kube-apiserver"):
        node.kill(part)
        # Forbidden by the API server, or the pod does not reach that one: either way it is the pod that answers.
        assert httpx.get(f"http://{address}/nowhere", timeout=20).is_error, part
        node.restart(part)
    assert "v1.37" in fetch_from_pod(node, "http://web/version")
    after = container_status(node, "web")
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], before["restartCount"])


KINDS = {"parts", "processes", "containers", "cgroups", "interfaces"}  # its mounts cannot be seen from here


def kinds(left: Remains) -> set[str]:
    return {kind for kind, found in left.found().items() if found}


OWNER = """
import sys
from pathlib import Path
from hack.node import Node
node = Node.start("second", folder=Path(sys.argv[1]), metrics_server=False, network_policy=False, prometheus=False)
print(node.node_ip, flush=True)
sys.stdin.read()
"""


def test_two_nodes_side_by_side_and_a_killed_owner_leaves_nothing(node: Node, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        address = owner.stdout.readline().strip()
        assert address not in ("", node.node_ip)
        left = Remains(tmp_path, address)
        assert kinds(left) == KINDS
        owner.send_signal(signal.SIGKILL)
    await_true(lambda: not kinds(left), "nothing of the killed owner's node is there")
    assert "v1.37" in fetch_from_pod(node, "http://web/version"), "the first node is whole"
    assert main(["down", "--folder", str(tmp_path)]) == 0
    assert [it.name for it in tmp_path.iterdir()] == ["logs"]


def test_a_stopped_node_leaves_nothing(node: Node) -> None:
    left = Remains(node.folder, node.node_ip)
    assert kinds(left) == KINDS
    node.stop()
    # The kernel ends a namespace's processes one after the other; its first may still be seen for an instant.
    await_true(lambda: not kinds(left), "nothing of the stopped node is there")
    assert [it.name for it in node.folder.iterdir()] == ["logs"]


class Remains:
    """What there is of a node on this machine, by where it is and not by what the node says of itself."""

    def __init__(self, folder: Path, node_ip: str) -> None:
        self._folder = str(folder)
        self._network = node_ip.rsplit(".", 2)[0] + "."
        kubelet = next(it for it in processes() if it["name"] == "kubelet" and self._names_folder(it))
        self._namespace = namespace_of(kubelet["pid"])
        contained = (it for it in processes() if namespace_of(it["ppid"]) == self._namespace)
        self._cgroup = next(
            name for it in contained for name in re.findall(r"/(funicular-node-\d+)/", cgroups_of(it["pid"]))
        )

    def found(self) -> dict[str, list[str]]:
        return {
            "parts": [it["name"] for it in processes() if self._names_folder(it)],
            "processes": [it["name"] for it in processes() if namespace_of(it["pid"]) == self._namespace],
            "containers": [it["name"] for it in processes() if f"/{self._cgroup}/" in cgroups_of(it["pid"])],
            "cgroups": [str(it) for it in Path("/sys/fs/cgroup").glob(f"**/{self._cgroup}")],
            "interfaces": [
                name
                for name, addresses in psutil.net_if_addrs().items()
                if any(it.address.startswith(self._network) for it in addresses)
            ],
            "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if self._folder in line],
        }

    def _names_folder(self, process: dict[str, Any]) -> bool:
        return any(self._folder in word for word in process["cmdline"] or ())


def processes() -> list[dict[str, Any]]:
    return [it.info for it in psutil.process_iter(["pid", "ppid", "name", "cmdline"])]


def namespace_of(pid: int) -> Path | None:
    """None: it ended, or it is none of ours."""
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def cgroups_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
