"""Prometheus, on the event loop: prometheus-api-client in a few threads, wrapped once.

The evaluator asks `PrometheusClients.at(namespace, settings)` for a ports.Metrics. Policies with the same settings (and the
same namespace, if a Secret is named) share one client. The library is synchronous, retries by itself, has no timeout, puts
long queries into the URL and knows one exception; the session given to it here mends that. How to authenticate is
prometheus_access.py's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from http.cookiejar import DefaultCookiePolicy
from time import monotonic
from typing import Any

import orjson
import prometheus_api_client as library
import requests
import urllib3
from prometheus_api_client.exceptions import MetricValueConversionError, PrometheusApiClientException
from requests import exceptions as foreign
from requests.adapters import HTTPAdapter
from requests.cookies import cookiejar_from_dict
from urllib3.util.retry import Retry

from funicular.adapters.prometheus_access import Access, AccessResolver, Redactor, tls_context
from funicular.api.duration import seconds
from funicular.api.spec import Prometheus
from funicular.errors import AccessDenied, FunicularError, InvalidQuery, MetricsUnavailable

log = logging.getLogger(__name__)

Vector = list[tuple[dict[str, str], float]]
THREADS = 8
AT_ONCE = 2  # queries to one Prometheus: a slow one must not take all threads
ANSWER_LIMIT = 64 << 20
UNUSED_SECONDS = 600.0

UNREACHABLE = "does not answer"
# Every exception of the two libraries: what it means to the caller. A test fails when they add one that is not here.
MEANING: dict[type[BaseException], str] = {
    PrometheusApiClientException: "answered with an error",
    MetricValueConversionError: "answered with a value that is no number",
    foreign.RequestException: UNREACHABLE,
    foreign.InvalidJSONError: "answered something that is not JSON",
    foreign.JSONDecodeError: "answered something that is not JSON",
    foreign.HTTPError: "answered with an error",
    foreign.ConnectionError: "cannot be reached",
    foreign.ProxyError: "cannot be reached through the proxy",
    foreign.SSLError: "has a certificate that is not trusted, or wants one of ours",
    foreign.Timeout: "did not answer in time",
    foreign.ConnectTimeout: "did not answer in time",
    foreign.ReadTimeout: "did not answer in time",
    foreign.URLRequired: "has no usable URL",
    foreign.TooManyRedirects: "redirects for ever",
    foreign.MissingSchema: "has no usable URL",
    foreign.InvalidSchema: "has no usable URL",
    foreign.InvalidURL: "has no usable URL",
    foreign.InvalidHeader: "cannot be asked with this header: its value holds characters that no header may hold",
    foreign.InvalidProxyURL: "cannot be reached through the proxy",
    foreign.ChunkedEncodingError: "broke its answer off",
    foreign.ContentDecodingError: "answered something that cannot be decoded",
    foreign.StreamConsumedError: "broke its answer off",
    foreign.RetryError: UNREACHABLE,
    foreign.UnrewindableBodyError: UNREACHABLE,
}


class PrometheusClients:
    """One client for each distinct `spec.prometheus`. `observe(kind)` counts failed queries by the error's class."""

    def __init__(
        self,
        resolver: AccessResolver,
        *,
        observe: Callable[[str], None] = lambda kind: None,
        elapsed: Callable[[], float] = monotonic,
    ) -> None:
        self._resolver = resolver
        self._observe = observe
        self._elapsed = elapsed
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="prometheus")
        self._clients: dict[str, PrometheusClient] = {}

    @staticmethod
    def key(namespace: str, settings: Prometheus) -> str:
        """The same for policies that may share a client, and so a query."""
        text = settings.model_dump_json(exclude={"interval"}, exclude_none=True)
        return f"{namespace} {text}" if "ref" in text.lower() or settings.auth else text

    def at(self, namespace: str, settings: Prometheus) -> PrometheusClient:
        key, now = self.key(namespace, settings), self._elapsed()
        client = self._clients.get(key)
        if client is None:
            for old in [k for k, c in self._clients.items() if now - c.used > UNUSED_SECONDS]:
                self._clients.pop(old).close()
            client = PrometheusClient(namespace, settings, self._resolver, self._pool, self._observe)
            self._clients[key] = client
        client.used = now
        return client

    async def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)


