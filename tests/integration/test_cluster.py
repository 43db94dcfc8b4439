"""The cluster that all other integration tests stand on: its parts, its node, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from dnslib import DNSRecord

from hack.cluster import Cluster, CommandFailed, Image
from hack.cluster.cluster import CHECKOUT
from hack.cluster.controlplane import PrometheusOptions

Object = dict[str, Any]

SLEEP = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(0)); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)


def eventually(fact: Callable[[], Any], *, within: float = 20) -> Any:
    """The first true value of `fact`; the assertion that failed last, after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        try:
            if value := fact():
                return value
            assert time.monotonic() < deadline, f"not true within {within:g} s: {fact}"
        except (AssertionError, CommandFailed, OSError, KeyError, IndexError):
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def make_pod(name: str, namespace: str, *arguments: str, **container: Any) -> Object:
    """A Pod of one container that runs Python with `arguments`."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "main", "image": "python", "args": list(arguments), **container}],
        },
    }


def get(cluster: Cluster, kind: str, name: str, namespace: str) -> Object:
    return dict(json.loads(cluster.kubectl("get", kind, name, "-n", namespace, "-o", "json")))


def conditions(pod: Object) -> dict[str, str]:
    return {it["type"]: it["status"] for it in pod["status"].get("conditions", ())}


def ready_pod(cluster: Cluster, name: str, namespace: str) -> Object:
    def is_ready() -> Object | None:
        pod = get(cluster, "pod", name, namespace)
        return pod if conditions(pod).get("Ready") == "True" else None

    return dict(eventually(is_ready))


def main_process(pod: Object) -> psutil.Process:
    """The process behind the Pod's only container."""
    identity = pod["status"]["containerStatuses"][0]["containerID"]
    return psutil.Process(int(identity.removeprefix("process://").split("-")[0]))


def lookup(cluster: Cluster, name: str, kind: str = "A", tcp: bool = False) -> DNSRecord:
    host, _, port = cluster.dns.partition(":")
    return DNSRecord.parse(DNSRecord.question(name, kind).send(host, int(port), tcp=tcp, timeout=5))


def test_a_deployment_becomes_ready_is_scraped_and_has_a_name(cluster: Cluster, namespace: str) -> None:
    labels = {"app": "web", "app.kubernetes.io/component": "website"}
    container = {
        "name": "web",
        "image": "web",
        "args": ["8000"],
        "ports": [{"name": "http-metrics", "containerPort": 8000}],
        "readinessProbe": {"httpGet": {"port": "http-metrics", "path": "/"}},
    }
    template = {
        "metadata": {"labels": labels, "annotations": {"prometheus.io/scrape": "true"}},
        "spec": {"containers": [container]},
    }
    metadata = {"name": "web", "namespace": namespace}
    cluster.apply(
        [
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": metadata,
                "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template},
            },
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": metadata,
                "spec": {"selector": {"app": "web"}, "ports": [{"port": 8000}]},
            },
        ]
    )
    cluster.kubectl("rollout", "status", "deployment/web", "-n", namespace, "--timeout=30s")
    pods = json.loads(cluster.kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]
    addresses = {pod["status"]["podIP"] for pod in pods}
    assert len(addresses) == 2, "each pod has an address of its own"
    for address in addresses:
        with urllib.request.urlopen(f"http://{address}:8000/", timeout=5) as answer:
            assert answer.status == 200
    for tcp in (False, True):
        answer = lookup(cluster, f"web.{namespace}.svc.cluster.local", tcp=tcp)
        assert {str(record.rdata) for record in answer.rr} == addresses
    # http.server has no /metrics: the scrape fails, but the target is there with its labels.
    assert eventually(lambda: target_labels(cluster, namespace)) == {"website"}
    pod = pods[0]["metadata"]["name"]
    assert "GET / HTTP/1.1" in eventually(lambda: cluster.kubectl("logs", pod, "-n", namespace))


