"""What the images are: layers, commands, user, environment. Data only.

Read by the builder, by the bill of materials and by the tests that keep the Dockerfile equal to it. Layers are named here
and made in layers.py.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hack.image.finish import INTERPRETER

CHECKOUT = Path(__file__).resolve().parents[2]
REQUIREMENTS = CHECKOUT / "requirements" / "runtime.txt"

APP = "/app"
USER = "65532:65532"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
VERSION: str = PROJECT["version"]

FUNICULAR = f"ghcr.io/funicular/funicular:{VERSION}"
CLASSIFIER = f"ghcr.io/funicular/classifier-reference:{VERSION}"
ENVOY_VERSION = "1.40.0"
ENVOY = f"envoyproxy/envoy:distroless-v{ENVOY_VERSION}"
PROVIDER = "funicular.local/provider:latest"
SIMULATION = "funicular.local/sim:latest"

PATH = {"PATH": "/usr/local/bin:/usr/bin"}
PYTHON = {
    **PATH,
    "PYTHONPATH": APP,
    "PYTHONDONTWRITEBYTECODE": "1",  # the root is read-only
    "PYTHONUNBUFFERED": "1",
    # Debian's OpenSSL looks where only another package would put a link.
    "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
    # Matrices are small: threads of linear algebra would cost memory and be throttled by the CPU limit.
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image. `layers` from the bottom up; images share those they have in common."""

    reference: str
    title: str
    layers: tuple[str, ...]
    entrypoint: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=lambda: PYTHON)
    user: str = USER
    version: str = VERSION
    is_product: bool = True

    @property
    def name(self) -> str:
        """As containerd knows it: with registry and tag."""
        first = self.reference.split("/", 1)[0]
        return self.reference if "." in first else f"docker.io/{self.reference}"

    @property
    def short(self) -> str:
        return self.reference.rpartition("/")[2].partition(":")[0]

    @property
    def labels(self) -> dict[str, str]:
        """OCI annotations."""
        return {
            "org.opencontainers.image.title": self.title,
            "org.opencontainers.image.version": self.version,
            "org.opencontainers.image.licenses": "Apache-2.0",
        }


PRODUCT = ("debian", "python", "packages", "funicular")
RECIPES: tuple[Recipe, ...] = (
    Recipe(FUNICULAR, "Funicular: operator, agent and command line", PRODUCT, ("/usr/local/bin/funicular",)),
    Recipe(
        CLASSIFIER,
        "Funicular's reference classifier",
        PRODUCT,
        (INTERPRETER, "-m", "funicular.classifier", "serve"),
    ),
    Recipe(
        ENVOY,
        "Envoy, in the place of the official image",
        ("debian", "envoy"),
        ("/usr/local/bin/envoy",),
        env=PATH,
        version=ENVOY_VERSION,
        is_product=False,
    ),
    Recipe(
        PROVIDER,
        "A simulated model provider, for tests",
        (*PRODUCT, "simulation"),
        (INTERPRETER, "-m", "hack.sim.provider"),
        is_product=False,
    ),
    Recipe(
        SIMULATION,
        "Simulated applications, for tests",
        (*PRODUCT, "simulation"),
        (INTERPRETER, "-m", "hack.sim"),
        is_product=False,
    ),
)
