"""Arrays from outside: a file's claims are held against what it has before memory is taken."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.errors import ArtifactError
from vitdeploy.reading import check_zip, read_npz, read_tensors, safetensors_layout, safetensors_metadata


def npy(shape: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.zeros(1, np.float32))
    head = stream.getvalue()[:-4]
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    return head[:10] + text.ljust(len(head) - 11).encode() + b"\n" + data


def archive(path: Path, *, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


def test_arrays_come_back(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(3), "c": np.zeros((0, 4))}
    np.savez_compressed(tmp_path / "x.npz", **dict[str, Any](arrays))
    found = read_npz(tmp_path / "x.npz")
    assert {name: (array.dtype, array.tolist()) for name, array in found.items()} == {
        name: (array.dtype, array.tolist()) for name, array in arrays.items()
    }


@pytest.mark.parametrize("shape", ["(4611686018427387904,)", "(1073741824,)", "(65536, 65536, 65536)", "(2,)", "(0,)"])
def test_a_shape_that_the_data_does_not_have_is_refused_before_memory_is_taken(shape: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", a=npy(shape, b"\0" * 4))
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match="damaged"):
            read_npz(path)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_bomb_is_refused_by_what_it_claims(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w", force_zip64=True) as stream:
        stream.write(npy("(100000000,)", b""))
        for _ in range(400):
            stream.write(b"\0" * 1_000_000)
    assert path.stat().st_size < 500_000
    for read in (read_npz, check_zip):
        with pytest.raises(ArtifactError, match=r"claims to unpack to 400 MB: weights do not compress so far"):
            read(path)


def test_objects_are_code(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ArtifactError, match="object arrays, which are code"):
        read_npz(tmp_path / "x.npz")


def test_damaged_archives_are_said_to_be(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(100))
    whole = (tmp_path / "x.npz").read_bytes()
    for data in (whole[:200], whole[:50] + b"\xff" * 60 + whole[110:], b"", b"PK\x03\x04"):
        (tmp_path / "y.npz").write_bytes(data)
        with pytest.raises(ArtifactError, match="damaged"):
            read_npz(tmp_path / "y.npz")


@pytest.mark.parametrize("shape", ["(" * 60, "((1)", "(1,]"])
def test_a_header_that_is_no_python_is_damage(shape: str, tmp_path: Path) -> None:
    archive(tmp_path / "x.npz", a=npy(shape, bytes(4)))
    with pytest.raises(ArtifactError, match="damaged"):
        read_npz(tmp_path / "x.npz")


def safetensors(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 2**63]}},
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}},
        {"__metadata__": {"a": 1}},
        b'{"a":' * 1000,
        b"[]",
        b"{",
    ],
)
def test_a_header_that_the_file_does_not_hold_is_refused(header: Any, tmp_path: Path) -> None:
    path = safetensors(tmp_path / "x.safetensors", header, b"\0" * 4)
    for read in (safetensors_metadata, safetensors_layout, read_tensors):
        with pytest.raises(ArtifactError, match="not a safetensors file, or is damaged"):
            read(path)


def test_lengths_beyond_all_headers_are_refused(tmp_path: Path) -> None:
    for length in (2**63, 2**40, 20 << 20, 3):
        (tmp_path / "x").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(ArtifactError, match="header"):
            safetensors_metadata(tmp_path / "x")


def test_an_empty_tensor_with_an_impossible_side_is_refused(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}
    with pytest.raises(ArtifactError, match="array is too big"):
        read_tensors(safetensors(tmp_path / "x", header))
    assert safetensors_layout(tmp_path / "x") == {"a": ("F32", (0, 2**62))}
