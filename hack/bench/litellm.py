"""The LiteLLM proxy on the same upstream: in an environment of its own in the cache, because its dependencies are not ours.

Called by the throughput part. An optional extra: where it cannot be installed the bench says so and goes on.
"""

from __future__ import annotations

import os
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path

import yaml

from hack.bench.machine import Machine, status_of, wait_for
from hack.cluster.binaries import cache_folder
from hack.cluster.errors import ClusterError
from hack.cluster.processes import Component

REQUIREMENT = "litellm[proxy]"
INSTALL_TIMEOUT = 900


def environment() -> Path:
    return cache_folder() / "litellm-venv"


def install(say: Callable[[str], None]) -> Path | None:
    """The proxy's command; None: it cannot be had, and why has been said."""
    command = environment() / "bin" / "litellm"
    done = environment() / ".installed"
    if done.exists() and command.exists():
        return command
    say(f"installing {REQUIREMENT} into {environment()}: about 2 minutes, once")
    try:
        venv.create(environment(), with_pip=True, clear=True)
        subprocess.run(
            [
                str(environment() / "bin" / "python"),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                REQUIREMENT,
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT,
        )
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", "") or str(error)
        say(
            f"LiteLLM is left out: it could not be installed ({said.strip().splitlines()[-1] if said.strip() else error})"
        )
        return None
    done.touch()
    return command


def start(
    say: Callable[[str], None], machine: Machine, command: Path, upstream: str, model: str, *, core: str
) -> tuple[str, Component] | None:
    """Its address, once it answers; None: it does not, and why has been said. One worker, no database, no logs."""
    host, port = machine.address(), 4000
    config = machine.folder / "litellm.yaml"
    parameters = {"model": "openai/upstream", "api_base": f"http://{upstream}/v1", "api_key": "sk-bench"}
    config.write_text(
        yaml.safe_dump(
            {
                "model_list": [{"model_name": model, "litellm_params": parameters}],
                "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
                "litellm_settings": {"set_verbose": False, "telemetry": False},
            }
        )
    )
    os.environ.setdefault("LITELLM_LOG", "ERROR")
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    part = machine.start(
        "litellm",
        [
            str(command),
            "--config",
            str(config),
            "--host",
            host,
            "--port",
            str(port),
            "--num_workers",
            "1",
            "--telemetry",
            "False",
        ],
        core=core,
    )
    try:
        wait_for("LiteLLM", lambda: status_of(host, port, "/health/liveliness") == 200, part, timeout=120)
    except ClusterError as error:
        say(f"LiteLLM is left out: {error}")
        return None
    return f"{host}:{port}", part
