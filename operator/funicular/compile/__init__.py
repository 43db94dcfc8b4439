"""status.traffic -> Envoy's configuration. Pure: dicts in and out, no file, no clock, no network.

For the agent, by file (each is a discovery response {"version_info": V, "resources": [...]}, replaced by a rename):

    settings = GatewaySettings.of(agent_settings)
    policy   = PolicyTraffic(namespace, name, traffic)
    CONFIG_DIR/bootstrap.json         bootstrap(settings)                  once; needs all other files to exist
    CONFIG_DIR/lua/*.lua              the package's data files LUA_FILES of funicular.compile.lua, copied once
    CONFIG_DIR/sds/NAME.json          [secret(NAME, value)]                NAME: policy_secrets(policy)[i].sds, and ID_KEY
    CONFIG_DIR/cds/cds.json           list of policy_clusters(policy, settings).values(), merged by name
    CONFIG_DIR/rds/rds.json           [route_configuration({traffic.endpoint: policy_route(policy)}, settings)]
    CONFIG_DIR/runtime/runtime.json   [share_layer(policy_shares(policy) of all policies merged)]

policy_route, policy_clusters and policy_secrets do not depend on the share. Each raises ValueError (with a sentence) for
traffic that cannot be compiled. route_configuration takes orjson.Fragment for a policy's part as well.
A candidate whose timeout is shorter than its baseline's gets a second cluster (clusters.relay_cluster). Keys in the layer that no
policy has any more may go once the routes are taken; a share that falls may fall first. In SDS file ID_KEY the value stands
as "inline_string", since Lua reads it from there (again each second).
Series by replicate: outcomes and slow answers while traffic.is_measured, tokens where an upstream also has a price.
ack.versions reads what Envoy has taken; metrics.translate and metrics.samples read its counters; assignment tells the arm.
"""

from __future__ import annotations

from funicular.compile.assignment import Arm, arm_of, holdback_seed, replicate_of, share_seed
from funicular.compile.bootstrap import bootstrap
from funicular.compile.clusters import policy_clusters, policy_secrets
from funicular.compile.inputs import ID_KEY, GatewaySettings, PolicyTraffic, SecretUse
from funicular.compile.metrics import Sample, samples, translate
from funicular.compile.routes import policy_route, route_configuration
from funicular.compile.shares import policy_shares, secret, secret_file, share_layer

LUA_FILES = ("main.lua", "downstream.lua", "upstream.lua", "scan.lua", "hash.lua")

__all__ = [
    "ID_KEY",
    "LUA_FILES",
    "Arm",
    "GatewaySettings",
    "PolicyTraffic",
    "Sample",
    "SecretUse",
    "arm_of",
    "bootstrap",
    "holdback_seed",
    "policy_clusters",
    "policy_route",
    "policy_secrets",
    "policy_shares",
    "replicate_of",
    "route_configuration",
    "samples",
    "secret",
    "secret_file",
    "share_layer",
    "share_seed",
    "translate",
]
