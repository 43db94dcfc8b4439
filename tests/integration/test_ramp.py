"""The ramp, end to end, on real parts: API server, Prometheus, two operators, three gateway pods, providers, users."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock

import aiohttp
import pytest
import pytest_asyncio
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError
from typer.testing import CliRunner

from funicular.adapters.kube import path_of
from funicular.api.base import FINALIZER
from funicular.cli.main import app, sentence_of
from funicular.errors import FunicularError
from hack.demo.stack import Stack
from hack.demo.timeline import Seen
from hack.sim.outcomes import AnswerId, Failure, Results
from tests.integration.stack_fixtures import (
    EDGE,
    FRONTIER,
    LEASE_SECONDS,
    MINI,
    NEXT,
    PATIENCE,
    STEPS,
    Scene,
    condition,
    is_gone,
    is_stable,
    is_true,
    manifest,
    on_stage,
    revision,
    scrape,
    until,
)

COUNTED = re.compile(r"funicular_(requests|outcomes|slow|tokens|cost_dollars)_total")
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def chat(stack: Stack) -> AsyncIterator[Scene]:
    """A first ramp of the strategy `single`, to its promotion."""
    async with on_stage(stack, "chat") as scene:
        policy = manifest(stack, "chat")
        await scene.promoted(await scene.start(policy))
        yield scene


def nothing_lost(results: Results) -> None:
    assert not results.lost, "\n".join(outcome.explain() for outcome in results.lost[:20])


def waited_for_evidence(scene: Scene, ramped: str) -> None:
    """Each step lasted its minDuration and has its samples, by the operator's word and by the users' answers."""
    seen = [it.status for it in scene.timeline.seen if it.status.candidate and it.status.candidate.revision == ramped]
    answers = [o for o in list(scene.load.results.outcomes) if o.answer and o.answer.revision == ramped]
    in_effect = scene.timeline.steps(time.time())
    assert [it.share for it in in_effect] == [float(str(step["share"])) for step in STEPS]
    for index, (declared, step) in enumerate(zip(STEPS, in_effect, strict=True)):
        last = [
            status.step for status in seen if status.step and status.step.index == index and status.step.started_at
        ][-1]
        assert last.min_until is not None
        assert step.until >= last.min_until.timestamp(), f"step {index + 1} was cut short"
        treated = [o for o in answers if o.answer and o.answer.arm == "treatment" and step.since <= o.at < step.until]
        assert len(treated) >= int(str(declared["minSamples"])), f"step {index + 1} went on with too few samples"


async def test_a_first_ramp_is_promoted_step_by_step(chat: Scene) -> None:
    last = chat.timeline.last
    assert last is not None
    ramped, status = last.status.stable, last.status
    assert ramped is not None
    waited_for_evidence(chat, ramped.revision)

    assert status.phase == "Promoted"
    assert status.message.startswith(f"revision {ramped.revision} is promoted, 10 % held back on the baseline")
    assert status.gateways == "3/3"
    assert {it.type: it.status for it in status.conditions} == {
        "Ready": "True",
        "Reconciling": "False",
        "Stalled": "False",
        "GatewaysSynced": "True",
        "MetricsAvailable": "True",
        "ClassifierAvailable": "True",
        "Regressed": "False",
    }
    assert [entry.event for entry in status.history] == [
        "RampStarted",
        *["StepStarted", "StepPassed"] * 2,
        "StepStarted",
        "Promoted",
    ]
    messages = [it.status.message for it in chat.timeline.seen]
    assert any("step 2/3 at 60 %: waiting for" in text for text in messages)
    assert any("step 1/3 at 20 %: " in text and "samples" in text for text in messages), messages


async def test_its_events_and_its_controller_revision(chat: Scene) -> None:
    wanted = ["Served", "RampStarted", *["StepStarted", "StepPassed"] * 2, "StepStarted", "Promoted"]

    async def written() -> list[tuple[str, str]]:
        found = await chat.events()
        return found if {"Promoted"} <= {reason for reason, _ in found} else []

    events = await until(written, "the Event of the promotion")
    assert [reason for reason, _ in events] == wanted, events
    notes = dict(events)
    assert "step 3/3 at 100 % is in effect on 3 gateway pods" in notes["StepStarted"]
    assert "10 % of the units stay on the baseline" in notes["Promoted"]

    body = await chat.body()
    kept = body["status"]["stable"]["controllerRevision"]
    found = await chat.stack.kube.get(path_of("apps/v1", "controllerrevisions", chat.stack.namespace, kept))
    assert found["data"]["strategy"] == {"single": {"candidate": "cheap"}}
    assert found["metadata"]["ownerReferences"][0]["uid"] == body["metadata"]["uid"]


async def test_kubectl_get_shows_where_it_stood(chat: Scene) -> None:
    columns = {
        (it.status.phase, it.status.step_text, it.status.share_text) for it in chat.timeline.seen if it.status.step
    }
    assert {("Ramping", "1/3", "20%"), ("Ramping", "2/3", "60%"), ("Ramping", "3/3", "100%")} == columns
    header, row = (await chat.stack.kubectl("get", "rp", "chat", "-o", "wide")).splitlines()
    assert " ".join(header.split()) == "NAME PHASE STEP SHARE SLO AGE STABLE CANDIDATE GATEWAYS MESSAGE"
    assert "Promoted" in row
    assert "3/3" in row
    assert "held back on the baseline" in row


async def test_the_operators_metrics(chat: Scene) -> None:
    stack, labels = chat.stack, f'namespace="{chat.stack.namespace}",policy="chat"'
    await stack.look()
    leader = await stack.leader()
    led = {}
    for pod in stack.pods("operator"):
        found = await scrape(f"http://{pod['status']['podIP']}:8086/metrics")
        led[pod["metadata"]["name"]] = found["funicular_operator_leader"]
        if pod["metadata"]["name"] != leader:
            continue
        ramped = (await chat.body())["status"]["stable"]["revision"]
        phase = f'namespace="{stack.namespace}",phase="Promoted",policy="chat",revision="{ramped}"'
        assert found[f"funicular_operator_phase{{{phase}}}"] == 1
        assert found[f"funicular_operator_share_desired{{{labels}}}"] == 0
        assert found[f"funicular_operator_share_acked{{{labels}}}"] == 0
        assert found["funicular_operator_reconcile_seconds_count"] > 0
    assert led == {name: float(name == leader) for name in led}


async def test_the_users_of_each_step_contain_those_of_the_step_before(chat: Scene) -> None:
    ramped = (await chat.body())["status"]["stable"]["revision"]
    results = chat.load.results
    since, until_ = chat.timeline.steps(time.time())[0].since, chat.timeline.steps(time.time())[-1].until
    rows = chat.users(results, ramped)
    assert [len(row.left_out) for row in rows] == [0, 0, 0]
    assert len(rows[0].treated) < len(rows[1].treated) < len(rows[2].treated)
    assert rows[2].holdback, "a holdback stays at 100 %"
    assert not rows[2].control
    assert results.moved_back(ramped, since, until_) == {}


async def test_a_first_ramp_with_a_classifier(stack: Stack) -> None:
    async with on_stage(stack, "classified") as scene:
        ramps = await scene.start(manifest(stack, "classified", classifier=True))
        done = await scene.promoted(ramps)
        assert condition(done, "ClassifierAvailable") == ("True", "Ready")
        waited_for_evidence(scene, ramps)
        deployments, _ = await stack.kube.list_all(path_of("apps/v1", "deployments", stack.namespace))
        own = [it for it in deployments if it["metadata"]["name"].startswith("classified-")]
        assert [it["status"].get("readyReplicas") for it in own] == [own[0]["spec"]["replicas"]]
        results = await scene.results()
        nothing_lost(results)
        treated = [o for o in results.outcomes if o.answer and o.answer.arm == "treatment"]
        assert {o.answer.candidate for o in treated if o.answer} == {"frontier", "cheap"}
        cheap = sum(o.answer.candidate == "cheap" for o in treated if o.answer and o.difficulty == "easy")
        easy = sum(o.difficulty == "easy" for o in treated)
        assert cheap > 0.6 * easy, "most easy questions go to the cheap model"
        assert {o.answer.candidate for o in results.outcomes if o.answer and o.answer.arm == "control"} >= {"frontier"}
        assert {o.answer.candidate for o in results.outcomes if o.answer and o.answer.arm == "holdback"} == {"frontier"}


# --- a second revision that fails -----------------------------------------------------------------------------------------
@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def failed(chat: Scene) -> AsyncIterator[Seen]:
    """The promoted policy's next revision, whose provider breaks down at 20 %; yields what is there after the revert."""
    stack = chat.stack
    chat.load.set_rate(100.0)
    bad = await chat.apply(
        manifest(stack, "chat", candidate=NEXT, steps=({**STEPS[0], "minDuration": "5m"}, *STEPS[1:]))
    )
    await chat.step(0)

    await chat.treats(bad)
    await stack.set_faults("next", error_rate=1.0, error_code=503)
    reverted = await chat.wait(lambda it: bool(it.status.rejected), "the operator reverts")
    assert reverted.status.rejected[-1].revision == bad
    chat.timeline.mark("reverted", reverted.at)
    over = await chat.wait(
        lambda it: it.status.phase == "Reverted" and it.status.timings is not None and is_true(it, "Ready"),
        "the revert is over",
    )
    await stack.set_faults("next", error_rate=0.0)  # other policies of this module use it, too
    yield over