def target_labels(cluster: Cluster, namespace: str) -> set[str]:
    query = urllib.parse.urlencode({"query": f'up{{namespace="{namespace}"}}'})
    with urllib.request.urlopen(f"{cluster.prometheus_url}/api/v1/query?{query}", timeout=5) as answer:
        return {series["metric"]["component"] for series in json.load(answer)["data"]["result"]}


def test_a_killed_process_restarts_and_is_counted(cluster: Cluster, namespace: str) -> None:
    cluster.apply(make_pod("phoenix", namespace, "-c", SLEEP))
    before = ready_pod(cluster, "phoenix", namespace)
    os.kill(main_process(before).pid, signal.SIGKILL)

    def restarted() -> Object | None:
        status = get(cluster, "pod", "phoenix", namespace)["status"]["containerStatuses"][0]
        return status if status["restartCount"] == 1 and "running" in status["state"] else None

    status = eventually(restarted)
    assert status["lastState"]["terminated"]["exitCode"] == 137
    assert status["containerID"] != before["status"]["containerStatuses"][0]["containerID"]


def test_a_failing_container_is_backed_off(cluster: Cluster, namespace: str) -> None:
    cluster.apply(make_pod("doomed", namespace, "-c", "exit(3)"))

    def waits() -> Object | None:
        status = get(cluster, "pod", "doomed", namespace)["status"]["containerStatuses"][0]
        return status if status["restartCount"] >= 2 and "waiting" in status["state"] else None

    status = eventually(waits)
    assert status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert status["lastState"]["terminated"]["exitCode"] == 3


def test_a_pod_that_ends_is_succeeded_or_failed(cluster: Cluster, namespace: str) -> None:
    for name, code in (("fine", 0), ("broken", 4)):
        pod = make_pod(name, namespace, "-c", f"exit({code})")
        pod["spec"]["restartPolicy"] = "Never"
        cluster.apply(pod)
    for name, phase in (("fine", "Succeeded"), ("broken", "Failed")):
        cluster.kubectl("wait", f"--for=jsonpath={{.status.phase}}={phase}", f"pod/{name}", "-n", namespace)


def test_an_image_that_does_not_exist_is_waited_for(cluster: Cluster, namespace: str) -> None:
    pod = make_pod("later", namespace, "-c", SLEEP)
    pod["spec"]["containers"][0]["image"] = f"example.test/{namespace}:1"
    cluster.apply(pod)

    def reason() -> bool:
        state = get(cluster, "pod", "later", namespace)["status"]["containerStatuses"][0]["state"]
        return state["waiting"]["reason"] in ("ErrImagePull", "ImagePullBackOff")

    eventually(reason)
    assert conditions(get(cluster, "pod", "later", namespace))["Ready"] == "False"
    cluster.add_images({f"example.test/{namespace}": [sys.executable]})
    ready_pod(cluster, "later", namespace)


def test_environment_and_mounted_paths_reach_the_process(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    script = (
        "import os, json, sys, pathlib; print(json.dumps([dict(os.environ), pathlib.Path(sys.argv[1]).read_text()]))"
    )
    pod = make_pod(
        "curious",
        namespace,
        "-c",
        script + f"; {SLEEP}",
        "/etc/app/greeting",
        env=[
            {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "api"}}},
            {"name": "URL", "value": "http://$(IP):80/$(ME)"},
        ],
        envFrom=[{"configMapRef": {"name": "settings"}, "prefix": "APP_"}],
        volumeMounts=[{"name": "config", "mountPath": "/etc/app"}, {"name": "scratch", "mountPath": "/scratch"}],
    )
    pod["spec"]["volumes"] = [
        {"name": "config", "configMap": {"name": "settings", "items": [{"key": "greeting", "path": "greeting"}]}},
        {"name": "scratch", "emptyDir": {}},
    ]
    cluster.apply(pod)

    def waits_for_settings() -> bool:
        return conditions(get(cluster, "pod", "curious", namespace)).get("Ready") == "False"

    eventually(waits_for_settings)
    metadata = {"namespace": namespace}
    cluster.apply(
        [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "settings", **metadata},
                "data": {"greeting": "see /scratch/x"},
            },
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "keys", **metadata},
                "stringData": {"api": "s3"},
            },
        ]
    )
    ready = ready_pod(cluster, "curious", namespace)
    environment, greeting = json.loads(eventually(lambda: cluster.kubectl("logs", "curious", "-n", namespace)))
    ip = ready["status"]["podIP"]
    assert environment["ME"] == "curious"
    assert environment["URL"] == f"http://{ip}:80/curious"
    assert environment["KEY"] == "s3"
    assert environment["APP_greeting"].endswith("/volumes/scratch/x"), "a mounted path is rewritten"
    assert greeting == environment["APP_greeting"], "also inside the file of a ConfigMap"
    config = yaml.safe_load(Path(environment["KUBECONFIG"]).read_text())
    assert config["contexts"][0]["context"]["namespace"] == namespace


