"""Envoy's messages as JSON: the shapes that recur. No meaning of ours but the names of filter state."""

from __future__ import annotations

from funicular.compile.inputs import GatewaySettings, Json

API = "type.googleapis.com/"
EXTENSION = API + "envoy.extensions."
MODEL, OTHER, UNIT, REPLICATE = "fun.model", "fun.other", "fun.unit", "fun.replicate"  # set by lua/downstream.lua
NO_UNIT, EDITS = "fun.no_unit", "fun.edits"
RELAYED = "fun.relayed"  # the edits of a request that came through the egress listener
EGRESS = "egress"
EXT_AUTHZ = "envoy.filters.http.ext_authz"
PER_ROUTE = EXTENSION + "filters.http.ext_authz.v3.ExtAuthzPerRoute"
# On each route, though it is long: beside one of the virtual host, Envoy would merge the two in every request that asks.
NOT_ASKED = {EXT_AUTHZ: {"@type": PER_ROUTE, "disabled": True}}
SPACE = "fun"  # of our metadata


def typed(name: str, type_name: str, /, **fields: object) -> Json:
    """A named extension; `type_name` after `envoy.extensions.`, or with `envoy.` in full."""
    url = API + type_name if type_name.startswith("envoy.") else EXTENSION + type_name
    return {"name": name, "typed_config": {"@type": url, **fields}}


def file_source(settings: GatewaySettings, folder: str, name: str) -> Json:
    """A file that is replaced by a rename; Envoy watches its folder."""
    path = f"{settings.config_dir}/{folder}"
    return {
        "resource_api_version": "V3",
        "path_config_source": {"path": f"{path}/{name}.json", "watched_directory": {"path": path}},
    }


def sds(settings: GatewaySettings, name: str) -> Json:
    return {"name": name, "sds_config": file_source(settings, "sds", name)}


def state_input(key: str) -> Json:
    return typed("state", "matching.common_inputs.network.v3.FilterStateInput", key=key)


def header_input(name: str) -> Json:
    return typed("header", "envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=name)


def exact_map(source: Json, entries: Json, otherwise: Json | None = None) -> Json:
    """A matcher: entries[value of source], else otherwise."""
    matcher: Json = {"matcher_tree": {"input": source, "exact_match_map": {"map": entries}}}
    return matcher if otherwise is None else {**matcher, "on_no_match": otherwise}


def when_present(source: Json, then: Json) -> Json:
    """One entry of a matcher_list: the input has a value, whatever it is."""
    any_value = {"safe_regex": {"google_re2": {}, "regex": "(?s).*"}}
    return {"predicate": {"single_predicate": {"input": source, "value_match": any_value}}, "on_match": then}


def lua(settings: GatewaySettings, **context: object) -> Json:
    """The same source everywhere: only then do filters share a VM, and with it the scratch memory."""
    folder = f"{settings.config_dir}/lua"
    return typed(
        "envoy.filters.http.lua",
        "filters.http.lua.v3.Lua",
        default_source_code={"filename": f"{folder}/main.lua"},
        package_paths=[f"{folder}/?.lua"],
        shared_vm_id="funicular",
        **({"filter_context": context} if context else {}),
    )


def address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def seconds_text(value: float) -> str:
    """A protobuf duration in JSON."""
    return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
