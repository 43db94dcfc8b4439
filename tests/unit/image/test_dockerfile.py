"""The Dockerfile cannot be built without an engine and its base images; that it says what the other builder does can be read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hack.image import finish
from hack.image.recipes import APP, CHECKOUT, CLASSIFIER, FUNICULAR, RECIPES, REQUIREMENTS, Recipe
from tests.unit.image.dockerfile import DOCKERFILE, Stage, stages

RECIPE = {it.reference: it for it in RECIPES}
LAUNCHERS = "/usr/local/bin"


@pytest.fixture(scope="module")
def read() -> dict[str, Stage]:
    return stages()


@pytest.mark.parametrize(
    ("stage", "recipe"),
    [
        pytest.param("funicular", RECIPE[FUNICULAR], id="funicular"),
        pytest.param("classifier-reference", RECIPE[CLASSIFIER], id="classifier-reference"),
    ],
)
def test_both_builders_configure_the_same_image(read: dict[str, Stage], stage: str, recipe: Recipe) -> None:
    found = read[stage]
    assert found.env == dict(recipe.env)
    assert found.entrypoint == recipe.entrypoint
    assert found.user == recipe.user
    assert found.workdir == "/"
    assert found.labels == recipe.labels
    assert found.name == recipe.short


def test_the_packages_are_the_locked_ones_with_hashes(read: dict[str, Stage]) -> None:
    (install,) = [command for command in read["packages"].run if "install" in command]
    assert "--require-hashes" in install
    assert install[install.index("--requirement") + 1] == str(REQUIREMENTS.relative_to(CHECKOUT))
    assert install[install.index("--target") + 1] == APP
    assert install[install.index("--only-binary") :][:2] == ["--only-binary", ":all:"]


def test_every_step_of_finish_is_taken(read: dict[str, Stage]) -> None:
    def steps(stage: str) -> list[list[str]]:
        commands = [command for command in read[stage].run if "hack/image/finish.py" in command]
        return [command[command.index("hack/image/finish.py") + 1 :] for command in commands]

    assert steps("packages") == [["trim", APP], ["compile", APP, "--called", APP]]
    own = f"/product{APP}"
    assert steps("product") == [
        ["trim", own],
        ["launchers", own, f"/product{LAUNCHERS}"],
        ["compile", own, "--called", APP],
        ["check", own],
    ]


def test_the_images_hold_nothing_but_what_the_build_stages_made(read: dict[str, Stage]) -> None:
    assert read["image"].copied_from == [("packages", APP, APP), ("product", "/product/", "/")]
    for stage in ("image", "classifier-reference", "funicular"):
        assert not read[stage].run, "there is no shell, and every command would be a layer"
        assert not read[stage].copied


def test_the_base_images_have_the_interpreter_that_the_launchers_name() -> None:
    text = DOCKERFILE.read_text()
    minor = re.search(r"python(3\.\d+)$", finish.INTERPRETER)
    assert minor is not None
    assert f"ARG PYTHON_IMAGE=docker.io/library/python:{minor[1]}-bookworm" in text
    assert "ARG BASE_IMAGE=gcr.io/distroless/python3-debian12:nonroot" in text, "Debian 12 has Python 3.11"


def test_the_context_holds_what_is_copied_and_no_more(read: dict[str, Stage]) -> None:
    ignored = Path(f"{DOCKERFILE}.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = {source for stage in read.values() for source in stage.copied}
    assert "*" in ignored
    assert let_in == copied
    assert all((CHECKOUT / source).exists() for source in copied)


def test_the_build_tools_are_locked_as_they_are_for_development() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (CHECKOUT / "requirements" / name).read_text()
        return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+) \\$", text, re.MULTILINE))

    build, development = pins("build.txt"), pins("dev.txt")
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    for wanted in project["build-system"]["requires"]:
        requirement = Requirement(wanted)
        assert requirement.specifier.contains(build[requirement.name])
    assert build.items() <= development.items()