async def test_a_failing_second_revision_is_reverted_fast(chat: Scene, failed: Seen) -> None:
    good, bad = (revision(it) for it in chat.manifests[:2])
    status = failed.status
    (rejected,) = status.rejected
    assert rejected.revision == bad
    assert rejected.reason == "Regressed"
    assert "failed" in rejected.message, "by the fast-burn guard or by a look at Prometheus, whichever was first"
    assert status.timings is not None
    assert status.timings.decision_to_acked_ms is not None
    print(f"decision -> all pods confirmed: {status.timings.decision_to_acked_ms:.0f} ms")
    assert status.timings.decision_to_acked_ms < 10_000
    assert status.message == f"revision {bad} was reverted ({rejected.message}); {good} serves"
    assert condition(failed, "Regressed") == ("True", "Regressed")
    assert is_stable(failed, good)
    assert [entry.event for entry in status.history[-3:]] == ["RampStarted", "StepStarted", "Reverted"]

    async def told() -> set[str]:
        reasons = {reason for reason, _ in await chat.events()}
        return reasons if {"Reverted", "SpecReverted"} <= reasons else set()

    await until(told, "Events of the revert")


async def test_the_last_good_spec_is_in_the_object_again(chat: Scene, failed: Seen) -> None:
    body = await chat.body()
    assert revision(body) == revision(chat.manifests[0])
    for field in ("candidates", "strategy", "slos", "rollout"):
        assert body["spec"][field] == failed.spec[field]
    assert [step["minDuration"] for step in body["spec"]["rollout"]["steps"]] == ["3s", "2s", "2s"]


