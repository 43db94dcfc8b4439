"""The images as a kubelet would run them: unpacked, root read-only, user 65532, no shell, no HOME. Needs root and Debian 12."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from hack.image import build as building
from hack.image import debian
from hack.image.errors import ImageError
from hack.image.recipes import CHECKOUT, CLASSIFIER, ENVOY, FUNICULAR, PROVIDER, RECIPES, SIMULATION
from hack.sim.processes import free_port
from tests.unit.image.dockerfile import stages

Json = dict[str, Any]
BEYOND_THE_BASE = 150_000_000  # bytes

# What a container runtime does, in namespaces of its own: only /proc, /dev and /run are not the image's.
CONTAINER = """
root=$1; shift
mount --make-rprivate / && mount --bind "$root" "$root" && mount --rbind /dev "$root/dev" &&
mount -t proc proc "$root/proc" && mount -o remount,bind,ro "$root" && mount -t tmpfs -o mode=1777 tmpfs "$root/run" &&
exec /usr/sbin/chroot --userspec=65532:65532 --groups= "$root" "$@"
"""


def _is_possible() -> str:
    if os.geteuid() != 0:
        return "needs root"
    try:
        debian.check_machine()
    except ImageError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(_is_possible()), reason=_is_possible() or "possible")


@dataclass(frozen=True)
class Unpacked:
    """One image of the archive."""

    root: Path
    config: Json
    layers: list[str]

    @property
    def environment(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.config["Env"])

    def command(self, *arguments: str, entrypoint: bool = True) -> list[str]:
        start = self.config["Entrypoint"] if entrypoint else []
        isolate = ["/usr/bin/unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", CONTAINER, "sh"]
        return [*isolate, str(self.root), *start, *arguments]

    def run(self, *arguments: str, entrypoint: bool = True, env: dict[str, str] | None = None) -> str:
        """What it prints; it must end well."""
        done = subprocess.run(
            self.command(*arguments, entrypoint=entrypoint), env={**self.environment, **(env or {})},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("images")
    building.build(out)
    return out


@pytest.fixture(scope="module")
def unpack(folder: Path) -> Callable[[str], Unpacked]:
    """An image of the archive by its reference, once."""
    done: dict[str, Unpacked] = {}

    def one(reference: str) -> Unpacked:
        if reference not in done:
            done[reference] = _unpack(folder / building.ARCHIVE, reference, folder)
        return done[reference]

    return one


def _unpack(archive: Path, reference: str, folder: Path) -> Unpacked:
    """Into a folder that images of the same layers share."""
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "tar_filter", None)

        def blob(digest: str) -> Any:
            return json.loads(content(f"blobs/{digest.replace(':', '/')}"))

        def content(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file is not None
            return file.read()

        index = json.loads(content("index.json"))
        (found,) = [
            it for it in index["manifests"] if it["annotations"]["io.containerd.image.name"].endswith(reference)
        ]
        manifest = blob(found["digest"])
        digests = [layer["digest"] for layer in manifest["layers"]]
        root = folder / f"root-{hashlib.sha256(''.join(digests).encode()).hexdigest()[:12]}"
        for digest in () if root.exists() else digests:
            file = tar.extractfile(f"blobs/{digest.replace(':', '/')}")
            with tarfile.open(fileobj=file) as layer:
                layer.extraction_filter = getattr(tarfile, "tar_filter", None)
                layer.extractall(root)
        return Unpacked(root, blob(manifest["config"]["digest"])["config"], digests)


@contextlib.contextmanager
def started(command: Sequence[str], env: dict[str, str], url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server, from its first answer on."""
    process = subprocess.Popen(command, env=env)
    try:
        deadline = time.monotonic() + 30.0
        while True:
            assert process.poll() is None, "it ended"
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5.0):
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.kill()  # unshare takes the container with it
        process.wait(20.0)


# --- what runs ----------------------------------------------------------------------------------------------------------------
def test_the_command_line_runs(unpack: Callable[[str], Unpacked]) -> None:
    assert "Usage: funicular" in unpack(FUNICULAR).run("--help")
    assert "Usage: kubectl funicular" in unpack(FUNICULAR).run("kubectl-funicular", "--help", entrypoint=False)
    assert unpack(FUNICULAR).run("funicular", "crd", entrypoint=False).startswith(("#", "apiVersion"))


