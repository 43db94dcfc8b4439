"""`python -m hack.image build`: all images in one archive, their bills of materials beside it, and a table of sizes.

Called by the command line and by whoever needs the images on a node. The archive is written only if something changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from hack.image import oci, sbom
from hack.image.layers import Made, Workshop
from hack.image.recipes import RECIPES, Recipe

ARCHIVE = "images.tar"
SUMMARY = "images.json"
BASE_LAYERS = ("debian", "python")


@dataclass(frozen=True, slots=True)
class Built:
    """What lies in the folder now. `is_new`: something was written."""

    archive: Path
    bills: tuple[Path, ...]
    layers: tuple[Made, ...]
    is_new: bool


def build(
    folder: Path,
    *,
    refresh: bool = False,
    recipes: Sequence[Recipe] = RECIPES,
    say: Callable[[str], None] = lambda _: None,
) -> Built:
    """Raises ImageError with what is missing on this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    with Workshop(refresh=refresh, say=say) as workshop:
        made = {name: workshop.layer(name) for recipe in recipes for name in recipe.layers}
        images = [_image(recipe, made) for recipe in recipes]
        summary = json.dumps(_summary(recipes, made), indent=1)
        archive, written = folder / ARCHIVE, folder / SUMMARY
        bills = tuple(folder / f"{recipe.short}.cdx.json" for recipe in recipes)
        is_new = not (
            archive.exists()
            and all(bill.exists() for bill in bills)
            and written.exists()
            and written.read_text() == summary
        )
        if is_new:
            say(f"writing {archive}")
            written.unlink(missing_ok=True)
            oci.write_archive(images, archive)
            for recipe, bill in zip(recipes, bills, strict=True):
                bill.write_text(sbom.bill_of_materials(recipe, [made[name] for name in recipe.layers]))
            written.write_text(summary)
    return Built(archive, bills, tuple(made.values()), is_new)


def _image(recipe: Recipe, made: dict[str, Made]) -> oci.Image:
    layers = tuple(made[name].layer for name in recipe.layers)
    return oci.Image(recipe.name, layers, recipe.entrypoint, recipe.env, recipe.user, recipe.labels)


def _summary(recipes: Sequence[Recipe], made: dict[str, Made]) -> dict[str, object]:
    """What the folder holds: also the key by which an unchanged archive is left alone."""
    code = hashlib.sha256(Path(sbom.__file__).read_bytes() + Path(oci.__file__).read_bytes()).hexdigest()
    images = {
        recipe.name: {
            "layers": list(recipe.layers),
            "entrypoint": list(recipe.entrypoint),
            "env": dict(recipe.env),
            "user": recipe.user,
            "labels": recipe.labels,
        }
        for recipe in recipes
    }
    layers = {
        it.name: {"digest": it.layer.digest, "bytes": it.layer.content, "compressed_bytes": it.layer.compressed}
        for it in made.values()
    }
    return {"images": images, "layers": layers, "writer": code}


def table(made: Sequence[Made], recipes: Sequence[Recipe] = RECIPES) -> Table:
    """Sizes in MB: of each layer, then of each image, split into the base (Debian and Python) and what is beyond it."""
    layers = {it.name: it.layer for it in made}
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows.add_column("layer or image", no_wrap=True)
    for title in ("MB", "compressed", "base", "beyond it"):
        rows.add_column(title, justify="right")
    for it in made:
        rows.add_row(it.name, _mb(it.layer.content), _mb(it.layer.compressed), "", "")
    rows.add_section()
    for recipe in recipes:
        of_it = [layers[name] for name in recipe.layers]
        base = sum(layers[name].content for name in recipe.layers if name in BASE_LAYERS)
        total = sum(layer.content for layer in of_it)
        rows.add_row(
            recipe.short, _mb(total), _mb(sum(layer.compressed for layer in of_it)), _mb(base), _mb(total - base)
        )
    return rows


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"
