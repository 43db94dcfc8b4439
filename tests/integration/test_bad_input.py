"""Bad input, each on the whole of Funicular: what the policy says, where traffic stays, and how it recovers when it is mended.

Every test has a policy and an endpoint of its own; they share the stack of `stack_fixtures`. A condition and an Event must
name the field and the remedy, requests are answered by the stable revision meanwhile, and none is lost.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from funicular.adapters.kube import path_of
from funicular.api.policy import parse_status
from funicular.api.revision import revision_of
from funicular.api.spec import RoutingPolicySpec
from funicular.api.status import Condition, Status
from funicular.api.verbs import ANNOTATION
from funicular.errors import NotFound
from hack.cluster import Image
from hack.demo.stack import Stack
from hack.sim.load import Load, provider_failures
from hack.sim.users import Habits, Population

pytestmark = pytest.mark.asyncio(loop_scope="session")

Json = dict[str, Any]
LONG = 60.0
QUALITY = {"name": "quality", "query": {"value": "vector(0)"}, "max": 1, "quality": True}
ERRORS = {"name": "errors", "indicator": "ErrorRate", "allowedIncrease": 0.3}
WAITS_FOR_A_PERSON = [{"share": 50, "minSamples": 20, "approval": "Required"}, {"share": 100, "minSamples": 20}]


class Policy:
    """One policy as a person sees it: applied with kubectl, read from the API server, with its Events."""

    def __init__(self, stack: Stack, name: str, **spec: Any) -> None:
        self.stack, self.name = stack, name
        self.spec: Json = {
            "endpoint": {"model": name},
            "candidates": [self.candidate("frontier", "gpt-frontier", baseline=True), self.candidate("mini", "mini-1")],
            "strategy": {"single": {"candidate": "mini"}},
            "assignment": {"minDuration": "0s"},
            "slos": [ERRORS, QUALITY],
            "rollout": self.rollout([{"share": 50, "minSamples": 20}, {"share": 100, "minSamples": 20}]),
            "prometheus": self.prometheus(stack.cluster.prometheus_url),
            **spec,
        }

    def candidate(self, name: str, model: str, **more: Any) -> Json:
        secret = {"secretRef": {"name": f"{name}-key", "key": "api-key"}}
        url = self.stack.provider_url(name)
        return {"name": name, "url": url, "model": model, "credentials": secret, "timeout": "5s", **more}

    @staticmethod
    def rollout(steps: list[Json]) -> Json:
        return {"steps": steps, "holdback": 10, "onRegression": "HoldSpec", "falsePromotionRate": 0.2}

    @staticmethod
    def prometheus(url: str, **more: Any) -> Json:
        return {"url": url, "interval": "1s", "timeout": "2s", **more}

    async def apply(self) -> Policy:
        head = {
            "apiVersion": "routing.funicular.dev/v1alpha1",
            "kind": "RoutingPolicy",
            "metadata": {"name": self.name},
        }
        await self.stack.apply_policy({**head, "spec": self.spec})
        return self

    @property
    def revision(self) -> str:
        return revision_of(RoutingPolicySpec.model_validate(self.spec))

    async def status(self) -> Status:
        return parse_status(await self.stack.policy(self.name))

    async def until(self, is_so: Callable[[Status], object], what: str, timeout: float = LONG) -> Status:
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if is_so(found := await self.status()):
                        return found
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(
                f"{self.name}: {what}: not within {timeout:g} s; it says {await self.told()}"
            ) from None

    async def says(self, kind: str, status: str, reason: str, *words: str, timeout: float = LONG) -> Condition:
        """The condition, once it says this."""

        def is_so(found: Status) -> bool:
            now = found.condition(kind)
            return (
                now is not None
                and (now.status, now.reason) == (status, reason)
                and all(word in now.message for word in words)
            )

        found = (await self.until(is_so, f"{kind}={status} {reason} with {words}", timeout)).condition(kind)
        assert found is not None
        return found

    async def events(self) -> list[Json]:
        path = path_of("events.k8s.io/v1", "events", self.stack.namespace)
        found, _ = await self.stack.kube.list_all(path, fieldSelector=f"regarding.name={self.name}")
        return found

    async def event(self, reason: str, *words: str, kind: str = "Warning", timeout: float = 20.0) -> Json:
        """The Event, once it is there."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while True:
                    for found in await self.events():
                        is_it = (found["reason"], found["type"]) == (reason, kind)
                        if is_it and all(word in found["note"] for word in words):
                            return found
                    await asyncio.sleep(0.1)
        raise AssertionError(f"{self.name}: no {kind} Event {reason} with {words}; it says {await self.told()}")

    async def told(self) -> str:
        """All that a person could read, for a test that fails."""
        status = await self.status()
        lines = [f"{status.phase}: {status.message}"]
        lines += [f"{it.type}={it.status} {it.reason}: {it.message}" for it in status.conditions]
        lines += [f"{it.slo} {it.outcome} {it.reason}: {it.message}" for it in status.verdicts]
        lines += [f"Event {it['type']} {it['reason']}: {it['note']}" for it in await self.events()]
        return "\n  ".join(lines)

    async def is_blocked(self, field: str, *words: str, timeout: float = LONG) -> None:
        """It names the field and the remedy in its message, in a condition and in an Event, and orders no share."""
        condition = await self.says("Stalled", "True", "Blocked", f"{field}: ", *words, timeout=timeout)
        await self.event("Blocked", f"{field}: ", *words)
        status = await self.until(lambda it: it.phase == "Blocked" and it.message == condition.message, "is blocked")
        assert status.candidate is None
        assert status.traffic is not None
        assert status.traffic.share.desired == 0
        assert status.traffic.stable.is_baseline_only

    async def ramps(self, timeout: float = LONG) -> Status:
        """The first step is in effect."""
        return await self.until(lambda it: it.step is not None and it.step.started_at is not None, "ramps", timeout)

    async def passes(self, timeout: float = LONG) -> Status:
        """The first step has passed."""
        return await self.until(lambda it: it.step is not None and it.step.index == 1, "the first step passes", timeout)

    async def ask_verb(self, text: str) -> None:
        path = self.stack.policy_path(self.name)
        await self.stack.kube.patch(path, {"metadata": {"annotations": {ANNOTATION: text}}})

    # --- requests -----------------------------------------------------------------------------------------------------
    async def answers(self, users: int = 12) -> list[tuple[int, str, str]]:
        """(status, arm, candidate) of one request of each of some users, over all gateways."""
        gateways, found = self.stack.gateways(), []
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            for i in range(users):
                body = {"model": self.name, "user": f"user-{i}", "messages": [{"role": "user", "content": "hello"}]}
                async with session.post(f"{gateways[i % len(gateways)]}/v1/chat/completions", json=body) as answer:
                    parts = (answer.headers.get("x-funicular-id") or ";;;").split(";")
                    found.append((answer.status, parts[2], parts[3]))
        return found

    async def is_answered_by_the_baseline(self) -> None:
        for status, _, candidate in await self.answers():
            assert (status, candidate) == (200, "frontier")

    async def is_unknown_to_the_gateways(self) -> None:
        async with asyncio.timeout(LONG):
            while True:
                if {status for status, *_ in await self.answers()} == {404}:
                    return
                await asyncio.sleep(0.1)

    @asynccontextmanager
    async def load(self, rate: float = 25.0, *, all_answered: bool = True, **habits: Any) -> AsyncIterator[Load]:
        """Steady requests; afterwards none may have failed that no provider failed itself."""
        habits = {"users": 300, "zipf": 0.3, "nowhere_share": 0.0, "stream_share": 0.2, **habits}
        load = Load(Population(Habits(**habits), model=self.name), self.stack.gateways(), rate=rate, timeout=20.0)
        task = asyncio.create_task(load.run())
        try:
            yield load
        finally:
            load.stop()
            results = await task
        results.attribute(await provider_failures([self.stack.provider_admin(name) for name in self.stack.providers]))
        assert not results.lost or not all_answered, [outcome.explain() for outcome in results.lost[:5]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def never_ready(stack: Stack) -> Policy:
    """A policy whose classifier runs and is never ready: applied early, because it is told only after a while."""
    stack.cluster.add_images(
        {"example.com/lame": Image((sys.executable, "-m", "http.server", "--bind", "$(POD_IP)", "8080"))}
    )
    classifier = {"image": "example.com/lame:1", "routes": {"easy": "mini"}, "timeout": "200ms"}
    return await Policy(stack, "never-ready", strategy={"classifier": classifier}).apply()


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def tidy(stack: Stack, never_ready: Policy) -> AsyncIterator[None]:
    """What ramps on costs time: each test's policies go with it."""
    await stack.look()
    yield
    found, _ = await stack.kube.list_all(stack.policy_path())
    names = {it["metadata"]["name"] for it in found} - {never_ready.name}
    if names:
        await stack.kubectl("delete", "rp", *names, "--timeout=60s")


# --- what a revision needs before it may ramp ------------------------------------------------------------------------------
async def secret(stack: Stack, name: str, keys: Json) -> None:
    head = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": stack.namespace}}
    await stack.apply({**head, "data": keys})


async def may_read(stack: Stack, name: str) -> None:
    """Lets the gateways read one more Secret."""
    head = {"metadata": {"name": f"read-{name}", "namespace": stack.namespace}}
    rule = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [name], "verbs": ["get", "list", "watch"]}
    api = "rbac.authorization.k8s.io"
    subject = {"kind": "ServiceAccount", "name": "funicular-gateway", "namespace": stack.namespace}
    role = {"apiGroup": api, "kind": "Role", "name": f"read-{name}"}
    await stack.apply(
        [
            {"apiVersion": f"{api}/v1", "kind": "Role", **head, "rules": [rule]},
            {"apiVersion": f"{api}/v1", "kind": "RoleBinding", **head, "roleRef": role, "subjects": [subject]},
        ]
    )