def test_a_gateway_pod_can_start(unpack: Callable[[str], Unpacked]) -> None:
    """The agent writes Envoy's start files, and the Envoy of the other image takes them."""
    agent = unpack(FUNICULAR)
    show = "import pathlib; print(pathlib.Path('/run/funicular/bootstrap.json').read_text())"
    both = (
        "import subprocess, sys; subprocess.run(['funicular', 'agent', 'bootstrap'], check=True); "
        f"subprocess.run([sys.executable, '-c', {show!r}], check=True)"
    )
    bootstrap = json.loads(agent.run("python3", "-c", both, entrypoint=False))
    assert bootstrap["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    assert "1.40.0" in unpack(ENVOY).run("envoy", "--version", entrypoint=False)


def test_the_classifier_answers(unpack: Callable[[str], Unpacked]) -> None:
    image, port = unpack(CLASSIFIER), free_port()
    command = image.command("--host", "127.0.0.1", "--port", str(port))
    question = json.dumps({"model": "m", "messages": [{"role": "user", "content": "When do you open?"}]}).encode()
    with started(command, image.environment, f"http://127.0.0.1:{port}/readyz"):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/classify", question,
            {"content-type": "application/json", "x-funicular-threshold": "0.7"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=10.0) as response:
            assert response.headers["x-funicular-label"] in ("easy", "hard")


def test_the_simulations_run(unpack: Callable[[str], Unpacked]) -> None:
    model, app, ports = unpack(PROVIDER), unpack(SIMULATION), (free_port(), free_port())
    url = f"http://127.0.0.1:{ports[0]}"
    asking = app.command("app", "--host", "127.0.0.1", "--port", str(ports[1]), "--url", f"{url}/v1", "--provider", url)
    state = f"http://127.0.0.1:{ports[1]}/state"
    with (
        started(model.command("--port", str(ports[0])), model.environment, f"{url}/healthz"),
        started(asking, app.environment, state),
    ):
        deadline = time.monotonic() + 20.0
        while True:
            with urllib.request.urlopen(state, timeout=5.0) as response:
                seen = json.load(response)
            if seen["ok"] >= 5:
                break
            assert time.monotonic() < deadline, seen
            time.sleep(0.05)
    assert seen["failed"] == 0


# --- what is in it ------------------------------------------------------------------------------------------------------------
FACTS = """
import json, os, ssl, sys
def refused(path):
    try:
        open(path, "w")
    except OSError as error:
        return error.strerror
facts = {
    "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(), "home": "HOME" in os.environ,
    "written": [refused("/app/x"), refused("/etc/x"), refused("/tmp/x")],
    "certificates": len(ssl.create_default_context().get_ca_certs()),
    "flags": sys.flags.dont_write_bytecode,
}
import funicular.api.rules
facts["compiled"] = funicular.api.rules.__cached__
print(json.dumps(facts))
"""


def test_it_is_nobody_who_can_write_nothing(unpack: Callable[[str], Unpacked]) -> None:
    facts = json.loads(unpack(FUNICULAR).run("python3", "-c", FACTS, entrypoint=False))
    assert (facts["uid"], facts["gid"], facts["home"]) == (65532, 65532, False)
    assert set(facts["groups"]) <= {65532}
    assert facts["written"] == ["Read-only file system"] * 3
    assert facts["certificates"] > 100
    assert facts["flags"] == 1
    assert (unpack(FUNICULAR).root / facts["compiled"].lstrip("/")).is_file(), "nothing is compiled at every start"


@pytest.mark.parametrize("reference", [FUNICULAR, CLASSIFIER, ENVOY])
def test_there_is_no_shell_and_nothing_privileged(unpack: Callable[[str], Unpacked], reference: str) -> None:
    image = unpack(reference)
    programs = {path.name for path in image.root.rglob("*") if path.is_file() and path.parent.name in ("bin", "sbin")}
    assert programs <= {
        "funicular",
        "kubectl-funicular",
        "kubectl_complete-funicular",
        "python3.11",
        "python3",
        "python",
        "envoy",
    }
    modes = [path.lstat().st_mode for path in image.root.rglob("*")]
    assert not [mode for mode in modes if mode & 0o6000]
    # Each is a Debian system to a scanner.
    assert 'VERSION_ID="12"' in (image.root / "etc/os-release").read_text()
    assert (image.root / "var/lib/dpkg/status.d/libc6").read_text().startswith("Package: libc6\n")
    assert image.config["User"] == "65532:65532"


def test_every_extension_module_finds_its_libraries(unpack: Callable[[str], Unpacked]) -> None:
    """Of the interpreter and of the packages: a library that was left out would only show when it is needed."""
    probe = (
        "import ctypes, json, pathlib\n"
        "def missing(path):\n"
        "    try: ctypes.CDLL(str(path))\n"
        "    except OSError as error: return str(error)\n"
        "files = [*pathlib.Path('/usr/lib/python3.11').rglob('*.so'), *pathlib.Path('/app').rglob('*.so')]\n"
        "print(json.dumps([len(files), [it for it in map(missing, files) if it]]))\n"
    )
    count, missing = json.loads(unpack(FUNICULAR).run("python3", "-c", probe, entrypoint=False))
    assert count > 80
    assert missing == []


def test_images_share_layers_and_stay_small(folder: Path, unpack: Callable[[str], Unpacked]) -> None:
    product = unpack(FUNICULAR).layers
    assert unpack(CLASSIFIER).layers == product
    assert unpack(PROVIDER).layers == unpack(SIMULATION).layers
    assert unpack(PROVIDER).layers[: len(product)] == product
    assert unpack(ENVOY).layers[0] == product[0]
    layers = json.loads((folder / building.SUMMARY).read_text())["layers"]
    assert layers["packages"]["bytes"] + layers["funicular"]["bytes"] < BEYOND_THE_BASE


def test_an_unchanged_build_writes_nothing(tmp_path: Path) -> None:
    envoy = [recipe for recipe in RECIPES if recipe.reference == ENVOY]
    assert building.build(tmp_path, recipes=envoy).is_new
    before = (tmp_path / building.ARCHIVE).stat().st_mtime_ns
    assert not building.build(tmp_path, recipes=envoy).is_new
    assert (tmp_path / building.ARCHIVE).stat().st_mtime_ns == before
    other = [replace(envoy[0], user="0:0")]
    assert building.build(tmp_path, recipes=other).is_new, "what an image says of itself is part of it"


def test_the_commands_of_the_dockerfile_make_the_same_packages(
    tmp_path: Path, unpack: Callable[[str], Unpacked]
) -> None:
    """The stage that needs no base image but a Python 3.11: its own commands, in another folder than /app."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the wheels would be another Python's")
    app = tmp_path / "app"
    for command in stages()["packages"].run:
        mine = [sys.executable if word == "python" else str(app) if word == "/app" else word for word in command]
        if "--called" in mine:
            mine[mine.index("--called") + 1] = "/app"
        subprocess.run(mine, cwd=CHECKOUT, check=True, timeout=240)
    built = unpack(FUNICULAR).root / "app"
    own = {"funicular", next(it.name for it in built.glob("funicular-*.dist-info"))}
    expected = {name: digest for name, digest in _contents(built).items() if name.split("/")[0] not in own}
    found = _contents(app)
    assert {name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)} == set()


def _contents(folder: Path) -> dict[str, str]:
    """Every file with its hash; of compiled ones the header alone: Python does not write the rest twice in the same way."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(
            path.read_bytes()[: 16 if path.suffix == ".pyc" else None]
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- bills of materials -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["funicular", "classifier-reference", "envoy", "provider", "sim"])
def test_a_bill_of_materials_is_valid(folder: Path, name: str) -> None:
    text = (folder / f"{name}.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_a_bill_of_materials_names_everything_with_its_hash(folder: Path, unpack: Callable[[str], Unpacked]) -> None:
    bill = json.loads((folder / "funicular.cdx.json").read_text())
    listed = {it["purl"]: it for it in bill["components"]}
    assert all(len(it["hashes"][0]["content"]) == 64 for it in listed.values())
    root = unpack(FUNICULAR).root
    installed = {path.name for path in root.glob("app/*.dist-info")}
    assert len(installed) == sum(it.startswith("pkg:pypi/") for it in listed)
    packages = {path.name for path in (root / "var/lib/dpkg/status.d").iterdir()}
    assert packages == {it["name"] for purl, it in listed.items() if purl.startswith("pkg:deb/debian/")}
    envoy = json.loads((folder / "envoy.cdx.json").read_text())
    (binary,) = [it for it in envoy["components"] if it["purl"] == "pkg:generic/envoy@1.40.0"]
    found = (unpack(ENVOY).root / "usr/local/bin/envoy").read_bytes()
    assert binary["hashes"][0]["content"] == hashlib.sha256(found).hexdigest()


def test_a_lock_allows_every_wheel_that_was_taken(folder: Path) -> None:
    lock = (CHECKOUT / "requirements" / "runtime.txt").read_text()
    bill = json.loads((folder / "funicular.cdx.json").read_text())
    wheels = [it for it in bill["components"] if it["purl"].startswith("pkg:pypi/") and it["name"] != "funicular"]
    assert wheels
    for wheel in wheels:
        assert f"--hash=sha256:{wheel['hashes'][0]['content']}" in lock, wheel["name"]
