"""The other end: an Envoy that answers every completion at once, one that classifies at once, and a plain proxy to compare with.

Called by the throughput part. Configurations as dicts, written to files. The upstream reads the whole request before it
answers, as a provider does; its answer carries `usage`, so that tokens are counted.
"""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]
E = "type.googleapis.com/envoy.extensions"
LARGEST = 16 << 20
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "bench",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "It is on its way."}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 500, "completion_tokens": 6, "total_tokens": 506},
}


def provider(host: str, port: int) -> Json:
    """Reads the request, then answers from memory."""
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": json.dumps(ANSWER)}},
        "response_headers_to_add": [_header("content-type", "application/json")],
    }
    return _bootstrap(_listener(host, port, [route], [_buffer()]), [])


def classifier(host: str, port: int) -> Json:
    """Calls everything easy, without a look."""
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200},
        "response_headers_to_add": [_header("x-funicular-label", "easy"), _header("x-funicular-score", "0.99")],
    }
    return _bootstrap(_listener(host, port, [route], [_buffer()]), [])


def _buffer() -> Json:
    """Without it the answer would come before the request's end, and the connection would be closed after each."""
    return {
        "name": "envoy.filters.http.buffer",
        "typed_config": {"@type": f"{E}.filters.http.buffer.v3.Buffer", "max_request_bytes": LARGEST},
    }


def proxy(host: str, port: int, to_host: str, to_port: int) -> Json:
    """What Envoy does by itself: one route, one cluster, no filter of ours."""
    endpoint = {"endpoint": {"address": _address(to_host, to_port)}}
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": LARGEST,
        "load_assignment": {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    route = {"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}
    return _bootstrap(_listener(host, port, [route], []), [cluster])


def _bootstrap(listener: Json, clusters: list[Json]) -> Json:
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def _listener(host: str, port: int, routes: list[Json], filters: list[Json]) -> Json:
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{E}.filters.http.router.v3.Router"}}
    manager = {
        "@type": f"{E}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "generate_request_id": False,
        "http_filters": [*filters, router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    }
    return {
        "name": "bench",
        "address": _address(host, port),
        "per_connection_buffer_limit_bytes": LARGEST,
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _header(name: str, value: str) -> Json:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
