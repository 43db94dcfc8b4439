"""Policies -> clusters (CDS): one for each distinct upstream and each distinct classifier, named by content.

A cluster of a candidate strips, rewrites and adds its key on its own, since all attempts of a request share one header
map: what one attempt injected, the next one meets.
"""

from __future__ import annotations

import ipaddress
import json

from funicular.api.duration import seconds
from funicular.api.traffic import Route, Upstream
from funicular.compile.inputs import (
    GatewaySettings,
    Json,
    PolicyTraffic,
    SecretUse,
    Target,
    digest,
    secret_use,
    target_of,
    upstream_of,
)
from funicular.compile.protos import API, EDITS, EGRESS, SPACE, address, lua, sds, typed

_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_UNBOUNDED = 1 << 30
PER_TRY = "x-envoy-upstream-rq-per-try-timeout-ms"
_STRIPPED = (
    "accept-encoding",  # a compressed answer's tokens cannot be counted
    "api-key",
    "authorization",
    "cookie",
    "forwarded",
    "proxy-authorization",
    "x-api-key",
    "x-envoy-internal",
    PER_TRY,
    "x-forwarded-for",
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


def relay_cluster(policy: PolicyTraffic, route: Route, upstream: Upstream) -> str | None:
    """A route has one time limit for both of its attempts. A candidate that has less time than the baseline is asked
    through the egress listener, which keeps the shorter limit; None: it has as much."""
    within = seconds(upstream.timeout)
    if within >= seconds(upstream_of(route, route.baseline).timeout):
        return None
    return f"{upstream_cluster(policy, upstream)}/within/{within:g}s"


def policy_clusters(policy: PolicyTraffic, settings: GatewaySettings) -> dict[str, Json]:
    """By name. Raises ValueError for a URL that is none."""
    found: dict[str, Json] = {}
    for route in policy.revisions():
        for upstream in route.upstreams:
            name = upstream_cluster(policy, upstream)
            if name not in found:
                found[name] = _candidate(name, policy, upstream, settings)
            if (relay := relay_cluster(policy, route, upstream)) is not None:
                found[relay] = _relay(relay, name, upstream, settings)
        if route.classifier is not None:
            name = classifier_cluster(route.classifier.url)
            found[name] = _external(name, target_of(route.classifier.url), settings, {})
    return found


def refuse_own_ports(target: Target, settings: GatewaySettings) -> None:
    """A policy's author must not turn the gateway upon itself: its admin interface can stop it. Raises ValueError."""
    own = {"localhost", settings.listen_host, settings.agent_host, settings.admin_host}
    try:
        address = ipaddress.ip_address(target.host)
    except ValueError:
        near = target.host in own
    else:
        if address.is_link_local:
            raise ValueError(f"the URL of a candidate points to the link-local address {target.host}")
        near = address.is_loopback or address.is_unspecified or target.host in own
    if near and target.port in (settings.admin_port, settings.agent_port, settings.stats_port):
        raise ValueError(f"the URL of a candidate points to the gateway itself: {target.host}:{target.port}")


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
    refuse_own_ports(target, settings)
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
        **_external(name, target, settings, {"http_filters": filters}),
        "metadata": {"filter_metadata": {SPACE: {"candidate": upstream.name}}},
    }


def _relay(name: str, to: str, upstream: Upstream, settings: GatewaySettings) -> Json:
    """To the egress listener of this Envoy, with what it has to know in headers that no provider sees."""
    known = {
        "x-funicular-to": to,
        "x-funicular-edits": f"%FILTER_STATE({EDITS}:PLAIN)%",
        PER_TRY: str(max(1, round(seconds(upstream.timeout) * 1000))),
        "x-forwarded-for": "127.0.0.1",  # from within: else the time limit would be stripped
    }
    mutations: list[Json] = [{"remove_on_match": {"key_matcher": {"prefix": "x-funicular-"}}}]
    mutations += [
        {"append": {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}
        for key, value in known.items()
    ]
    filters = [
        typed(
            "envoy.filters.http.header_mutation",
            "filters.http.header_mutation.v3.HeaderMutation",
            mutations={"request_mutations": mutations},
        ),
        typed("envoy.filters.http.upstream_codec", "filters.http.upstream_codec.v3.UpstreamCodec"),
    ]
    inside = {"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": EGRESS}}}}
    return {
        **_cluster(name, None, [{"lb_endpoints": [inside]}], settings, {"http_filters": filters}),
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


def _external(name: str, target: Target, settings: GatewaySettings, options: Json) -> Json:
    groups: list[Json] = [{"lb_endpoints": [_endpoint(target.host, target.port)]}]
    if not is_address(target.host):
        # a cluster without hosts is answered with 503 at once, and never falls back; one that refuses does
        groups.append({"lb_endpoints": [_endpoint(*_REFUSING)], "priority": 1})
    return _cluster(name, target, groups, settings, options)


def _cluster(name: str, target: Target | None, groups: list[Json], settings: GatewaySettings, options: Json) -> Json:
    """`target`: outside of this process; None: within."""
    http1: Json = {"http_protocol_options": {}}
    tls = target is not None and target.tls
    protocol = {"auto_config": {**http1, "http2_protocol_options": {}}} if tls else {"explicit_http_config": http1}
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), _UNBOUNDED)
    return {
        "@type": API + "envoy.config.cluster.v3.Cluster",
        "name": name,
        **(_discovery(target, settings) if target else {"type": "STATIC"}),
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
        **({"transport_socket": _tls(target, settings)} if target and tls else {}),
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
