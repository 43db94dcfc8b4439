"""Policies from git by a real Argo CD, with automated prune and self-heal: health, actions, and a revert that does not fight."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
import yaml

from funicular.adapters.kube import path_of
from funicular.controller.managed import ARGO_TRACKING
from hack.argocd import ArgoCD
from hack.argocd.commands import NAMESPACE
from hack.argocd.customizations import settings
from hack.demo.installed import Installed
from hack.demo.stack import CHECKOUT, Provider, Stack
from hack.demo.timeline import Seen
from tests.argocd.delivery import as_chart, as_manifest, config_map, delivered
from tests.argocd.policies import (
    LONG_STEPS,
    STEPS,
    changed,
    chart_files,
    customizations,
    first,
    holds,
    ramps_of,
    second,
    spec_revision,
)
from tests.e2e.account import Account
from tests.integration.stack_fixtures import NEXT, Scene, is_gone, on_stage, revision

Json = dict[str, Any]
pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]
BROKEN = {"error_rate": 0.9, "error_code": 503}
SOUND = {"error_rate": 0.0}
EXAMPLES = CHECKOUT / "hack" / "examples" / "argocd"
IGNORED = ({"group": "routing.funicular.dev", "kind": "RoutingPolicy", "jsonPointers": ["/spec"]},)
QUIET = 15.0  # seconds without a write to the spec


@pytest.fixture(scope="module")
def argo(installed: Stack, account: Account, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArgoCD]:
    """Application controller, repo-server, API server, Redis, and a git repository, beside the node."""
    began = time.time()
    folder = tmp_path_factory.mktemp("argocd")
    with ArgoCD.start(installed.cluster.kubeconfig, folder) as running:
        account.say(f"Argo CD is ready after {time.time() - began:.1f} s")
        before = _argocd_cm(running)
        patch = folder / "funicular-argocd.yaml"
        patch.write_text(customizations(running))
        running.kubectl("patch", "configmap", "argocd-cm", "-n", NAMESPACE, "--type=merge", f"--patch-file={patch}")
        after = _argocd_cm(running)
        assert {key: after[key] for key in before} == before, "Argo CD's own settings are not what they were"
        assert after.keys() - before.keys() == settings().keys()
        yield running
        running.uninstall()


@pytest_asyncio.fixture(loop_scope="session")
async def broken(installed: Stack) -> AsyncIterator[Provider]:
    """A cheap model that fails nine requests of ten, until the test is over."""
    await installed.set_faults(NEXT.name, **BROKEN)
    yield NEXT
    await installed.set_faults(NEXT.name, **SOUND)


async def count_requests(account: Account, scene: Scene) -> None:
    results = await scene.results()
    own = [it for it in results.failed if not it.lost]
    account.requests(sent=len(results.outcomes), failed_by_providers=len(own), lost=len(results.lost))
    assert not results.lost, "\n".join(it.explain() for it in results.lost[:20])


async def test_the_examples_are_accepted(argo: ArgoCD) -> None:
    """hack/examples/argocd, by Argo CD's own CRD."""
    argo.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(EXAMPLES))


async def test_a_ramp_is_healthy_and_holds_up_no_commit(argo: ArgoCD, installed: Stack, account: Account) -> None:
    """Plain manifests, the policy in a wave before the rest: the operation ends while the policy ramps, a commit in mid-ramp
    is applied, and removing the file from git takes the policy away."""
    policy = first(installed, "argo-plain", steps=LONG_STEPS)
    policy["metadata"]["annotations"] = {"argocd.argoproj.io/sync-wave": "-1"}
    after = {"after.yaml": config_map("argo-plain-after", number="1")}
    async with delivered(argo, installed, policy, more=after) as it:
        ramped = revision(policy)
        await it.scene.step(0)
        await it.users()
        await it.application(lambda app: app.is_at(it.commits[0]), "the first commit is applied")
        await it.health("Healthy", "step 1/2 at 20 %")
        assert (await it.scene.body())["metadata"]["annotations"][ARGO_TRACKING] == (
            f"argo-plain:routing.funicular.dev/RoutingPolicy:{installed.namespace}/argo-plain"
        )

        commit = await it.commit({"after.yaml": config_map("argo-plain-after", number="2")})
        await it.application(lambda app: app.is_at(commit), "the second commit is applied")
        there = await installed.kube.get(path_of("v1", "configmaps", installed.namespace, "argo-plain-after"))
        body = await it.scene.body()
        assert there["data"] == {"number": "2"}
        assert body["status"]["candidate"]["revision"] == ramped, "the ramp was over before the commit was applied"

        await it.promoted(ramped)
        await it.health("Healthy", "is promoted")
        await count_requests(account, it.scene)
        rows = it.recorder.rows
        account.timeline("Argo CD: a ramp from plain manifests", it.recorder.table())
        carried = next(row.at for row in rows if row.application.health == "Healthy")
        later = {row.application.health for row in rows if row.at > carried}
        assert later <= {"Healthy"}, it.recorder.table()
        assert len(it.recorder.writes) == 1

        pruned = await it.commit({"policy.yaml": None}, "the policy goes")
        await it.application(lambda app: app.is_at(pruned), "the policy is pruned")
        assert await is_gone(installed, "argo-plain")