async def test_the_same_manifest_again_ramps_nothing(chat: Scene, failed: Seen) -> None:
    bad = await chat.apply(chat.manifests[1])
    latched = await chat.wait(lambda it: it.status.phase == "Degraded", "the rejected revision is known again")
    assert f"revision {bad} was rejected" in latched.status.message
    assert "retry" in latched.status.message
    assert condition(latched, "Stalled")[0] == "True"
    await asyncio.sleep(3.0)  # in which nothing may happen
    assert [it for it in chat.timeline.seen if it.at > failed.at and it.status.candidate] == []
    body = await chat.body()
    assert revision(body) == bad, "a person's manifest is not fought over"
    await chat.apply(chat.manifests[0])
    await chat.wait(
        lambda it: is_stable(it, revision(chat.manifests[0])) and is_true(it, "Ready"), "the good one again"
    )


async def test_untreated_users_stayed_with_the_stable_revision(chat: Scene, failed: Seen) -> None:
    """Control was answered by the promoted cheap model before, while and after the second revision ramped."""
    bad = revision(chat.manifests[1])
    results = chat.load.results
    (second,) = (it for it in chat.timeline.steps(time.time()) if it.revision == bad)
    arms: dict[str, set[str]] = {}
    outcomes = [o for o in list(results.outcomes) if o.answer and o.at > second.since]
    for outcome in outcomes:
        assert outcome.answer is not None
        arms.setdefault(outcome.answer.arm, set()).add(outcome.answer.candidate)
    assert arms["control"] == {"cheap"}
    assert arms["holdback"] == {"frontier"}
    treated = [o for o in outcomes if o.answer and o.answer.arm == "treatment"]
    assert {o.answer.revision for o in treated if o.answer} == {bad}
    assert failed.status.reverted_at is not None
    assert failed.status.timings is not None
    gone = failed.status.reverted_at.timestamp() + (failed.status.timings.decision_to_acked_ms or 0) / 1000
    assert [o.explain() for o in treated if o.at > gone + EDGE] == []
    assert {o.model for o in outcomes if o.answer and o.answer.arm == "control" and o.ok} == {MINI.model}


