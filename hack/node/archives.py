"""Container images of one static program each, as archives that containerd imports: pause, CoreDNS, metrics-server.

Called by `Node` before it starts. An OCI layout with one layer, written here because no base image is needed and a
builder would need one. Two runs over the same program give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write(archive: Path, reference: str, program: Path, *, arguments: Sequence[str] = (), user: str = "65532") -> None:
    """Write the image `reference`, whose entrypoint is `/PROGRAM` with `arguments`, to `archive`."""
    layer = _tar({program.name: program.read_bytes()}, mode=0o755)
    config = _json(
        {
            "architecture": ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": {"Entrypoint": [f"/{program.name}", *arguments], "User": user, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    kind = "application/vnd.oci.image"
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": _described(config, f"{kind}.config.v1+json"),
            "layers": [_described(layer, f"{kind}.layer.v1.tar")],
        }
    )
    entry = _described(manifest, f"{kind}.manifest.v1+json")
    index = _json({"schemaVersion": 2, "manifests": [entry | {"annotations": {"io.containerd.image.name": reference}}]})
    blobs = {f"blobs/sha256/{_digest(blob).removeprefix('sha256:')}": blob for blob in (config, manifest, layer)}
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": index} | blobs
    archive.write_bytes(_tar(files, mode=0o644))


def _tar(files: dict[str, bytes], *, mode: int) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _described(blob: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True).encode()
