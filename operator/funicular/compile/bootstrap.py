"""The bootstrap: listeners, filter chain, where the other files lie. It never changes while Envoy runs."""

from __future__ import annotations

from funicular.compile.inputs import ID_KEY, GatewaySettings, Json
from funicular.compile.limits import Limits, of_manager, overload_manager
from funicular.compile.protos import EGRESS, EXT_AUTHZ, RELAYED, SPACE, address, file_source, lua, seconds_text, typed
from funicular.compile.replies import local_replies
from funicular.compile.routes import NAME
from funicular.compile.shares import LAYER
from funicular.compile.stats import access_log, stats_config

# What a client must not say to a gateway, nor to a provider behind it that trusts the gateway: which arm, how many retries,
# another path, host, method or account, or (an underscore for a dash) a key beside the gateway's.
CLAIM_PREFIXES = ("x-envoy-", "x-funicular-", "x_envoy_", "x_funicular_")
CLAIMS = (
    "api_key",
    "openai-organization",
    "openai-project",
    "proxy_authorization",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-server",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-path",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-path",
    "x-rewrite-uri",
    "x-rewrite-url",
    "x_api_key",
    "x_goog_api_key",
)
CLASSIFIED_BYTES = 64 << 10  # what a classifier gets of a longer body
_OWN = "^(cluster_manager|http|listener|listener_manager|main_thread|runtime|server|workers)[.]"


def bootstrap(settings: GatewaySettings, limits: Limits | None = None) -> Json:
    limits = limits or Limits()
    return {
        "node": {"id": "gateway", "cluster": "funicular"},
        "admin": {
            "address": address(settings.admin_host, settings.admin_port),
            "ignore_global_conn_limit": True,  # the agent must be heard when nobody else is
        },
        "dynamic_resources": {"cds_config": file_source(settings, "cds", "cds")},
        "static_resources": {
            "listeners": [_gateway(settings, limits), _egress(settings, limits), _metrics(settings)],
            "clusters": [
                _local("agent", settings.agent_host, settings.agent_port),
                _local("admin", settings.admin_host, settings.admin_port),
            ],
        },
        "bootstrap_extensions": [
            typed("envoy.bootstrap.internal_listener", "bootstrap.internal_listener.v3.InternalListener")
        ],
        "layered_runtime": {
            "layers": [
                {
                    "name": LAYER,
                    "rtds_layer": {"name": LAYER, "rtds_config": file_source(settings, "runtime", "runtime")},
                }
            ]
        },
        "overload_manager": overload_manager(limits),
        "stats_flush_interval": "1s",
        "stats_config": stats_config(),
    }


