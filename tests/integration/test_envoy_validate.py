"""Every golden output is one that the binary accepts."""

from __future__ import annotations

import copy
import json
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import certifi
import pytest

from funicular.compile import ID_KEY, LUA_FILES, GatewaySettings, bootstrap, secret
from tests.integration.envoy_rig import ENVOY
from tests.unit.compile.cases import CASES, compiled


def in_one_file(files: dict[str, Any], settings: GatewaySettings) -> dict[str, Any]:
    """Envoy's validation does not read discovery files, so their content is put in their places."""
    whole = copy.deepcopy(bootstrap(settings))
    manager = whole["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["rds"]
    manager["route_config"] = {key: value for key, value in files["rds"].items() if key != "@type"}
    whole["static_resources"]["clusters"] += [
        {key: value for key, value in cluster.items() if key != "@type"} for cluster in files["cds"]
    ]
    del whole["dynamic_resources"]
    whole["layered_runtime"]["layers"] = [{"name": "shares", "static_layer": files["runtime"]["layer"]}]
    return whole


@pytest.mark.parametrize("name", CASES)
def test_the_binary_accepts_what_the_compiler_writes(name: str, tmp_path: Path) -> None:
    settings = GatewaySettings(str(tmp_path), dns_resolver="127.0.0.53:53", ca_file=certifi.where())
    files = compiled(CASES[name], settings)
    for folder in ("sds", "lua", "cds", "rds", "runtime"):
        (tmp_path / folder).mkdir()
    for item in [*files["sds"], secret(ID_KEY, "key")]:
        (tmp_path / "sds" / f"{item['name']}.json").write_text(json.dumps({"resources": [item]}))
    (tmp_path / "runtime" / "runtime.json").write_text(json.dumps({"resources": [files["runtime"]]}))
    for source in LUA_FILES:
        (tmp_path / "lua" / source).write_bytes((resources.files("funicular.compile") / "lua" / source).read_bytes())
    config = tmp_path / "whole.json"
    config.write_text(json.dumps(in_one_file(files, settings)))
    assert ENVOY
    found = subprocess.run(
        [ENVOY, "--mode", "validate", "-c", str(config), "-l", "error"], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stderr[-3000:]
