"""What the gateway answers itself, in OpenAI's style, so that clients show a sentence and not a parse error."""

from __future__ import annotations

import json

from funicular.compile.inputs import Json
from funicular.compile.protos import NOT_ASKED, typed

ROUTE = "envoy.config.route.v3.Route"
JSON_TYPE = [
    {"header": {"key": "content-type", "value": "application/json"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
]
_TEXTS = {
    413: ("invalid_request_error", "request_too_large", "The body is larger than this gateway allows."),
    503: ("server_error", "upstream_unavailable", "No candidate of this endpoint could be reached."),
    504: ("server_error", "upstream_timeout", "No candidate of this endpoint answered in time."),
}


def error(message: str, code: str, kind: str = "invalid_request_error") -> str:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def direct(name: str, status: int, text: str, *, as_json: bool = True) -> Json:
    """An action of a matcher: this answer, without any upstream."""
    fields: Json = {"response_headers_to_add": JSON_TYPE} if as_json else {}
    return {
        "action": typed(
            "route",
            ROUTE,
            name=name,
            match={"prefix": "/"},
            typed_per_filter_config=NOT_ASKED,
            direct_response={"status": status, "body": {"inline_string": text}},
            **fields,
        )
    }


def unknown_model() -> Json:
    text = "The model that the request names is not an endpoint of this gateway. GET /v1/models lists those that are."
    return direct("unknown-model", 404, error(text, "model_not_found"))


def loop_detected() -> Json:
    text = "The request came back to a gateway again and again: a candidate's url leads to the gateway itself."
    return direct("loop", 508, error(text, "loop_detected"))


def unknown_path() -> Json:
    text = "This gateway has no such path. It takes POST requests with a JSON body below /v1/, and GET /v1/models."
    return direct("unknown-path", 404, error(text, "unknown_path"))


def model(name: str) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": "funicular"}


def models(names: list[str]) -> str:
    return json.dumps({"object": "list", "data": [model(name) for name in names]})


def local_replies() -> Json:
    """Bodies of the answers that Envoy makes up, and our own 503 beside a provider's: those pass through untouched."""
    return {
        "mappers": [
            {
                "filter": {
                    "status_code_filter": {
                        "comparison": {"op": "EQ", "value": {"default_value": code, "runtime_key": "funicular.none"}}
                    }
                },
                "body_format_override": {
                    "text_format_source": {"inline_string": error(text, name, kind)},
                    "content_type": "application/json",
                },
            }
            for code, (kind, name, text) in _TEXTS.items()
        ]
    }