async def api_key(stack: Stack) -> str:
    found = await stack.kube.get(path_of("v1", "secrets", stack.namespace, "mini-key"))
    return str(found["data"]["api-key"])


async def test_a_secret_that_is_missing_and_one_that_the_gateways_may_not_read(stack: Stack) -> None:
    policy = Policy(stack, "no-secret")
    policy.spec["candidates"][1]["credentials"]["secretRef"]["name"] = "late"
    await policy.apply()
    await policy.is_blocked(
        "spec.candidates[1].credentials.secretRef",
        "Secret late does not exist",
        f"create it in namespace {stack.namespace}, or correct the reference",
    )
    await policy.is_answered_by_the_baseline()
    await secret(stack, "late", {"api-key": await api_key(stack)})
    refused = await policy.says("GatewaysSynced", "False", "NotTaken", "late", "forbidden")
    assert "funicular-gateway" in refused.message
    await policy.event("NotTaken", "late", "forbidden")
    await policy.until(
        lambda it: "to confirm the share" in it.message and "late" in it.message, "says what it waits for"
    )
    await policy.is_answered_by_the_baseline()
    await may_read(stack, "late")
    await policy.ramps()
    assert {(200, "treatment", "mini")} <= set(await policy.answers())


async def test_a_secret_without_the_key(stack: Stack) -> None:
    await may_read(stack, "half")
    await secret(stack, "half", {"other": "eA=="})
    policy = Policy(stack, "no-key")
    policy.spec["candidates"][1]["credentials"]["secretRef"]["name"] = "half"
    await policy.apply()
    await policy.is_blocked(
        "spec.candidates[1].credentials.secretRef", "Secret half has no key api-key", "correct the reference"
    )
    await policy.is_answered_by_the_baseline()
    await secret(stack, "half", {"api-key": await api_key(stack)})
    await policy.ramps()


