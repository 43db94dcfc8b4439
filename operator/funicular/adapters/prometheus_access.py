"""How to be let in to a Prometheus: bearer, basic, OAuth2 client credentials, extra headers, private CA, mTLS.

prometheus.py asks before each query; Secrets are cached for half a minute (secrets.py), files are read anew, OAuth2 tokens
are kept until shortly before they end. No value read here may come into a message: `Redactor` is the second line.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote

import certifi
import httpx

from funicular.adapters.kube import temporary_pem
from funicular.adapters.secrets import Secrets
from funicular.api.duration import seconds
from funicular.api.spec import OAuth2, Prometheus, PrometheusTls
from funicular.errors import AccessDenied, MetricsUnavailable, SecretMissing

# `auth.bearer.file` names a file of the operator's container. Anyone who may write a policy would else have the operator
# send its own service account token to a server of his choice.
TOKEN_FOLDER = Path("/etc/funicular/tokens")
AUTH = "spec.prometheus.auth"


@dataclass(frozen=True, slots=True)
class Access:
    """Everything a connection needs; equal as long as no credential has changed."""

    url: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    authorization: str | None = field(default=None, repr=False)
    ca: str | None = None
    certificate: str | None = None
    private_key: str | None = field(default=None, repr=False)
    server_name: str | None = None
    verify: bool = True

    def all_headers(self) -> dict[str, str]:
        found = dict(self.headers)
        return {**found, "Authorization": self.authorization} if self.authorization else found

    def secrets(self) -> Iterable[str]:
        yield from (value for _, value in self.headers)
        if self.authorization:
            yield self.authorization
            yield self.authorization.partition(" ")[2]


class Redactor:
    """Takes known secret values out of a text that others wrote."""

    def __init__(self, values: Iterable[str]) -> None:
        self._values = sorted({v for v in values if len(v) >= 4}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, "***")
        return text


def tls_context(access: Access, *, for_token: bool = False) -> ssl.SSLContext:
    """A private CA replaces the public ones; for the token's server it only joins them, and our certificate is not shown.
    Raises MetricsUnavailable for PEM that cannot be read."""
    try:
        context = ssl.create_default_context(cadata=access.ca)
        if access.ca is None or for_token:
            context.load_default_certs()
            context.load_verify_locations(certifi.where())
        if access.certificate and access.private_key and not for_token:
            name = temporary_pem(f"{access.certificate}\n{access.private_key}")
            try:
                context.load_cert_chain(name)
            finally:
                Path(name).unlink()
    except (ssl.SSLError, ValueError) as exc:
        raise MetricsUnavailable(f"spec.prometheus.tls holds PEM that cannot be read: {type(exc).__name__}") from exc
    if not access.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class AccessResolver:
    """From `spec.prometheus` and the policy's namespace to an Access. Raises SecretMissing, AccessDenied, MetricsUnavailable,
    ApiUnavailable."""

    def __init__(
        self,
        secrets: Secrets,
        *,
        token_folder: Path = TOKEN_FOLDER,
        elapsed: Callable[[], float] = monotonic,
    ) -> None:
        self._secrets = secrets
        self._folder = token_folder
        self._elapsed = elapsed
        self._tokens: dict[str, tuple[str, float]] = {}

    async def resolve(self, namespace: str, settings: Prometheus) -> Access:
        tls = settings.tls or PrometheusTls()
        headers = []
        for i, header in enumerate(settings.headers):
            value = header.value or ""
            if header.secret_ref:
                where = f"spec.prometheus.headers[{i}].secretRef"
                value = await self._secrets.value(namespace, header.secret_ref, field=where)
            headers.append((header.name, value.strip("\r\n")))
        access = Access(
            url=settings.url.rstrip("/"),
            headers=tuple(headers),
            ca=await self._ca(namespace, tls),
            certificate=await self._pem(namespace, tls, "cert_ref", "certRef"),
            private_key=await self._pem(namespace, tls, "key_ref", "keyRef"),
            server_name=tls.server_name,
            verify=not tls.insecure_skip_verify,
        )
        authorization = await self._authorization(namespace, settings, access)
        return access if authorization is None else replace(access, authorization=authorization)

    def renew(self, namespace: str, settings: Prometheus) -> bool:
        """After a 401: forgets an OAuth2 token; True if there was one, so that asking again makes sense."""
        return self._tokens.pop(_token_key(namespace, settings), None) is not None

    async def _ca(self, namespace: str, tls: PrometheusTls) -> str | None:
        if tls.ca_ref:
            return await self._secrets.config_value(namespace, tls.ca_ref, field="spec.prometheus.tls.caRef")
        return await self._pem(namespace, tls, "ca_secret_ref", "caSecretRef")

    async def _pem(self, namespace: str, tls: PrometheusTls, attribute: str, name: str) -> str | None:
        ref = getattr(tls, attribute)
        return await self._secrets.value(namespace, ref, field=f"spec.prometheus.tls.{name}") if ref else None

    async def _authorization(self, namespace: str, settings: Prometheus, access: Access) -> str | None:
        auth = settings.auth
        if auth is None:
            return None
        if auth.bearer:
            if auth.bearer.secret_ref:
                token = await self._secrets.value(namespace, auth.bearer.secret_ref, field=f"{AUTH}.bearer.secretRef")
            else:
                token = await asyncio.to_thread(self._token_file, auth.bearer.file or "")
            return f"Bearer {token.strip()}"
        if auth.basic:
            user = await self._secrets.value(namespace, auth.basic.username, field=f"{AUTH}.basic.username")
            password = await self._secrets.value(namespace, auth.basic.password, field=f"{AUTH}.basic.password")
            return _basic(user.strip("\r\n"), password.strip("\r\n"))
        if auth.oauth2:
            return f"Bearer {await self._client_credentials(namespace, settings, auth.oauth2, access)}"
        return None

    def _token_file(self, name: str) -> str:
        path, folder = Path(name).resolve(), self._folder.resolve()
        where = f"{AUTH}.bearer.file"
        if not path.is_relative_to(folder):
            raise AccessDenied(
                f"{name} is outside {self._folder}, where the operator's token files lie",
                field=where,
                remedy=f"mount the token below {self._folder}, or use secretRef",
            )
        try:
            return path.read_text()
        except OSError as exc:
            raise SecretMissing(f"{name} cannot be read: {exc.strerror}", field=where, remedy="mount it") from exc

    async def _client_credentials(self, namespace: str, settings: Prometheus, oauth: OAuth2, access: Access) -> str:
        key = _token_key(namespace, settings)
        known = self._tokens.get(key)
        if known and known[1] > self._elapsed():
            return known[0]
        client_id = (await self._secrets.value(namespace, oauth.client_id, field=f"{AUTH}.oauth2.clientId")).strip()
        secret_field = f"{AUTH}.oauth2.clientSecret"
        secret = (await self._secrets.value(namespace, oauth.client_secret, field=secret_field)).strip()
        answer = await _ask_for_token(oauth, client_id, secret, access, seconds(settings.timeout))
        try:
            token, lifetime = str(answer["access_token"]), float(answer.get("expires_in") or 300)
        except (KeyError, TypeError, ValueError) as exc:
            raise MetricsUnavailable(f"{oauth.token_url} answered without an access_token") from exc
        self._tokens[key] = (token, self._elapsed() + lifetime - min(30.0, lifetime / 10))
        return token


async def _ask_for_token(oauth: OAuth2, client_id: str, secret: str, access: Access, timeout: float) -> Any:
    """RFC 6749, 4.4: credentials by Basic; a server that knows them only in the body gets them there."""
    form = {"grant_type": "client_credentials"}
    if oauth.scopes:
        form["scope"] = " ".join(oauth.scopes)
    context = tls_context(access, for_token=True) if oauth.token_url.startswith("https:") else False
    try:
        async with httpx.AsyncClient(verify=context, timeout=timeout, trust_env=False) as client:
            basic = {"Authorization": _basic(quote(client_id, safe=""), quote(secret, safe=""))}
            answer = await client.post(oauth.token_url, data=form, headers=basic)
            if answer.status_code in (400, 401):
                form |= {"client_id": client_id, "client_secret": secret}
                answer = await client.post(oauth.token_url, data=form)
    except httpx.HTTPError as exc:
        raise MetricsUnavailable(f"{oauth.token_url} does not answer: {type(exc).__name__}") from None
    if 400 <= answer.status_code < 500 and answer.status_code not in (408, 429):
        raise AccessDenied(
            f"{oauth.token_url} refused the client credentials with {answer.status_code}",
            field=f"{AUTH}.oauth2",
            remedy="correct clientId, clientSecret or scopes",
        )
    if answer.status_code != 200:
        raise MetricsUnavailable(f"{oauth.token_url} answered {answer.status_code}")
    try:
        return answer.json()
    except ValueError as exc:
        raise MetricsUnavailable(f"{oauth.token_url} answered something that is not JSON") from exc


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _token_key(namespace: str, settings: Prometheus) -> str:
    return f"{namespace} {settings.auth.model_dump_json() if settings.auth else ''}"
