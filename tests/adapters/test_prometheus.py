"""The Prometheus adapter against a local server that behaves badly in every way a real one, or what stands before it, can."""

from __future__ import annotations

import asyncio
import base64
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import prometheus_api_client.exceptions
import pytest
import requests.exceptions
from aiohttp import web

from funicular.adapters.prometheus import MEANING, PrometheusClients, vector_of
from funicular.adapters.prometheus_access import AccessResolver, Redactor
from funicular.adapters.secrets import Secrets
from funicular.api.spec import Prometheus
from funicular.errors import AccessDenied, FunicularError, InvalidQuery, MetricsUnavailable, SecretMissing
from hack.cluster import pki
from tests.controller.fakes import NOW, FakeKube

Json = dict[str, Any]
ONE = {
    "status": "success",
    "data": {"resultType": "vector", "result": [{"metric": {"arm": "treatment"}, "value": [1, "0.5"]}]},
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Keeps every request; answers with `answer`, or what `handler` says."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.forms: list[dict[str, str]] = []
        self.status = 200
        self.body: Any = ONE
        self.handler: Handler | None = None
        self.tokens: list[dict[str, str]] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.forms.append({k: str(v) for k, v in (await request.post()).items()})
        if self.handler is not None:
            return await self.handler(request)
        if isinstance(self.body, str):
            return web.Response(status=self.status, text=self.body, content_type="text/html")
        return web.json_response(self.body, status=self.status)

    async def token(self, request: web.Request) -> web.Response:
        form = {k: str(v) for k, v in (await request.post()).items()}
        self.tokens.append({**form, "authorization": request.headers.get("authorization", "")})
        return web.json_response({"access_token": f"fresh-{len(self.tokens)}", "expires_in": 3600})


@asynccontextmanager
async def serving(context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server()
    app = web.Application(client_max_size=1 << 20)
    app.router.add_post("/token", server.token)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()


def secret(kube: FakeKube, name: str, **data: str) -> None:
    encoded = {key.replace("_", "."): base64.b64encode(value.encode()).decode() for key, value in data.items()}
    kube.objects[f"/api/v1/namespaces/shop/secrets/{name}"] = {"metadata": {"name": name}, "data": encoded}


class Asking:
    def __init__(self, folder: Path) -> None:
        self.kube = FakeKube()
        self.elapsed = 0.0
        self.failures: list[str] = []
        secrets = Secrets(self.kube, lambda: self.elapsed)  # type: ignore[arg-type]
        resolver = AccessResolver(secrets, token_folder=folder, elapsed=lambda: self.elapsed)
        self.clients = PrometheusClients(resolver, observe=self.failures.append)

    async def query(self, url: str, promql: str = "up", **settings: Any) -> list[tuple[dict[str, str], float]]:
        spec = Prometheus.model_validate({"url": url, "timeout": "500ms", **settings})
        return await self.clients.at("shop", spec).query(promql, NOW)


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncIterator[Asking]:
    asked = Asking(tmp_path)
    yield asked
    await asked.clients.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


@pytest.fixture
def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


# --- what is asked ---------------------------------------------------------------------------------------------------
async def test_a_long_query_travels_in_the_body_and_under_the_prefix(asking: Asking, server: Server, url: str) -> None:
    long = "up" + " or up" * 5000
    assert await asking.query(f"{url}/prometheus/api-prefix/", long) == [({"arm": "treatment"}, 0.5)]
    request, form = server.requests[0], server.forms[0]
    assert (request.method, request.path_qs) == ("POST", "/prometheus/api-prefix/api/v1/query")
    assert form == {"query": long, "time": f"{NOW.timestamp():.3f}", "timeout": "0.5s"}


async def test_connections_are_kept(asking: Asking, server: Server, url: str) -> None:
    for _ in range(5):
        await asking.query(url)
    assert len({r.transport for r in server.requests}) == 1


# --- what is answered ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "body", "error", "sentence"),
    [
        pytest.param(401, {}, AccessDenied, "401", id="credentials are wanted"),
        pytest.param(403, "<html>", AccessDenied, "403", id="credentials are not enough"),
        pytest.param(302, "", AccessDenied, "login page", id="a redirect is not followed"),
        pytest.param(
            400, {"error": "parse error: x"}, InvalidQuery, "parse error: x", id="a query that does not parse"
        ),
        pytest.param(
            422, {"error": "many-to-many"}, InvalidQuery, "many-to-many", id="a query that cannot be executed"
        ),
        pytest.param(400, "<html>", MetricsUnavailable, "400", id="a proxy's 400 says nothing of the query"),
        pytest.param(404, "no", MetricsUnavailable, "path prefix", id="a wrong path"),
        pytest.param(429, "slow down", MetricsUnavailable, "429", id="too many requests"),
        pytest.param(500, {"error": "oops"}, MetricsUnavailable, "oops", id="a server's error"),
        pytest.param(503, {"error": "query timed out"}, MetricsUnavailable, "query timed out", id="overload"),
        pytest.param(200, "<html>login</html>", MetricsUnavailable, "not JSON", id="a page instead of JSON"),
        pytest.param(200, {"status": "success"}, MetricsUnavailable, "query API", id="JSON of something else"),
        pytest.param(200, [], MetricsUnavailable, "query API", id="a list"),
    ],
)
async def test_an_answer_becomes_an_error_of_ours(
    asking: Asking, server: Server, url: str, status: int, body: Any, error: type[FunicularError], sentence: str
) -> None:
    server.status, server.body = status, body
    with pytest.raises(error, match=sentence) as caught:
        await asking.query(url)
    assert type(caught.value) is error
    assert asking.failures == [error.__name__]
    assert len(server.requests) == 1  # no silent retries


async def test_silence_is_not_waited_for(asking: Asking, server: Server, url: str) -> None:
    async def never(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    server.handler = never
    started = asyncio.get_running_loop().time()
    with pytest.raises(MetricsUnavailable, match="in time"):
        await asking.query(url)
    assert asyncio.get_running_loop().time() - started < 2


async def test_an_answer_that_drips_is_not_waited_for(asking: Asking, server: Server, url: str) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(100):
            await response.write(b" " * 10)
            await asyncio.sleep(0.1)
        return response

    server.handler = drip
    with pytest.raises(MetricsUnavailable, match="in time"):
        await asking.query(url)


async def test_an_answer_that_breaks_off(asking: Asking, server: Server, url: str) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "1000"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.abort()
        return response

    server.handler = broken
    with pytest.raises(MetricsUnavailable):
        await asking.query(url)


async def test_nobody_listens(asking: Asking) -> None:
    with pytest.raises(MetricsUnavailable, match="cannot be reached"):
        await asking.query("http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        pytest.param([1.0, "3"], [({}, 3.0)], id="a scalar"),
        pytest.param([], [], id="nothing"),
        pytest.param([{"metric": {"a": "b"}, "value": [1, "NaN"]}], None, id="not a number is passed on"),
    ],
)
def test_shapes_of_a_result(result: Any, expected: Any) -> None:
    found = vector_of(result)
    assert found == expected if expected is not None else found[0][1] != found[0][1]


def test_a_range_vector_is_refused() -> None:
    with pytest.raises(InvalidQuery, match="range vector"):
        vector_of([{"metric": {}, "values": [[1, "2"]]}])


def test_every_foreign_exception_has_a_meaning() -> None:
    """Fails when an upgrade of a library brings an exception that nobody has thought of."""
    for module in (prometheus_api_client.exceptions, requests.exceptions):
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, Exception) and not issubclass(kind, Warning) and kind.__module__ == module.__name__:
                assert kind in MEANING, f"{module.__name__}.{name} is not mapped"


