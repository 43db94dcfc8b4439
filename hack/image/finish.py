"""What both builders do to a folder of installed packages: trim it, write the launchers, compile it, try it.

Run by the Dockerfile's build stages and by hack/image/layers.py, as a script: it must not import anything but the standard
library. What is removed is what Funicular does not load; `check` then imports every module of Funicular, so that a library
that needs more than it used to fails the build and not a pod.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import os
import py_compile
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from pathlib import Path

INTERPRETER = "/usr/bin/python3.11"

# Relative to the folder of packages; each with the reason why nothing loads it.
UNUSED: tuple[str, ...] = (
    "bin",  # other packages' commands; ours are written by `launchers`
    "kubernetes/aio",  # a second client: Funicular reads kubeconfigs with this package and talks HTTP by itself
    "kubernetes/client/api",  # loaded lazily, one class for each API group
    "kubernetes/client/apis",
    "numpy/_pyinstaller",
    "numpy/distutils",
    "numpy/doc",
    # scipy.special is all that verdicts need, and scipy loads its other parts lazily.
    *(
        f"scipy/{part}"
        for part in (
            "cluster", "constants", "datasets", "differentiate", "fft", "fftpack", "integrate", "interpolate", "io",
            "linalg", "misc", "ndimage", "odr", "optimize", "signal", "sparse", "spatial", "stats",
        )
    ),
    "scipy/special/cython_special*",  # for other Cython modules
    "funicular/classifier/train_reference.py",  # training is development: it needs the parts of scipy above
    "**/tests",
    "**/__pycache__",
    *(f"**/*.{ending}" for ending in ("a", "c", "cpp", "h", "pxd", "pyi", "pyx")),
    "*.dist-info/RECORD",  # says what is no longer so
    *(f"*.dist-info/{name}" for name in ("INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")),
)  # fmt: skip

# Kept, but loaded so rarely that compiled files are not worth their size.
NOT_COMPILED = re.compile(
    r"kubernetes/client/models/|pygments/(lexers|styles|formatters)/|dateparser/data/|numpy/f2py/"
)

# Parts that only a person at a desk runs.
NOT_CHECKED = ("funicular.__main__",)

LAUNCHER = """#!{interpreter}
import sys

from {module} import {attribute}

sys.exit({attribute}())
"""


class FinishError(Exception):
    """The folder of packages is not what an image needs."""


def trim(app: Path) -> None:
    """Removes what is in UNUSED, then bundled libraries that nothing links to any more, then debugging symbols."""
    for pattern in UNUSED:
        for path in sorted(app.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    _drop_unlinked_libraries(app)
    _strip(app)


def _drop_unlinked_libraries(app: Path) -> None:
    """Wheels bring libraries in `NAME.libs`, by names with a hash in them: one that is in no binary is not linked."""
    for folder in app.glob("*.libs"):
        changed = True
        while changed:  # a library may be linked by another one of the folder only
            libraries = sorted(folder.iterdir())
            binaries = [*app.glob(f"{folder.stem}/**/*.so"), *libraries]
            contents = {path: path.read_bytes() for path in binaries}
            unlinked = [
                library
                for library in libraries
                if not any(library.name.encode() in content for path, content in contents.items() if path != library)
            ]
            for library in unlinked:
                library.unlink()
            changed = bool(unlinked)


def _strip(app: Path) -> None:
    """Not the libraries in `NAME.libs`: wheels' tools have rewritten those, and strip breaks their alignment."""
    modules = [str(path) for path in sorted(app.rglob("*.so")) if not path.relative_to(app).parts[0].endswith(".libs")]
    program = shutil.which("strip")
    if program is None:
        raise FinishError("there is no `strip` (Debian: apt install binutils)")
    if modules:
        subprocess.run([program, "--strip-debug", *modules], check=True)


def write_launchers(app: Path, folder: Path) -> list[str]:
    """Funicular's commands, as its entry points say. Returns their names."""
    found = sorted(app.glob("funicular-*.dist-info/entry_points.txt"))
    if not found:
        raise FinishError(f"funicular is not installed in {app}")
    entries = ConfigParser(delimiters=("=",))
    entries.read(found[0])
    folder.mkdir(parents=True, exist_ok=True)
    scripts = dict(entries["console_scripts"])
    for name, target in scripts.items():
        module, _, attribute = target.partition(":")
        path = folder / name
        path.write_text(LAUNCHER.format(interpreter=INTERPRETER, module=module, attribute=attribute))
        path.chmod(0o755)
    return sorted(scripts)


def compile_all(app: Path, called: str) -> None:
    """Compiles for a read-only root: the files are never checked against their sources. `called`: its path in the image."""
    done = compileall.compile_dir(
        app, quiet=1, maxlevels=30, rx=NOT_COMPILED, stripdir=app, prependdir=called, workers=os.cpu_count() or 1,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip
    if not done:
        raise FinishError(f"not everything in {app} compiles")


def modules_of(package: Path) -> Iterator[str]:
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def check(app: Path) -> int:
    """Imports every module of Funicular, with `app`, PYTHONPATH and the standard library alone. Returns how many."""
    sys.path[:] = [str(app), *(it for it in sys.path if Path(it).name not in ("site-packages", "dist-packages"))]
    names = [name for name in modules_of(app / "funicular") if name not in NOT_CHECKED]
    for name in names:
        importlib.import_module(name)
    return len(names)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="finish.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("trim", "compile", "check", "launchers"):
        command = commands.add_parser(name)
        command.add_argument("app", type=Path, help="the folder that holds the packages")
        if name == "launchers":
            command.add_argument("folder", type=Path, help="where the commands are written to")
        if name == "compile":
            command.add_argument("--called", default="/app", help="the folder's path in the image")
    options = parser.parse_args(arguments)
    try:
        if options.command == "trim":
            trim(options.app)
        elif options.command == "launchers":
            write_launchers(options.app, options.folder)
        elif options.command == "compile":
            compile_all(options.app, options.called)
        else:
            check(options.app)
    except FinishError as error:
        sys.stderr.write(f"finish.py: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
