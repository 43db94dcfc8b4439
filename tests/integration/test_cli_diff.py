"""`funicular diff` and the options that may stand anywhere, on a real API server."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from funicular.api.revision import revision_of
from funicular.api.spec import RoutingPolicySpec
from hack.cluster import Cluster
from tests.integration.test_cli import Terminal, known, terminal
from tests.unit.api.bad_policies import example

__all__ = ["known", "terminal"]


def test_a_manifest_is_compared_with_the_cluster(terminal: Terminal, tmp_path: Path) -> None:
    same, changed = tmp_path / "same.json", tmp_path / "changed.json"
    manifest = example()
    same.write_text(json.dumps(manifest))
    code, out, err = terminal.on("diff", "-f", str(same))
    assert (code, out) == (0, ""), "what the API server fills in is no difference"
    assert "nothing ramps anew" in err

    other = copy.deepcopy(manifest)
    other["spec"]["candidates"][1]["model"] = "another"
    changed.write_text(json.dumps(other))
    code, out, err = terminal.on("diff", "-f", str(changed))
    assert code == 1
    assert "+  model: another" in out
    assert f"becomes {revision_of(RoutingPolicySpec.model_validate(other['spec']))}: a new ramp" in err


def test_the_object_is_compared_with_its_last_good_spec(terminal: Terminal) -> None:
    good = copy.deepcopy(terminal.policy()["spec"])
    good["candidates"][1]["model"] = "the one before"
    revision = {"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "good"}}
    terminal.cluster.kubectl(
        "apply", "-n", terminal.namespace, "-f", "-", input=json.dumps({**revision, "revision": 1, "data": good})
    )
    stable = {"revision": "aaaa", "since": "2026-11-25T12:00:00Z", "controllerRevision": "good"}
    terminal.write_status({"observedGeneration": 1, "stable": stable})
    code, out, _ = terminal.on("diff")
    assert code == 1
    assert "-  model: the one before" in out

    terminal.cluster.kubectl("delete", "controllerrevision", "good", "-n", terminal.namespace)
    code, _, err = terminal.on("diff")
    assert code == 1
    assert "somebody deleted ControllerRevision good" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(("diff", "support-chat"), "has no good spec yet", id="nothing was promoted"),
        pytest.param(("diff", "support-chat", "-f", "/nowhere.yaml"), "/nowhere.yaml cannot be read", id="no file"),
        pytest.param(("retry", ""), "the policy's name is empty", id="no name"),
        pytest.param(("get", "--context", "nobody"), "with name nobody", id="no context"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(terminal: Terminal, arguments: tuple[str, ...], sentence: str) -> None:
    code, _, err = terminal.run(*arguments, "-n", terminal.namespace)
    assert code == 1
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_a_kubeconfig_may_be_named(terminal: Terminal, cluster: Cluster) -> None:
    del terminal.environment["KUBECONFIG"]
    code, out, _ = terminal.run("get", "-n", terminal.namespace, "--kubeconfig", str(cluster.kubeconfig), "-o", "json")
    assert code == 0
    assert [it["metadata"]["name"] for it in json.loads(out)["items"]] == ["support-chat"]