async def test_a_revert_under_self_heal_does_not_fight(
    argo: ArgoCD, installed: Stack, account: Account, broken: Provider, pytestconfig: pytest.Config
) -> None:
    """`onRegression: Auto`: the spec is held because git manages it, traffic is at the last good revision, nobody writes."""
    good, bad = first(installed, "argo-revert"), second(installed, "argo-revert")
    async with delivered(argo, installed, good) as it:
        stable = revision(good)
        await it.users()
        await it.promoted(stable)
        rejected = await it.deliver(bad)
        why = await it.rejected(rejected)
        reverted = time.time()
        degraded = await it.health("Degraded", why.message)
        assert "errors" in why.message
        account.facts["argocd_seconds_to_degraded"] = round(max(0.0, degraded.at - why.at.timestamp()), 2)
        await holds(it, stable, rejected)

        # What is counted is what happens in a time: there is no other fact to wait for.
        await asyncio.sleep(pytestconfig.getoption("--war-seconds"))
        until_now = time.time()
        writes = it.recorder.writes_between(reverted, until_now)
        account.facts["argocd_spec_writes_after_revert"] = len(writes)
        account.facts["argocd_seconds_after_revert"] = round(until_now - reverted)
        assert not writes
        rows = it.recorder.rows_between(degraded.at, until_now)
        assert {(row.application.sync, row.application.health) for row in rows} == {("Synced", "Degraded")}
        await holds(it, stable, rejected)

        # The rejected commit again: by hand, and with the next commit that leaves the policy as it is.
        await it.sync()
        commit = await it.commit({"other.yaml": config_map("argo-revert-other")})
        await it.application(lambda app: app.is_at(commit), "the other file is applied")
        await holds(it, stable, rejected)
        assert not it.recorder.writes_between(reverted, time.time())
        answers = [o.answer for o in list(it.scene.load.results.outcomes) if o.at > reverted and o.answer]
        assert {answer.revision for answer in answers} == {stable}

        await installed.set_faults(broken.name, **SOUND)
        fixed = await it.deliver(changed(bad, "9s"))
        await it.promoted(fixed)
        await it.health("Healthy", "is promoted")
        await count_requests(account, it.scene)
        account.timeline("Argo CD: a revert under self-heal", it.recorder.table())


async def test_a_helm_source_is_held_too_and_put_right_in_git(
    argo: ArgoCD, installed: Stack, account: Account, broken: Provider
) -> None:
    """A chart of one policy; the bad commit is taken back with `git revert`: Healthy again, and nothing ramps for it."""
    good, bad = first(installed, "argo-helm"), second(installed, "argo-helm")
    async with delivered(argo, installed, good, files_of=as_chart) as it:
        stable = revision(good)
        await it.users()
        await it.promoted(stable)
        rejected = await it.deliver(bad)
        why = await it.rejected(rejected)
        await it.health("Degraded", why.message)
        await holds(it, stable, rejected)

        await asyncio.to_thread(argo.repository.revert)
        await asyncio.to_thread(argo.refresh, it.name)
        row = await it.health("Healthy", f"revision {rejected} was reverted (errors: ")
        assert row.application.sync == "Synced"
        assert f"{stable} serves" in (row.policy.message if row.policy else "")
        assert ramps_of(await it.scene.body(), stable) == 1
        await count_requests(account, it.scene)
        account.timeline("Argo CD: a revert of a Helm source, put right in git", it.recorder.table())


