"""CalibrationTable: what was observed as ``.calib.json``, with its arrays in ``.calib.safetensors`` beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifacts.base import ArrayValue, Artifact
from vitdeploy.artifacts.digest import tensors_digest
from vitdeploy.artifacts.files import save_tensors
from vitdeploy.artifacts.manifests import check_payload, manifest_of, manifest_text
from vitdeploy.artifacts.other_files import not_an_artifact
from vitdeploy.artifacts.pairs import atomic_pair, fitting_version
from vitdeploy.errors import ArtifactError, CalibrationError
from vitdeploy.reading import read_head, read_json, read_tensors
from vitdeploy.records import Manifest, Preprocess, canonical_json, sha256_of

SUFFIX = ".calib.json"
SAMPLED_ROWS = 4
"""Of an image, in tables that say nothing else."""
MARK = {"vitdeploy.calibration": "arrays"}
"""Metadata of the arrays, by which they are known as ours without their JSON."""
_REMEDY = "calibrate again with vd.quantize(..., calibration='DATA')"


@dataclass(frozen=True, eq=False)
class TensorRange(ArrayValue):
    """What was seen of one tensor.

    axis: which axis runs over the channels; None where channels were not looked at.
    lo, hi: [C] float32 ([1] without channels), smallest and largest value.
    count: how many values there were.
    counts: [bins] int64, sampled values of |x| in equal bins over [0, 2**exponent); ``exponent`` None means zeros only.
    keys, rows: [images] uint64 and [images, rows, C] float32, the sampled rows of images and the images' keys.
    most_rows: of an image, where it has as many.
    """

    axis: int | None
    lo: NDArray[np.float32]
    hi: NDArray[np.float32]
    count: int
    exponent: int | None
    counts: NDArray[np.int64]
    keys: NDArray[np.uint64]
    rows: NDArray[np.float32]
    most_rows: int = SAMPLED_ROWS


@dataclass(frozen=True, eq=False, repr=False)
class CalibrationTable(Artifact):
    """Ranges of a graph's activations; ``manifest.calibration.graph_sha256`` says of which graph."""

    ranges: Mapping[str, TensorRange]

    @property
    def graph_sha256(self) -> str:
        """The payload digest of the graph that was observed."""
        return "" if self.manifest.calibration is None else self.manifest.calibration.graph_sha256

    def require_fit(self, graph_sha256: str, preprocess: Preprocess | None) -> None:
        """Make sure that the ranges are those of this graph under this preprocessing.

        Raises:
            CalibrationError: The table was made for another graph, or with images prepared in another way.
        """
        if self.graph_sha256 != graph_sha256:
            raise CalibrationError(
                f"{str(self.path)!r} was made for another graph ({self.graph_sha256[:12]!r}, this one is "
                f"{graph_sha256[:12]!r}): {_REMEDY}"
            )
        if self.manifest.preprocess != preprocess:
            raise CalibrationError(
                f"{str(self.path)!r} was made with other preprocessing ({_words(self.manifest.preprocess)}; the model "
                f"takes {_words(preprocess)}): {_REMEDY}"
            )


def write_calibration_table(path: Path, ranges: Mapping[str, TensorRange], manifest: Manifest) -> CalibrationTable:
    """Write arrays and the JSON that names them; a JSON whose arrays do not match it is refused when read."""
    with calibration_table_beside(path, ranges, manifest) as sealed:
        pass
    return CalibrationTable(Path(path), sealed, dict(ranges))


@contextmanager
def calibration_table_beside(path: Path, ranges: Mapping[str, TensorRange], manifest: Manifest) -> Iterator[Manifest]:
    """Write a table that takes its place when the block succeeds, else what was there stays; yield its manifest."""
    path = Path(path)
    numbers, arrays = _split(ranges)
    sealed = manifest.sealed(_digest(numbers, arrays))
    body = {"manifest": json.loads(manifest_text(sealed)), "tensors": numbers}
    with atomic_pair(path, canonical_json(body), arrays_of(path), is_marked=True) as temporary:
        save_tensors(temporary, arrays, MARK)
        yield sealed


def read_calibration_table(path: Path) -> CalibrationTable:
    """Open a table and verify it.

    Raises:
        ArtifactError: It is missing, of another kind, damaged, or its arrays are not beside it.
    """
    path = Path(path)
    arrays: dict[str, NDArray[Any]] = {}

    def read(body: Any) -> tuple[Manifest, dict[str, Any]]:
        manifest, numbers = _checked(body, path)
        arrays.update(arrays or read_tensors(arrays_of(path)))
        return manifest, numbers

    manifest, numbers = fitting_version(
        read_json(path, "a calibration table"), read, lambda found: found[0].payload_sha256 == _digest(found[1], arrays)
    )
    check_payload(manifest, _digest(numbers, arrays), path, _REMEDY)
    try:
        ranges = {name: _joined(name, numbers[name], arrays) for name in numbers}
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{str(path)!r} is not a calibration table: a tensor lacks its numbers; {_REMEDY}"
        ) from error
    return CalibrationTable(path, manifest, ranges)


def _checked(body: Any, path: Path) -> tuple[Manifest, dict[str, Any]]:
    """Return the manifest of a table's JSON, and what it has of each tensor."""
    if not isinstance(body, dict) or not isinstance(numbers := body.get("tensors"), dict) or "manifest" not in body:
        refusal = None if path.name.endswith(SUFFIX) else not_an_artifact(path)
        raise refusal or ArtifactError(f"{str(path)!r} is not a calibration table, or is damaged")
    manifest = manifest_of(body["manifest"], path)
    if manifest.kind != "calibration-table":
        raise ArtifactError(f"{str(path)!r} is of kind {manifest.kind!r}, expected a calibration table")
    return manifest, numbers


def arrays_of(path: Path) -> Path:
    """Return where a table's arrays lie: ``x.calib.json`` → ``x.calib.safetensors``, beside no checkpoint's name."""
    path = Path(path)
    stem = path.name.removesuffix(".json").removesuffix(".calib")
    return path.with_name(f"{stem}.calib.safetensors")


def is_calibration_table(path: Path) -> bool:
    """Return whether a file is meant as a table, from its first bytes and its name; nothing is verified."""
    path = Path(path)
    if not path.is_file():
        return path.name.endswith(SUFFIX)
    return read_head(path, 1) == b"{"


_ARRAYS = ("lo", "hi", "counts", "keys", "rows")


def _split(ranges: Mapping[str, TensorRange]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    numbers: dict[str, Any] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for name, found in ranges.items():
        numbers[name] = {"axis": found.axis, "count": found.count, "exponent": found.exponent}
        if found.most_rows != SAMPLED_ROWS:
            numbers[name]["most_rows"] = found.most_rows
        arrays.update({f"{name}:{part}": np.ascontiguousarray(getattr(found, part)) for part in _ARRAYS})
    return numbers, arrays


def _joined(name: str, numbers: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> TensorRange:
    parts = {part: arrays[f"{name}:{part}"] for part in _ARRAYS}
    return TensorRange(
        axis=numbers["axis"],
        count=numbers["count"],
        exponent=numbers["exponent"],
        most_rows=numbers.get("most_rows", SAMPLED_ROWS),
        **parts,
    )


def _digest(numbers: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    return sha256_of({"tensors": dict(numbers), "arrays": tensors_digest(arrays)})


def _words(preprocess: Preprocess | None) -> str:
    return "none" if preprocess is None else preprocess.words
