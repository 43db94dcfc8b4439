"""Layers and archives of the OCI image format, written without a container engine.

Called by build. It knows folders, digests and JSON, and nothing of what is in an image. A layer is a function of the
folder's content: no owner, no time, no order of the file system. Archives are what `ctr images import`, `podman load` and
`docker load` take.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
INDEX = "application/vnd.oci.image.index.v1+json"
COMPRESSION = 6


@dataclass(frozen=True, slots=True)
class Layer:
    """`size` of the tar file, `content` of the files in it, `compressed` as a registry would hold it; all in bytes."""

    file: Path
    digest: str
    size: int
    content: int
    compressed: int


@dataclass(frozen=True, slots=True)
class Image:
    """What goes into an archive: a name with registry and tag, layers from the bottom up, and the configuration."""

    name: str
    layers: tuple[Layer, ...]
    entrypoint: tuple[str, ...]
    env: Mapping[str, str]
    user: str
    labels: Mapping[str, str]


class _Digest:
    """A file that is written to, hashed and measured compressed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.compressed = _Counter()
        self._gzip = gzip.GzipFile(
            fileobj=cast(BinaryIO, self.compressed), mode="wb", compresslevel=COMPRESSION, mtime=0
        )

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self._gzip.write(data)
        return self._file.write(data)

    def close(self) -> None:
        self._gzip.close()


class _Counter:
    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """What gzip asks of a file."""


def write_layer(root: Path, file: Path) -> Layer:
    """All of `root`, owned by root and readable by everyone."""
    content = 0

    def neutral(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        nonlocal content
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        # No set-user-id, nothing that only the owner may read, nothing that others may write but /tmp.
        sticky = entry.mode & 0o1000
        entry.mode = (0o1777 if sticky else 0o755) if entry.isdir() or entry.mode & 0o100 else 0o644
        content += entry.size
        return entry

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as raw:
        out = _Digest(raw)
        with tarfile.open(fileobj=cast(BinaryIO, out), mode="w|", format=tarfile.GNU_FORMAT) as tar:
            for folder, folders, files in os.walk(root):
                folders.sort()
                for name in sorted((*folders, *files)):
                    path = Path(folder, name)
                    tar.add(path, str(path.relative_to(root)), recursive=False, filter=neutral)
        out.close()
    return Layer(file, f"sha256:{out.sha256.hexdigest()}", file.stat().st_size, content, out.compressed.size)


def write_archive(images: Sequence[Image], file: Path) -> None:
    """One archive of all images; what they have in common is in it once."""
    blobs: dict[str, bytes | Path] = {}
    manifests = []
    for image in images:
        config = _blob(blobs, _config(image))
        manifest = _blob(blobs, {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, **config},
            "layers": [{"mediaType": LAYER, "digest": it.digest, "size": it.size} for it in image.layers],
            "annotations": dict(image.labels),
        })  # fmt: skip
        blobs |= {it.digest: it.file for it in image.layers}
        manifests.append({
            "mediaType": MANIFEST,
            **manifest,
            "platform": {"architecture": "amd64", "os": "linux"},
            # The first is containerd's, the second is the format's own.
            "annotations": {"io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": image.name},
        })  # fmt: skip
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
    draft = file.with_suffix(".draft")
    try:
        with tarfile.open(draft, "w", format=tarfile.GNU_FORMAT) as tar:
            _add(tar, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
            _add(tar, "index.json", json.dumps(index).encode())
            for digest, content in blobs.items():
                _add(tar, f"blobs/{digest.replace(':', '/')}", content)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _config(image: Image) -> dict[str, Any]:
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": list(image.entrypoint),
            "Env": [f"{name}={value}" for name, value in image.env.items()],
            "User": image.user,
            "WorkingDir": "/",
            "Labels": dict(image.labels),
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in image.layers]},
        "history": [{"created_by": "hack.image"} for _ in image.layers],
    }


def _blob(blobs: dict[str, bytes | Path], document: dict[str, Any]) -> dict[str, Any]:
    content = json.dumps(document, sort_keys=True).encode()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    blobs[digest] = content
    return {"digest": digest, "size": len(content)}


def _add(tar: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    entry = tarfile.TarInfo(name)
    if isinstance(content, bytes):
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
        return
    entry.size = content.stat().st_size
    with content.open("rb") as file:
        tar.addfile(entry, file)


def unpack(layers: Sequence[Path], root: Path) -> None:
    """The file system that these layers make, from the bottom up."""
    root.mkdir(parents=True, exist_ok=True)
    for layer in layers:
        with tarfile.open(layer) as tar:
            # Not as an argument: Python before 3.11.4 has none, and the layers are our own.
            tar.extraction_filter = getattr(tarfile, "tar_filter", None)
            tar.extractall(root)
