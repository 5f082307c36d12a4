"""A CalibrationTable survives a round trip, refuses damage, and serves no other graph."""

import json
from pathlib import Path

import numpy as np
import pytest

from vitdeploy.artifacts import (
    CalibrationTable,
    TensorRange,
    is_calibration_table,
    open_artifact,
    read_calibration_table,
    write_calibration_table,
)
from vitdeploy.artifacts.calibration_table import arrays_of
from vitdeploy.errors import ArtifactError, CalibrationError
from vitdeploy.records import CalibrationInfo, Manifest, ModelSpec, Preprocess

PREPROCESS = Preprocess(size=(8, 8), channels=1, resize="none", crop="none", mean=(0.5,), std=(0.25,))
RANGES = {
    "blocks.0.norm1/LayerNormalization_out": TensorRange(
        axis=2,
        lo=np.linspace(-1.5, 0, 32, dtype=np.float32),
        hi=np.linspace(0, 3, 32, dtype=np.float32),
        count=640,
        exponent=2,
        counts=np.arange(4096, dtype=np.int64),
        keys=np.array([3, 2**63], np.uint64),
        rows=np.arange(2 * 4 * 32, dtype=np.float32).reshape(2, 4, 32),
    ),
    "zeros": TensorRange(
        axis=None,
        lo=np.zeros(1, np.float32),
        hi=np.zeros(1, np.float32),
        count=4,
        exponent=None,
        counts=np.zeros(4096, np.int64),
        keys=np.zeros(0, np.uint64),
        rows=np.zeros((0, 0, 0), np.float32),
    ),
}


@pytest.fixture
def table(tmp_path: Path) -> CalibrationTable:
    info = CalibrationInfo(
        data="digits:train", graph_sha256="d" * 64, set_sha256="ab", samples=80, method="mse", held_out=20
    )
    manifest = Manifest(
        kind="calibration-table",
        model=ModelSpec(family="vit", name="small"),
        preprocess=PREPROCESS,
        calibration=info,
    )
    return write_calibration_table(tmp_path / "vit.calib.json", RANGES, manifest)


def test_a_table_is_read_as_it_was_written(table: CalibrationTable) -> None:
    assert table.is_current
    again = read_calibration_table(table.path)
    assert again.manifest == table.manifest
    assert set(again.ranges) == set(RANGES)
    for name, found in again.ranges.items():
        wrote = RANGES[name]
        assert (found.axis, found.count, found.exponent) == (wrote.axis, wrote.count, wrote.exponent)
        for array in ("lo", "hi", "counts", "keys", "rows"):
            assert np.array_equal(getattr(found, array), getattr(wrote, array))
            assert getattr(found, array).dtype == getattr(wrote, array).dtype


def test_arrays_lie_beside_the_json_under_its_name(table: CalibrationTable) -> None:
    assert arrays_of(table.path).name == arrays_of(Path("vit.json")).name == "vit.calib.safetensors"
    assert sorted(path.name for path in table.path.parent.iterdir()) == ["vit.calib.json", "vit.calib.safetensors"]


def test_open_artifact_tells_it_by_its_content(table: CalibrationTable) -> None:
    assert isinstance(open_artifact(table.path), CalibrationTable)


def test_a_table_is_told_from_a_dataset(table: CalibrationTable, tmp_path: Path) -> None:
    assert is_calibration_table(table.path)
    assert not is_calibration_table(tmp_path)
    assert not is_calibration_table(Path("digits"))
    assert is_calibration_table(tmp_path / "absent.calib.json"), "a missing table is no missing dataset"


@pytest.mark.parametrize("bit", [3, 200, 1501])
def test_a_flipped_bit_in_the_json_is_refused(table: CalibrationTable, bit: int) -> None:
    data = bytearray(table.path.read_bytes())
    data[bit % len(data)] ^= 1
    table.path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"vit\.calib\.json"):
        read_calibration_table(table.path)


def test_a_range_that_was_edited_is_refused(table: CalibrationTable) -> None:
    body = json.loads(table.path.read_text())
    body["tensors"]["zeros"]["hi"] = 1.0
    table.path.write_text(json.dumps(body))
    with pytest.raises(ArtifactError, match="does not match the digest"):
        read_calibration_table(table.path)


def test_flipped_bits_in_the_arrays_are_refused(table: CalibrationTable) -> None:
    path = arrays_of(table.path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="does not match the digest"):
        read_calibration_table(table.path)


def test_missing_and_truncated_arrays_are_refused_by_name(table: CalibrationTable) -> None:
    path = arrays_of(table.path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=r"vit\.calib\.safetensors' is not a safetensors file, or is damaged"):
        read_calibration_table(table.path)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"there is no file .*vit.calib.safetensors"):
        read_calibration_table(table.path)


@pytest.mark.parametrize("text", ["{}", "[1]", "no json", '{"manifest": {}, "tensors": {}}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.calib.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"x\.calib\.json"):
        read_calibration_table(path)


def test_it_serves_its_own_graph_and_preprocessing_only(table: CalibrationTable) -> None:
    table.require_fit("d" * 64, PREPROCESS)
    with pytest.raises(CalibrationError, match="made for another graph"):
        table.require_fit("e" * 64, PREPROCESS)
    with pytest.raises(CalibrationError, match=r"other preprocessing \(1x8x8, .*takes 1x8x8, .*mean 0\.4"):
        table.require_fit("d" * 64, PREPROCESS.model_copy(update={"mean": (0.4,)}))
    with pytest.raises(CalibrationError, match="the model takes none"):
        table.require_fit("d" * 64, None)
