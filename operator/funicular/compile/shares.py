"""Shares (RTDS) and secrets (SDS): the two kinds of files that change without a new route."""

from __future__ import annotations

from collections.abc import Mapping

from funicular.compile.inputs import Json, PolicyTraffic
from funicular.compile.protos import API, EXTENSION

LAYER = "shares"


def policy_shares(policy: PolicyTraffic) -> dict[str, int]:
    """Basis points by runtime key; nothing while nothing ramps."""
    return {policy.share_key: policy.traffic.share.desired} if policy.traffic.candidate is not None else {}


def share_layer(points: Mapping[str, int]) -> Json:
    """A key that is missing counts as 0: routes that Envoy has and a share that it has not yet treat nobody."""
    layer = {key: {"numerator": value, "denominator": "TEN_THOUSAND"} for key, value in sorted(points.items())}
    return {"@type": API + "envoy.service.runtime.v3.Runtime", "name": LAYER, "layer": layer}


def secret(sds: str, value: str) -> Json:
    """One credential, or the key ID_KEY that signs x-funicular-id."""
    return {
        "@type": EXTENSION + "transport_sockets.tls.v3.Secret",
        "name": sds,
        "generic_secret": {"secret": {"inline_string": value}},
    }


def secret_file(sds: str, path: str) -> Json:
    """The same from a mounted file, which Envoy reads again when its folder changes."""
    folder = path.rpartition("/")[0] or "/"
    return {
        "@type": EXTENSION + "transport_sockets.tls.v3.Secret",
        "name": sds,
        "generic_secret": {"secret": {"filename": path, "watched_directory": {"path": folder}}},
    }
