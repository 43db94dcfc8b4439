"""The agent, a real Envoy and faked ends: changes under load, deaths, Secrets, feedback, metrics."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import certifi
import pytest
from prometheus_client.parser import text_string_to_metric_families

from funicular.agent.drain import LEAST, limits
from tests.adapters.agent_fakes import World, eventually, run_envoy_sidecar, world

KEY = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as made:
        yield made


class Load:
    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.bodies: Counter[str] = Counter()
        self.failures: list[str] = []


@asynccontextmanager
async def load(made: World, *models: str, workers: int = 4) -> AsyncIterator[Load]:
    """Requests without pause, each on the workers' own connections; every one that fails is kept with its reason."""
    counted, ended = Load(), asyncio.Event()

    async def work(number: int) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as own:
            i = 0
            while not ended.is_set():
                i += 1
                model = random.choice(models)
                try:
                    status, body, _ = await made.ask(own, model, f"user-{number}-{i % 97}")
                except (aiohttp.ClientError, TimeoutError) as exc:
                    counted.failures.append(f"{model}: {type(exc).__name__}: {exc}")
                    continue
                counted.statuses[status] += 1
                counted.bodies[body] += 1
                if status != 200:
                    counted.failures.append(f"{model}: {status} {body}")

    tasks = [asyncio.create_task(work(number)) for number in range(workers)]
    try:
        yield counted
    finally:
        ended.set()
        await asyncio.gather(*tasks)


async def metrics(made: World, session: aiohttp.ClientSession) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    async with session.get(made.agent + "/metrics") as answer:
        assert answer.status == 200
        text = await answer.text()
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            cells = found.setdefault(sample.name, {})
            labels = frozenset(sample.labels.items())
            assert labels not in cells, f"{sample.name}{sample.labels} appears twice"
            cells[labels] = sample.value
    return found


async def start(made: World, *names: str) -> None:
    for name in names:
        await made.api.policy(name, made.traffic(name))
    await made.start_agent()
    await made.ready()
    for name in names:
        await made.acked(name, 1)


# --- changes ----------------------------------------------------------------------------------------------------------
async def test_a_share_change_rewrites_the_runtime_file_alone(gateway: World, session: aiohttp.ClientSession) -> None:
    await start(gateway, "a")
    await gateway.api.policy("a", gateway.traffic("a", 2, share=0))
    await gateway.acked("a", 2)
    assert (await gateway.ask(session, "a"))[2] == "control"
    files = {name: gateway.folder / "config" / name / f"{name}.json" for name in ("cds", "rds", "runtime")}
    before = {name: path.stat().st_ino for name, path in files.items()}
    await gateway.api.policy("a", gateway.traffic("a", 3, share=10_000))
    await gateway.acked("a", 3)
    assert (await gateway.ask(session, "a"))[2] == "treatment"
    after = {name: path.stat().st_ino for name, path in files.items()}
    assert after["runtime"] != before["runtime"]
    assert {k: after[k] for k in ("cds", "rds")} == {k: before[k] for k in ("cds", "rds")}
    await gateway.api.policy("a", gateway.traffic("a", 4, share=0))
    await gateway.acked("a", 4)
    assert (await gateway.ask(session, "a"))[2] == "control"


@pytest.mark.parametrize("compiler", ["stand-in", "real"])
async def test_no_request_fails_while_policies_come_change_and_go(gateway: World, compiler: str) -> None:
    if compiler == "real":
        gateway.with_real_compiler()
    await start(gateway, "steady", "moving")
    async with load(gateway, "steady", "moving") as counted:
        for i in range(50):
            version = 2 + i
            extra = f"extra-{i}"
            await gateway.api.policy(extra, gateway.traffic(extra, share=5000, revision=f"x{i}"))
            await gateway.api.policy("moving", gateway.traffic("moving", version, share=5000, revision=f"r{i + 2}"))
            await gateway.acked("moving", version)
            await gateway.acked(extra, 1)
            await gateway.api.no_policy(extra)
    assert counted.failures == []
    assert counted.bodies["mini"] > 0
    assert counted.bodies["frontier"] > 0
    config = gateway.folder / "config" / "rds" / "rds.json"
    await eventually(lambda: b"extra-" not in config.read_bytes())