def test_a_pod_acts_as_its_service_account(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("create", "serviceaccount", "reader", "-n", namespace)
    kubectl = cluster._binaries["kubectl"]
    pod = make_pod(
        "account",
        namespace,
        "-c",
        f"import subprocess, time; subprocess.run(['{kubectl}', 'auth', 'whoami', '-o', 'json']); print(flush=True); {SLEEP}",
    )
    pod["spec"]["serviceAccountName"] = "reader"
    cluster.apply(pod)
    ready_pod(cluster, "account", namespace)

    def user() -> Object:
        review = json.loads(cluster.kubectl("logs", "account", "-n", namespace))
        return dict(review["status"]["userInfo"])

    assert eventually_parsed(user)["username"] == f"system:serviceaccount:{namespace}:reader"


def eventually_parsed(read: Callable[[], Object]) -> Object:
    """`eventually` for output that is not complete JSON at first."""

    def attempt() -> Object | None:
        try:
            return read()
        except ValueError:
            return None

    return dict(eventually(attempt))


def test_a_changed_secret_reaches_the_file(cluster: Cluster, namespace: str) -> None:
    def secret(value: str) -> Object:
        metadata = {"name": "token", "namespace": namespace}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"value": value}}

    cluster.apply(secret("old"))
    mount = {"name": "token", "mountPath": "/secrets"}
    pod = make_pod("holder", namespace, "-c", SLEEP, "/secrets/value", volumeMounts=[mount])
    pod["spec"]["volumes"] = [{"name": "token", "secret": {"secretName": "token"}}]
    cluster.apply(pod)
    process = main_process(ready_pod(cluster, "holder", namespace))
    file = Path(process.cmdline()[-1])
    assert file.read_text() == "old"
    assert file.is_symlink()
    cluster.apply(secret("new"))
    eventually(lambda: file.read_text() == "new")
    assert process.is_running(), "without a restart"


def test_a_projected_token_is_accepted_for_its_audience_only(cluster: Cluster, namespace: str) -> None:
    mount = {"name": "identity", "mountPath": "/identity"}
    pod = make_pod("caller", namespace, "-c", SLEEP, "/identity/token", volumeMounts=[mount])
    source = {"serviceAccountToken": {"path": "token", "audience": "operator", "expirationSeconds": 600}}
    pod["spec"]["volumes"] = [{"name": "identity", "projected": {"sources": [source]}}]
    cluster.apply(pod)
    process = main_process(ready_pod(cluster, "caller", namespace))
    token = Path(process.cmdline()[-1]).read_text()
    for audience, accepted in (("operator", True), ("somebody-else", False)):
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        answer = json.loads(cluster.kubectl("create", "-f", "-", "-o", "json", input=json.dumps(review)))
        assert answer["status"].get("authenticated", False) is accepted


