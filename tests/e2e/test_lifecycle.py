"""Upgrade and uninstall: a ramp goes on through the one, and the other leaves endpoints on the baseline and says so. Last."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from funicular.api.base import PLURAL
from hack.demo.installed import CHART, RELEASE, Installed
from tests.e2e.account import Account
from tests.e2e.apps import app, patient, served
from tests.integration.stack_fixtures import manifest, on_stage, until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]
STEPS = ({"share": 50, "minDuration": "1h", "minSamples": 40}, {"share": 100, "minDuration": "1s", "minSamples": 40})
ID_KEY = f"secret/{RELEASE}-gateway-id-key"
Json = dict[str, Any]


@pytest.fixture
def next_chart(tmp_path: Path) -> Path:
    """The chart under its next version's number."""
    copy = tmp_path / "funicular"
    shutil.copytree(CHART, copy)
    described = yaml.safe_load((copy / "Chart.yaml").read_text())
    described["version"] = "0.2.0"
    (copy / "Chart.yaml").write_text(yaml.safe_dump(described))
    return copy


async def test_an_upgrade_keeps_a_ramp_running(installed: Installed, account: Account, next_chart: Path) -> None:
    """Another chart version and other resources replace all pods: the ramp's step, the signing key and every request stay."""
    async with on_stage(installed, "upgrade") as scene:
        await served(scene, patient(manifest(installed, "upgrade", classifier=True, steps=STEPS)))
        step = (await scene.step(0)).status.step
        key = await installed.kubectl("get", ID_KEY, "-o", "jsonpath={.data.key}")
        async with app(installed, account, "upgrading", "upgrade", 40.0, "--new-connections", "0.5") as users:
            await users.more(100)
            await installed.upgrade(
                next_chart, gateway={"agent": {"logLevel": "WARNING"}}, operator={"logLevel": "WARNING"}
            )
            await installed.until_ready()
            await scene.confirmed()
            await users.more(200)
            state = await users.settle()
            assert not state["lost"], await users.lost()
        last = scene.timeline.last
        assert last is not None
        assert step is not None
        assert last.status.step is not None
        assert last.share == 50
        assert last.status.step.started_at == step.started_at, "the step began anew"
        assert await installed.kubectl("get", ID_KEY, "-o", "jsonpath={.data.key}") == key


async def test_uninstall_leaves_endpoints_at_the_baseline_and_says_so(installed: Installed, account: Account) -> None:
    """`helm uninstall` takes back what ramps, prints what each endpoint is left at, and keeps policies and CRD."""
    name = "left-behind"
    policy = patient(manifest(installed, name, classifier=True, steps=STEPS))
    await installed.apply_policy(policy)

    async def ramps() -> bool:
        status = (await installed.policy(name)).get("status", {})
        return bool((status.get("step") or {}).get("startedAt"))

    await until(ramps, "the policy ramps")
    said = await installed.helm("uninstall", RELEASE, "--wait", "--timeout", "120s")
    account.tables["helm uninstall"] = [{"said": line} for line in said.splitlines() if line.strip()]
    assert f"{installed.namespace}/{name}" in said
    assert "at the baseline" in said
    left = await installed.policy(name)
    assert left["status"]["traffic"].get("candidate") is None, left["status"]["message"]
    assert left["status"]["traffic"]["share"]["desired"] == 0
    assert "routingpolicies.routing.funicular.dev" in await installed.kubectl("get", "crd", "-o", "name")

    async def gone() -> bool:
        await installed.look()
        return not installed.pods("gateway") and not installed.pods("operator")

    await until(gone, "all pods are gone")
    await installed.kubectl("patch", PLURAL, name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    await installed.kubectl("delete", PLURAL, name, "--timeout=20s")