@pytest.mark.parametrize(
    ("namespaces", "served"),
    [
        pytest.param("", {"own"}, id="its own"),
        pytest.param("shop", {"own", "shops"}, id="its own and the one that is named"),
        pytest.param("*", {"own", "shops", "others"}, id="all"),
    ],
)
async def test_a_gateway_serves_the_policies_of_its_namespaces_alone(
    gateway: World, session: aiohttp.ClientSession, namespaces: str, served: set[str]
) -> None:
    gateway.with_real_compiler()
    gateway.environment["FUNICULAR_NAMESPACES"] = namespaces
    for name, namespace in (("own", "default"), ("shops", "shop"), ("others", "other")):
        await gateway.api.policy(name, gateway.traffic(name), namespace=namespace)
    await gateway.start_agent()
    await gateway.ready()
    for name in served:
        await gateway.acked(name, 1)
    assert gateway.operator.acks.keys() == {f"uid-{name}" for name in served}
    found = {name for name in ("own", "shops", "others") if (await gateway.ask(session, name))[0] == 200}
    assert found == served


async def test_a_burst_of_changes_ends_with_the_last_one(gateway: World, session: aiohttp.ClientSession) -> None:
    await start(gateway, "a")
    for version in range(2, 202):
        await gateway.api.policy("a", gateway.traffic("a", version, share=10_000 if version == 201 else version))
    await gateway.acked("a", 201)
    assert (await gateway.ask(session, "a"))[2] == "treatment"


async def test_a_deleted_policy_is_served_no_more(gateway: World, session: aiohttp.ClientSession) -> None:
    await start(gateway, "a", "b")
    await gateway.api.no_policy("a")

    async def is_gone() -> bool:
        return (await gateway.ask(session, "a"))[0] == 404

    await eventually(is_gone)
    assert (await gateway.ask(session, "b"))[0] == 200


async def test_a_policy_that_selects_other_pods_is_neither_served_nor_acknowledged(
    gateway: World, session: aiohttp.ClientSession
) -> None:
    await gateway.api.policy("other", {**gateway.traffic("other"), "selector": {"app": "another"}})
    await start(gateway, "a")
    assert (await gateway.ask(session, "other"))[0] == 404
    assert "uid-other" not in gateway.operator.acks
    labels = gateway.folder / "labels"
    labels.write_text(labels.read_text() + '\napp="another"')
    await gateway.acked("other", 1)
    assert (await gateway.ask(session, "other"))[0] == 200


# --- bad input --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param({"share": "much"}, id="a share that is no number"),
        pytest.param({"stable": None}, id="no stable route"),
        pytest.param({"salt": "raise"}, id="what the compiler refuses"),
        pytest.param({"salt": "refuse", "revision": "r9"}, id="what Envoy refuses"),
    ],
)
async def test_one_bad_policy_keeps_its_last_good_version_and_stops_nobody(
    gateway: World, session: aiohttp.ClientSession, garbage: dict[str, object]
) -> None:
    await start(gateway, "bad", "good")
    traffic = gateway.traffic("bad", 2, share=100)
    if garbage.get("salt") == "refuse":
        traffic["candidate"]["revision"] = "r9"
    await gateway.api.policy("bad", {**traffic, **garbage})
    await gateway.api.policy("good", gateway.traffic("good", 2, share=10_000))
    await gateway.acked("good", 2)
    await eventually(lambda: gateway.operator.error("bad"))
    assert gateway.operator.acks["uid-bad"].version == 2
    assert await gateway.ask(session, "bad") == (200, "frontier", "control")
    assert (await gateway.ask(session, "good"))[2] == "treatment"
    await gateway.ready()
    await gateway.api.policy("bad", gateway.traffic("bad", 3, share=10_000))
    await gateway.acked("bad", 3)
    assert (await gateway.ask(session, "bad"))[2] == "treatment"