def test_deletion_honours_the_grace_and_ends_with_force(cluster: Cluster, namespace: str) -> None:
    polite = make_pod("polite", namespace, "-c", SLEEP)
    polite["spec"]["terminationGracePeriodSeconds"] = 60
    deaf = make_pod("deaf", namespace, "-c", STUBBORN)
    deaf["spec"]["terminationGracePeriodSeconds"] = 2
    cluster.apply([polite, deaf])
    pids = {name: main_process(ready_pod(cluster, name, namespace)) for name in ("polite", "deaf")}
    eventually(lambda: "deaf" in cluster.kubectl("logs", "deaf", "-n", namespace))
    began = time.monotonic()
    cluster.kubectl("delete", "pod", "polite", "-n", namespace, "--timeout=20s")
    assert time.monotonic() - began < 20, "a process that obeys SIGTERM does not use up its grace"
    began = time.monotonic()
    cluster.kubectl("delete", "pod", "deaf", "-n", namespace, "--timeout=20s")
    assert time.monotonic() - began >= 1.9, "one that does not is given all of it"
    assert not any(process.is_running() for process in pids.values())


def test_a_pod_deleted_by_force_loses_its_process(cluster: Cluster, namespace: str) -> None:
    pod = make_pod("stuck", namespace, "-c", STUBBORN)
    pod["spec"]["terminationGracePeriodSeconds"] = 600
    cluster.apply(pod)
    process = main_process(ready_pod(cluster, "stuck", namespace))
    cluster.kubectl("delete", "pod", "stuck", "-n", namespace, "--wait=false")
    cluster.kubectl("delete", "pod", "stuck", "-n", namespace, "--force", "--grace-period=0")
    eventually(lambda: not process.is_running())