async def test_the_baseline_rescued_what_the_failing_provider_refused(chat: Scene, failed: Seen) -> None:
    """503 before the first byte: the user sees an answer of the baseline."""
    bad = revision(chat.manifests[1])
    of_bad = [o for o in list(chat.load.results.outcomes) if o.answer and o.answer.revision == bad]
    rescued = [o for o in of_bad if o.answer and o.answer.arm == "treatment" and o.model == FRONTIER.model]
    assert rescued
    assert all(o.ok for o in of_bad)
    assert {o.answer.candidate for o in rescued if o.answer} == {"frontier"}


# --- the official client --------------------------------------------------------------------------------------------------
@pytest_asyncio.fixture(loop_scope="session")
async def openai(chat: Scene) -> AsyncIterator[AsyncOpenAI]:
    chat.load.set_rate(0.0)  # its users have seen enough: what follows has users of its own
    url = f"{chat.stack.gateways()[0]}/v1"
    async with AsyncOpenAI(base_url=url, api_key="client-key", max_retries=0, timeout=30.0) as client:
        yield client


async def test_the_openai_client_completes_and_streams(openai: AsyncOpenAI) -> None:
    ask: Any = {"model": "chat", "messages": [{"role": "user", "content": "Where is my parcel?"}], "user": "ada"}
    raw = await openai.chat.completions.with_raw_response.create(**ask)
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None
    identity = AnswerId.parse(raw.headers.get("x-funicular-id"))
    assert identity is not None
    assert identity.policy == "stack/chat"

    stream = await openai.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert len([it for it in chunks if it.choices and it.choices[0].delta.content]) > 3
    assert [it.choices[0].finish_reason for it in chunks if it.choices][-1] == "stop"
    assert chunks[-1].usage is not None


async def test_the_openai_client_lists_models(openai: AsyncOpenAI) -> None:
    listed = [it.id async for it in openai.models.list()]
    assert "chat" in listed
    assert (await openai.models.retrieve("chat")).id == "chat"
    with pytest.raises(NotFoundError):
        await openai.models.retrieve("gpt-9")


