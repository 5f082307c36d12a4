"""Whether vitdeploy wrote a file, by the mark that each of its files carries; no tensor is read."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from vitdeploy.artifacts.engine import sidecar_of
from vitdeploy.artifacts.run_record import RUN
from vitdeploy.errors import ArtifactError
from vitdeploy.reading import is_safetensors, open_regular, parse_json, read_bytes, read_head, safetensors_metadata
from vitdeploy.records.budget import FRONT
from vitdeploy.records.bundle import MANIFEST
from vitdeploy.records.report import DIGEST_KEY, REPORT

MARK = "vitdeploy"
"""In the metadata of what has metadata: safetensors, ONNX, Parquet."""
PAGE_MARK = b'<meta name="generator" content="vitdeploy'

_HEAD = 4096
_LARGEST_JSON = 32 << 20
_METADATA_PROPS, _KEY = 14, 1  # fields of ONNX's ModelProto and StringStringEntryProto
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # protobuf's wire types
_LONGEST_VARINT = 10
_PARQUET, _ZIP = b"PAR1", b"PK\x03\x04"
_RECORDS = ({"groups", "kinds", "trials"}, {"candidates", "max_drop_pp"}, {"entries", "remainder"})
_EPOCH = {"epoch", "updates", "learning_rate", "loss", "validation_loss", "validation_top1"}
_STATE = (b"identity", b"loss_sum", b"history", b"parts")
_OF_FOLDERS = (RUN, REPORT, "report.html", FRONT, MANIFEST)


def is_ours(path: Path) -> bool:
    """Return whether vitdeploy wrote a file, an empty one included: nothing is lost where that is replaced."""
    try:
        head = read_head(path, _HEAD)
        if not head:
            return True
        if is_safetensors(path):
            return any(key.startswith(MARK) for key in safetensors_metadata(path)) or _is_of_our_table(path)
        if head.lstrip()[:1] == b"{":
            return _is_our_json(path) or _is_of_epochs(head)
        if head.startswith(_ZIP):
            return _is_bundled(path) or _is_state(path)
        if head.startswith(_PARQUET):
            return _footer_has_mark(path)
        return PAGE_MARK in head or _has_our_sidecar(path) or has_onnx_mark(path)
    except ArtifactError:
        return False


def is_our_folder(path: Path) -> bool:
    """Return whether a folder holds a run, a report, a search, a bundle or a calibration set that vitdeploy wrote."""
    return any((path / name).is_file() and is_ours(path / name) for name in _OF_FOLDERS)


def has_onnx_mark(path: Path) -> bool:
    """Return whether an ONNX file has a manifest, without reading its graph: fields are passed over by their length.

    Raises:
        ArtifactError: It cannot be read.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        while (tag := _varint(stream)) is not None:
            if tag & 7 == _VARINT:
                _varint(stream)
                continue
            length = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(tag & 7) if tag & 7 != _LENGTH else _varint(stream)
            if length is None or stream.tell() + length > size:
                return False
            end = stream.tell() + length
            if tag >> 3 == _METADATA_PROPS and _key_of_entry(stream) == MARK.encode():
                return True
            stream.seek(end)
    return False


def _key_of_entry(stream: BinaryIO) -> bytes:
    """Return the key with which an entry of the metadata begins."""
    return stream.read(min(_varint(stream) or 0, _HEAD)) if _varint(stream) == _KEY << 3 | _LENGTH else b""


def _varint(stream: BinaryIO) -> int | None:
    """Return the next number of a protobuf, None at the end or where there is none."""
    value = 0
    for index in range(_LONGEST_VARINT):
        byte = stream.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << 7 * index
        if byte[0] < 0x80:
            return value
    return None


def _is_our_json(path: Path) -> bool:
    try:
        content: Any = parse_json(read_bytes(path, _LARGEST_JSON))
    except ValueError:
        return False
    if path.name == RUN:
        return all(isinstance(one, dict) and one.keys() <= {"options", "parents"} for one in content.values())
    keys = content.keys()
    states = [content, content.get("manifest")]
    return (
        DIGEST_KEY in keys
        or any(isinstance(one, dict) and "manifest_sha256" in one for one in states)
        or any(keys >= known for known in _RECORDS)
    )


def _is_of_epochs(head: bytes) -> bool:
    """Return whether a file begins with a line of a training's metrics; a first line is shorter than what is read."""
    try:
        first: Any = parse_json(head.partition(b"\n")[0])
    except ValueError:
        return False
    return isinstance(first, dict) and first.keys() >= _EPOCH


def _is_of_our_table(path: Path) -> bool:
    """Return whether the JSON of a calibration table of ours lies beside its arrays, which earlier had no mark."""
    table = path.with_suffix(".json")
    return table.is_file() and _is_our_json(table)


def _is_state(path: Path) -> bool:
    """Return whether an archive of ``torch.save`` is the state of an unfinished training."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((one for one in archive.namelist() if one.endswith("/data.pkl")), None)
            if name is None:
                return False
            with archive.open(name) as stream:
                content = stream.read(_LARGEST_JSON)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error):
        return False
    return all(key in content for key in _STATE)


def _is_bundled(path: Path) -> bool:
    """Return whether an archive has the manifest of a bundle; others have files of that name too."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(MANIFEST) as stream:
            content = parse_json(stream.read(_LARGEST_JSON))
    except (KeyError, OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error):
        return False
    return isinstance(content, dict) and content.get("kind") == "bundle"


def _has_our_sidecar(path: Path) -> bool:
    sidecar = sidecar_of(path)
    return sidecar.is_file() and _is_our_json(sidecar)


def _footer_has_mark(path: Path) -> bool:
    """Return whether the footer of a Parquet file, whose length stands at its end, has the mark."""
    with open_regular(path) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 8))
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(max(0, size - 8 - min(length, _LARGEST_JSON)))
        return MARK.encode() in stream.read(length)
