"""The contract: the reference server keeps it, and the conformance test finds whoever does not."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import yaml
from hack.sim.processes import Running, classifier, free_port, running

from funicular.classifier import conformance, conformance_checks
from funicular.classifier.conformance_checks import Options, Unreachable
from funicular.classifier.http1 import Exchange, Registry
from funicular.classifier.model import load
from funicular.classifier.server import ClassifierServer, ServerSettings

QUICK = Options(timeout=10.0, concurrency=16, requests=200)
SPEC = Path(conformance.__file__).with_name("openapi.yaml")
EASY = {"messages": [{"role": "user", "content": "Where is my order 70211?"}]}


@pytest.fixture(scope="module")
def reference() -> Iterator[Running]:
    with classifier() as server:
        yield server


async def test_the_reference_keeps_every_rule(reference: Running) -> None:
    results = await conformance.examine(reference.url, Options(timeout=10.0, requests=500))
    assert len(results) == len(conformance_checks.CHECKS)
    assert [r for r in results if r.verdict == "FAIL"] == []
    length = next(r for r in results if "length" in r.rule)
    assert length.verdict == "PASS"


def test_the_command_ends_with_0_1_or_2(reference: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(["--url", reference.url, "--requests", "100", "--timeout", "10", "--json"]) == 0
    assert orjson.loads(capsys.readouterr().out)["failed"] == 0
    assert conformance.main(["--url", f"http://127.0.0.1:{free_port()}"]) == 2
    assert "nothing answers" in capsys.readouterr().err


def test_pages_and_headers(reference: Running) -> None:
    status, version = reference.get("/v1/version")
    assert status == 200
    assert orjson.loads(version)["labels"] == ["easy", "hard"]
    assert "made data" in orjson.loads(version)["trainedOn"].lower()
    answer = httpx.post(
        f"{reference.url}/v1/classify", json=EASY, headers={"x-funicular-threshold": "0.7"}, trust_env=False
    )
    assert answer.headers["x-funicular-label"] == "easy"
    assert answer.headers["x-funicular-classifier-version"] == orjson.loads(version)["version"]
    assert reference.get("/v1/classify")[0] == 405
    assert reference.get("/v1/classifyx")[0] == 404
    assert 'funicular_classifier_answers_total{label="easy",reason="model"}' in reference.get("/metrics")[1]


def test_no_prompt_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    with classifier() as server:
        server.post("/v1/classify", {"messages": [{"role": "user", "content": "my secret is 4711"}]})
        server.post("/v1/classify", {"messages": "my secret is 4711"})
        assert "4711" not in server.get("/metrics")[1]
    assert "4711" not in "".join(capfd.readouterr())


def test_sigterm_drains_and_ends_with_0() -> None:
    with classifier("--drain", "0.6") as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.get("/readyz").status_code == 200
        server.process.terminate()
        while client.get("/readyz").status_code == 200:
            pass
        answer = client.post("/v1/classify", json=EASY)
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
        assert server.process.wait(10) == 0


def test_a_server_without_a_model_lives_and_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "model.npz"
    broken.write_text("no model")
    port = free_port()
    environment = {
        **os.environ,
        "FUNICULAR_CLASSIFIER_HOST": "127.0.0.1",
        "FUNICULAR_CLASSIFIER_PORT": str(port),
        "FUNICULAR_CLASSIFIER_MODEL": str(broken),
        "FUNICULAR_CLASSIFIER_DRAIN": "0",
    }
    with running(sys.executable, "-m", "funicular.classifier", "serve", port=port, env=environment) as server:
        assert server.get("/healthz")[0] == 200
        status, reason = server.get("/readyz")
        assert status == 503
        assert "is not a model file" in reason
        assert server.post("/v1/classify", EASY)[0] == 503
        assert server.terminate() == 0


def test_a_port_in_use_is_said_in_one_line(reference: Running, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="ended with 1"), classifier("--port", str(reference.port)):
        pass
    assert "Traceback" not in capfd.readouterr().err


# --- overload, without sockets ----------------------------------------------------------------------------------------
class Line:
    """Stands in for a connection: keeps what the server answers."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def closing_field(self) -> bytes:
        return b""

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def finish(self, exchange: Exchange) -> None:
        exchange.closed = True


def post(line: Line) -> Exchange:
    return Exchange(line, b"POST", b"/v1/classify", {}, orjson.dumps(EASY))  # type: ignore[arg-type]