# --- who asks --------------------------------------------------------------------------------------------------------
async def test_bearer_from_a_secret_is_taken_anew(asking: Asking, server: Server, url: str) -> None:
    auth = {"bearer": {"secretRef": {"name": "prom", "key": "token"}}}
    with pytest.raises(SecretMissing, match="Secret shop/prom does not exist") as caught:
        await asking.query(url, auth=auth)
    assert caught.value.field == "spec.prometheus.auth.bearer.secretRef"
    secret(asking.kube, "prom", other="x")
    with pytest.raises(SecretMissing, match="no key token"):
        await asking.query(url, auth=auth)
    asking.elapsed += 31
    for value in ("first-token", "second-token"):
        secret(asking.kube, "prom", token=value + "\n")
        await asking.query(url, auth=auth)
        assert server.requests[-1].headers["authorization"] == f"Bearer {value}"
        asking.elapsed += 31


async def test_bearer_from_a_file_is_read_anew_and_only_from_its_folder(
    asking: Asking, server: Server, url: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    for value in ("first-token", "second-token"):
        file.write_text(value)
        await asking.query(url, auth={"bearer": {"file": str(file)}})
        assert server.requests[-1].headers["authorization"] == f"Bearer {value}"
    (tmp_path / "link").symlink_to("/etc/passwd")
    for outside in ("/etc/passwd", f"{tmp_path}/../x", f"{tmp_path}/link"):
        with pytest.raises(AccessDenied, match="outside"):
            await asking.query(url, auth={"bearer": {"file": outside}})


async def test_basic(asking: Asking, server: Server, url: str) -> None:
    secret(asking.kube, "prom", user="ann", password="s3cr3t:ü\n")
    reference = {"username": {"name": "prom", "key": "user"}, "password": {"name": "prom", "key": "password"}}
    await asking.query(url, auth={"basic": reference})
    scheme, _, encoded = server.requests[-1].headers["authorization"].partition(" ")
    assert (scheme, base64.b64decode(encoded).decode()) == ("Basic", "ann:s3cr3t:ü")


async def test_oauth2_asks_once_and_again_when_the_token_is_refused(asking: Asking, server: Server, url: str) -> None:
    secret(asking.kube, "prom", id="me", secret="shh-very")
    auth = {
        "oauth2": {
            "tokenUrl": f"{url}/token",
            "clientId": {"name": "prom", "key": "id"},
            "clientSecret": {"name": "prom", "key": "secret"},
            "scopes": ["read", "metrics"],
        }
    }
    for _ in range(3):
        await asking.query(url, auth=auth)
    assert [r.headers["authorization"] for r in server.requests] == ["Bearer fresh-1"] * 3
    assert server.tokens[0]["grant_type"] == "client_credentials"
    assert server.tokens[0]["scope"] == "read metrics"
    assert base64.b64decode(server.tokens[0]["authorization"].split()[1]) == b"me:shh-very"

    async def only_second(request: web.Request) -> web.Response:
        ok = request.headers["authorization"] == "Bearer fresh-2"
        return web.json_response(ONE if ok else {}, status=200 if ok else 401)

    server.handler = only_second
    await asking.query(url, auth=auth)
    asking.elapsed += 3600  # the token has ended
    server.handler = None
    await asking.query(url, auth=auth)
    assert server.requests[-1].headers["authorization"] == "Bearer fresh-3"


async def test_extra_headers(asking: Asking, server: Server, url: str) -> None:
    secret(asking.kube, "prom", key="k3y-value")
    headers = [
        {"name": "x-scope-orgid", "value": "team-a"},
        {"name": "x-api-key", "secretRef": {"name": "prom", "key": "key"}},
    ]
    await asking.query(url, headers=headers)
    assert server.requests[-1].headers["x-scope-orgid"] == "team-a"
    assert server.requests[-1].headers["x-api-key"] == "k3y-value"


async def test_a_credential_never_comes_into_a_message(asking: Asking, server: Server, url: str) -> None:
    secret(asking.kube, "prom", token="t0ps3cret", bad="line\none-s3cret")
    server.status, server.body = 500, {"error": "refused Bearer t0ps3cret of you"}
    with pytest.raises(MetricsUnavailable) as caught:
        await asking.query(url, auth={"bearer": {"secretRef": {"name": "prom", "key": "token"}}})
    assert "t0ps3cret" not in str(caught.value)
    with pytest.raises(MetricsUnavailable) as caught:
        await asking.query(url, headers=[{"name": "x-api-key", "secretRef": {"name": "prom", "key": "bad"}}])
    assert "s3cret" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert Redactor(["abcdef"])("x abcdef y") == "x *** y"


def test_policies_share_a_client_unless_a_secret_of_theirs_is_named(asking: Asking) -> None:
    plain = Prometheus(url="http://p:9090")
    keyed = Prometheus.model_validate(
        {"url": "http://p:9090", "auth": {"bearer": {"secretRef": {"name": "a", "key": "b"}}}}
    )
    key = PrometheusClients.key
    assert key("a", plain) == key("b", Prometheus(url="http://p:9090", interval="1m"))
    assert key("a", keyed) != key("b", keyed)


# --- TLS -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> pki.Pki:
    return pki.create(tmp_path_factory.mktemp("pki"))


def server_context(keys: pki.Pki, mutual: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(keys.ca) if mutual else None)
    context.load_cert_chain(keys.cert("server"), keys.key("server"))
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def config_map(kube: FakeKube, name: str, **data: str) -> None:
    found = {key.replace("_", "."): value for key, value in data.items()}
    kube.objects[f"/api/v1/namespaces/shop/configmaps/{name}"] = {"metadata": {"name": name}, "data": found}


async def test_a_private_ca(asking: Asking, keys: pki.Pki) -> None:
    async with serving(server_context(keys)) as server:
        url = f"https://127.0.0.1:{server.port}"
        with pytest.raises(MetricsUnavailable, match="not trusted"):
            await asking.query(url)
        with pytest.raises(SecretMissing, match="ConfigMap shop/ca does not exist"):
            await asking.query(url, tls={"caRef": {"name": "ca"}})
        config_map(asking.kube, "ca", ca_crt=keys.ca.read_text())
        assert await asking.query(url, tls={"caRef": {"name": "ca"}})
        secret(asking.kube, "ca", ca_crt=keys.ca.read_text())
        assert await asking.query(url, tls={"caSecretRef": {"name": "ca", "key": "ca.crt"}})
        assert await asking.query(url, tls={"insecureSkipVerify": True})


async def test_the_name_in_the_certificate(asking: Asking, keys: pki.Pki) -> None:
    async with serving(server_context(keys)) as server:
        config_map(asking.kube, "ca", ca_crt=keys.ca.read_text())
        url, tls = f"https://127.0.0.1:{server.port}", {"caRef": {"name": "ca"}}
        assert await asking.query(url, tls={**tls, "serverName": "kubernetes"})
        with pytest.raises(MetricsUnavailable, match="not trusted"):
            await asking.query(url, tls={**tls, "serverName": "somebody.else"})


async def test_a_client_certificate(asking: Asking, keys: pki.Pki) -> None:
    async with serving(server_context(keys, mutual=True)) as server:
        config_map(asking.kube, "ca", ca_crt=keys.ca.read_text())
        secret(asking.kube, "client", crt=keys.cert("admin").read_text(), key=keys.key("admin").read_text())
        url, tls = f"https://127.0.0.1:{server.port}", {"caRef": {"name": "ca"}}
        with pytest.raises(MetricsUnavailable):
            await asking.query(url, tls=tls)
        mutual = {"certRef": {"name": "client", "key": "crt"}, "keyRef": {"name": "client", "key": "key"}}
        assert await asking.query(url, tls={**tls, **mutual})
        secret(asking.kube, "client", crt="nonsense", key="nonsense")
        asking.elapsed += 31
        with pytest.raises(MetricsUnavailable, match="PEM"):
            await asking.query(url, tls={**tls, **mutual})
