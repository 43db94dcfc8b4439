"""The checks of the classifier contract, one function per sentence of openapi.yaml.

Called by conformance, in the order of CHECKS. A check returns a note, or raises Broken (the contract is not kept) or Doubtful (it
is, and something deserves a look). The checks know only the contract, never the reference server.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import aiohttp
import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families

from funicular.classifier.length import equal_length_pairs, judge_length
from funicular.classifier.made_prompts import make_prompts

LABEL, SCORE, VERSION = "x-funicular-label", "x-funicular-score", "x-funicular-classifier-version"
SCORE_SHAPE = re.compile(r"(0(\.\d{1,6})?|1(\.0{1,6})?)\Z")
VERSION_SHAPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}\Z")
GATEWAY_CUT = 65_536
GATEWAY_TIMEOUT = 0.05


class Broken(Exception):
    """The contract is not kept; the text says how."""


class Doubtful(Exception):
    """The contract is kept, but somebody should look at this."""


class Unreachable(Exception):
    """Nothing answers at this address."""


@dataclass(frozen=True, slots=True)
class Options:
    """`timeout` in seconds, for every request; `requests` is the size of the latency report."""

    timeout: float = 1.0
    concurrency: int = 64
    requests: int = 2_000


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer of /v1/classify."""

    label: str
    score: float
    version: str


@dataclass(frozen=True, slots=True)
class Check:
    """`rule` is the sentence that is checked."""

    rule: str
    run: Callable[[Probe], Awaitable[str]]


