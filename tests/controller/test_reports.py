from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from funicular.api.report import AUDIENCE, REPORT_PATH, Report
from funicular.api.tenancy import SERVES
from funicular.controller.reports import ReportBook
from funicular.controller.reportserver import ReportServer, Tokens
from funicular.controller.store import ClusterStore
from funicular.errors import ApiUnavailable
from funicular.slo.fastburn import fast_burn
from funicular.slo.model import REPLICATES
from tests.controller.fakes import NOW, FakeClock, FakeKube
from tests.controller.test_store import pod, policy

Json = dict[str, Any]


class World:
    """One ramping policy, two gateway pods, and a book."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.woken: list[str] = []
        self.store = ClusterStore(lambda key: None, gateway_namespaces={"gw"})
        self.versions = 0
        self.traffic(1)
        self.store.see_pods("RESYNC", [pod("a"), pod("b"), pod("stranger", labels={"app": "other"})])
        self.book = ReportBook(self.store, self.woken.append, self.clock, fast_burn)

    def traffic(self, version: int, candidate: str | None = "r2", share: int = 1000, holdback: int = 100) -> None:
        self.versions += 1
        traffic = {"version": version, "revision": candidate or "r1", "selector": {"app": "gw"}}
        traffic |= {"share": {"desired": share}, "holdback": holdback}
        if candidate:
            traffic["candidate"] = {"revision": candidate}
        self.store.see("MODIFIED", policy(version=self.versions, status={"traffic": traffic}))

    def say(self, name: str, session: str = "s1", full: bool = False, **more: Any) -> bool:
        return self.book.take(Report(pod=name, namespace="gw", uid=f"uid-{name}", session=session, full=full, **more))

    @property
    def facts(self) -> tuple[int, int, Any, tuple[str, ...]]:
        found = self.book.ack_facts("u1", 1, self.store.gateways_for("shop", {"app": "gw"}))
        return found.ready, found.acked, found.acked_at, found.errors


@pytest.fixture
def world() -> World:
    return World()


def test_an_unknown_session_must_tell_everything_first(world: World) -> None:
    assert world.say("a", acks={"u1": {"version": 1}}) is True
    assert world.facts == (2, 0, None, ())
    assert world.say("a", full=True, acks={"u1": {"version": 1}}) is False
    assert world.say("a", acks={}) is False
    assert world.say("a", session="restarted") is True


def of_namespace(namespace: str, **more: Any) -> Report:
    return Report(pod="evil", namespace=namespace, uid="uid-evil", session="s", full=True, **more)


def test_a_pod_of_another_namespace_confirms_nothing_wakes_nobody_and_is_not_kept(world: World) -> None:
    """Else it fakes the acknowledgement of a share that no gateway has, or a burn that reverts a good ramp."""
    world.store.see_pods("ADDED", pod("evil", namespace="evil", annotations={SERVES: "*"}))
    said: Json = {"acks": {"u1": {"version": 1, "error": "no"}, "u9": {"version": 1}}, "counts": burning()}
    assert world.book.take(of_namespace("evil", **said)) is False
    assert world.facts == (2, 0, None, ())
    assert world.woken == []
    assert world.book.alarm("u1") is None
    assert world.book.pooled("u1") is None
    world.store.see_pods("ADDED", pod("evil", namespace="shop"))
    assert world.book.take(of_namespace("shop", **said)) is False
    assert world.book.alarm("u1") is not None, "the same of a pod in the policy's own namespace"
    assert world.facts[2:] == (None, ("shop/evil: no",))


def test_a_trusted_pod_that_names_other_namespaces_confirms_nothing_here(world: World) -> None:
    world.store.see_pods("MODIFIED", pod("b", annotations={SERVES: "other"}))
    world.say("b", full=True, acks={"u1": {"version": 1}})
    assert world.facts == (1, 0, None, ())
    world.say("a", full=True, acks={"u1": {"version": 1}})
    assert world.facts == (1, 1, world.clock.now(), ())


def test_a_new_leader_knows_whom_it_has_not_heard_yet(world: World) -> None:
    gateways = world.store.gateways_for("shop", {"app": "gw"})
    assert not world.book.has_heard_of(gateways)
    world.say("a", full=True)
    world.say("b")
    assert not world.book.has_heard_of(gateways), "b has not told everything"
    world.say("b", full=True)
    assert world.book.has_heard_of(gateways)


def test_all_have_confirmed_when_the_last_has(world: World) -> None:
    world.say("a", full=True, acks={"u1": {"version": 1}})
    assert world.facts == (2, 1, None, ())
    world.clock.advance(3)
    world.say("b", full=True, acks={"u1": {"version": 1}})
    last = world.clock.now()
    assert world.facts == (2, 2, last, ())
    assert world.woken == ["shop/chat", "shop/chat"]
    world.clock.advance(3)
    world.say("b", acks={"u1": {"version": 1}})
    assert world.facts == (2, 2, last, ())  # said again is no news
    assert len(world.woken) == 2


def test_a_version_that_a_pod_could_not_take_is_no_confirmation(world: World) -> None:
    world.say("a", full=True, acks={"u1": {"version": 1, "error": "bad route"}})
    assert world.facts == (2, 0, None, ("gw/a: bad route",))
    world.say("a", acks={"u1": {"version": 1}})
    assert world.facts[1] == 1


def test_a_full_report_takes_back_what_it_does_not_repeat(world: World) -> None:
    world.say("a", full=True, acks={"u1": {"version": 1}})
    world.say("a", full=True, acks={})
    assert world.facts[1] == 0


def test_a_pod_of_the_same_name_is_another_pod(world: World) -> None:
    world.say("a", full=True, acks={"u1": {"version": 1}})
    world.store.see_pods("MODIFIED", pod("a", uid="uid-new"))
    assert world.facts[1] == 0


def test_an_agent_that_restarts_has_confirmed_since_it_first_did(world: World) -> None:
    world.say("a", full=True, acks={"u1": {"version": 1}})
    world.say("b", full=True, acks={"u1": {"version": 1}})
    world.clock.advance(60)
    world.say("b", session="s2", full=True, acks={"u1": {"version": 1}})
    assert world.facts == (2, 2, NOW, ())


def arm(n: int, bad: int = 0, slow: int = 0) -> Json:
    def spread(total: int) -> list[int]:
        return [total // REPLICATES + (1 if i < total % REPLICATES else 0) for i in range(REPLICATES)]

    return {"n": spread(n), "bad": spread(bad), "slow": spread(slow)}


def burning(version: int = 1, revision: str = "r2", treatment: Json | None = None) -> Json:
    arms = {"treatment": treatment or arm(40, bad=30), "control": arm(200, bad=1)}
    return {"u1": {"version": version, "revision": revision, "arms": arms}}


def test_counts_are_pooled_over_the_gateways_of_the_policy(world: World) -> None:
    world.say("a", full=True, counts=burning(treatment=arm(64, bad=10)))
    world.say("b", full=True, counts=burning(treatment=arm(128, bad=20)))
    pooled = world.book.pooled("u1")
    assert pooled is not None
    assert pooled.bad["treatment"].total == 192
    assert pooled.bad["treatment"].events == 30


def test_half_of_the_treated_requests_fail_and_the_policy_is_woken_at_once(world: World) -> None:
    world.say("a", full=True, counts=burning())
    alarm = world.book.alarm("u1")
    assert alarm is not None
    assert (alarm.version, alarm.revision, alarm.verdict.slo) == (1, "r2", "errors")
    assert world.woken == ["shop/chat"]


def test_slow_answers_burn_too(world: World) -> None:
    world.say("a", full=True, counts=burning(treatment=arm(40, slow=30)))
    alarm = world.book.alarm("u1")
    assert alarm is not None
    assert alarm.verdict.slo == "latency"


@pytest.mark.parametrize(
    ("who", "counts"),
    [
        pytest.param("stranger", burning(), id="a pod that is no gateway of the policy"),
        pytest.param("a", burning(version=2), id="another version of the traffic"),
        pytest.param("a", burning(revision="r1"), id="another revision"),
        pytest.param("a", burning(treatment=arm(40, bad=1)), id="a healthy treatment"),
    ],
)
def test_no_alarm_from(world: World, who: str, counts: Json) -> None:
    world.say(who, full=True, counts=counts)
    assert world.book.alarm("u1") is None


def test_an_alarm_is_over_when_the_traffic_changes(world: World) -> None:
    world.say("a", full=True, counts=burning())
    world.traffic(2, candidate=None)
    assert world.book.alarm("u1") is None


def test_at_full_share_the_holdback_stands_beside(world: World) -> None:
    world.traffic(1, share=10_000)
    counts = burning()
    counts["u1"]["arms"] |= {"control": arm(0), "holdback": arm(200, bad=1)}
    world.say("a", full=True, counts=counts)
    assert world.book.alarm("u1") is not None


def test_a_failure_that_starts_late_is_not_diluted_by_the_good_hours_before(world: World) -> None:
    long = arm(20_000, bad=20)
    world.say("a", full=True, counts=burning(treatment=long))
    for minute in range(1, 5):
        world.clock.advance(60)
        world.say("a", counts=burning(treatment=arm(20_000 + 64 * minute, bad=20)))
        assert world.book.alarm("u1") is None
    world.clock.advance(60)
    counts = burning(treatment=arm(20_000 + 64 * 8, bad=20 + 64 * 4))
    counts["u1"]["arms"]["control"] = arm(5000, bad=1)
    world.say("a", counts=counts)
    assert world.book.alarm("u1") is not None


def test_a_forgotten_policy_leaves_nothing(world: World) -> None:
    world.say("a", full=True, acks={"u1": {"version": 1}}, counts=burning())
    world.book.forget("u1")
    assert world.book.alarm("u1") is None
    assert world.facts[1] == 0


def test_a_pod_that_is_gone_is_forgotten_after_a_while(world: World) -> None:
    world.say("a", full=True)
    world.say("b", full=True)
    world.store.see_pods("DELETED", pod("a"))
    for _ in range(4):
        world.clock.advance(90)
        world.say("b")
    assert world.book.pods == 1


# --- the server ------------------------------------------------------------------------------------------------------
def review(pod_name: str = "a", uid: str = "uid-a", audiences: tuple[str, ...] = (AUDIENCE,), **status: Any) -> Json:
    user = {
        "username": "system:serviceaccount:gw:gateway",
        "extra": {"authentication.kubernetes.io/pod-name": [pod_name], "authentication.kubernetes.io/pod-uid": [uid]},
    }
    return {"status": {"authenticated": True, "audiences": list(audiences), "user": user, **status}}


REPORT = {"pod": "a", "namespace": "gw", "uid": "uid-a", "session": "s1", "full": True}


async def post(server: ReportServer, body: Any = REPORT, token: str | None = "token") -> tuple[int, Json]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{server.port}{REPORT_PATH}", json=body, headers=headers) as answer,
    ):
        return answer.status, await answer.json()


@pytest.fixture
async def server(world: World):
    running = ReportServer(host="127.0.0.1", port=0)
    await running.start()
    yield running
    await running.stop()


async def test_who_does_not_lead_says_so(server: ReportServer) -> None:
    status, answer = await post(server)
    assert status == 503
    assert "Lease" in answer["error"]


async def test_a_pod_with_its_own_token_is_believed_and_reviewed_once(server: ReportServer, world: World) -> None:
    kube = FakeKube()
    kube.answers = lambda path, body: review()
    server.lead(world.book, Tokens(kube, lambda: 0.0))
    assert await post(server) == (200, {"resync": False})
    assert await post(server, {**REPORT, "full": False}) == (200, {"resync": False})
    assert len(kube.calls) == 1
    assert kube.calls[0][2]["spec"]["audiences"] == [AUDIENCE]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        pytest.param(review(authenticated=False), 401, id="a token that is not valid"),
        pytest.param(review(audiences=("api",)), 401, id="a token for somebody else"),
        pytest.param(review(pod_name="b", uid="uid-b"), 403, id="another pod's token"),
        pytest.param(review(uid="uid-older"), 403, id="the token of an earlier pod of that name"),
        pytest.param(
            {"status": {"authenticated": True, "audiences": [AUDIENCE], "user": {"username": "admin"}}},
            401,
            id="a person",
        ),
    ],
)
async def test_is_refused(server: ReportServer, world: World, answer: Json, status: int) -> None:
    kube = FakeKube()
    kube.answers = lambda path, body: answer
    server.lead(world.book, Tokens(kube, lambda: 0.0))
    assert (await post(server))[0] == status
    assert world.book.pods == 0


async def test_without_a_token_or_an_api_server_nothing_is_believed(server: ReportServer, world: World) -> None:
    kube = FakeKube()
    kube.failure = ApiUnavailable("down")
    server.lead(world.book, Tokens(kube, lambda: 0.0))
    assert (await post(server, token=None))[0] == 401
    assert (await post(server))[0] == 503
    assert world.book.pods == 0


async def test_rubbish_is_refused_with_the_field(server: ReportServer, world: World) -> None:
    server.lead(world.book, None)
    status, answer = await post(server, {"pod": "a"})
    assert status == 400
    assert "namespace" in answer["error"]


async def test_a_review_ends_with_the_token(world: World) -> None:
    import base64
    import json

    payload = base64.urlsafe_b64encode(json.dumps({"exp": 1100}).encode()).decode().rstrip("=")
    kube, elapsed = FakeKube(), [0.0]
    kube.answers = lambda path, body: review()
    tokens = Tokens(kube, lambda: 1000.0, lambda: elapsed[0])
    for at, reviews in ((0, 1), (99, 1), (101, 2)):
        elapsed[0] = float(at)
        await tokens.bearer(f"h.{payload}.s")
        assert len(kube.calls) == reviews
