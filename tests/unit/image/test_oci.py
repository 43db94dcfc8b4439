"""Layers and archives: the same content gives the same bytes, and what containerd looks for is there."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

from hack.image import oci


def make_root(folder: Path, mtime: float) -> Path:
    (folder / "tmp").mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    (folder / "bin").mkdir(mode=0o700)
    for name, mode in (("bin/tool", 0o4755), ("data", 0o600), ("shared", 0o666)):
        (folder / name).write_text(name)
        (folder / name).chmod(mode)
        os.utime(folder / name, (mtime, mtime))
    (folder / "link").symlink_to("data")
    return folder


def test_a_layer_depends_on_content_alone(tmp_path: Path) -> None:
    one = oci.write_layer(make_root(tmp_path / "a", 1.0), tmp_path / "a.tar")
    other = oci.write_layer(make_root(tmp_path / "b", 1e9), tmp_path / "b.tar")
    assert one.digest == other.digest == f"sha256:{hashlib.sha256((tmp_path / 'a.tar').read_bytes()).hexdigest()}"
    assert one.content == len("bin/tooldatashared")
    assert one.size == (tmp_path / "a.tar").stat().st_size


def test_nobody_owns_or_hides_anything(tmp_path: Path) -> None:
    oci.write_layer(make_root(tmp_path / "a", 1.0), tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        found = {entry.name: (entry.mode, entry.uid, entry.mtime) for entry in tar}
    assert found == {
        "bin": (0o755, 0, 0),
        "bin/tool": (0o755, 0, 0),
        "data": (0o644, 0, 0),
        "link": (0o755, 0, 0),
        "shared": (0o644, 0, 0),
        "tmp": (0o1777, 0, 0),
    }


def test_an_archive_holds_shared_layers_once_and_names_its_images(tmp_path: Path) -> None:
    layers = []
    for name in ("base", "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
        layers.append(oci.write_layer(tmp_path / name, tmp_path / f"{name}.tar"))
    labels = {"org.opencontainers.image.title": "one"}
    images = [
        oci.Image("example.test/one:1", tuple(layers), ("/one",), {"A": "b"}, "65532:65532", labels),
        oci.Image("example.test/two:1", tuple(layers[:1]), ("/two",), {}, "65532:65532", labels),
    ]
    oci.write_archive(images, tmp_path / "images.tar")
    with tarfile.open(tmp_path / "images.tar") as tar:
        names = tar.getnames()
        content = {name: (file.read() if (file := tar.extractfile(name)) else b"") for name in names}
    assert len(names) == len(set(names)) == 2 + 2 * 2 + 2  # layout and index, two images of two documents, two layers

    def blob(digest: str) -> bytes:
        found = content[f"blobs/{digest.replace(':', '/')}"]
        assert f"sha256:{hashlib.sha256(found).hexdigest()}" == digest
        return found

    index: dict[str, Any] = json.loads(content["index.json"])
    assert [it["annotations"]["io.containerd.image.name"] for it in index["manifests"]] == [it.name for it in images]
    manifest = json.loads(blob(index["manifests"][0]["digest"]))
    config = json.loads(blob(manifest["config"]["digest"]))
    assert config["config"] == {
        "Entrypoint": ["/one"],
        "Env": ["A=b"],
        "User": "65532:65532",
        "WorkingDir": "/",
        "Labels": labels,
    }
    assert config["rootfs"]["diff_ids"] == [it["digest"] for it in manifest["layers"]] == [it.digest for it in layers]
    for layer in manifest["layers"]:
        assert len(blob(layer["digest"])) == layer["size"]
