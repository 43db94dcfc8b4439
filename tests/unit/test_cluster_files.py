"""Volumes on disk, images by name, and the addresses of pods."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hack.cluster import images
from hack.cluster.images import Image
from hack.cluster.node.addresses import Addresses
from hack.cluster.node.atomic import VolumeFile, write_atomically


def listing(folder: Path) -> set[str]:
    return {it.name for it in folder.iterdir() if not it.name.startswith("..")}


def test_a_volume_changes_in_one_step_behind_the_same_names(tmp_path: Path) -> None:
    assert write_atomically(tmp_path, {"a": VolumeFile(b"1", 0o600), "sub/b": VolumeFile(b"2")})
    first = os.readlink(tmp_path / "..data")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert (tmp_path / "sub" / "b").read_bytes() == b"2"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert write_atomically(tmp_path, {"a": VolumeFile(b"3"), "c": VolumeFile(b"4")})
    assert os.readlink(tmp_path / "..data") != first
    assert (tmp_path / "a").read_bytes() == b"3"
    assert listing(tmp_path) == {"a", "c"}, "a key that is gone takes its link with it"
    assert not (tmp_path / first).exists(), "old versions do not pile up"


def test_an_unchanged_volume_is_left_alone(tmp_path: Path) -> None:
    files = {"a": VolumeFile(b"1")}
    write_atomically(tmp_path, files)
    before = os.readlink(tmp_path / "..data")
    assert not write_atomically(tmp_path, files)
    assert os.readlink(tmp_path / "..data") == before


TABLE = {"funicular": Image(("a",)), "ghcr.io/x/y:1": Image(("b",)), "host:5000/z": Image(("c",))}


@pytest.mark.parametrize(
    ("reference", "entrypoint"),
    [
        pytest.param("funicular", "a", id="exact"),
        pytest.param("funicular:dev", "a", id="without its tag"),
        pytest.param("funicular:dev@sha256:00", "a", id="without tag and digest"),
        pytest.param("ghcr.io/x/y:1@sha256:00", "b", id="without its digest"),
        pytest.param("ghcr.io/x/y:2", None, id="another tag than the one in the table"),
        pytest.param("host:5000/z:3", "c", id="a port is no tag"),
        pytest.param("nothing", None, id="unknown"),
    ],
)
def test_an_image_is_found_by_its_name(reference: str, entrypoint: str | None) -> None:
    found = images.find(TABLE, reference)
    assert (found.entrypoint[0] if found else None) == entrypoint


def test_a_table_of_images_survives_its_file(tmp_path: Path) -> None:
    table = {"x": Image(("a", "b"), {"K": "v"}, "/tmp", {"p": ("q", "r")}), "y": Image(("c",))}
    images.save(table, tmp_path / "images.json")
    assert images.load(tmp_path / "images.json") == table


def test_addresses_are_not_reused_at_once_nor_by_the_next_node(tmp_path: Path) -> None:
    addresses = Addresses(10, tmp_path / "addresses")
    first = addresses.take()
    addresses.give_back(first)
    second = addresses.take()
    later = Addresses(10, tmp_path / "addresses").take()
    assert (first, second, later) == ("127.10.0.1", "127.10.0.2", "127.10.0.3")


def test_addresses_in_use_are_skipped_and_octets_never_end_in_0_or_255(tmp_path: Path) -> None:
    addresses = Addresses(10, tmp_path / "addresses")
    taken = [addresses.take() for _ in range(600)]
    assert len(set(taken)) == 600
    assert all(1 <= int(address.rsplit(".", 1)[1]) <= 254 for address in taken)
