"""A bill of materials for each image, as CycloneDX 1.6 JSON: every Debian package, wheel and binary, with its hash.

Called by build. It lists what was put into the layers, not what a scanner would guess from them.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from hack.image.layers import Made, Part
from hack.image.recipes import Recipe

TYPES = {"deb": ComponentType.LIBRARY, "pypi": ComponentType.LIBRARY, "generic": ComponentType.APPLICATION}
NAMESPACE = uuid.UUID("2f0c7c1e-6c1f-5a34-9d5b-0f6f5f1c7a10")


def bill_of_materials(recipe: Recipe, made: Sequence[Made]) -> str:
    """The document. Its serial number is a function of the image: the same image has the same."""
    digests = "\n".join(it.layer.digest for it in made)
    bom = Bom(serial_number=uuid.uuid5(NAMESPACE, f"{recipe.name}\n{digests}"))
    bom.metadata.timestamp = datetime.now(UTC)
    image = Component(
        name=recipe.short,
        version=recipe.version,
        type=ComponentType.CONTAINER,
        bom_ref=recipe.name,
        description=recipe.title,
        properties=[Property(name=f"layer:{it.name}", value=it.layer.digest) for it in made],
    )
    bom.metadata.component = image
    components = [_component(part, it.name) for it in made for part in it.parts]
    bom.components.update(components)
    bom.register_dependency(image, components)
    for component in components:
        bom.register_dependency(component)
    return str(JsonV1Dot6(bom).output_as_string(indent=1))


def _component(part: Part, layer: str) -> Component:
    purl = package_url(part)
    return Component(
        name=part.name,
        version=part.version,
        type=TYPES[part.kind],
        bom_ref=str(purl),
        purl=purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=part.sha256)] if part.sha256 else [],
        licenses=[LicenseFactory().make_from_string(part.license)] if part.license else [],
        properties=[Property(name="layer", value=layer)],
    )


def package_url(part: Part) -> PackageURL:
    if part.kind == "deb":
        return PackageURL("deb", "debian", part.name, part.version, {"arch": part.architecture, "distro": "debian-12"})
    return PackageURL(part.kind, None, part.name, part.version)