async def test_what_envoy_refused_is_offered_again_without_an_edit(gateway: World) -> None:
    gateway.environment["REFUSAL_SECONDS"] = "0.5"
    await start(gateway, "a")
    await gateway.api.policy("a", {**gateway.traffic("a", 2, share=0, revision="r9"), "salt": "late"})
    await eventually(lambda: "Envoy refused" in gateway.operator.error("a"))
    pem = gateway.folder / "late.pem"
    pem.write_text(certifi.contents())
    pem.rename(gateway.folder / "config" / "late.pem")
    await gateway.acked("a", 2)


async def test_garbage_in_place_of_traffic_is_an_error_and_not_a_crash(gateway: World) -> None:
    await start(gateway, "a")
    for garbage in ("text", 7, [1], {"version": "x"}):
        await gateway.api.policy("a", garbage)
    await eventually(lambda: gateway.operator.error("a"))
    await gateway.ready()


# --- deaths -----------------------------------------------------------------------------------------------------------
async def test_an_envoy_that_was_killed_comes_back_with_the_same_traffic(
    gateway: World, session: aiohttp.ClientSession
) -> None:
    await start(gateway, "a")
    await gateway.api.policy("a", gateway.traffic("a", 2, share=10_000))
    await gateway.acked("a", 2)
    first = gateway.envoy_pid()
    for _ in range(5):
        await gateway.ask(session, "a")
    before = sum((await metrics(gateway, session))["funicular_requests_total"].values())
    assert before == 5
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: gateway.envoy_pid() != first)

    async def serves() -> bool:
        return await gateway.ask(session, "a") == (200, "mini", "treatment")

    await eventually(serves)
    await gateway.ready()
    found = await metrics(gateway, session)
    assert sum(found["funicular_requests_total"].values()) >= before  # monotone
    assert found["funicular_agent_envoy_restarts_total"][frozenset()] == 1
    await gateway.api.policy("a", gateway.traffic("a", 3, share=0))
    await gateway.acked("a", 3)
    assert (await gateway.ask(session, "a"))[2] == "control"


@pytest.mark.parametrize("compiler", ["stand-in", "real"])
async def test_a_killed_agent_loses_no_request_and_its_successor_adopts_envoy(gateway: World, compiler: str) -> None:
    if compiler == "real":
        gateway.with_real_compiler()
    await start(gateway, "a")
    await gateway.api.policy("a", gateway.traffic("a", 2, share=5000))
    await gateway.acked("a", 2)
    envoy = gateway.envoy_pid()
    async with load(gateway, "a") as counted:
        for version in (3, 4, 5):
            await gateway.kill_agent()
            await gateway.api.policy("a", gateway.traffic("a", version, share=5000 + version))
            await gateway.start_agent()
            await gateway.ready()
            await gateway.acked("a", version)
    assert counted.failures == []
    assert gateway.envoy_pid() == envoy


async def test_a_successor_changes_nothing_before_it_has_read_all_policies(
    gateway: World, session: aiohttp.ClientSession
) -> None:
    await start(gateway, "a", "b")
    await gateway.api.policy("a", gateway.traffic("a", 2, share=10_000))
    await gateway.acked("a", 2)
    folder = gateway.folder / "config"
    before = {path: path.stat().st_ino for path in folder.rglob("*.json")}
    await gateway.kill_agent()
    gateway.api.refuse = True
    await gateway.start_agent()

    async def says_why() -> bool:
        async with session.get(gateway.agent + "/readyz") as answer:
            reason = (await answer.json()).get("reason", "")
            return (answer.status == 503 and "not read" in reason) or "Envoy" in reason

    await eventually(says_why)
    assert await gateway.ask(session, "a") == (200, "mini", "treatment")
    gateway.api.refuse = False
    await gateway.ready()
    await gateway.acked("a", 2)
    assert {path: path.stat().st_ino for path in folder.rglob("*.json")} == before
    assert await gateway.ask(session, "a") == (200, "mini", "treatment")