async def turns() -> None:
    """A few turns of the loop: the queue is worked off by callbacks."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_full_queue_refuses_at_once_and_serves_what_it_took() -> None:
    app = ClassifierServer(ServerSettings(queue=3), load())
    lines = [Line() for _ in range(5)]
    for line in lines:
        app(post(line))
    assert [bool(line.sent) for line in lines] == [False, False, False, True, True]
    assert lines[3].sent[0].startswith(b"HTTP/1.1 503")
    await turns()
    assert all(line.sent[0].startswith(b"HTTP/1.1 200") for line in lines[:3])
    assert app.metrics.refused == {"queue-full": 2}


async def test_what_has_waited_too_long_is_refused_and_who_left_is_not_served() -> None:
    app = ClassifierServer(ServerSettings(deadline=-1.0), load())
    late, gone = Line(), Line()
    app(post(late))
    exchange = post(gone)
    app(exchange)
    exchange.closed = True
    await turns()
    assert late.sent[0].startswith(b"HTTP/1.1 503")
    assert gone.sent == []
    assert app.metrics.refused == {"too-late": 1, "client-gone": 1}


# --- servers that break a rule ------------------------------------------------------------------------------------------
Rule = Callable[[Exchange, dict[str, Any]], None]
KNOWN = ("easy", "hard")


def honest(exchange: Exchange) -> dict[str, Any]:
    """What a server that keeps the contract would answer, as parts that a test may spoil."""
    answer = load_once().classify(exchange.body, threshold_of(exchange), cut=len(exchange.body) == 65_536)
    labels = exchange.headers.get(b"x-funicular-labels", b"easy,hard").decode().replace(" ", "").split(",")
    bad = math.isnan(threshold_of(exchange)) or not set(labels) & set(KNOWN)
    label = answer.label if answer.label in labels else "hard"
    return {"status": 400 if bad else 200, "label": label, "score": f"{answer.score:.4f}", "version": "v1", "body": b""}


def load_once() -> Any:
    if not MODEL:
        MODEL.append(load())
    return MODEL[0]


MODEL: list[Any] = []


def threshold_of(exchange: Exchange) -> float:
    try:
        value = float(exchange.headers.get(b"x-funicular-threshold", b"0.5"))
    except ValueError:
        return math.nan
    return value if 0.0 <= value <= 1.0 else math.nan


PAGES = {
    b"/healthz": (200, b"ok"),
    b"/readyz": (200, b"ok"),
    b"/v1/version": (200, b'{"version":"v1","labels":["easy","hard"],"calibrationId":"c1"}'),
    b"/metrics": (200, b"# TYPE a_total counter\na_total 1\n"),
}


@asynccontextmanager
async def third_party(
    spoil: Rule | None = None, pages: dict[bytes, tuple[int, bytes]] | None = None
) -> AsyncIterator[str]:
    """A server of somebody else's, spoilt in one way."""
    served = {**PAGES, **(pages or {})}

    def handle(exchange: Exchange) -> None:
        if exchange.target in served:
            status, body = served[exchange.target]
            exchange.answer(status, b"content-type: text/plain\r\n", body)
            return
        parts = honest(exchange)
        if spoil:
            spoil(exchange, parts)
        names = {
            "label": "x-funicular-label",
            "score": "x-funicular-score",
            "version": "x-funicular-classifier-version",
        }
        fields = "".join(f"{names[key]}: {parts[key]}\r\n" for key in names if parts[key] is not None)
        exchange.answer(parts["status"], fields.encode(), parts["body"])

    registry = Registry(handle, max_body=8 << 20)
    server = await asyncio.get_running_loop().create_server(registry.connection, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await registry.close(0.0)


async def test_an_honest_third_party_passes() -> None:
    async with third_party() as url:
        assert [r for r in await conformance.examine(url, QUICK) if r.verdict == "FAIL"] == []


def by_length(exchange: Exchange, parts: dict[str, Any]) -> None:
    score = round(math.exp(-len(exchange.body) / 400), 4)
    readable = parts["score"] != "0.0000"
    parts.update(score=f"{score:.4f}", label="easy" if readable and score >= threshold_of(exchange) else "hard")


def below_threshold(exchange: Exchange, parts: dict[str, Any]) -> None:
    if float(parts["score"]) > 0.1:
        parts["label"] = "easy"


COUNTER = itertools.count()


def moody(exchange: Exchange, parts: dict[str, Any]) -> None:
    parts["score"] = f"{float(parts['score']) * 0.9 + 0.0001 * (next(COUNTER) % 97):.4f}"


@pytest.mark.parametrize(
    ("spoil", "rule", "note"),
    [
        pytest.param(lambda e, p: p.update(score=None), "label, score and version", "x-funicular-score is None", id="no score"),
        pytest.param(lambda e, p: p.update(score="8.3e-1"), "label, score and version", "plain decimal", id="an odd number"),
        pytest.param(lambda e, p: p.update(label="medium"), "label, score and version", "easy or hard", id="an unknown label"),
        pytest.param(lambda e, p: p.update(version="v1 beta"), "label, score and version", "version", id="a version with space"),
        pytest.param(lambda e, p: p.update(body=b"{}"), "label, score and version", "has a body", id="a body"),
        pytest.param(lambda e, p: p.update(status=204), "label, score and version", "204", id="another status"),
        pytest.param(lambda e, p: p.update(version="v2"), "/v1/version", "'v2'", id="two versions"),
        pytest.param(below_threshold, "reaches the threshold", "at threshold 0.999", id="easy below the threshold"),
        pytest.param(moody, "the same answer, whatever", "the same request got", id="moods"),
        pytest.param(lambda e, p: p.update(status=200), "are refused", "much was answered with 200", id="takes any threshold"),
        pytest.param(
            lambda e, p: p.update(status=500 if p["score"] == "0.0000" else p["status"]),
            "cannot be read",
            "500 instead of 200",
            id="fails on garbage",
        ),
        pytest.param(
            lambda e, p: p.update(label="easy") if p["score"] == "0.0000" else None,
            "cut within",
            "cut off, were answered with easy",
            id="easy when cut",
        ),
        pytest.param(by_length, "not on its length alone", "looks at the length only", id="length alone"),
        pytest.param(
            lambda e, p: p.update(status=500 if len(e.body) > 70_000 else p["status"]), "100 KB", "500", id="no large bodies"
        ),
        pytest.param(
            lambda e, p: p.update(status=404 if e.target != b"/v1/classify" else p["status"]), "Any path", "404", id="one path"
        ),
    ],
)  # fmt: skip
async def test_who_breaks_a_rule_is_told_which(spoil: Rule, rule: str, note: str) -> None:
    async with third_party(spoil) as url:
        results = await conformance.examine(url, QUICK)
    broken = [result for result in results if result.verdict == "FAIL" and rule in result.rule]
    assert broken, [result for result in results if result.verdict != "PASS"]
    assert note in broken[0].note


@pytest.mark.parametrize(
    ("page", "answer", "rule"),
    [
        pytest.param(b"/readyz", (503, b"loading"), "GET /healthz", id="not ready"),
        pytest.param(b"/v1/version", (200, b"v1"), "GET /v1/version", id="a version that is no JSON"),
        pytest.param(b"/v1/version", (200, b'{"version":"v1","labels":["yes"],"calibrationId":"c"}'), "GET /v1/version",
                     id="other labels"),
        pytest.param(b"/metrics", (200, b"no metrics"), "GET /metrics", id="no metrics"),
    ],
)  # fmt: skip
async def test_pages_that_break_a_rule(page: bytes, answer: tuple[int, bytes], rule: str) -> None:
    async with third_party(pages={page: answer}) as url:
        results = await conformance.examine(url, QUICK)
    assert [r.rule for r in results if r.verdict == "FAIL" and r.rule.startswith(rule)]


async def test_a_constant_answer_is_doubtful_not_broken() -> None:
    def constant(exchange: Exchange, parts: dict[str, Any]) -> None:
        parts.update(label="hard", score="0.5")

    async with third_party(constant) as url:
        results = await conformance.examine(url, QUICK)
    assert [r.verdict for r in results if "length" in r.rule] == ["WARN"]


async def test_a_server_that_hangs_is_broken_not_endless() -> None:
    held: list[Exchange] = []

    def hang(exchange: Exchange) -> None:
        if exchange.target in PAGES:
            exchange.answer(200, b"", PAGES[exchange.target][1])
        else:
            held.append(exchange)

    registry = Registry(hang)
    server = await asyncio.get_running_loop().create_server(registry.connection, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    results = await conformance.examine(url, Options(timeout=0.05, concurrency=4, requests=8))
    server.close()
    await registry.close(0.0)
    assert sum(result.verdict == "FAIL" for result in results) >= 10


async def test_nobody_there() -> None:
    with pytest.raises(Unreachable):
        await conformance.examine(f"http://127.0.0.1:{free_port()}", QUICK)


# --- the document -------------------------------------------------------------------------------------------------------
def test_the_document_says_what_the_checks_check() -> None:
    document = yaml.safe_load(SPEC.read_text())
    headers = document["paths"]["/v1/classify"]["post"]["responses"]["200"]["headers"]
    required = {name for name, header in headers.items() if header.get("required")}
    assert required == {conformance_checks.LABEL, conformance_checks.SCORE, conformance_checks.VERSION}
    python = conformance_checks.SCORE_SHAPE.pattern.removesuffix(r"\Z")
    assert headers[conformance_checks.SCORE]["schema"]["pattern"] == f"^{python}$"
    version = conformance_checks.VERSION_SHAPE.pattern.removesuffix(r"\Z")
    assert document["components"]["schemas"]["Version"]["properties"]["version"]["pattern"] == f"^{version}$"
    assert headers[conformance_checks.VERSION]["schema"]["pattern"] == f"^{version}$"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/version"])
def test_every_page_of_the_document_is_served(reference: Running, path: str) -> None:
    assert path in yaml.safe_load(SPEC.read_text())["paths"]
    assert reference.get(path)[0] == 200
