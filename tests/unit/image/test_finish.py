"""What both builders do to a folder of packages, on folders made by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hack.image import finish


def put(folder: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def listed(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_not_loaded_goes_and_licences_stay(tmp_path: Path) -> None:
    put(tmp_path, "scipy/special/__init__.py", "scipy/stats/__init__.py", "scipy/special/tests/test_a.py", "bin/httpx",
        "kubernetes/aio/a.py", "kubernetes/client/models/a.py", "a/b.pyi", "a/b.py", "a-1.dist-info/RECORD",
        "a-1.dist-info/METADATA", "a-1.dist-info/licenses/LICENSE")  # fmt: skip
    finish.trim(tmp_path)
    assert listed(tmp_path) == {
        "scipy/special/__init__.py",
        "kubernetes/client/models/a.py",
        "a/b.py",
        "a-1.dist-info/METADATA",
        "a-1.dist-info/licenses/LICENSE",
    }


def test_a_bundled_library_stays_while_anything_links_to_it(tmp_path: Path) -> None:
    libraries = tmp_path / "scipy.libs"
    put(libraries, "liba-1.so", content=b"needs libb-1.so")
    put(libraries, "libb-1.so", "libc-1.so")
    put(libraries, "libd-1.so", content=b"needs libc-1.so")
    put(tmp_path, "scipy/special/_ufuncs.py")
    # As trim does, but for a file that strip would not take for a program.
    put(tmp_path, "scipy/special/_ufuncs.so", content=b"needs liba-1.so")
    finish._drop_unlinked_libraries(tmp_path)
    assert {path.name for path in libraries.iterdir()} == {"liba-1.so", "libb-1.so"}


def test_launchers_are_the_entry_points_and_name_the_images_python(tmp_path: Path) -> None:
    entries = "[console_scripts]\n" + "".join(
        f"{name} = funicular.cli.main:run\n" for name in ("funicular", "kubectl-funicular")
    )
    put(tmp_path, "app/funicular-1.dist-info/entry_points.txt", content=entries.encode())
    assert finish.write_launchers(tmp_path / "app", tmp_path / "bin") == ["funicular", "kubectl-funicular"]
    launcher = tmp_path / "bin" / "funicular"
    assert launcher.read_text().startswith("#!/usr/bin/python3.11\n")
    assert launcher.stat().st_mode & 0o777 == 0o755
    run = [sys.executable, str(launcher), "--help"]
    shown = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert "Usage: funicular" in shown


def test_without_funicular_there_is_nothing_to_launch(tmp_path: Path) -> None:
    with pytest.raises(finish.FinishError, match="not installed"):
        finish.write_launchers(tmp_path, tmp_path / "bin")


def test_compiled_files_name_the_path_in_the_image_and_are_never_checked(tmp_path: Path) -> None:
    put(tmp_path, "funicular/a.py", content=b"def here():\n    return here.__code__.co_filename\n")
    finish.compile_all(tmp_path, "/app")
    (compiled,) = (tmp_path / "funicular" / "__pycache__").glob("a.*.pyc")
    assert compiled.read_bytes()[4:8] == b"\x01\x00\x00\x00", "hash-based and unchecked"
    assert b"/app/funicular/a.py" in compiled.read_bytes()
    assert str(tmp_path).encode() not in compiled.read_bytes()


def test_what_does_not_compile_fails_the_build(tmp_path: Path) -> None:
    put(tmp_path, "funicular/a.py", content=b"def (")
    with pytest.raises(finish.FinishError, match="compiles"):
        finish.compile_all(tmp_path, "/app")


def test_a_module_that_cannot_be_imported_fails_the_build(tmp_path: Path) -> None:
    put(tmp_path, "funicular/__init__.py", content=b"")
    put(tmp_path, "funicular/needs.py", content=b"import scipy.stats\n")
    check = [sys.executable, finish.__file__, "check", str(tmp_path)]
    failed = subprocess.run(check, capture_output=True, text=True, check=False, env={})
    assert failed.returncode != 0
    assert "No module named 'scipy'" in failed.stderr, "packages of the machine itself do not count"