async def test_an_outage_of_the_api_server_changes_nothing_and_what_was_missed_follows(gateway: World) -> None:
    await start(gateway, "a")
    async with load(gateway, "a") as counted:
        gateway.api.refuse = True
        await gateway.api.stop()
        await asyncio.sleep(0.5)
        gateway.api.refuse = False
        await gateway.api.start()
        await gateway.api.policy("a", gateway.traffic("a", 2, share=10_000))
        await gateway.acked("a", 2)
    assert counted.failures == []


async def test_sigterm_drains_and_takes_envoy_along(gateway: World) -> None:
    await start(gateway, "a")
    envoy = gateway.envoy_pid()
    await gateway.kill_agent(signal.SIGTERM)
    assert gateway.process is not None
    assert gateway.process.returncode == 0, (gateway.folder / "agent.log").read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(envoy, 0)


async def test_a_sidecar_envoy_is_used_as_it_is(gateway: World, session: aiohttp.ClientSession) -> None:
    gateway.with_real_compiler()
    del gateway.environment["FUNICULAR_ENVOY"]
    await gateway.api.policy("a", gateway.traffic("a"))
    await gateway.start_agent()
    await eventually((gateway.folder / "config" / "rds" / "rds.json").exists)
    for _ in range(2):
        envoy = run_envoy_sidecar(gateway)
        try:
            await gateway.ready()
            await gateway.acked("a", 1)

            async def serves() -> bool:
                return (await gateway.ask(session, "a"))[0] == 200

            await eventually(serves)
        finally:
            envoy.kill()
            envoy.wait()


async def test_the_pre_stop_hook_drains_envoy_and_an_agent_that_starts_again_takes_it_back(
    gateway: World, session: aiohttp.ClientSession
) -> None:
    gateway.with_real_compiler()
    del gateway.environment["FUNICULAR_ENVOY"]
    await gateway.api.policy("a", gateway.traffic("a"))
    await gateway.start_agent()
    await eventually((gateway.folder / "config" / "rds" / "rds.json").exists)
    envoy = run_envoy_sidecar(gateway)

    async def state() -> str:
        async with session.get(gateway.admin + "/server_info") as answer:
            return str((await answer.json())["state"])

    async def health() -> int:
        async with session.get(gateway.gateway + "/healthz") as answer:
            return answer.status

    try:
        await gateway.ready()
        await gateway.acked("a", 1)
        await gateway.ask(session, "a")
        hook = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from funicular.cli.main import run; run()", "agent", "drain", "--seconds", "0"),
            env={**os.environ, **gateway.environment},
        )
        assert await hook.wait() == 0
        assert await state() == "DRAINING"
        assert await health() == 503
        async with session.get(gateway.agent + "/readyz") as answer:
            assert answer.status == 503
        async with session.post(gateway.gateway + "/v1/chat/completions", json={"model": "a"}) as answer:
            assert answer.status == 200, "who still comes is served"
            assert answer.headers["connection"] == "close"
        await gateway.kill_agent(signal.SIGTERM)
        assert gateway.process is not None
        assert gateway.process.returncode == 0
        await gateway.start_agent()
        await gateway.ready()
        await eventually(state_is(state, "LIVE"))
        assert await health() == 200
    finally:
        envoy.kill()
        envoy.wait()


def state_is(state: Callable[[], Awaitable[str]], wanted: str) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return await state() == wanted

    return holds


async def test_a_hook_without_envoy_says_so(gateway: World) -> None:
    (gateway.folder / "config").mkdir()
    hook = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from funicular.cli.main import run; run()", "agent", "drain"),
        env={**os.environ, **gateway.environment},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await hook.communicate()
    assert hook.returncode == 1
    assert b"Envoy's admin interface does not answer" in said


@pytest.mark.parametrize(
    ("waited", "longest", "least", "most"),
    [
        pytest.param(None, 25, LEAST, 25, id="no hook: endpoints are given their time first"),
        pytest.param(7, 25, 0, 18, id="after the hook nothing is waited for but open requests"),
        pytest.param(60, 25, 0, 0, id="a long hook leaves nothing"),
        pytest.param(None, 1, LEAST, LEAST, id="the least wins"),
    ],
)
def test_sigterm_counts_the_time_of_the_hook(waited: float | None, longest: float, least: float, most: float) -> None:
    assert limits(waited, longest) == (least, most)