async def test_a_selector_that_matches_no_gateway(stack: Stack) -> None:
    policy = await Policy(stack, "no-gateway", gateway={"selector": {"matchLabels": {"app": "nobody"}}}).apply()
    await policy.is_blocked(
        "spec.gateway.selector", "no ready gateway pod", "correct the selector, or install gateways"
    )
    await policy.says("GatewaysSynced", "False", "NoGateways", "spec.gateway.selector: ", "correct the selector")
    await policy.is_unknown_to_the_gateways()  # nobody serves it yet
    del policy.spec["gateway"]
    await policy.apply()
    await policy.ramps()


async def test_an_image_that_does_not_exist(stack: Stack) -> None:
    classifier = {"image": "example.com/late:1", "routes": {"easy": "mini"}, "timeout": "200ms"}
    policy = await Policy(stack, "no-image", strategy={"classifier": classifier}).apply()
    await policy.is_blocked("spec.strategy.classifier.image", "example.com/late:1", "correct the image's name")
    await policy.says(
        "ClassifierAvailable", "False", "ImagePullBackOff", "example.com/late:1", "correct the image's name"
    )
    await policy.event("ImagePullBackOff", "spec.strategy.classifier.image: ", "correct the image's name")
    await policy.is_answered_by_the_baseline()
    command = (sys.executable, "-m", "funicular.classifier", "serve")
    stack.cluster.add_images({"example.com/late": Image(command, env={"PYTHONPATH": "operator:."})})
    await policy.ramps()
    await policy.says("ClassifierAvailable", "True", "Ready")