class PrometheusClient:
    """Implements ports.Metrics."""

    def __init__(
        self,
        namespace: str,
        settings: Prometheus,
        resolver: AccessResolver,
        pool: ThreadPoolExecutor,
        observe: Callable[[str], None],
    ) -> None:
        self._namespace = namespace
        self._settings = settings
        self._resolver = resolver
        self._pool = pool
        self._observe = observe
        self._timeout = seconds(settings.timeout)
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._access: Access | None = None
        self._connection: _Connection | None = None
        self.used = 0.0

    async def query(self, promql: str, at: datetime) -> Vector:
        try:
            async with self._turns:
                try:
                    return await self._ask(promql, at)
                except AccessDenied:
                    if not self._resolver.renew(self._namespace, self._settings):
                        raise
                    return await self._ask(promql, at)  # with a credential that was renewed meanwhile
        except FunicularError as exc:
            self._observe(type(exc).__name__)
            raise

    async def _ask(self, promql: str, at: datetime) -> Vector:
        access = await self._resolver.resolve(self._namespace, self._settings)
        if access != self._access or self._connection is None:
            self.close()
            self._access, self._connection = access, _Connection(access, self._timeout)
        connection = self._connection
        loop = asyncio.get_running_loop()
        asked = loop.run_in_executor(self._pool, connection.query, promql, at.timestamp())
        try:
            return await asyncio.wait_for(asked, 2 * self._timeout + 1)
        except TimeoutError as exc:
            raise MetricsUnavailable(f"Prometheus ({access.url}) did not answer within {self._timeout:g} s") from exc

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Connection:
    """The synchronous side, for one set of credentials. Used by several threads."""

    def __init__(self, access: Access, timeout: float) -> None:
        self._url = access.url
        self._redact = Redactor(access.secrets())
        self._session = _Session(self._redact, timeout)
        self._session.headers.update(access.all_headers())
        self._client = library.PrometheusConnect(
            url=access.url, session=self._session, retry=Retry(0), timeout=timeout, method="POST"
        )
        self._session.mount(access.url, _Adapter(access))  # over the one the library has mounted
        self._timeout = timeout

    def query(self, promql: str, at: float) -> Vector:
        try:
            params = {"time": f"{at:.3f}", "timeout": f"{self._timeout:g}s"}
            return vector_of(self._client.custom_query(promql, params))
        except FunicularError:
            raise
        except tuple(MEANING) as exc:
            raise MetricsUnavailable(f"Prometheus ({self._url}) {meaning_of(exc)}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise MetricsUnavailable(
                f"Prometheus ({self._url}) answered JSON that is not of its query API: check spec.prometheus.url"
            ) from exc
        except OSError as exc:
            raise MetricsUnavailable(f"Prometheus ({self._url}): {type(exc).__name__}") from None

    def close(self) -> None:
        self._session.close()


class _Session(requests.Session):
    """What the library's session must be: bounded in time and size, no redirects (they would carry headers elsewhere),
    no cookies, no netrc; and an answer other than 200 becomes an error of ours before the library sees it."""

    def __init__(self, redact: Redactor, timeout: float) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies = cookiejar_from_dict({})
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._redact = redact
        self._limit = timeout

    def request(self, method: str, url: str | bytes, **options: Any) -> requests.Response:  # type: ignore[override]
        if method == "POST":
            options["data"] = options.pop("params", None)  # the library would put a long query into the URL
        deadline = monotonic() + self._limit
        options |= {"allow_redirects": False, "stream": True, "timeout": (min(5.0, self._limit), self._limit)}
        response = super().request(method, url, **options)
        self._read(response, deadline)
        raise_for(response, self._redact)
        return response

    @staticmethod
    def _read(response: requests.Response, deadline: float) -> None:
        """requests' timeout is between two bytes: one that drips would hold a thread for ever."""
        parts, size = [], 0
        with response:
            for part in response.iter_content(1 << 16):
                parts.append(part)
                size += len(part)
                if monotonic() > deadline:
                    raise foreign.ReadTimeout
                if size > ANSWER_LIMIT:
                    raise MetricsUnavailable(f"Prometheus answered more than {ANSWER_LIMIT >> 20} MiB to one query")
        response._content = b"".join(parts)


class _Adapter(HTTPAdapter):
    """TLS by a context of our own: private CA, client certificate and expected name, and nothing from the environment."""

    def __init__(self, access: Access) -> None:
        self._context = tls_context(access) if access.url.startswith("https:") else None
        self._name = access.server_name
        if not access.verify:  # a person asked for it in the policy: no warning at every query
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        super().__init__(pool_connections=1, pool_maxsize=AT_ONCE, max_retries=Retry(0))

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        if self._context is not None:
            options["ssl_context"] = self._context
            if self._name:
                options |= {"server_hostname": self._name, "assert_hostname": self._name}
        super().init_poolmanager(connections, maxsize, block, **options)

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {"cert_reqs": self._context.verify_mode} if self._context is not None else {}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """The context verifies; the public CAs must not be added to a private one."""


def raise_for(response: requests.Response, redact: Redactor) -> None:
    """One place turns an answer of Prometheus, or of what stands before it, into our tree."""
    status = response.status_code
    if status == 200:
        return
    said = redact(_error_of(response))
    where = f"Prometheus ({str(response.url).split('?')[0]})"
    tail = f": {said}" if said else ""
    if status in (401, 403):
        raise AccessDenied(
            f"{where} refused the credentials with {status}{tail}", field="spec.prometheus.auth", remedy="correct them"
        )
    if 300 <= status < 400:
        raise AccessDenied(
            f"{where} redirects ({status}), as a login page does",
            field="spec.prometheus",
            remedy="give the final URL, or credentials",
        )
    if status in (400, 422) and said:
        raise InvalidQuery(f"Prometheus refused the query: {said}", remedy="correct the query")
    if status == 404:
        raise MetricsUnavailable(f"{where} is no query API (404): does spec.prometheus.url lack a path prefix?")
    raise MetricsUnavailable(f"{where} answered {status}{tail}")


def _error_of(response: requests.Response) -> str:
    """The `error` of Prometheus's JSON; nothing of a page that a proxy shows."""
    try:
        found = orjson.loads(response.content)
        return str(found["error"])[:500]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""


def vector_of(result: Any) -> Vector:
    """The library's answer as labels and values. Raises InvalidQuery for a range vector, KeyError and such for rubbish."""
    if result and not isinstance(result[0], dict):  # a scalar: [time, value]
        return [({}, float(result[1]))]
    if any("values" in item for item in result):
        raise InvalidQuery(
            "the query gives a range vector", remedy="wrap it in a function such as increase() that gives one value"
        )
    return [(dict(item["metric"]), float(item["value"][1])) for item in result]


def meaning_of(exc: BaseException) -> str:
    """Words by class alone: a foreign text may quote a header."""
    return next(MEANING[kind] for kind in type(exc).__mro__ if kind in MEANING)
