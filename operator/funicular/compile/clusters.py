"""Policies -> clusters (CDS): one for each distinct upstream and each distinct classifier, named by content.

A cluster of a candidate strips, rewrites and adds its key on its own, since all attempts of a request share one header
map: what one attempt injected, the next one meets.
"""

from __future__ import annotations

import ipaddress
import json

from funicular.api.traffic import Upstream
from funicular.compile.inputs import (
    GatewaySettings,
    Json,
    PolicyTraffic,
    SecretUse,
    Target,
    digest,
    secret_use,
    target_of,
)
from funicular.compile.protos import API, SPACE, address, lua, sds, typed

_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_UNBOUNDED = 1 << 30
_STRIPPED = (
    "accept-encoding",  # a compressed answer's tokens cannot be counted
    "api-key",
    "authorization",
    "cookie",
    "proxy-authorization",
    "x-api-key",
    "x-goog-api-key",
)
_REFUSING = ("127.0.0.1", 1)  # nothing listens on tcpmux
IDLE = "4s"  # servers close kept connections after 5 s or more; who closes first loses no request


def upstream_cluster(policy: PolicyTraffic, upstream: Upstream) -> str:
    """Revisions may use one name for different upstreams, so the name tells the content."""
    content = (upstream.url, upstream.model, upstream.credentials and upstream.credentials.model_dump())
    return f"{policy.full_name}/{upstream.name}@{digest(content, policy.credential_headers)}"


def classifier_cluster(url: str) -> str:
    target = target_of(url)
    return f"classifier/{'https' if target.tls else 'http'}/{target.host}:{target.port}"


def policy_clusters(policy: PolicyTraffic, settings: GatewaySettings) -> dict[str, Json]:
    """By name. Raises ValueError for a URL that is none."""
    found: dict[str, Json] = {}
    for route in policy.revisions():
        for upstream in route.upstreams:
            name = upstream_cluster(policy, upstream)
            if name not in found:
                found[name] = _candidate(name, policy, upstream, settings)
        if route.classifier is not None:
            name = classifier_cluster(route.classifier.url)
            found[name] = _cluster(name, target_of(route.classifier.url), settings, {})
    return found


def policy_secrets(policy: PolicyTraffic) -> tuple[SecretUse, ...]:
    """What must stand in CONFIG_DIR/sds before the clusters do: Envoy refuses a cluster whose file is missing."""
    found = {
        secret_use(policy.namespace, u.credentials) for r in policy.revisions() for u in r.upstreams if u.credentials
    }
    return tuple(sorted(found, key=lambda use: use.sds))


def _candidate(name: str, policy: PolicyTraffic, upstream: Upstream, settings: GatewaySettings) -> Json:
    """Filter order: strip what the client or an earlier attempt left, rewrite, inject, send. Every candidate has all of
    them: one without the rewrite would send its body with the content-length of another's (request smuggling)."""
    target = target_of(upstream.url)
    strip = [{"remove": header} for header in sorted({*_STRIPPED, *policy.credential_headers})]
    prefix = {"remove_on_match": {"key_matcher": {"prefix": "x-funicular-"}}}
    filters = [
        typed(
            "envoy.filters.http.header_mutation",
            "filters.http.header_mutation.v3.HeaderMutation",
            mutations={"request_mutations": [*strip, prefix]},
        ),
        lua(
            settings,
            model=json.dumps(upstream.model, ensure_ascii=False),
            path=target.path,
            host=target.authority,
        ),
    ]
    if upstream.credentials is not None:
        filters.append(_credential(policy, upstream, settings))
    filters.append(typed("envoy.filters.http.upstream_codec", "filters.http.upstream_codec.v3.UpstreamCodec"))
    return {
        **_cluster(name, target, settings, {"http_filters": filters}),
        "metadata": {"filter_metadata": {SPACE: {"candidate": upstream.name}}},
    }


def _credential(policy: PolicyTraffic, upstream: Upstream, settings: GatewaySettings) -> Json:
    credentials = upstream.credentials
    assert credentials is not None
    generic = typed(
        "envoy.http.injected_credentials.generic",
        "http.injected_credentials.generic.v3.Generic",
        header=credentials.header,
        header_value_prefix=credentials.prefix,
        credential=sds(settings, secret_use(policy.namespace, credentials).sds),
    )
    return typed(
        "envoy.filters.http.credential_injector",
        "filters.http.credential_injector.v3.CredentialInjector",
        overwrite=True,
        credential=generic,
    )


def _cluster(name: str, target: Target, settings: GatewaySettings, options: Json) -> Json:
    http1: Json = {"http_protocol_options": {}}
    protocol = (
        {"auto_config": {**http1, "http2_protocol_options": {}}} if target.tls else {"explicit_http_config": http1}
    )
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), _UNBOUNDED)
    groups: list[Json] = [{"lb_endpoints": [_endpoint(target.host, target.port)]}]
    if not is_address(target.host):
        # a cluster without hosts is answered with 503 at once, and never falls back; one that refuses does
        groups.append({"lb_endpoints": [_endpoint(*_REFUSING)], "priority": 1})
    return {
        "@type": API + "envoy.config.cluster.v3.Cluster",
        "name": name,
        **_discovery(target, settings),
        "connect_timeout": "2s",
        "per_connection_buffer_limit_bytes": settings.body_limit,
        # the default of three retries at once would lose requests just when a candidate fails
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": name, "endpoints": groups},
        "typed_extension_protocol_options": {
            _OPTIONS: {
                "@type": API + _OPTIONS,
                "common_http_protocol_options": {"idle_timeout": IDLE},
                **protocol,
                **options,
            }
        },
        **({"transport_socket": _tls(target, settings)} if target.tls else {}),
    }


def _endpoint(host: str, port: int) -> Json:
    return {"endpoint": {"address": address(host, port)}}


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _discovery(target: Target, settings: GatewaySettings) -> Json:
    if is_address(target.host):
        return {"type": "STATIC"}
    found: Json = {
        "type": "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "dns_refresh_rate": "5s",
        "respect_dns_ttl": True,
        "dns_failure_refresh_rate": {"base_interval": "1s", "max_interval": "5s"},
    }
    if settings.dns_resolver:
        host, _, port = settings.dns_resolver.rpartition(":")
        found["typed_dns_resolver_config"] = typed(
            "envoy.network.dns_resolver.cares",
            "network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            resolvers=[address(host.strip("[]") or port, int(port) if host else 53)],
        )
    return found


def _tls(target: Target, settings: GatewaySettings) -> Json:
    by_address = is_address(target.host)
    san = {"san_type": "IP_ADDRESS" if by_address else "DNS", "matcher": {"exact": target.host}}
    context: Json = {
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "validation_context": {
                "trusted_ca": {"filename": settings.ca_file},
                "match_typed_subject_alt_names": [san],
            },
        },
        **({} if by_address else {"sni": target.host}),
    }
    return typed("envoy.transport_sockets.tls", "transport_sockets.tls.v3.UpstreamTlsContext", **context)