async def test_queries_that_cannot_be_used(stack: Stack) -> None:
    cases = {
        "unparsed": ("sum(rate(foo[", "parse error", "correct the query"),
        "several": ("up", "series for the treatment arm (by", "make it one series, for example with sum(...)"),
        "placeholder": ('sum(x{arm="{{amr}}"})', "{{amr}} is not known", "use {{arm}}, {{window}}"),
    }

    async def one(name: str, query: str, *words: str) -> None:
        own: Json = {"name": "own", "query": {"value": query}, "max": 1}
        policy = await Policy(stack, f"query-{name}", slos=[ERRORS, QUALITY, own]).apply()
        await policy.is_blocked("spec.slos[2].query.value", *words)
        await policy.is_answered_by_the_baseline()
        own["query"] = {"value": "vector(0)"}
        await policy.apply()
        await policy.ramps()
        await policy.says("MetricsAvailable", "True", "Answering")

    await together(one(name, *case) for name, case in cases.items())


async def together(cases: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for case in cases:
            group.create_task(case)


async def test_a_prometheus_that_is_not_there(stack: Stack) -> None:
    policy = await Policy(stack, "no-prometheus", prometheus=Policy.prometheus("http://127.0.0.1:9")).apply()
    await policy.is_blocked(
        "spec.prometheus", "http://127.0.0.1:9", "check spec.prometheus.url and that Prometheus runs"
    )
    await policy.is_answered_by_the_baseline()
    policy.spec["prometheus"] = Policy.prometheus(stack.cluster.prometheus_url)
    await policy.apply()
    await policy.ramps()


# --- while it ramps: evidence that does not come ---------------------------------------------------------------------------
async def test_queries_without_a_number_hold_the_step(stack: Stack) -> None:
    cases = {
        "nan": ("vector(0) / vector(0)", "NotANumber", "gives nan", "division by zero", "keep it finite"),
        "nothing": ("sum(no_such_metric)", "NoData", "gives nothing", "check the query's metric and labels"),
    }

    async def one(name: str, query: str, reason: str, *words: str) -> None:
        own: Json = {"name": "own", "query": {"value": query}, "max": 1}
        policy = await Policy(stack, f"query-{name}", slos=[ERRORS, QUALITY, own]).apply()
        await policy.ramps()
        async with policy.load():
            await policy.says("MetricsAvailable", "False", reason, "spec.slos[2].query (own): ", *words)
            await policy.event(reason, "spec.slos[2].query (own): ", *words)
            await policy.until(lambda it: it.step is not None and it.step.samples >= 20, "has its samples")
            status = await policy.until(
                lambda it: "held: spec.slos[2].query (own): " in it.message, "says why it holds"
            )
            assert status.traffic is not None
            assert status.traffic.share.desired == 5000
            own["query"] = {"value": "vector(0)"}
            await policy.apply()
            mended = await policy.passes()
        assert mended.candidate is not None
        assert status.candidate is not None
        assert mended.candidate.revision == status.candidate.revision

    await together(one(name, *case) for name, case in cases.items())


async def test_a_prometheus_that_is_down_slow_or_stale_freezes_the_share(stack: Stack) -> None:
    cluster = stack.cluster
    policy = await Policy(stack, "outages", rollout=Policy.rollout(WAITS_FOR_A_PERSON)).apply()
    await policy.ramps()

    async def scraped(value: str) -> None:
        pods = [pod["metadata"]["name"] for pod in stack.pods("gateway")]
        await stack.kubectl("annotate", "--overwrite", "pod", *pods, f"prometheus.io/scrape={value}")

    async def is_frozen(reason: str, *words: str) -> None:
        await policy.says("MetricsAvailable", "False", reason, "spec.prometheus: ", "the share is frozen", *words)
        await policy.event(reason, "spec.prometheus: ", *words)
        status = await policy.until(lambda it: "held: spec.prometheus: " in it.message, "says why it holds")
        assert status.traffic is not None
        assert (status.traffic.share.desired, status.rejected) == (5000, ())

    async def is_well() -> None:
        await policy.says("MetricsAvailable", "True", "Answering")
        await policy.until(lambda it: it.phase == "AwaitingApproval", "waits for a person only")

    async with policy.load():
        await is_well()
        await asyncio.to_thread(cluster.kill, "prometheus")
        await is_frozen("MetricsUnavailable", "cannot be reached", "check spec.prometheus.url")
        await asyncio.to_thread(cluster.restart, "prometheus")
        await is_well()
        cluster.pause("prometheus")
        try:
            await is_frozen("MetricsUnavailable", "did not answer in time", "check spec.prometheus.url")
        finally:
            cluster.resume("prometheus")
        await is_well()
        await scraped("false")
        await is_frozen("Stale", "check that Prometheus scrapes the gateway pods")
        await scraped("true")
        await is_well()
        await policy.ask_verb(f"approve {policy.revision} one ada")
        await policy.passes()
    assert (await policy.status()).reverted_at is None


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def doorkeeper(stack: Stack) -> AsyncIterator[tuple[str, list[str]]]:
    """A proxy before Prometheus: its URL, and the Authorization that it wants (empty list: none)."""
    wanted: list[str] = []

    async def pass_on(request: web.Request) -> web.Response:
        if wanted and request.headers.get("authorization") not in wanted:
            return web.Response(status=401, text="<html>who are you?</html>")
        target = f"{stack.cluster.prometheus_url}{request.path_qs.removeprefix('/tenant')}"
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, target, data=await request.read(), headers=_content(request)) as answer,
        ):
            return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")

    def _content(request: web.Request) -> dict[str, str]:
        return {"content-type": request.headers.get("content-type", "application/x-www-form-urlencoded")}

    async with _served("/tenant/{path:.*}", pass_on) as url:
        yield f"{url}/tenant", wanted