class Probe:
    """Asks the server, and refuses answers that have not the contract's shape."""

    def __init__(self, client: httpx.AsyncClient, options: Options) -> None:
        self.client = client
        self.options = options

    async def knock(self) -> None:
        try:
            await self.client.get("/healthz")
        except httpx.HTTPError as error:
            raise Unreachable(f"nothing answers at {self.client.base_url}: {type(error).__name__} {error}") from error

    async def post(self, body: bytes, *, path: str = "/v1/classify", **headers: str) -> httpx.Response:
        names = {
            "content-type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        return await self.client.post(path, content=body, headers=names)

    async def ask(self, body: bytes, what: str = "a request", *, path: str = "/v1/classify", **headers: str) -> Answer:
        """A 200 with all three headers in shape, or Broken."""
        response = await self.post(body, path=path, **headers)
        return read_answer(response.status_code, response.headers, what)


def read_answer(status: int, headers: Mapping[str, str], what: str) -> Answer:
    """`headers` by lower-case name or case-insensitive."""
    if status != 200:
        raise Broken(f"{what} was answered with {status} instead of 200")
    label, score, version = (headers.get(name) for name in (LABEL, SCORE, VERSION))
    if label not in ("easy", "hard"):
        raise Broken(f"{what}: {LABEL} is {label!r}; it must be easy or hard")
    if score is None or not SCORE_SHAPE.match(score):
        raise Broken(f"{what}: {SCORE} is {score!r}; it must be a plain decimal from 0 to 1, as in 0.8312")
    if version is None or not VERSION_SHAPE.match(version):
        raise Broken(f"{what}: {VERSION} is {version!r}; it must be a short version without spaces")
    return Answer(label, float(score), version)


def request(content: Any, **fields: Any) -> bytes:
    """A chat-completions request with one user message."""
    system = {"role": "system", "content": "You are a support agent."}
    return orjson.dumps({"model": "support-chat", "messages": [system, {"role": "user", "content": content}], **fields})


EASY = request("Where is my order 70211?")
HARD = request("Prove that the square root of 13 is irrational, and explain where the proof fails for 49.")

CHECKS: list[Check] = []


def check(rule: str) -> Callable[[Callable[[Probe], Awaitable[str]]], Callable[[Probe], Awaitable[str]]]:
    """Puts a function into CHECKS."""

    def register(function: Callable[[Probe], Awaitable[str]]) -> Callable[[Probe], Awaitable[str]]:
        CHECKS.append(Check(rule, function))
        return function

    return register


@check("GET /healthz answers 200 while the process lives, GET /readyz 200 once the model gives its recorded answers.")
async def lives_and_is_ready(probe: Probe) -> str:
    for path in ("/healthz", "/readyz"):
        response = await probe.client.get(path)
        if response.status_code != 200:
            raise Broken(f"{path} answered {response.status_code}: {response.text[:200]}")
    return "both 200"


@check("GET /v1/version answers JSON with version, labels and calibrationId.")
async def names_its_version(probe: Probe) -> str:
    response = await probe.client.get("/v1/version")
    try:
        about = response.json()
        version, labels, calibration = about["version"], about["labels"], about["calibrationId"]
    except (ValueError, KeyError, TypeError) as error:
        raise Broken(
            f"status {response.status_code}, and {type(error).__name__} {error} in {response.text[:200]!r}"
        ) from error
    if not isinstance(version, str) or not VERSION_SHAPE.match(version):
        raise Broken(f"version is {version!r}; it must be a short string without spaces")
    if not isinstance(labels, list) or not {"easy", "hard"} <= set(labels):
        raise Broken(f"labels are {labels!r}; easy and hard must be among them")
    if not isinstance(calibration, str) or not calibration:
        raise Broken(f"calibrationId is {calibration!r}; it must be a string that names the calibration")
    seen = (await probe.ask(EASY)).version
    if seen != version:
        raise Broken(f"/v1/version says {version!r} and the header {VERSION} says {seen!r}")
    return f"{version}, calibration {calibration}"


@check("GET /metrics answers in Prometheus's text format.")
async def has_metrics(probe: Probe) -> str:
    response = await probe.client.get("/metrics")
    if response.status_code != 200:
        raise Broken(f"status {response.status_code}")
    try:
        families = list(text_string_to_metric_families(response.text))
    except ValueError as error:
        raise Broken(f"it does not parse: {error}") from error
    if not families:
        raise Broken("there is no metric in it")
    return f"{len(families)} metrics"


@check("POST /v1/classify answers 200 with label, score and version in headers, and no body.")
async def answers_in_headers(probe: Probe) -> str:
    response = await probe.post(EASY, x_funicular_threshold="0.70", x_funicular_labels="easy,hard")
    answer = read_answer(response.status_code, response.headers, "a plain request")
    if response.content:
        raise Broken(f"the answer has a body of {len(response.content)} bytes; the gateway would read it for nothing")
    return f"{answer.label} {answer.score}"


@check("Any path behind /v1/classify gives the same answer.")
async def takes_any_path(probe: Probe) -> str:
    plain = await probe.ask(EASY)
    for path in ("/v1/classify/v1/chat/completions", "/v1/classify/", "/v1/classify/x?y=z"):
        if await probe.ask(EASY, path, path=path) != plain:
            raise Broken(f"{path} gave another answer than /v1/classify")
    return "3 paths"


@check(
    "The label is easy only if the score reaches the threshold (0.5 when there is none); the score does not depend on it."
)
async def keeps_the_threshold(probe: Probe) -> str:
    bodies = [EASY, HARD, *(request(prompt.text) for prompt in make_prompts(11, 20, "conformance"))]
    for body in bodies:
        plain = await probe.ask(body)
        for threshold in ("", "0", "0.25", "0.50", "0.70", "0.999", "1"):
            headers = {"x_funicular_threshold": threshold} if threshold else {}
            answer = await probe.ask(body, f"threshold {threshold or 'absent'}", **headers)
            if answer.label == "easy" and answer.score < float(threshold or 0.5):
                raise Broken(f"easy with a score of {answer.score} at threshold {threshold or '0.5 (none sent)'}")
            if answer.score != plain.score:
                raise Broken(
                    f"the same request scored {plain.score} without and {answer.score} with threshold {threshold}"
                )
    return f"{len(bodies)} requests at 7 thresholds"


@check("A threshold that is no number from 0 to 1, or labels it does not know, are refused: any status but 200.")
async def refuses_bad_headers(probe: Probe) -> str:
    for threshold in ("much", "1.5", "-0.1", "nan", "inf"):
        if (await probe.post(EASY, x_funicular_threshold=threshold)).status_code == 200:
            raise Broken(
                f"x-funicular-threshold: {threshold} was answered with 200; a typing error would route silently"
            )
    if (await probe.post(EASY, x_funicular_labels="cheap,dear")).status_code == 200:
        raise Broken("x-funicular-labels: cheap,dear was answered with 200 and a label that the policy does not route")
    return "6 bad headers refused"


@check("A label that the policy does not route is never given.")
async def keeps_to_the_labels(probe: Probe) -> str:
    if (await probe.ask(EASY, "labels: hard", x_funicular_labels="hard", x_funicular_threshold="0")).label != "hard":
        raise Broken("x-funicular-labels: hard was answered with easy")
    await probe.ask(EASY, "labels with spaces", x_funicular_labels="hard, easy")
    return "hard alone, and both with a space"


@check("A body that cannot be read, or asks nothing, is answered 200 with the label hard.")
async def copes_with_garbage(probe: Probe) -> str:
    rubbish: dict[str, bytes] = {
        "an empty body": b"",
        "random bytes": random.Random(3).randbytes(2_000),
        "text": b"Where is my order?",
        "null": b"null",
        "a list": b"[]",
        "a number": b"17",
        "no messages": b'{"model":"support-chat"}',
        "empty messages": b'{"model":"support-chat","messages":[]}',
        "messages of the wrong type": b'{"messages":{"role":"user"}}',
        "messages that are no objects": b'{"messages":[1,"two",null]}',
        "a message without content": b'{"messages":[{"role":"user"}]}',
        "content null": b'{"messages":[{"role":"user","content":null}]}',
        "content blank": b'{"messages":[{"role":"user","content":"  \\n "}]}',
        "content of the wrong type": b'{"messages":[{"role":"user","content":17}]}',
        "invalid UTF-8": b'{"messages":[{"role":"user","content":"\xff\xfe\xfa"}]}',
        "a lone surrogate": b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        "nesting of 20,000": b'{"messages":' + b"[" * 20_000,
    }
    for what, body in rubbish.items():
        answer = await probe.ask(body, what)
        if answer.label != "hard":
            raise Broken(f"{what} was answered with easy")
    return f"{len(rubbish)} kinds"


@check("JSON that is cut anywhere is answered 200; cut within the last user message, hard.")
async def copes_with_cuts(probe: Probe) -> str:
    for end in range(0, len(EASY), 7):
        await probe.ask(EASY[:end], f"a request cut at byte {end}")
    long = request("Where is my order 70211? " + "I have waited for it very long. " * 4_000)
    answer = await probe.ask(long[:GATEWAY_CUT], "64 KiB of a longer body", x_envoy_auth_partial_body="true")
    if answer.label != "hard":
        raise Broken("64 KiB of a longer body, its question cut off, were answered with easy")
    return f"{len(range(0, len(EASY), 7)) + 1} cuts"


@check("Bodies of 100 KB are taken; of 1 MiB taken or refused with 413.")
async def takes_large_bodies(probe: Probe) -> str:
    started = perf_counter()
    await probe.ask(request("The parcel has not come. " * 4_000), "a body of 100 KB")
    small_system = [
        {"role": "system", "content": "Be kind. " * 11_000},
        {"role": "user", "content": "Where is my order?"},
    ]
    await probe.ask(orjson.dumps({"model": "m", "messages": small_system}), "a system prompt of 100 KB")
    seconds = perf_counter() - started
    response = await probe.post(request("x " * (1 << 19)))
    if response.status_code not in (200, 413):
        raise Broken(f"1 MiB was answered with {response.status_code}")
    return f"100 KB in {seconds / 2 * 1e3:.1f} ms; 1 MiB: {response.status_code}"


@check("Other contents than text, and tools, are answered, not refused.")
async def copes_with_other_contents(probe: Probe) -> str:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    await probe.ask(request([{"type": "text", "text": "What is this?"}, image]), "a message with an image")
    tool = {"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}}
    await probe.ask(request("Where is my order 70211?", tools=[tool]), "a request with tools")
    await probe.ask(request([{"type": "text", "text": "Where is my order 70211?"}]), "text in parts")
    return "an image, tools, text in parts"


@check("The same request gives the same answer, whatever came between.")
async def is_deterministic(probe: Probe) -> str:
    bodies = [EASY, HARD, *(request(prompt.text) for prompt in make_prompts(12, 8, "conformance"))]
    first = [await probe.ask(body) for body in bodies]
    for _ in range(3):
        again = await asyncio.gather(*(probe.ask(body) for body in reversed(bodies)))
        for before, after in zip(first, reversed(again), strict=True):
            if before != after:
                raise Broken(f"the same request got {before.label} {before.score}, later {after.label} {after.score}")
    return f"{len(bodies)} requests, 4 times"


@check("The score depends on what is asked, not on its length alone.")
async def reads_the_request(probe: Probe) -> str:
    pairs = equal_length_pairs(40)
    easy = [(await probe.ask(request(pair.easy.text))).score for pair in pairs]
    hard = [(await probe.ask(request(pair.hard.text))).score for pair in pairs]
    verdict = judge_length([len(pair.easy.text.encode()) for pair in pairs], easy, hard)
    if verdict.length_decides:
        raise Broken(verdict.sentence)
    if verdict.constant:
        raise Doubtful(f"{verdict.sentence} That is safe and saves nothing.")
    if verdict.separated < 0.6:
        raise Doubtful(
            f"{verdict.sentence} The prompts are made ones; a classifier for another field may see it otherwise."
        )
    return verdict.sentence


@check("Many at once are all answered in time; who cannot be served in time is refused at once (503), never late.")
async def serves_many_at_once(probe: Probe) -> str:
    options = probe.options
    bodies = [request(prompt.text) for prompt in make_prompts(13, 100, "conformance")]
    # aiohttp here: at this concurrency httpx would measure itself.
    connector = aiohttp.TCPConnector(limit=options.concurrency)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=options.timeout)
    ) as session:
        crowd = Crowd(session, str(probe.client.base_url.join("/v1/classify")))
        alone: list[float] = []
        queue = iter(range(options.requests))
        together: list[float] = []

        async def worker() -> None:
            for index in queue:
                together.append(await crowd.timed(bodies[index % 100]))

        try:
            for index in range(min(200, options.requests)):
                alone.append(await crowd.timed(bodies[index % 100]))
            started = perf_counter()
            await asyncio.gather(*(worker() for _ in range(options.concurrency)))
        except (aiohttp.ClientError, TimeoutError) as error:
            why = f"{type(error).__name__} {error}".strip()
            raise Broken(
                f"with up to {options.concurrency} at once a request had no answer in {options.timeout:g} s: {why}"
            ) from error
        rate = len(together) / (perf_counter() - started)
    if crowd.refused > options.requests // 100:
        raise Broken(f"{crowd.refused} of {options.requests} requests were refused at {options.concurrency} at once")
    note = (
        f"one by one: {quantiles(alone)}; {options.concurrency} at once: {quantiles(together)} at {rate:.0f}/s "
        f"(this client included), {crowd.refused} refused"
    )
    late = sum(seconds > GATEWAY_TIMEOUT for seconds in alone) / max(1, len(alone))
    if late > 0.01:
        raise Doubtful(
            f"{note}. {late:.0%} of single requests took more than the gateway's default of 50 ms: raise "
            f"strategy.classifier.timeout, or these requests go to the baseline"
        )
    return note


class Crowd:
    """Many clients of one server. `refused` counts 503, which the contract allows."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self.refused = 0

    async def timed(self, body: bytes) -> float:
        """Seconds until the answer was read."""
        started = perf_counter()
        async with self._session.post(self._url, data=body, headers={"x-funicular-threshold": "0.70"}) as response:
            await response.read()
            seconds = perf_counter() - started
            if response.status == 503:
                self.refused += 1
            else:
                read_answer(response.status, response.headers, "one of many requests")
        return seconds


def quantiles(seconds: list[float]) -> str:
    """p50, p99 and the maximum in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    values = (ordered[int(q * (len(ordered) - 1))] * 1e3 for q in (0.5, 0.99, 1.0))
    return "p50 {:.1f} p99 {:.1f} max {:.1f} ms".format(*values)
