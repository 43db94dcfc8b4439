"""The command line against a real API server. The operator's answers to verbs are played here; the rest is real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from funicular.api import crd
from funicular.api.base import PLURAL
from funicular.api.verbs import ANNOTATION, parse
from hack.cluster import Cluster, CommandFailed, binaries
from tests.unit.api.bad_policies import example
from tests.unit.cli.bodies import REVISION, policy_body

Json = dict[str, Any]
PROGRAMS = Path(sys.executable).parent


class Terminal:
    """Runs `funicular` in a namespace, as a person would, and plays the operator's side."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "TERM": "dumb"}

    def start(self, *arguments: str, program: str = "funicular") -> subprocess.Popen[str]:
        command = [str(PROGRAMS / program), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, env=self.environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, *arguments: str, program: str = "funicular") -> tuple[int, str, str]:
        process = self.start(*arguments, program=program)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        return process.returncode, out, err

    def on(self, verb: str, *arguments: str) -> tuple[int, str, str]:
        return self.run(verb, "support-chat", "-n", self.namespace, *arguments)

    def policy(self) -> Json:
        return dict(json.loads(self.cluster.kubectl("get", "rp", "support-chat", "-n", self.namespace, "-o", "json")))

    def write_status(self, status: Json) -> None:
        patch = ("--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
        self.cluster.kubectl("patch", "rp", "support-chat", "-n", self.namespace, *patch)


@pytest.fixture(scope="module")
def known(cluster: Cluster) -> Cluster:
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(crd.FILE))
    end = time.monotonic() + 30
    while True:
        try:
            cluster.kubectl("get", PLURAL, "-A")
            return cluster
        except CommandFailed:
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.fixture
def terminal(known: Cluster, namespace: str) -> Terminal:
    known.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(example()))
    return Terminal(known, namespace)


@pytest.fixture
def ramping(terminal: Terminal) -> Terminal:
    terminal.write_status(policy_body()["status"])
    return terminal


@pytest.fixture
def operator(ramping: Terminal) -> Iterator[list[str]]:
    """Answers requests "done" as the operator does; returns the annotations that it saw."""
    seen: list[str] = []
    over = threading.Event()

    def answer() -> None:
        while not over.wait(0.1):
            text = ramping.policy()["metadata"].get("annotations", {}).get(ANNOTATION, "")
            request = parse(text)
            if request is None or text in seen:
                continue
            seen.append(text)
            done = {"id": request.id, "verb": request.verb, "revision": request.revision, "at": "2026-11-25T12:00:00Z"}
            ramping.write_status({"lastVerb": {**done, "result": "done"}})

    thread = threading.Thread(target=answer)
    thread.start()
    yield seen
    over.set()
    thread.join()


def test_crd_can_be_piped_into_kubectl(cluster: Cluster) -> None:
    code, out, _ = Terminal(cluster, "default").run("crd")
    assert code == 0
    assert "serverside-applied" in cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=out)


def test_get_lists_policies(ramping: Terminal) -> None:
    code, out, err = ramping.run("get", "-n", ramping.namespace)
    assert (code, err) == (0, "")
    assert [line.split()[:3] for line in out.splitlines()][1] == ["support-chat", "Ramping", "2/4"]
    code, out, _ = ramping.run("get", "-A", "-o", "wide")
    assert ramping.namespace in out
    assert policy_body()["status"]["message"] in out, "a long row is not broken in a pipe"


def test_get_prints_objects(ramping: Terminal) -> None:
    _, out, _ = ramping.run("get", "-n", ramping.namespace, "-o", "json")
    listed = json.loads(out)["items"]
    assert [item["kind"] for item in listed] == ["RoutingPolicy"]
    _, out, _ = ramping.run("get", "support-chat", "-n", ramping.namespace, "-o", "yaml")
    assert yaml.safe_load(out) == ramping.policy(), "as kubectl prints it"


def test_status_and_history(ramping: Terminal) -> None:
    code, out, _ = ramping.on("status")
    assert code == 0
    assert "step 2/4 at 10 %" in out
    code, out, _ = ramping.on("history")
    assert code == 0
    assert out.splitlines()[1].split()[-1] == "ann"
    code, out, _ = ramping.on("history", "-o", "json")
    assert [entry["event"] for entry in json.loads(out)] == ["Ramped", "StepStarted"]


def test_status_of_a_new_policy(terminal: Terminal) -> None:
    code, out, _ = terminal.on("status")
    assert code == 0
    assert "the operator has not seen this policy yet" in out