def _local(name: str, host: str, port: int) -> Json:
    endpoint = {"endpoint": {"address": address(host, port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _gateway(settings: GatewaySettings, limits: Limits) -> Json:
    spoofed = typed(
        "envoy.http.early_header_mutation.header_mutation",
        "http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=[
            *({"remove": name} for name in CLAIMS),
            *({"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in CLAIM_PREFIXES),
        ],
    )
    manager = typed(
        "hcm",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="gateway",
        early_header_mutation_extensions=[spoofed],
        http_filters=_http_filters(settings),
        access_log=access_log(),
        local_reply_config=local_replies(),
        generate_request_id=False,
        **of_manager(limits),
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",  # a provider might decode them and leave its base path
        rds={"route_config_name": NAME, "config_source": file_source(settings, "rds", "rds")},
    )
    return {
        "name": "gateway",
        "address": address(settings.listen_host, settings.gateway_port),
        "per_connection_buffer_limit_bytes": settings.body_limit,
        "filter_chains": [{"filters": [manager]}],
    }


def _http_filters(settings: GatewaySettings) -> list[Json]:
    """On the way in from first to last, on the way out from last to first."""
    return [
        typed(
            "envoy.filters.http.health_check",
            "filters.http.health_check.v3.HealthCheck",
            pass_through_mode=True,
            headers=[{"name": ":path", "string_match": {"exact": "/healthz"}}],
        ),
        lua(settings, id_key=f"{settings.config_dir}/sds/{ID_KEY}.json"),
        _ask(),
        *_tokens(),
        typed("envoy.filters.http.router", "filters.http.router.v3.Router", suppress_envoy_headers=True),
    ]


def _egress(settings: GatewaySettings, limits: Limits) -> Json:
    """For candidates that have less time than the baseline: clusters.relay_cluster. Within this process only."""
    edits = {
        "object_key": RELAYED,
        "factory_key": "envoy.string",
        "format_string": {"text_format_source": {"inline_string": "%REQ(x-funicular-edits)%"}},
    }
    manager = typed(
        "hcm",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=EGRESS,
        internal_address_config={"cidr_ranges": [{"address_prefix": "127.0.0.1", "prefix_len": 32}]},
        generate_request_id=False,
        stream_idle_timeout=seconds_text(limits.idle_stream),
        http_filters=[
            typed("funicular.edits", "filters.http.set_filter_state.v3.Config", on_request_headers=[edits]),
            typed("envoy.filters.http.router", "filters.http.router.v3.Router", suppress_envoy_headers=True),
        ],
        route_config={
            "virtual_hosts": [
                {
                    "name": EGRESS,
                    "domains": ["*"],
                    "request_body_buffer_limit": str(settings.body_limit),
                    "routes": [
                        {"match": {"prefix": "/"}, "route": {"cluster_header": "x-funicular-to", "timeout": "0s"}}
                    ],
                }
            ]
        },
    )
    return {
        "name": EGRESS,
        "internal_listener": {},
        "bypass_overload_manager": True,
        "ignore_global_conn_limit": True,
        "per_connection_buffer_limit_bytes": settings.body_limit,
        "filter_chains": [{"filters": [manager]}],
    }


def _ask() -> Json:
    """The classifier, on the routes that say which. In shadow mode it can neither refuse a request nor answer one."""
    return typed(
        EXT_AUTHZ,
        "filters.http.ext_authz.v3.ExtAuthz",
        failure_mode_allow=True,
        shadow_mode=True,
        clear_route_cache=True,
        with_request_body={"max_request_bytes": CLASSIFIED_BYTES, "allow_partial_message": True},
        allowed_headers={"patterns": [{"exact": "content-type"}]},
        disallowed_headers={"patterns": [{"exact": "authorization"}]},
        http_service={"server_uri": {"uri": "http://none/", "cluster": "none", "timeout": "0.001s"}},
    )


def _tokens() -> list[Json]:
    rules = [
        {
            "selectors": [{"key": "usage"}, {"key": f"{kind}_tokens"}],
            "on_present": {"metadata_namespace": SPACE, "key": f"{kind}_tokens", "type": "NUMBER"},
        }
        for kind in ("prompt", "completion")
    ]
    parser = typed(
        "envoy.content_parsers.json",
        "content_parsers.json.v3.JsonContentParser",
        rules=[{"rule": rule} for rule in rules],
    )
    return [
        typed(
            "envoy.filters.http.json_to_metadata",
            "filters.http.json_to_metadata.v3.JsonToMetadata",
            # "application/json; charset=utf-8" too, which the default list lacks
            response_rules={"rules": rules, "allow_content_types_regex": {"regex": "application/json.*"}},
        ),
        typed(
            "envoy.filters.http.sse_to_metadata",
            "filters.http.sse_to_metadata.v3.SseToMetadata",
            response_rules={"max_event_size": 1 << 20, "content_parser": parser},
        ),
    ]


def _metrics(settings: GatewaySettings) -> Json:
    """Envoy's own statistics for Prometheus, and nothing else of the admin interface."""
    manager = typed(
        "hcm",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="metrics",
        http_filters=[typed("envoy.filters.http.router", "filters.http.router.v3.Router")],
        route_config={
            "virtual_hosts": [
                {
                    "name": "metrics",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {
                                "path": "/metrics",
                                "headers": [
                                    {"name": ":method", "string_match": {"exact": "GET"}},
                                    {"name": ":path", "string_match": {"exact": "/metrics"}},  # no query of theirs
                                ],
                            },
                            "route": {
                                "cluster": "admin",
                                "prefix_rewrite": f"/stats/prometheus?usedonly&filter={_OWN}",
                                "timeout": "10s",
                            },
                        }
                    ],
                }
            ]
        },
    )
    return {
        "name": "metrics",
        "address": address(settings.listen_host, settings.stats_port),
        "bypass_overload_manager": True,
        "ignore_global_conn_limit": True,
        "filter_chains": [{"filters": [manager]}],
    }