async def test_a_folder_that_cannot_be_written_to_is_named_at_the_end(gateway: World) -> None:
    (gateway.folder / "config").write_text("a file where a folder should be")
    await gateway.start_agent()
    assert gateway.process is not None
    assert await gateway.process.wait() == 2
    said = (gateway.folder / "agent.log").read_text()
    assert "FUNICULAR_CONFIG_DIR" in said
    assert "Remedy" in said
    assert "Traceback" not in said


# --- reports ----------------------------------------------------------------------------------------------------------
async def test_the_operator_is_told_again_after_an_absence_and_under_another_leader(gateway: World) -> None:
    await start(gateway, "a", "b")
    assert gateway.operator.tokens == {"Bearer a-token"}
    gateway.operator.status = 503
    await gateway.api.policy("a", gateway.traffic("a", 2))
    await asyncio.sleep(0.3)
    gateway.operator.acks.clear()
    gateway.operator.sessions.clear()
    gateway.operator.status = 200
    await gateway.acked("a", 2)
    await gateway.acked("b", 1)
    gateway.operator.acks.clear()
    await gateway.api.lease(gateway.operator.url, holder="operator-1")
    await gateway.acked("a", 2)
    await gateway.acked("b", 1)
    assert gateway.operator.reports[-1].full


async def test_counts_begin_with_the_share_of_each_version(gateway: World, session: aiohttp.ClientSession) -> None:
    await start(gateway, "a")
    await gateway.api.policy("a", gateway.traffic("a", 2, share=10_000))
    await gateway.acked("a", 2)
    await eventually(lambda: "uid-a" in gateway.operator.counts)
    for _ in range(7):
        await gateway.ask(session, "a")
    gateway.mini.status = 500
    for _ in range(2):
        await gateway.ask(session, "a")

    def counted(version: int, n: int, bad: int) -> bool:
        counts = gateway.operator.counts["uid-a"]
        arm = counts.arms.get("treatment")
        found = (sum(arm.n), sum(arm.bad)) if arm else (0, 0)
        return bool(counts.version == version and found == (n, bad))

    await eventually(lambda: counted(2, 9, 2))
    await gateway.api.policy("a", gateway.traffic("a", 3, share=9_999))
    await gateway.acked("a", 3)
    await eventually(lambda: counted(3, 0, 0))
    await gateway.ask(session, "a")
    await eventually(lambda: counted(3, 1, 1))


# --- secrets ----------------------------------------------------------------------------------------------------------
async def test_a_rotated_secret_is_sent_without_a_restart_and_a_lost_one_keeps_the_last_key(
    gateway: World, session: aiohttp.ClientSession
) -> None:
    await gateway.api.secret("keys", key="one\n")
    await start(gateway, "a")
    await gateway.api.policy("a", gateway.traffic("a", 2, share=10_000, secret="keys"))
    await gateway.acked("a", 2)
    envoy = gateway.envoy_pid()

    async def sends(key: str) -> bool:
        await gateway.ask(session, "a")
        return gateway.mini.keys[-1] == f"bearer {key}"

    assert await sends("one")
    files = list((gateway.folder / "config" / "sds").glob("*.json"))
    assert [oct(path.stat().st_mode & 0o777) for path in files] == ["0o600"] * len(files)
    async with load(gateway, "a") as counted:
        await gateway.api.secret("keys", key="two")
        await eventually(lambda: sends("two"))
        await gateway.api.no_secret("keys")
        await eventually(
            lambda: "Secret default/keys, key key: the Secret does not exist" in gateway.operator.error("a")
        )
        assert await sends("two")
        await gateway.api.secret("keys", key="three")
        await gateway.acked("a", 2)
        await eventually(lambda: sends("three"))
    assert counted.failures == []
    assert set(gateway.mini.keys) == {"bearer one", "bearer two", "bearer three"}
    assert gateway.envoy_pid() == envoy
    assert not re.search(r"\b(one|two|three)\b", (gateway.folder / "agent.log").read_text())


