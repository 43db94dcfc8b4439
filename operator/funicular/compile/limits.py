"""What one client may take: headers, time, connections, memory. Into the bootstrap, and nowhere else.

Called by bootstrap.py. The defaults suit the chart's Envoy container (1 GiB); a test of an attack gives smaller ones. Each is
proven by an attack on the real Envoy in tests/security.
"""

from __future__ import annotations

from dataclasses import dataclass

from funicular.compile.inputs import Json
from funicular.compile.protos import seconds_text, typed

_HEAP = "envoy.resource_monitors.fixed_heap"
_CONNECTIONS = "envoy.resource_monitors.global_downstream_max_connections"


@dataclass(frozen=True, slots=True)
class Limits:
    headers_kb: int = 60  # all header lines of a request together: 431 beyond it
    headers_count: int = 100
    headers_within: float = 10.0  # seconds from a request's first byte to the end of its headers
    request_within: float = 60.0  # seconds to the end of its body; the answer may take as long as it likes
    idle_connection: float = 600.0  # seconds that a kept connection may be without a request
    idle_stream: float = 600.0  # seconds without a byte in either direction
    connections: int = 10_000
    heap: int = 800 << 20  # bytes; below the container's limit, which ends every request of the pod at once


def of_manager(limits: Limits) -> Json:
    """Fields of the HTTP connection manager that applications reach.

    HTTP/1.1 alone: no client of this API speaks HTTP/2 without TLS unasked, and what comes with it (rapid reset, floods of
    CONTINUATION, SETTINGS or empty frames, requests translated from HTTP/2 into HTTP/1.1) stays outside.
    """
    return {
        "codec_type": "HTTP1",
        "http_protocol_options": {},  # neither HTTP/1.0 nor a length beside chunks: both are refused
        "common_http_protocol_options": {
            "idle_timeout": seconds_text(limits.idle_connection),
            "max_headers_count": limits.headers_count,
        },
        "max_request_headers_kb": limits.headers_kb,
        "request_headers_timeout": seconds_text(limits.headers_within),
        "request_timeout": seconds_text(limits.request_within),
        "stream_idle_timeout": seconds_text(limits.idle_stream),
    }


def overload_manager(limits: Limits) -> Json:
    """From least to most: give memory back, close what is idle, take no new connection, refuse requests.

    Readiness fails with the last one, so that others are asked meanwhile. Listeners for the pod itself bypass all of it.
    """

    def at(name: str, threshold: float) -> Json:
        return {"name": name, "triggers": [{"name": _HEAP, "threshold": {"value": threshold}}]}

    return {
        "refresh_interval": "0.05s",
        "resource_monitors": [
            typed(_HEAP, "resource_monitors.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=str(limits.heap)),
            typed(
                _CONNECTIONS,
                "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=str(limits.connections),
            ),
        ],
        "actions": [
            at("envoy.overload_actions.shrink_heap", 0.85),
            at("envoy.overload_actions.disable_http_keepalive", 0.9),
            at("envoy.overload_actions.reject_incoming_connections", 0.9),
            at("envoy.overload_actions.stop_accepting_requests", 0.95),
        ],
        # a body that is being sent is a request that was accepted: only this ends it
        "loadshed_points": [at("envoy.load_shed_points.http1_server_abort_dispatch", 0.95)],
    }