async def test_actions_and_a_human_gate(argo: ArgoCD, installed: Stack, account: Account) -> None:
    """Suspended until a person approves; every action does what it says, and self-heal takes none of them away."""
    steps = [{**STEPS[0], "approval": "Required"}, {**STEPS[1], "minDuration": "10m"}]
    policy = first(installed, "argo-actions", steps=steps)
    async with delivered(argo, installed, policy) as it:
        own = revision(policy)
        await it.users()
        await it.health("Suspended", "approval by a person")
        await it.act("approve")
        await it.scene.step(1)
        await it.health("Healthy")

        await it.act("pause")
        await it.scene.wait(lambda seen: seen.status.paused, "it is paused")
        await asyncio.to_thread(argo.refresh, it.name)
        row = await it.health("Healthy", "paused; a regression still reverts it")
        assert row.application.sync == "Synced"
        offered = await asyncio.to_thread(argo.actions, it.name, await it.resource())
        assert {name for name, enabled in offered.items() if enabled} == {"resume", "abort"}

        await it.act("resume")
        await it.scene.wait(lambda seen: not seen.status.paused, "it goes on")
        await it.act("abort")
        await it.rejected(own)
        await it.health("Degraded", "aborted by argocd")
        await it.act("retry")
        await it.scene.wait(lambda seen: seen.status.candidate is not None, "it ramps again")
        await it.act("promote")
        await it.scene.step(1)
        await it.act("promote")
        await it.promoted(own)
        row = await it.health("Healthy", "is promoted")
        assert row.application.sync == "Synced"
        by = [(entry["event"], entry["by"]) for entry in (await it.scene.body())["status"]["history"] if entry["by"]]
        assert [event for event, _ in by] == [
            "Approved",
            "Paused",
            "Resumed",
            "Aborted",
            "Retried",
            "PromotedByHand",
            "Promoted",
        ]
        assert {who for _, who in by} == {"argocd"}
        assert len(it.recorder.writes) == 1
        await count_requests(account, it.scene)
        account.timeline("Argo CD: actions and an approval", it.recorder.table())


async def test_revert_spec_with_the_settings_that_are_documented(
    argo: ArgoCD, installed: Stack, account: Account, broken: Provider
) -> None:
    """`onRegression: RevertSpec`, with hack/examples/argocd/revert-spec.yaml: restored once and not undone; the next commit
    brings git's spec back, which is latched, and the next good one ramps."""
    example = yaml.safe_load((EXAMPLES / "revert-spec.yaml").read_text())["spec"]
    good, bad = (make(installed, "argo-restore", onRegression="RevertSpec") for make in (first, second))
    settled = {"ignore": example["ignoreDifferences"], "helm": example["source"]["helm"], "files_of": as_chart}
    async with delivered(argo, installed, good, **settled) as it:
        stable = revision(good)
        await it.users()
        await it.promoted(stable)
        rejected = await it.deliver(bad)
        await it.rejected(rejected)
        await it.scene.wait(lambda seen: seen.status.phase == "Reverted", "the spec is restored")
        restored = time.time()
        await it.quiet(QUIET)
        assert not it.recorder.writes_between(restored, time.time())
        assert spec_revision(await it.scene.body()) == stable
        row = await it.health("Healthy", f"revision {rejected} was reverted (errors: ")
        assert row.application.sync == "Synced"

        await it.commit({"templates/other.yaml": config_map("argo-restore-other")})
        await it.health("Degraded", f"revision {rejected} was rejected: errors: ")
        await holds(it, stable, rejected)

        await installed.set_faults(broken.name, **SOUND)
        await it.promoted(await it.deliver(changed(bad, "9s")))
        await it.health("Healthy", "is promoted")
        await count_requests(account, it.scene)
        account.timeline("Argo CD: RevertSpec with /spec ignored", it.recorder.table())


async def test_where_spec_is_ignored_a_commit_of_nothing_else_waits_for_a_sync(argo: ArgoCD, installed: Stack) -> None:
    """The limit of those settings, and why every commit is stamped: Argo CD does not see the difference."""
    policy = first(installed, "argo-unstamped")
    async with delivered(argo, installed, policy, ignore=IGNORED) as it:
        await it.application(lambda app: app.is_at(it.commits[0]), "the policy is applied")
        later = changed(policy, "9s")
        commit = await it.commit(as_manifest(later))
        await it.application(lambda app: app.is_at(commit), "the commit is compared")
        assert spec_revision(await it.scene.body()) == revision(policy)
        await it.sync()
        assert spec_revision(await it.scene.body()) == revision(later)


async def test_revert_spec_against_self_heal_gives_up_after_one_round(
    argo: ArgoCD, installed: Stack, account: Account, broken: Provider
) -> None:
    """Without those settings self-heal undoes the restored spec at once; the revision is latched, so it ends there, held."""
    good, bad = (make(installed, "argo-fight", onRegression="RevertSpec") for make in (first, second))
    async with delivered(argo, installed, good) as it:
        stable = revision(good)
        await it.users()
        await it.promoted(stable)
        rejected = await it.deliver(bad)
        why = await it.rejected(rejected)
        await it.health("Degraded", why.message)
        await it.quiet(QUIET)
        writes = it.recorder.writes_between(why.at.timestamp(), time.time())
        account.facts["argocd_spec_writes_of_a_revert_without_settings"] = len(writes)
        account.timeline("Argo CD: RevertSpec without settings", it.recorder.table())
        await holds(it, stable, rejected)
        assert 0 < len(writes) <= 4, writes
        await count_requests(account, it.scene)