def test_the_kubectl_plugin(ramping: Terminal) -> None:
    environment = {**ramping.environment, "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    command = [str(binaries.ensure(["kubectl"])["kubectl"]), "funicular", "get", "-n", ramping.namespace]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "support-chat" in done.stdout


def test_watch_prints_a_line_for_each_change(ramping: Terminal) -> None:
    process = ramping.start("watch", "support-chat", "-n", ramping.namespace)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"Ramping: {policy_body()['status']['message']}\n"
        ramping.write_status({"phase": "Paused", "message": "step 2/4 at 10 %: paused"})
        assert process.stdout.readline() == "Paused: step 2/4 at 10 %: paused\n"
        ramping.cluster.kubectl("delete", "rp", "support-chat", "-n", ramping.namespace)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 1
        assert err == f"funicular: RoutingPolicy support-chat in namespace {ramping.namespace} was deleted\n"
    finally:
        process.kill()


def test_a_verb_is_written_bound_to_the_revision_and_answered(ramping: Terminal, operator: list[str]) -> None:
    code, out, err = ramping.on("abort", "--yes")
    assert (code, err) == (0, "")
    assert f"will take revision {REVISION} at step 2/4, 10 %, back to 0 %" in out
    assert out.endswith("abort: done.\n")
    (text,) = operator
    request = parse(text)
    assert request is not None
    assert (request.verb, request.revision) == ("abort", REVISION)
    assert request.by, "the name that the API server knows"


def test_a_refusal_of_the_operator_is_told(ramping: Terminal) -> None:
    process = ramping.start("promote", "support-chat", "-n", ramping.namespace, "--yes")
    end, request = time.monotonic() + 20, None
    while request is None and time.monotonic() < end:
        request = parse(ramping.policy()["metadata"].get("annotations", {}).get(ANNOTATION, ""))
    assert request is not None
    answer = {"id": request.id, "verb": "promote", "revision": REVISION, "at": "2026-11-25T12:00:00Z"}
    ramping.write_status({"lastVerb": {**answer, "result": "refused: there is nothing to promote now (NotInEffect)"}})
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err == f"funicular: promote of {REVISION}: refused: there is nothing to promote now (NotInEffect)\n"


def test_no_answer_is_told_with_what_to_do(ramping: Terminal) -> None:
    code, _, err = ramping.on("pause", "--yes", "--timeout", "0.5")
    assert code == 1
    assert "the operator has not answered within 0.5 s" in err
    assert "kubectl get lease" in err


def test_without_a_terminal_nothing_is_asked_and_nothing_done(ramping: Terminal) -> None:
    code, out, err = ramping.on("abort")
    assert code == 1
    assert "will take revision" in out
    assert err == "funicular: there is no terminal to ask for a confirmation; add --yes\n"
    assert ANNOTATION not in ramping.policy()["metadata"].get("annotations", {})


def test_another_revision_is_not_touched(ramping: Terminal) -> None:
    code, _, err = ramping.on("abort", "--yes", "--revision", "0000000000")
    assert code == 1
    assert f"you name revision 0000000000, but support-chat ramps {REVISION}" in err
    assert ANNOTATION not in ramping.policy()["metadata"].get("annotations", {})


def test_a_busy_policy_can_be_aborted(ramping: Terminal, operator: list[str]) -> None:
    """The operator writes the status all the time; each write makes the version that was shown an old one."""
    over = threading.Event()

    def write() -> None:
        count = 0
        while not over.is_set():
            count += 1
            ramping.write_status({"message": f"look {count}"})

    thread = threading.Thread(target=write)
    thread.start()
    try:
        code, out, err = ramping.on("abort", "--yes")
    finally:
        over.set()
        thread.join()
    assert (code, err) == (0, "")
    assert out.endswith("abort: done.\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(
            ("status", "nobody"), "there is no RoutingPolicy nobody in namespace default", id="no such policy"
        ),
        pytest.param(
            ("abort", "nobody"), "there is no RoutingPolicy nobody in namespace default", id="nothing to abort"
        ),
    ],
)
def test_what_is_not_there_is_one_sentence(known: Cluster, arguments: tuple[str, ...], sentence: str) -> None:
    code, _, err = Terminal(known, "default").run(*arguments)
    assert (code, err) == (1, f"funicular: {sentence}\n")


def test_a_cluster_that_does_not_answer_is_one_sentence(known: Cluster, tmp_path: Path) -> None:
    config = yaml.safe_load(known.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    terminal = Terminal(known, "default")
    terminal.environment["KUBECONFIG"] = str(tmp_path / "kubeconfig")
    code, _, err = terminal.run("get")
    assert code == 1
    assert err.startswith("funicular: GET /apis/routing.funicular.dev/")
    assert err.count("\n") == 1


def test_a_person_without_rights_is_told_so(ramping: Terminal, tmp_path: Path) -> None:
    token = ramping.cluster.kubectl("create", "token", "default", "-n", ramping.namespace).strip()
    config = yaml.safe_load(ramping.cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    ramping.environment["KUBECONFIG"] = str(tmp_path / "kubeconfig")
    code, _, err = ramping.on("status")
    assert code == 1
    assert "forbidden" in err
    assert err.count("\n") == 1