def test_pre_stop_runs_before_the_signal(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hook = {"exec": {"command": [sys.executable, "-c", f"open({str(marker)!r}, 'w').write('stopping')"]}}
    cluster.apply(make_pod("hooked", namespace, "-c", SLEEP, lifecycle={"preStop": hook}))
    ready_pod(cluster, "hooked", namespace)
    cluster.kubectl("delete", "pod", "hooked", "-n", namespace, "--timeout=20s")
    assert marker.read_text() == "stopping"


def test_init_containers_run_in_order_and_sidecars_stay(cluster: Cluster, namespace: str) -> None:
    append = "import sys; open('/shared/order'.replace('/shared', sys.argv[1]), 'a').write(sys.argv[2])"
    mount = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    common = {"image": "python", **mount}
    pod = make_pod("ordered", namespace, "-c", SLEEP, "/shared/order", **mount)
    pod["spec"]["initContainers"] = [
        {"name": "first", **common, "args": ["-c", append, "/shared", "1"]},
        {"name": "beside", **common, "args": ["-c", SLEEP], "restartPolicy": "Always"},
        {"name": "second", **common, "args": ["-c", append, "/shared", "2"]},
    ]
    pod["spec"]["volumes"] = [{"name": "shared", "emptyDir": {}}]
    cluster.apply(pod)
    ready = ready_pod(cluster, "ordered", namespace)
    assert conditions(ready)["Initialized"] == "True"
    assert Path(main_process(ready).cmdline()[-1]).read_text() == "12"
    states = {it["name"]: it["state"] for it in ready["status"]["initContainerStatuses"]}
    assert "running" in states["beside"]
    assert states["first"]["terminated"]["reason"] == "Completed"


def test_readiness_follows_the_probe_and_liveness_restarts(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    healthy, alive = tmp_path / "healthy", tmp_path / "alive"
    alive.touch()

    def probe(file: Path) -> Object:
        command = [sys.executable, "-S", "-c", f"import os, sys; sys.exit(not os.path.exists({str(file)!r}))"]
        return {"exec": {"command": command}, "periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 10}

    pod = make_pod("moody", namespace, "-c", SLEEP, readinessProbe=probe(healthy), livenessProbe=probe(alive))
    pod["metadata"]["annotations"] = {"cluster.funicular.dev/probe-period": "0.1"}
    cluster.apply(pod)

    def readiness() -> str:
        return conditions(get(cluster, "pod", "moody", namespace)).get("Ready", "")

    eventually(lambda: get(cluster, "pod", "moody", namespace)["status"]["containerStatuses"][0]["started"])
    assert readiness() == "False"
    healthy.touch()
    eventually(lambda: readiness() == "True")
    healthy.unlink()
    eventually(lambda: readiness() == "False")
    alive.unlink()
    eventually(lambda: get(cluster, "pod", "moody", namespace)["status"]["containerStatuses"][0]["restartCount"] >= 1)


def test_dns_tells_unknown_names_from_names_without_addresses(cluster: Cluster, namespace: str) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "empty", "namespace": namespace},
        "spec": {"selector": {"app": "nobody"}, "ports": [{"port": 80}]},
    }
    cluster.apply(service)
    eventually(lambda: lookup(cluster, f"empty.{namespace}.svc").header.rcode == 0)
    assert not lookup(cluster, f"empty.{namespace}.svc.cluster.local").rr
    assert lookup(cluster, f"absent.{namespace}.svc.cluster.local").header.rcode == 3
    assert lookup(cluster, "example.com").header.rcode == 3


@pytest.fixture
def own_cluster(tmp_path: Path) -> Any:
    """A cluster that a test may break."""
    images = {"python": Image((sys.executable, "-u"))}
    with Cluster.start("own", folder=tmp_path / "own", images=images) as running:
        yield running


def test_the_parts_of_a_cluster_can_be_killed_paused_and_restarted(own_cluster: Cluster) -> None:
    cluster = own_cluster
    cluster.apply(make_pod("survivor", "default", "-c", SLEEP))
    process = main_process(ready_pod(cluster, "survivor", "default"))
    cluster.kill("kube-apiserver")
    with pytest.raises(CommandFailed):
        cluster.kubectl("get", "pods")
    assert process.is_running(), "pods live on without the API server"
    cluster.restart("kube-apiserver")
    assert conditions(get(cluster, "pod", "survivor", "default"))["Ready"] == "True"
    cluster.pause("prometheus")
    with pytest.raises(OSError, match="timed out"):
        urllib.request.urlopen(f"{cluster.prometheus_url}/-/ready", timeout=0.5)
    cluster.resume("prometheus")
    cluster.wait_until_ready("prometheus")
    cluster.kill("process-node")
    eventually(lambda: not process.is_running())
    cluster.restart("process-node")

    def restarted() -> bool:
        pod = get(cluster, "pod", "survivor", "default")
        return conditions(pod)["Ready"] == "True" and pod["status"]["containerStatuses"][0]["restartCount"] == 1

    eventually(restarted)


def test_two_clusters_side_by_side_share_nothing(cluster: Cluster, own_cluster: Cluster) -> None:
    assert cluster.api_url != own_cluster.api_url
    own_cluster.apply(make_pod("here", "default", "-c", SLEEP))
    address = ready_pod(own_cluster, "here", "default")["status"]["podIP"]
    theirs = json.loads(cluster.kubectl("get", "pods", "-A", "-o", "json"))["items"]
    assert address not in {pod["status"].get("podIP") for pod in theirs}
    with pytest.raises(CommandFailed, match="NotFound"):
        cluster.kubectl("get", "pod", "here")


def descendants_in(folder: Path) -> list[psutil.Process]:
    """All processes that have something to do with a cluster's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            texts = [*process.cmdline(), *process.environ().values(), process.cwd()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(folder) in text for text in texts):
            found.append(process)
    return found


def is_free(url: str) -> bool:
    port = urllib.parse.urlsplit(url).port
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port or 0)) != 0


def test_an_owner_that_is_killed_takes_everything_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "orphan"
    pod = json.dumps(
        make_pod("child", "default", "-c", f"import subprocess; subprocess.run(['sleep', '600']); {SLEEP}")
    )
    script = f"""
        import sys
        from pathlib import Path
        from hack.cluster import Cluster
        cluster = Cluster.start("orphan", folder=Path({str(folder)!r}), images={{"python": [sys.executable]}})
        cluster.apply({pod!r})
        cluster.kubectl("wait", "--for=condition=Ready", "pod/child", "--timeout=20s")
        print(cluster.api_url, flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        api_url = owner.stdout.readline().strip()
        assert api_url, "the cluster has started"
        family = psutil.Process(owner.pid).children(recursive=True)
        assert any(process.name() == "sleep" for process in family), "the container's own child is among them"
        owner.kill()
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert gone
    assert not alive
    assert is_free(api_url)


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hack.cluster", *arguments, f"--folder={folder}"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_up_prints_one_line_and_down_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "detached"
    started = command("up", folder=folder)
    assert started.returncode == 0, started.stderr
    assert started.stdout == f"export KUBECONFIG={folder / 'kubeconfig'}\n"
    assert command("up", folder=folder).stdout == started.stdout, "up twice is up"
    server = yaml.safe_load((folder / "kubeconfig").read_text())["clusters"][0]["cluster"]["server"]
    assert not is_free(server)
    assert "PROMETHEUS_URL" in command("env", folder=folder).stdout
    assert command("down", folder=folder).returncode == 0
    eventually(lambda: not descendants_in(folder))
    assert is_free(server)
    assert not (folder / "kubeconfig").exists()
    assert command("down", folder=folder).returncode == 0, "down twice is down"


def test_down_ends_a_cluster_that_is_only_half_started(tmp_path: Path) -> None:
    folder = tmp_path / "half"
    with subprocess.Popen(
        [sys.executable, "-m", "hack.cluster", "up", f"--folder={folder}"],
        cwd=CHECKOUT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as starting:
        eventually(lambda: (folder / "cluster.json").exists())
        assert command("down", folder=folder).returncode == 0
        assert starting.wait(timeout=30) != 0
    eventually(lambda: not descendants_in(folder))


def test_objects_are_kept_if_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with Cluster.start("kept", folder=folder, keep=True, node=False, prometheus=False) as first:
        first.kubectl("create", "configmap", "memory")
    with Cluster.start("kept", folder=folder, keep=True, node=False, prometheus=False) as second:
        assert "memory" in second.kubectl("get", "configmaps")
    eventually(lambda: not descendants_in(folder))


def test_prometheus_may_ask_for_a_password_and_scrape_other_processes(tmp_path: Path) -> None:
    web_config = tmp_path / "web.yaml"
    # The hash says "secret".
    web_config.write_text("basic_auth_users: {admin: $2b$04$rhGf6OZGpU2MhWWll3S1MeJCZYV/W6yyM5P4xXkjbxtrzxIvJ1G1K}\n")
    options = PrometheusOptions(web_config=web_config, targets=("127.0.0.1:9",))
    with Cluster.start("auth", folder=tmp_path / "auth", node=False, prometheus_options=options) as guarded:
        url = f"{guarded.prometheus_url}/api/v1/targets"
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(url, timeout=5)
        refused.value.close()
        authorized = urllib.request.Request(url, headers={"authorization": "Basic YWRtaW46c2VjcmV0"})

        def scraped() -> bool:
            with urllib.request.urlopen(authorized, timeout=5) as answer:
                active = json.load(answer)["data"]["activeTargets"]
            return "127.0.0.1:9" in {target["labels"]["instance"] for target in active}

        eventually(scraped)


def test_a_cluster_of_the_users_own_gets_what_it_lacks(tmp_path: Path) -> None:
    with (
        Cluster.start("theirs", folder=tmp_path / "theirs", node=False, prometheus=False) as theirs,
        Cluster.start(
            "ours", folder=tmp_path / "ours", external=theirs.kubeconfig, images={"python": [sys.executable]}
        ) as ours,
    ):
        assert ours.api_url == theirs.api_url
        assert ours.kubeconfig == theirs.kubeconfig
        ours.apply(make_pod("guest", "default", "-c", SLEEP))
        ready_pod(ours, "guest", "default")
        ours.stop()
        assert "guest" in theirs.kubectl("get", "pods"), "their cluster goes on"