async def test_a_new_candidate_without_its_secret_waits_and_the_error_names_it(
    gateway: World, session: aiohttp.ClientSession
) -> None:
    await start(gateway, "a", "b")
    await gateway.api.policy("a", gateway.traffic("a", 2, share=10_000, secret="none"))
    await eventually(lambda: "Secret default/none, key key" in gateway.operator.error("a"))
    assert await gateway.ask(session, "a") == (200, "frontier", "control")
    await gateway.api.policy("b", gateway.traffic("b", 2, share=10_000))
    await gateway.acked("b", 2)
    await gateway.api.secret("none", other="x")
    await eventually(lambda: "no such key" in gateway.operator.error("a"))
    await gateway.api.secret("none", key="found")
    await gateway.acked("a", 2)
    assert (await gateway.ask(session, "a"))[2] == "treatment"
    assert gateway.mini.keys[-1] == "bearer found"


async def test_a_secret_that_cannot_be_read_yet_is_no_acknowledgement(
    gateway: World, session: aiohttp.ClientSession
) -> None:
    await gateway.api.secret("keys", key="one")
    await start(gateway, "a")
    gateway.api.silent = "/secrets"
    await gateway.api.policy("a", gateway.traffic("a", 2, share=10_000, secret="keys"))
    await eventually(lambda: "not read yet" in gateway.operator.error("a"))
    assert await gateway.ask(session, "a") == (200, "frontier", "control")
    gateway.api.silent = ""
    await gateway.acked("a", 2)
    assert (await gateway.ask(session, "a"))[2] == "treatment"
    assert gateway.mini.keys == ["bearer one"]


async def test_a_secret_that_is_needed_while_another_one_is_read(
    gateway: World, session: aiohttp.ClientSession
) -> None:
    """Envoy would refuse a cluster whose credential has no file yet, and the policy with it."""
    await gateway.api.secret("first", key="one")
    await gateway.api.secret("second", key="two")
    await start(gateway, "a", "b")
    gateway.api.silent = "/secrets"
    await gateway.api.policy("a", gateway.traffic("a", 2, share=10_000, secret="first"))
    await asyncio.sleep(0.3)  # the agent asks for the first
    await gateway.api.policy("b", gateway.traffic("b", 2, share=10_000, secret="second"))
    await asyncio.sleep(0.3)
    gateway.api.silent = ""
    await gateway.acked("a", 2)
    await gateway.acked("b", 2)
    assert (await gateway.ask(session, "b"))[2] == "treatment"
    assert gateway.mini.keys[-1] == "bearer two"


async def test_envoy_starts_and_serves_others_where_a_secret_never_was(
    gateway: World, session: aiohttp.ClientSession
) -> None:
    await gateway.api.policy("a", gateway.traffic("a", 1, share=10_000, secret="none"))
    await start(gateway, "b")
    await eventually(lambda: gateway.operator.error("a"))
    assert (await gateway.ask(session, "b"))[0] == 200
    await gateway.ask(session, "a")
    assert gateway.mini.keys == ["bearer credential-is-missing"]
    await gateway.api.policy("a", gateway.traffic("a", 2, share=0, secret="none"))
    await eventually(lambda: gateway.operator.acks["uid-a"].version == 2)
    assert (await gateway.ask(session, "a"))[2] == "control"  # a missing Secret never holds up a revert


# --- feedback and metrics ---------------------------------------------------------------------------------------------
def signed(text: str, key: bytes = KEY) -> str:
    return f"{text};{hmac.new(key, text.encode(), hashlib.sha256).digest()[:16].hex()}"