async def test_the_openai_clients_exceptions(openai: AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    with pytest.raises(NotFoundError) as unknown:
        await openai.chat.completions.create(model="gpt-9", messages=messages)
    assert unknown.value.code == "model_not_found"
    assert "gpt-9" in str(unknown.value) or "model" in str(unknown.value)
    headers = {"content-type": "application/json"}
    with pytest.raises(BadRequestError) as broken:
        await openai.post("/chat/completions", content=b'{"model": ', cast_to=object, options={"headers": headers})
    assert "JSON" in str(broken.value)
    with pytest.raises(APIStatusError) as large:
        await openai.chat.completions.create(model="chat", messages=[{"role": "user", "content": "x" * (9 << 20)}])
    assert large.value.status_code == 413
    with pytest.raises(BadRequestError):
        await openai.chat.completions.create(model="chat", messages=[])


# --- a person at the command line -----------------------------------------------------------------------------------------
class Person:
    """Uses the command line against the stack's cluster."""

    def __init__(self, stack: Stack, policy: str) -> None:
        self._stack, self._policy = stack, policy

    async def does(self, verb: str, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, what stderr would say."""
        own = [verb, self._policy, "-n", self._stack.namespace, "--yes", "--timeout", "90", *arguments]
        with mock.patch.dict(os.environ, {"KUBECONFIG": str(self._stack.cluster.kubeconfig)}):
            done = await asyncio.to_thread(CliRunner().invoke, app, own)
        error = done.exception
        return done.exit_code, done.stdout, sentence_of(error) if isinstance(error, FunicularError) else repr(error)

    async def manages(self, verb: str, *arguments: str) -> None:
        code, out, err = await self.does(verb, *arguments)
        assert code == 0, (verb, out, err)
        assert out.endswith(f"{verb}: done.\n")


async def test_a_person_leads_a_ramp_by_the_command_line(stack: Stack) -> None:
    steps = (
        {"share": 5, "minDuration": "1h"},
        {"share": 30, "minDuration": "1h"},
        {"share": 60, "minDuration": "1s", "minSamples": 40, "approval": "Required"},
        {"share": 100, "minDuration": "1h"},
    )
    async with on_stage(stack, "by-hand") as scene:
        person = Person(stack, "by-hand")
        ramps = await scene.start(manifest(stack, "by-hand", steps=steps))
        await scene.step(0)

        code, _, err = await person.does("pause", "--revision", "0123456789")
        assert code == 1, "bound to the revision that was seen"
        assert f"you name revision 0123456789, but by-hand ramps {ramps}" in err
        await person.manages("pause", "--revision", ramps)
        paused = await scene.wait(lambda it: it.status.phase == "Paused", "it is paused")
        assert paused.status.message == "step 1/4 at 5 %: paused; a regression still reverts it"
        code, _, err = await person.does("promote")
        assert code == 1, "pause is stronger than promote"
        assert "nothing to promote now" in err
        await person.manages("resume")
        await scene.wait(lambda it: it.status.phase == "Ramping", "it goes on")

        await person.manages("promote", "--revision", ramps)
        await scene.step(1)
        await person.manages("promote")
        waits = await scene.wait(
            lambda it: it.status.phase == "AwaitingApproval", "it waits for a person", 2 * PATIENCE
        )
        assert waits.status.message == "step 3/4 at 60 %: approval by a person"
        await person.manages("approve")
        await scene.step(3)

        await person.manages("abort")
        aborted = await scene.wait(lambda it: bool(it.status.rejected), "it is aborted")
        assert aborted.status.rejected[-1].reason == "Aborted"
        assert aborted.share == 0
        latched = await scene.wait(
            lambda it: it.status.phase == "Degraded", "a first revision has no spec to go back to"
        )
        assert latched.status.stable is not None
        assert latched.status.stable.controller_revision is None
        await person.manages("retry", "--revision", ramps)
        again = await scene.step(0)
        assert again.status.rejected == ()

        entries = [(entry.event, entry.by) for entry in again.status.history]
        by = {event: who for event, who in entries if who}
        assert set(by) == {"Paused", "Resumed", "PromotedByHand", "Approved", "Aborted", "Retried"}, entries
        assert len(set(by.values())) == 1, "the name that the API server knows"
        nothing_lost(await scene.results())


# --- processes that die ---------------------------------------------------------------------------------------------------
LONG = ({"share": 50, "minDuration": "14s", "minSamples": 40}, {"share": 100, "minDuration": "1s", "minSamples": 40})


async def test_another_operator_takes_over_in_mid_step(stack: Stack, chat: Scene) -> None:
    async with on_stage(stack, "leaderless") as scene:
        ramps = await scene.start(manifest(stack, "leaderless", steps=LONG), rate=60)
        before = (await scene.step(0)).status.step
        assert before is not None
        assert before.min_until is not None
        await stack.look()
        holder = await stack.holder()
        (pod,) = (it for it in stack.pods("operator") if it["metadata"]["name"] == holder.rpartition("_")[0])
        killed = await stack.kill(pod, "operator")

        async def other() -> str:
            """The killed one's successor in the same pod may be quicker than the other pod."""
            found = await stack.holder()
            return found if found != holder else ""

        await until(other, "another operator leads")
        took = time.time() - killed
        assert took < 2 * LEASE_SECONDS + 4, f"{took:.1f} s until another one led"
        after = await scene.step(1, started=False)
        seen = [it.status.step for it in scene.timeline.seen if it.status.step and it.status.step.index == 0]
        clocks = {(step.started_at, step.min_until) for step in seen if step.started_at is not None}
        assert clocks == {(before.started_at, before.min_until)}, "neither restarted nor shortened"
        assert after.status.step is not None
        assert after.status.step.entered_at >= before.min_until
        late = (after.status.step.entered_at - before.min_until).total_seconds()
        assert late < 2 * LEASE_SECONDS + 30, f"passed {late:.1f} s after its shortest time"
        await scene.promoted(ramps)
        nothing_lost(await scene.results())
        unready = [it.status.message for it in chat.timeline.seen if it.at > killed and not is_true(it, "Ready")]
        assert unready == [], "a policy that does not ramp does not notice"


async def test_an_agent_and_an_envoy_die_in_mid_ramp(stack: Stack) -> None:
    steps = (
        {"share": 20, "minDuration": "6s", "minSamples": 40},
        {"share": 60, "minDuration": "8s", "minSamples": 40},
        {"share": 100, "minDuration": "1s", "minSamples": 40},
    )
    async with on_stage(stack, "mortal") as scene:
        ramps = await scene.start(manifest(stack, "mortal", steps=steps), rate=120)
        watching = asyncio.ensure_future(watch_counters(stack, "mortal"))
        try:
            began = await scene.step(0)
            await stack.look()
            first, second = stack.pods("gateway")[:2]
            await stack.kill(first, "agent")
            await scene.step(1)
            killed = await stack.kill(second, "envoy")
            dead = f"http://{second['status']['podIP']}:8080"
            await scene.promoted(ramps)
            await until(lambda: all_ready(stack), "all pods are ready again")
        finally:
            watching.cancel()
        assert await asyncio.gather(watching, return_exceptions=True)
        assert watching.cancelled(), watching.exception()

        results = await scene.results()
        retried = [o for o in results.retried if dead in o.tried_before]
        cut = [o for o in results.lost if o.pod == dead and o.failure is Failure.CUT and abs(o.at - killed) < 5]
        print(f"Envoy killed: {len(retried)} requests went to another pod, {len(cut)} answers broke off in the middle")
        assert len(cut) < 20, "no more than were under way"
        assert [o.explain() for o in results.lost if o not in cut] == []
        assert [o.explain() for o in results.retried if dead not in o.tried_before] == []
        rows = scene.users(results, ramps)
        assert [len(row.left_out) for row in rows] == [0] * len(rows)
        assert results.moved_back(ramps, began.at, scene.timeline.steps(time.time())[-1].until - EDGE) == {}


async def all_ready(stack: Stack) -> bool:
    await stack.look()
    return len(stack.pods("gateway")) == 3


async def watch_counters(stack: Stack, policy: str) -> None:
    """Until cancelled; fails when a counter of a gateway pod goes backwards."""
    last: dict[str, dict[str, float]] = {}
    addresses = [pod["status"]["podIP"] for pod in stack.pods("gateway")]
    while True:
        for address in addresses:
            with contextlib.suppress(aiohttp.ClientError):
                found = await scrape(f"http://{address}:8081/metrics")
                own = {s: v for s, v in found.items() if f'policy="{policy}"' in s and COUNTED.match(s)}
                before = last.get(address, {})
                fallen = {s: (v, own[s]) for s, v in before.items() if s in own and own[s] < v}
                gone = {s: v for s, v in before.items() if s not in own and v > 0}
                assert not fallen, f"{address}: {fallen}"
                assert not gone or not own, f"{address}: {gone}"
                last[address] = own or before
        await asyncio.sleep(0.5)


async def test_the_api_server_is_away_for_five_seconds(stack: Stack) -> None:
    async with on_stage(stack, "headless") as scene:
        ramps = await scene.start(manifest(stack, "headless", steps=LONG), rate=60)
        before = (await scene.step(0)).status.step
        assert before is not None
        await asyncio.to_thread(stack.cluster.kill, "kube-apiserver")
        await asyncio.sleep(5.0)
        await asyncio.to_thread(stack.cluster.restart, "kube-apiserver", PATIENCE)
        after = await scene.step(1, started=False)
        assert after.status.step is not None
        assert before.min_until is not None
        assert after.status.step.entered_at >= before.min_until
        seen = [it.status.step for it in scene.timeline.seen if it.status.step and it.status.step.index == 0]
        assert {step.started_at for step in seen if step.started_at} == {before.started_at}
        await scene.promoted(ramps)
        results = await scene.results()
        nothing_lost(results)
        assert results.moved_back(ramps, before.entered_at.timestamp(), after.at) == {}


async def test_the_share_freezes_without_prometheus_and_goes_on_afterwards(stack: Stack) -> None:
    steps = (
        {"share": 50, "minDuration": "5s", "minSamples": 40},
        {"share": 100, "minDuration": "1s", "minSamples": 40},
    )
    async with on_stage(stack, "blind") as scene:
        ramps = await scene.start(manifest(stack, "blind", steps=steps), rate=60)
        first = (await scene.step(0)).status.step
        assert first is not None
        assert first.min_until is not None
        await asyncio.to_thread(stack.cluster.kill, "prometheus")
        try:
            blind = await scene.wait(lambda it: condition(it, "MetricsAvailable")[0] == "False", "it says so")
            found = blind.status.condition("MetricsAvailable")
            assert found is not None
            assert found.reason == "MetricsUnavailable"
            assert "the share is frozen" in found.message
            over = first.min_until.timestamp() + 4.0
            await asyncio.sleep(max(0.0, over - time.time()))  # the step would have passed by now
            step = (await scene.body())["status"]["step"]
            assert (step["index"], step["share"]) == (0, 5000)
        finally:
            await asyncio.to_thread(stack.cluster.restart, "prometheus", PATIENCE)
        await scene.wait(lambda it: is_true(it, "MetricsAvailable"), "Prometheus answers again")
        done = await scene.promoted(ramps)
        assert done.status.rejected == ()
        nothing_lost(await scene.results())


# --- the end --------------------------------------------------------------------------------------------------------------
async def test_a_policy_is_deleted_in_mid_ramp(stack: Stack) -> None:
    steps = ({"share": 50, "minDuration": "1h"}, {"share": 100})
    async with on_stage(stack, "short-lived") as scene:
        ramps = await scene.start(manifest(stack, "short-lived", steps=steps))
        await scene.step(0)
        await scene.treats(ramps)
        assert (await scene.body())["metadata"]["finalizers"] == [FINALIZER]
        await stack.kube.delete(stack.policy_path("short-lived"))
        await until(lambda: is_gone(stack, "short-lived"), "the policy is gone")
        gone = time.time()

        async def forgotten() -> bool:
            outcomes = list(scene.load.results.outcomes)[-30:]
            return len(outcomes) == 30 and all(o.status == 404 for o in outcomes)

        await until(forgotten, "the endpoint is not served any more")
        last = scene.timeline.last
        assert last is not None
        traffic = last.status.traffic
        assert traffic is not None
        assert traffic.candidate is None
        assert traffic.stable.is_baseline_only
        results = await scene.results()
        served = [o for o in results.outcomes if o.status != 404]
        assert [o.explain() for o in served if not o.ok] == []
        early = [o.explain() for o in results.outcomes if o.status == 404 and o.at + o.latency < gone - 1.0]
        assert early == [], "404 only after all pods had confirmed"
        after = [o for o in served if o.answer and o.answer.revision == ramps and o.answer.arm == "treatment"]
        assert max(o.at for o in after) < gone


async def test_a_rotated_key_reaches_envoy_without_a_restart(stack: Stack, openai: AsyncOpenAI) -> None:
    steps = ({"share": 100, "minDuration": "1h"},)
    ask: Any = {"messages": [{"role": "user", "content": "hello"}], "model": "rotating"}
    async with on_stage(stack, "rotating") as scene:
        await scene.start(manifest(stack, "rotating", candidate=NEXT, steps=steps), rate=0)
        await scene.step(0)
        await stack.look()
        started = {name: states(pod) for pod in stack.pods("gateway") if (name := pod["metadata"]["name"])}
        path = path_of("v1", "secrets", stack.namespace, NEXT.secret)
        kept = (await stack.kube.get(path))["data"]["api-key"]

        async def answers() -> set[tuple[int, str]]:
            """Of treated users, with who answered: the baseline would hide what becomes of the candidate's key."""
            found = set()
            for number in range(30):  # some of them are held back
                headers = {"x-user-id": f"someone-{number}"}
                try:
                    raw = await openai.chat.completions.with_raw_response.create(**ask, extra_headers=headers)
                    status, fields = raw.status_code, raw.headers
                except APIStatusError as error:
                    status, fields = error.status_code, error.response.headers
                answer = AnswerId.parse(fields["x-funicular-id"])
                assert answer is not None
                if answer.arm == "treatment":
                    found.add((status, answer.candidate))
            return found

        assert await answers() == {(200, "cheap")}
        try:
            await stack.kube.patch(path, {"stringData": {"api-key": "sk-rotated"}})

            async def rotated() -> bool:
                return await answers() == {(401, "cheap")}  # the provider has not been told

            await until(rotated, "the new key is sent")
            assert (await stack.provider_state("next"))["foreign_keys"].keys() == {"sk-rotated"}
        finally:
            await stack.kube.patch(path, {"data": {"api-key": kept}})

        async def back() -> bool:
            return await answers() == {(200, "cheap")}

        await until(back, "the old key is sent again")
        await stack.look()
        assert {pod["metadata"]["name"]: states(pod) for pod in stack.pods("gateway")} == started


def states(pod: dict[str, Any]) -> dict[str, Any]:
    return {it["name"]: (it["restartCount"], it["containerID"]) for it in pod["status"]["containerStatuses"]}


async def test_no_provider_saw_a_foreign_key_or_a_header_of_ours(stack: Stack, chat: Scene, failed: Seen) -> None:
    """After all that went before: ramps, fallbacks, reverts, restarts."""
    await stack.look()
    for name in stack.providers:
        state = await stack.provider_state(name)
        assert state["requests"] > 0
        assert state["funicular_headers"] == {}
        assert state["foreign_keys"].keys() <= ({"sk-rotated"} if name == "next" else set())
        assert "client-key" not in state["by_key"]
        assert len(state["by_key"].keys() - {"sk-rotated"}) == 1, "its own key, and no request without one"
    nothing_lost(await chat.results())