@asynccontextmanager
async def _served(path: str, handler: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", path, handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_prometheus_that_suddenly_wants_a_password(stack: Stack, doorkeeper: tuple[str, list[str]]) -> None:
    url, wanted = doorkeeper
    policy = await Policy(stack, "login", prometheus=Policy.prometheus(url)).apply()
    started = await policy.ramps()
    wanted.append("Basic " + base64.b64encode(b"funicular:sesame").decode())
    await policy.says("MetricsAvailable", "False", "AccessDenied", "401", "correct spec.prometheus.auth")
    await policy.event("AccessDenied", "401", "correct spec.prometheus.auth")
    await secret(stack, "login", {"user": "ZnVuaWN1bGFy", "password": "c2VzYW1l"})
    basic = {member: {"name": "login", "key": key} for member, key in (("username", "user"), ("password", "password"))}
    policy.spec["prometheus"] = Policy.prometheus(url, auth={"basic": basic})
    await policy.apply()
    await policy.says("MetricsAvailable", "True", "Answering")
    async with policy.load():
        passed = await policy.passes()
    assert started.candidate is not None
    assert passed.candidate is not None
    assert passed.candidate.revision == started.candidate.revision


# --- the classifier ----------------------------------------------------------------------------------------------------------
@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def classifier() -> AsyncIterator[str]:
    """A classifier that misbehaves as its path says: /hang, /garbage, /silent, /broken; /good does not."""

    async def classify(request: web.Request) -> web.Response:
        match request.match_info["mode"]:
            case "hang":
                await asyncio.sleep(3600)
                return web.Response()
            case "garbage":
                return web.Response(headers={"x-funicular-label": "purple", "x-funicular-score": "NaN"})
            case "silent":
                return web.Response(text="It works!")
            case "broken":
                return web.Response(status=500)
            case _:
                return web.Response(headers={"x-funicular-label": "easy", "x-funicular-score": "0.9"})

    async with _served("/{mode}/v1/classify", classify) as url:
        yield url


async def test_classifiers_that_decide_nothing(stack: Stack, classifier: str) -> None:
    cases = {
        "hang": ("without a usable answer within spec.strategy.classifier.timeout (100ms)",),
        "broken": ("without a usable answer", "see the classifier's logs"),
        "silent": ("without a usable answer", "see the classifier's logs"),
        "garbage": ("a label that spec.strategy.classifier.routes does not list (easy)", "list it, or correct"),
    }

    async def one(mode: str, *words: str) -> None:
        declared = {"url": f"{classifier}/{mode}", "routes": {"easy": "mini"}, "timeout": "100ms"}
        policy = await Policy(stack, f"classifier-{mode}", strategy={"classifier": declared}, slos=[ERRORS]).apply()
        await policy.ramps()
        async with policy.load() as load:
            await policy.says("ClassifierAvailable", "False", "NotDeciding", "spec.strategy.classifier.url: ", *words)
            await policy.event("NotDeciding", "spec.strategy.classifier.url: ", *words)
            await policy.until(lambda it: it.step is not None and it.step.samples >= 20, "has its samples")
            status = await policy.until(
                lambda it: "held: spec.strategy.classifier.url" in it.message, "says why it holds"
            )
            assert status.step is not None
            assert status.step.index == 0
            answered = [outcome.answer for outcome in load.results.outcomes if outcome.answer is not None]
            assert {answer.candidate for answer in answered} == {"frontier"}
            assert {answer.arm for answer in answered} == {"treatment", "control", "holdback"}
            declared["url"] = f"{classifier}/good"
            declared["timeout"] = "1s"
            await policy.apply()
            await policy.event("Superseded", kind="Normal")
            passed = await policy.passes()
        assert passed.rejected == ()

    await together(one(mode, *words) for mode, words in cases.items())


async def test_a_classifier_that_never_becomes_ready(never_ready: Policy) -> None:
    words = ("spec.strategy.classifier.image: ", "readiness probe (/readyz)", "see kubectl -n", "logs")
    await never_ready.says("ClassifierAvailable", "False", "Unready", *words)
    await never_ready.event("Unready", *words)
    status = await never_ready.until(lambda it: "readiness probe (/readyz)" in it.message, "says why it waits")
    assert status.candidate is None
    await never_ready.is_answered_by_the_baseline()
    command = (sys.executable, "-m", "funicular.classifier", "serve")
    never_ready.stack.cluster.add_images({"example.com/sound": Image(command, env={"PYTHONPATH": "operator:."})})
    never_ready.spec["strategy"]["classifier"]["image"] = "example.com/sound:1"
    await never_ready.apply()
    await never_ready.ramps()


# --- policies in each other's way, and people who change their mind ----------------------------------------------------------
async def test_two_policies_for_one_endpoint(stack: Stack) -> None:
    older = await Policy(stack, "twin-older").apply()
    await older.ramps()
    newer = Policy(stack, "twin-newer")
    newer.spec["endpoint"] = {"model": older.name}
    await newer.apply()
    words = ("spec.endpoint.model: ", f"{stack.namespace}/twin-older serves this endpoint", "delete one of the two")
    await newer.says("Stalled", "True", "EndpointTaken", *words)
    await newer.event("EndpointTaken", *words)
    assert (await newer.status()).traffic is None
    async with older.load() as load:
        await older.until(lambda it: it.step is not None and it.step.samples > 0, "is counted")
        assert {answer.policy.partition("/")[2] for o in load.results.outcomes if (answer := o.answer)} == {
            "twin-older"
        }
    await stack.kubectl("delete", "rp", "twin-older", "--timeout=40s")
    await newer.ramps()
    assert {status for status, *_ in await older.answers()} == {200}


async def test_a_policy_deleted_in_mid_ramp(stack: Stack) -> None:
    policy = await Policy(stack, "deleted").apply()
    await policy.ramps()
    async with policy.load(all_answered=False) as load:
        await policy.until(lambda it: it.step is not None and it.step.samples > 0, "is counted")
        await stack.kubectl("delete", "rp", policy.name, "--timeout=40s")
    with pytest.raises(NotFound):
        await stack.policy(policy.name)
    # Until the object was gone all were answered; afterwards nobody serves the endpoint, and the gateway says so.
    assert {(o.status, o.failure) for o in load.results.failed} <= {(404, "status")}
    await policy.is_unknown_to_the_gateways()
    await policy.event("Deleting", "goes to the baseline", kind="Normal")


async def test_a_spec_edited_in_mid_ramp_is_superseded_and_not_rejected(stack: Stack) -> None:
    policy = await Policy(stack, "edited").apply()
    first = policy.revision
    await policy.ramps()
    async with policy.load():
        policy.spec["candidates"][1]["timeout"] = "4s"
        second = policy.revision
        await policy.apply()
        await policy.event("Superseded", first, "the new spec starts at its first step", kind="Normal")
        status = await policy.passes()
    assert first != second
    assert status.candidate is not None
    assert (status.candidate.revision, status.rejected) == (second, ())


async def test_verbs_that_mean_nothing_and_a_rejected_manifest_applied_again(stack: Stack) -> None:
    policy = await Policy(stack, "verbs").apply()
    started = await policy.ramps()
    await policy.ask_verb("explode it")
    await policy.event("UnknownVerb", "explode it", "write `<verb> <revision> <any unique id> [who]`", "abort, pause")
    await policy.until(lambda it: it.last_verb is not None and it.last_verb.verb == "unknown", "answers it")
    await policy.ask_verb("abort 0123456789 two ada")
    refused = ("abort of 0123456789 by ada is refused", f"{policy.revision} ramps")
    await policy.event("VerbRefused", *refused)
    status = await policy.until(lambda it: it.last_verb is not None and it.last_verb.id == "two", "answers it")
    assert status.last_verb is not None
    assert status.last_verb.result.startswith("refused")
    assert (status.candidate, status.traffic) == (started.candidate, started.traffic) or status.candidate is not None
    unknown = [it for it in await policy.events() if it["reason"] == "UnknownVerb"]
    assert [it.get("series") for it in unknown] == [None]  # said once, not at every look

    await policy.ask_verb(f"abort {policy.revision} three ada")
    words = (f"revision {policy.revision} was rejected", "aborted by ada", "apply a new spec, or retry this revision")
    await policy.says("Stalled", "True", "Rejected", *words)
    await policy.event("Aborted", "aborted by ada")
    await policy.is_answered_by_the_baseline()
    bad = json.dumps(policy.spec)
    policy.spec["candidates"][1]["timeout"] = "4s"
    await policy.apply()
    await policy.ramps()
    policy.spec = json.loads(bad)
    await policy.apply()
    await policy.says("Stalled", "True", "Rejected", *words)
    await policy.event("Rejected", *words)
    pods = len(stack.gateways())
    again = await policy.until(lambda it: it.phase == "Degraded" and it.gateways == f"{pods}/{pods}", "settles")
    assert again.candidate is None
    await policy.is_answered_by_the_baseline()
    await policy.ask_verb(f"retry {policy.revision} four ada")
    await policy.ramps()


# --- providers that answer, but not with an answer -----------------------------------------------------------------------------
async def test_a_provider_that_answers_200_with_rubbish_is_noticed_by_the_users(stack: Stack) -> None:
    thumbs = {"name": "thumbs", "indicator": "ThumbsUpRate", "allowedDecrease": 0.2, "minSamples": 20}
    policy = await Policy(stack, "rubbish", slos=[ERRORS, thumbs], rollout=Policy.rollout(WAITS_FOR_A_PERSON)).apply()
    await policy.ramps()
    try:
        async with policy.load(40.0, vote_share=0.9, up_if_good=0.95, up_if_bad=0.05):
            await stack.set_faults("mini", garbage_rate=1.0)
            status = await policy.until(lambda it: it.reverted_at is not None, "is reverted")
            await policy.event("Reverted", f"revision {policy.revision} goes back to share 0", "thumbs: ")
            await policy.says("Regressed", "True", "Regressed", "thumbs: ")
    finally:
        await stack.set_faults("mini", garbage_rate=0.0)
    assert [it.revision for it in status.rejected] == [policy.revision]
    await policy.is_answered_by_the_baseline()


async def test_a_provider_that_cuts_its_streams(stack: Stack) -> None:
    policy = await Policy(stack, "cut", rollout=Policy.rollout(WAITS_FOR_A_PERSON)).apply()
    await policy.ramps()
    try:
        async with policy.load(40.0, stream_share=1.0):
            await stack.set_faults("mini", cut_stream_rate=1.0)
            status = await policy.until(lambda it: it.reverted_at is not None, "is reverted")
            await policy.event("Reverted", f"revision {policy.revision} goes back to share 0", "errors: ")
            await policy.says("Regressed", "True", "Regressed", "errors: ")
    finally:
        await stack.set_faults("mini", cut_stream_rate=0.0)
    assert [it.revision for it in status.rejected] == [policy.revision]
    await policy.is_answered_by_the_baseline()
