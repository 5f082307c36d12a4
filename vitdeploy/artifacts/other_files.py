"""What was given in place of an artifact, in words, and the way on: a run, a report, weights, images, a text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from vitdeploy.artifacts.reference import METADATA_KEY as REFERENCE_KEY
from vitdeploy.artifacts.run_record import RUN
from vitdeploy.errors import ArtifactError
from vitdeploy.reading import is_safetensors, parse_json, read_bytes, read_head, safetensors_metadata, stands_for_a_file
from vitdeploy.records.budget import FRONT
from vitdeploy.records.bundle import MANIFEST
from vitdeploy.records.report import DIGEST_KEY, REPORT, SAMPLES

ARTIFACT = "a checkpoint, an ONNX model or an engine"
_HEAD = 4096
_LARGEST_JSON = 8 << 20
_ENTRIES = 64
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
_IMAGE_NAMES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2")
_WEIGHT_NAMES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz", ".index.json")
_GRAPHS = (".onnx", ".engine", ".plan")
_OTHERS = {b"\x89HDF": "an HDF5 file, as Keras writes them", b"PAR1": "a Parquet file", b"PK\x03\x04": "an archive"}
_TABULATOR = 9  # characters below it are in no text


def not_an_artifact(path: Path, expected: str = ARTIFACT) -> ArtifactError | None:
    """Return the one-line error that says what a file or folder is, None where nothing is known of it."""
    found = _folder(path) if path.is_dir() else _file(path)
    if found is None:
        return None
    what, way = found
    return ArtifactError(f"{str(path)!r} is {what}, expected {expected}" + (f": {way}" if way else ""))


def is_weights_folder(path: Path) -> bool:
    """Return whether a folder has what trainers and hubs write: a configuration, or weight files and no graph."""
    names = [name.lower() for name in _names(path)]
    if "config.json" in names:
        return True
    return any(name.endswith(_WEIGHT_NAMES) for name in names) and not any(name.endswith(_GRAPHS) for name in names)


def _folder(path: Path) -> tuple[str, str] | None:
    if (path / RUN).is_file():
        return "the folder of a run", f"name one of its files; vd.inspect({str(path)!r}) verifies all of them"
    if (path / FRONT).is_file():
        return "the folder of a search", f"vd.inspect({str(path)!r}) shows what was found"
    if (path / REPORT).is_file():
        return "the folder of a report", _report_way(path)
    if (path / MANIFEST).is_file() and (found := _of_manifest(_json(path / MANIFEST), path)) is not None:
        return found
    if (path / SAMPLES).is_file():
        return "the folder of a bench that did not end", "bench again: it has durations, and no report"
    if is_weights_folder(path):
        return "a folder of weights that others made", _weights_way(path)
    if any(name.lower().endswith(_IMAGE_NAMES) for name in _names(path, deep=True)):
        return "a folder of images", f"vd.train({str(path)!r}, 'vit.safetensors') trains a model on it"
    return None


def _file(path: Path) -> tuple[str, str] | None:
    head = read_head(path, _HEAD)
    if (found := stands_for_a_file(head)) is not None:
        return found
    if is_safetensors(path):
        return _safetensors(path)
    if head.startswith(_IMAGES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:8] == b"ftyp":
        return "an image", f"vd.predict('ARTIFACT', {str(path)!r}) says what a model sees in it"
    if head[:2] == b"\x80\x02" or (head[:2] == b"PK" and b"/data.pkl" in head):  # of torch.save, old or new
        way = f"vd.inspect({str(path)!r}) says of which model they are, and how to make a graph of them"
        return "a file of weights that others made", way
    for start, what in _OTHERS.items():
        if head.startswith(start):
            return what, ""
    if head.lstrip()[:1] in (b"{", b"["):
        return _of_json(path)
    return _text(path) if _is_text(head) else None


def _safetensors(path: Path) -> tuple[str, str] | None:
    try:
        of_logits = REFERENCE_KEY in safetensors_metadata(path)
    except ArtifactError:
        return None
    if of_logits:
        return (
            "what PyTorch gave for the test images",
            "vd.verify('GRAPH') checks it with the graph that it lies beside",
        )
    if path.name.endswith(".calib.safetensors"):
        return "a part of a calibration table", f"name {path.name.removesuffix('.safetensors') + '.json'!r} beside it"
    return None


def _of_json(path: Path) -> tuple[str, str]:
    content = _json(path)
    keys = content.keys() if isinstance(content, dict) else set()
    if DIGEST_KEY in keys:
        return "a report", _report_way(path)
    if path.name == RUN:
        return "the record of a run", f"vd.inspect({str(path.parent)!r}) verifies all files of the run"
    if path.name.endswith((".engine.json", ".plan.json")) and "manifest_sha256" in keys:
        return "the manifest of an engine", f"name the engine, {str(path.with_suffix(''))!r}"
    if path.name == MANIFEST and (found := _of_manifest(content, path.parent)) is not None:
        return f"the manifest of {found[0]}", found[1]
    if any(
        keys >= known for known in ({"groups", "kinds", "trials"}, {"candidates", "verdict"}, {"entries", "remainder"})
    ):
        return "a result that is read and not run", f"vd.inspect({str(path)!r}) shows it"
    return "a JSON file", ""


def _of_manifest(content: Any, folder: Path) -> tuple[str, str] | None:
    if not isinstance(content, dict):
        return None
    if content.get("kind") == "bundle":
        return "a bundle", f"name one of the files in it; vd.predict({str(folder)!r}, 'IMAGE') runs it as it is"
    if content.get("kind") == "calibration-set":
        return "a calibration set", f"vd.check_calibration_set({str(folder)!r}) checks it"
    return None


def _text(path: Path) -> tuple[str, str]:
    if path.suffix in (".yaml", ".yml"):
        return "a text file", f"if it is a recipe, vd.run({str(path)!r}) runs it"
    if path.suffix in (".txt", ".csv", ".names", ""):
        way = f"vd.export('MODEL', 'model.onnx', options=vd.ExportOptions(labels={str(path)!r})) gives them to a model"
        return "a text file", f"if it names classes, {way}"
    return "a text file", ""


def _report_way(path: Path) -> str:
    return f"vd.inspect({str(path)!r}) checks its digest and shows it"


def _weights_way(path: Path) -> str:
    graph = f"{path.absolute().name}.onnx"
    return (
        f"vd.export({str(path)!r}, {graph!r}) makes a graph of it, which "
        f"vd.bench([{graph!r}], baseline={str(path)!r}) measures against it"
    )


def _json(path: Path) -> Any:
    try:
        return parse_json(read_bytes(path, _LARGEST_JSON))
    except (ArtifactError, ValueError):
        return None


def _is_text(head: bytes) -> bool:
    """Return whether the beginning of a file is text: UTF-8 up to its last whole character, without control bytes."""
    if not head or min(head) < _TABULATOR:
        return False
    for cut in range(4):  # the last character may be cut
        try:
            head[: len(head) - cut].decode()
        except UnicodeDecodeError:
            continue
        return True
    return False


def _names(folder: Path, *, deep: bool = False) -> Iterator[str]:
    """Yield the names of some files in a folder, and with ``deep`` in the folders in it."""
    try:
        entries = list(islice(os.scandir(folder), _ENTRIES))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir() and deep:
            yield from _names(Path(entry.path))
        elif entry.is_file():
            yield entry.name
