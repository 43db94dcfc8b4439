"""A small compiler with the agent's seam: header in place of body parsing, no Lua. The agent's tests run on it, so that they
speak of the agent alone; Envoy is the real one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson

from funicular.agent.ports import Compiled, Sample, SecretUse
from funicular.api.traffic import Route, Traffic
from funicular.settings import AgentSettings

Json = dict[str, Any]
E = "type.googleapis.com/envoy.extensions."
INPUT = "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput"


def typed(name: str, kind: str, /, **fields: Any) -> Json:
    return {"name": name, "typed_config": {"@type": kind if kind.startswith("type.") else E + kind, **fields}}


class StandIn:
    id_key = "id-key"

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self.compiled = 0

    # --- one policy ---------------------------------------------------------------------------------------------------
    def policy(self, namespace: str, name: str, traffic: Traffic) -> Compiled:
        self.compiled += 1
        if traffic.salt == "raise":
            raise ValueError("the salt cannot be compiled")
        clusters: dict[str, bytes] = {}
        secrets: set[SecretUse] = set()
        for route in filter(None, (traffic.stable, traffic.candidate)):
            for upstream in route.upstreams:
                use = None
                if upstream.credentials:
                    ref = upstream.credentials.secret_ref
                    use = SecretUse(f"{namespace}.{ref.name}.{ref.key}", namespace, ref.name, ref.key)
                    secrets.add(use)
                cluster = f"{namespace}/{name}/{route.revision}/{upstream.name}"
                clusters[cluster] = orjson.dumps(self._cluster(cluster, upstream.url, use, salt=traffic.salt))
        control = self._route(namespace, name, traffic, traffic.stable, "control")
        arms = control
        shares: dict[str, int] = {}
        if traffic.candidate:
            key = f"funicular.share.{namespace}.{name}.{traffic.candidate.revision}"
            shares[key] = traffic.share.desired
            treated = self._route(namespace, name, traffic, traffic.candidate, "treatment")
            fraction = {"runtime_key": key, "default_value": {"numerator": 0, "denominator": "TEN_THOUSAND"}}
            match = typed(
                "h", "matching.input_matchers.runtime_fraction.v3.RuntimeFraction", seed="7", runtime_fraction=fraction
            )
            predicate = {
                "single_predicate": {"input": typed("u", INPUT, header_name="x-user-id"), "custom_match": match}
            }
            arms = {
                "matcher": {
                    "matcher_list": {"matchers": [{"predicate": predicate, "on_match": treated}]},
                    "on_no_match": control,
                }
            }
        return Compiled(traffic.endpoint, orjson.dumps(arms), clusters, shares, tuple(sorted(secrets)))

    def _route(self, namespace: str, name: str, traffic: Traffic, route: Route, arm: str) -> Json:
        target = route.single if route.single and arm == "treatment" else route.baseline
        labels = {
            "namespace": namespace,
            "policy": name,
            "revision": traffic.compared.revision,
            "arm": arm,
            "candidate": target,
        }
        return {
            "action": typed(
                "route",
                "type.googleapis.com/envoy.config.route.v3.Route",
                match={"prefix": "/"},
                metadata={"filter_metadata": {"fun": labels}},
                route={"timeout": "0s", "cluster": f"{namespace}/{name}/{route.revision}/{target}"},
                response_headers_to_add=[
                    {"header": {"key": "x-arm", "value": arm}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
                ],
            )
        }

    def _late_file(self) -> Json:
        """Envoy refuses the cluster for as long as the file is missing."""
        context = {"validation_context": {"trusted_ca": {"filename": f"{self._settings.config_dir}/late.pem"}}}
        return {
            "transport_socket": typed(
                "tls", f"{E}transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context=context
            )
        }

    def _cluster(self, name: str, url: str, use: SecretUse | None, *, salt: str) -> Json:
        parts = urlsplit(url)
        filters = []
        if use:
            sds = {
                "resource_api_version": "V3",
                "path_config_source": {
                    "path": f"{self._settings.config_dir}/sds/{use.sds}.json",
                    "watched_directory": {"path": f"{self._settings.config_dir}/sds"},
                },
            }
            generic = typed(
                "envoy.http.injected_credentials.generic",
                "http.injected_credentials.generic.v3.Generic",
                header="authorization",
                header_value_prefix="Bearer ",
                credential={"name": use.sds, "sds_config": sds},
            )
            filters.append(
                typed(
                    "envoy.filters.http.credential_injector",
                    "filters.http.credential_injector.v3.CredentialInjector",
                    overwrite=True,
                    credential=generic,
                )
            )
        filters.append(typed("envoy.filters.http.upstream_codec", "filters.http.upstream_codec.v3.UpstreamCodec"))
        options = {
            "@type": E + "upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http_protocol_options": {}},
            "http_filters": filters,
        }
        endpoint = {"address": {"socket_address": {"address": parts.hostname, "port_value": parts.port}}}
        return {
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": name,
            "type": "STATIC",
            "connect_timeout": "-1s" if salt == "refuse" else "1s",
            **(self._late_file() if salt == "late" else {}),
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        }

    # --- all policies -------------------------------------------------------------------------------------------------
    def routes(self, by_model: Mapping[str, bytes]) -> Any:
        unknown = {
            "action": typed(
                "route",
                "type.googleapis.com/envoy.config.route.v3.Route",
                match={"prefix": "/"},
                direct_response={"status": 404},
            )
        }
        arms = {model: orjson.Fragment(route) for model, route in by_model.items()}
        tree = {"input": typed("m", INPUT, header_name="x-model"), "exact_match_map": {"map": arms}}
        matcher = {"matcher_tree": tree, "on_no_match": unknown} if arms else {"on_no_match": unknown}
        host = {"name": "all", "domains": ["*"], "matcher": matcher}
        return {
            "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            "name": "policies",
            "virtual_hosts": [host],
        }

    def shares(self, layer: Mapping[str, int]) -> Any:
        values = {key: {"numerator": value, "denominator": "TEN_THOUSAND"} for key, value in layer.items()}
        return {"@type": "type.googleapis.com/envoy.service.runtime.v3.Runtime", "name": "shares", "layer": values}

    def secret(self, sds: str, value: str) -> Any:
        return {
            "@type": E + "transport_sockets.tls.v3.Secret",
            "name": sds,
            "generic_secret": {"secret": {"inline_string": value}},
        }

    # --- the bootstrap ------------------------------------------------------------------------------------------------
    def _source(self, kind: str) -> Json:
        folder = f"{self._settings.config_dir}/{kind}"
        return {
            "resource_api_version": "V3",
            "path_config_source": {"path": f"{folder}/{kind}.json", "watched_directory": {"path": folder}},
        }

    def _access_log(self) -> list[Json]:
        def tag(key: str) -> Json:
            return {"name": key, "value_format": f"%METADATA(ROUTE:fun:{key})%"}

        tags = [tag(key) for key in ("namespace", "policy", "revision", "arm", "candidate")]
        code = {"name": "code", "value_format": "%RESPONSE_CODE%"}
        replicate = {"name": "replicate", "value_format": "%REQ(x-replicate)%"}
        counters = [
            {"stat": {"name": "requests", "tags": [*tags, code]}, "value_fixed": 1},
            {"stat": {"name": "outcomes", "tags": [*tags[:4], code, replicate]}, "value_fixed": 1},
        ]
        config = typed(
            "envoy.access_loggers.stats",
            "access_loggers.stats.v3.Config",
            stats_scope={"prefix": "funicular"},
            counters=counters,
        )
        return [config]

    def bootstrap(self) -> Any:
        settings = self._settings
        manager = typed(
            "hcm",
            "filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix="gateway",
            http_filters=[typed("envoy.filters.http.router", "filters.http.router.v3.Router")],
            access_log=self._access_log(),
            rds={"route_config_name": "policies", "config_source": self._source("rds")},
        )

        def address(host: str, port: int) -> Json:
            return {"socket_address": {"address": host, "port_value": port}}

        return {
            "node": {"id": "gateway", "cluster": "funicular"},
            "admin": {"address": address(settings.admin_host, settings.admin_port)},
            "dynamic_resources": {"cds_config": self._source("cds")},
            "static_resources": {
                "listeners": [
                    {
                        "name": "gateway",
                        "address": address(settings.pod_ip, settings.gateway_port),
                        "filter_chains": [{"filters": [manager]}],
                    }
                ]
            },
            "layered_runtime": {
                "layers": [{"name": "shares", "rtds_layer": {"name": "shares", "rtds_config": self._source("runtime")}}]
            },
            "stats_flush_interval": "1s",
            "stats_config": {
                "stats_matcher": {
                    "inclusion_list": {
                        "patterns": [
                            {"prefix": p}
                            for p in ("funicular", "http.", "listener", "cluster_manager", "runtime", "server")
                        ]
                    }
                }
            },
        }

    def companions(self) -> Mapping[str, bytes]:
        return {}

    def translate(self, name: str, labels: Mapping[str, str]) -> Sample | None:
        labels = dict(labels)
        code = labels.pop("code", "")
        if name == "envoy_funicular_requests":
            return Sample("funicular_requests_total", {**labels, "code": f"{code[:1]}xx"})
        if name == "envoy_funicular_outcomes" and labels.get("replicate", "").isdigit():
            return Sample("funicular_outcomes_total", {**labels, "outcome": "bad" if code >= "500" else "good"})
        return None