async def test_feedback_is_counted_for_the_arm_that_its_id_names(
    gateway: World, session: aiohttp.ClientSession
) -> None:
    await start(gateway, "a")
    await gateway.api.policy("a", gateway.traffic("a", 2, share=5000))
    await gateway.acked("a", 2)
    now = int(time.time())

    async def send(body: object, *, raw: bytes | None = None) -> tuple[int, dict[str, object]]:
        data = raw if raw is not None else json.dumps(body).encode()
        async with session.post(gateway.agent + "/v1/feedback", data=data) as answer:
            return answer.status, await answer.json()

    one, two = (signed(f"default/a;r2;treatment;mini;{replicate};{now}") for replicate in (7, 8))
    assert (await send({"id": one, "thumb": "up"}))[0] == 200
    assert (await send({"id": one, "thumb": "up"}))[1]["new"] == 0
    assert (await send({"id": one, "thumb": "down"}))[0] == 200
    assert (await send({"id": two, "rating": 0.5, "resolved": True}))[0] == 200
    assert (await send({"id": one[:-1] + "x", "thumb": "up"}))[0] == 401
    assert (await send({"id": signed(f"default/a;r2;control;mini;7;{now}", b"x"), "thumb": "up"}))[0] == 401
    assert (await send(None, raw=b"{"))[0] == 400
    assert (await send({"id": one}))[0] == 422
    for encoding in ("gzip", "deflate"):
        sent = {"data": json.dumps({"id": one, "thumb": "up"}), "headers": {"content-encoding": encoding}}
        async with session.post(gateway.agent + "/v1/feedback", **sent) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["code"] == "invalid_encoding"
    status, answer = await send(None, raw=b" " * 100_000)
    assert status == 413
    assert set(answer["error"]) == {"message", "type", "param", "code"}  # type: ignore[call-overload]

    def thumbs(found: dict[str, dict[frozenset[tuple[str, str]], float]], kind: str) -> float:
        cells = found["funicular_replicate_feedback_total"]
        labels = {
            "namespace": "default",
            "policy": "a",
            "revision": "r2",
            "arm": "treatment",
            "replicate": "7",
            "kind": kind,
        }
        return cells[frozenset(labels.items())]

    async def is_counted() -> bool:
        found = await metrics(gateway, session)
        return thumbs(found, "thumbs_down") == 1 and "funicular_rating_sum" in found

    await eventually(is_counted)
    found = await metrics(gateway, session)
    assert thumbs(found, "thumbs_up") == 0
    assert sum(found["funicular_rating_sum"].values()) == 0.5
    assert sum(found["funicular_feedback_total"].values()) == 2


async def test_requests_that_cannot_be_read_fill_no_log(gateway: World, session: aiohttp.ClientSession) -> None:
    await start(gateway, "a")
    before = len((gateway.folder / "agent.log").read_text())
    for number in range(200):
        reader, writer = await asyncio.open_connection(gateway.ip, gateway.agent_port)
        writer.write(b"POST /v1/feedback HTTP/1.1\r\nsecret-word %d\r\n\r\n" % number)
        assert b" 400 " in await reader.readline()
        writer.close()
    said = (gateway.folder / "agent.log").read_text()[before:]
    assert "requests could not be read, the last: BadHttpMessage" in said
    assert len(said) < 5_000, "one line every ten seconds"
    assert "secret-word" not in said
    async with session.get(gateway.agent + "/healthz") as answer:
        assert answer.status == 200


async def test_a_measured_policy_shows_all_replicates_from_the_moment_it_is_acknowledged(
    gateway: World, session: aiohttp.ClientSession
) -> None:
    await start(gateway, "a", "idle")
    await gateway.api.policy("a", gateway.traffic("a", 2, share=5000, latencyBounds={"LatencyP95": "2s"}))
    await gateway.acked("a", 2)
    found = await metrics(gateway, session)
    outcomes = [dict(labels) for labels in found["funicular_outcomes_total"]]
    assert {labels["policy"] for labels in outcomes} == {"a"}
    assert {(x["arm"], x["replicate"], x["outcome"]) for x in outcomes} == {
        (arm, str(i), outcome) for arm in ("control", "treatment") for i in range(64) for outcome in ("good", "bad")
    }
    assert {dict(labels)["indicator"] for labels in found["funicular_slow_total"]} == {"LatencyP95"}
    assert set(found["funicular_outcomes_total"].values()) == {0}
    version = frozenset({"namespace": "default", "policy": "a"}.items())
    assert found["funicular_agent_traffic_version"][version] == 2
    assert found["funicular_agent_share"][version] == 5000
    assert found["funicular_agent_envoy_up"][frozenset()] == 1