@pytest.mark.parametrize(
    ("marks", "is_held"),
    [
        pytest.param(
            {"annotations": {ARGO_TRACKING: "shop:routing.funicular.dev/RoutingPolicy:shop/other"}}, False, id="foreign"
        ),
        pytest.param({"labels": {"app.kubernetes.io/instance": "shop"}}, False, id="label-alone"),
        pytest.param(
            {
                "labels": {
                    "kustomize.toolkit.fluxcd.io/name": "apps",
                    "kustomize.toolkit.fluxcd.io/namespace": "flux-system",
                }
            },
            True,
            id="flux",
        ),
    ],
)
async def test_who_is_taken_for_git(
    installed: Stack,
    broken: Provider,
    marks: Json,
    is_held: bool,
    request: pytest.FixtureRequest,
) -> None:
    """A tracking id of another object or Argo CD's label alone prove nothing: the spec is restored. Flux's labels hold it."""
    name = f"marks-{request.node.callspec.id}"
    good, bad = first(installed, name), second(installed, name)
    for policy in (good, bad):
        policy["metadata"].update(copy.deepcopy(marks))
    async with on_stage(installed, name) as scene:
        stable = await scene.start(good)
        await scene.promoted(stable)
        rejected = await scene.apply(bad)

        def is_back(it: Seen) -> bool:
            latched = any(entry.revision == rejected for entry in it.status.rejected)
            return latched and it.status.candidate is None and it.status.phase in ("Reverted", "Degraded")

        found = await scene.wait(is_back, "it is taken back")
        assert found.status.phase == ("Degraded" if is_held else "Reverted")
        assert spec_revision(await scene.body()) == (rejected if is_held else stable)


def _argocd_cm(argo: ArgoCD) -> dict[str, str]:
    found: dict[str, str] = json.loads(argo.kubectl("get", "configmap", "argocd-cm", "-n", NAMESPACE, "-o", "json"))[
        "data"
    ]
    return found


async def test_the_chart_itself_from_git(argo: ArgoCD, installed: Installed) -> None:
    """hack/examples/argocd/funicular.yaml, beside the release that is there: Synced, Healthy, and still so after another
    look; deleted, it leaves nothing but its CRD."""
    name, folder = "funicular-git", CHECKOUT / "charts" / "funicular"
    await asyncio.to_thread(argo.repository.commit, chart_files(folder), "the chart")
    application = yaml.safe_load((EXAMPLES / "funicular.yaml").read_text())
    application["metadata"]["name"] = application["spec"]["destination"]["namespace"] = name
    source = application["spec"]["source"]
    source.update(repoURL=argo.repository.url, path=folder.name)
    values = installed.values()
    values |= {"crds": {"install": False}, "rbac": {"aggregateClusterRoles": False}}  # as a second release does
    values["operator"] |= {"namespaces": [name], "replicas": 1}
    values["gateway"] |= {"replicas": 1, "credentials": {"secretNames": []}}
    source["helm"]["valuesObject"] = values
    await asyncio.to_thread(argo.apply, application)
    try:
        await asyncio.to_thread(
            argo.wait, name, lambda app: (app.sync, app.health) == ("Synced", "Healthy"), "it is installed", 180
        )
        pods, _ = await installed.kube.list_all(path_of("v1", "pods", name))
        kinds = sorted(it["metadata"]["labels"]["app.kubernetes.io/component"] for it in pods)
        assert kinds == ["gateway", "operator"]
        commit = await asyncio.to_thread(argo.repository.commit, {}, "nothing")
        await asyncio.to_thread(argo.refresh, name)
        found = await asyncio.to_thread(argo.wait, name, lambda app: app.revision == commit, "it is compared again")
        assert (found.sync, found.health, found.problems) == ("Synced", "Healthy", ())
    finally:
        arguments = ("applications.argoproj.io", name, "-n", NAMESPACE, "--timeout=120s")
        await asyncio.to_thread(argo.kubectl, "delete", *arguments, timeout=150)
    deployments, _ = await installed.kube.list_all(path_of("apps/v1", "deployments", name))
    assert not deployments
    await asyncio.to_thread(argo.kubectl, "delete", "namespace", name, "--wait=false")
