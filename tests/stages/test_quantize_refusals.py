"""What ``quantize`` refuses or warns of, in one line and with nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from present import present
from quantized import DEPTH, FAST, check
from readout_vit import write_readout_vit

from vitdeploy.artifacts import OnnxModel, write_onnx
from vitdeploy.errors import (
    ArtifactError,
    CalibrationError,
    CalibrationWarning,
    DataError,
    FidelityWarning,
    GateError,
    GraphError,
    UsageError,
)
from vitdeploy.records import Precision
from vitdeploy.stages.quantize import QuantizeOptions, quantize

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return write_readout_vit(tmp_path_factory.mktemp("source") / "vit.onnx", DEPTH)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_no_calibration_data_is_an_error_never_random_data(
    source: OnnxModel, tmp_path: Path, precision: Precision
) -> None:
    with pytest.raises(CalibrationError, match=f"precision '{precision}' needs calibration images"):
        quantize(source, tmp_path / "x.onnx", precision=precision)
    assert not list(tmp_path.iterdir())


def test_the_model_is_not_written_over_itself(source: OnnxModel) -> None:
    with pytest.raises(ArtifactError, match=r"is the input .* itself"):
        quantize(source, source.path, precision="fp16")


def test_an_output_that_cannot_be_written_is_refused_before_the_work(source: OnnxModel, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a folder, expected the name of an ONNX file"):
        quantize(source, tmp_path, precision="int8", calibration="digits")


def test_calibrating_on_the_test_split_is_refused(source: OnnxModel, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="is a test split"):
        quantize(source, tmp_path / "x.onnx", precision="int8", calibration="digits:test")


def test_a_graph_with_nothing_to_quantize_is_refused_in_one_line(source: OnnxModel, tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[batch, 1, 8, 8] input) => (float[batch, 64] logits) {
        flat = Reshape (input, shape) logits = Abs (flat)
    }"""
    model = ir.from_onnx_text(text)
    shape = next(node for node in model.graph if node.op_type == "Reshape").inputs[1]
    shape.const_value = ir.tensor(np.array([-1, 64]), name="shape")
    model.graph.register_initializer(present(shape))
    bare = write_onnx(tmp_path / "bare.onnx", model, source.manifest)
    with pytest.raises(GraphError, match="has no node to quantize") as caught:
        quantize(bare, tmp_path / "x.onnx", precision="int8", calibration="digits")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.onnx").exists()


def test_nan_in_the_weights_is_an_error_that_names_a_tensor(source: OnnxModel, tmp_path: Path) -> None:
    model = source.load()
    weight = model.graph.initializers["blocks.0.mlp.fc1.weight"]
    broken = weight.const_value.numpy().copy()
    broken[0, 0] = np.nan
    weight.const_value = ir.tensor(broken, name=weight.name)
    artifact = write_onnx(tmp_path / "nan.onnx", model, source.manifest)
    before = shutil.copy(source.path, tmp_path / "x.onnx").read_bytes()
    with pytest.raises(CalibrationError, match=r"tensor '.*' has NaN during calibration for image '.+'"):
        quantize(artifact, tmp_path / "x.onnx", precision="int8", calibration="digits", options=FAST)
    with pytest.raises(GraphError, match=r"weight 'blocks\.0\.mlp\.fc1\.weight' cannot be quantized"):
        quantize(artifact, tmp_path / "x.onnx", precision="int8-weight-only", options=FAST)
    assert (tmp_path / "x.onnx").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nan.onnx", "x.onnx"]


def test_a_limit_that_is_missed_is_a_gate_and_nothing_is_written(source: OnnxModel, tmp_path: Path) -> None:
    options = QuantizeOptions(
        threads=1, samples=60, method="minmax", equalization="off", effort="fast", min_sqnr_db=90.0
    )
    with pytest.raises(GateError, match=r"logits SQNR \d+\.\d dB is below 90 dB"):
        quantize(source, tmp_path / "x.onnx", precision="int8", calibration="digits", options=options)
    assert not list(tmp_path.iterdir())


def test_a_graph_far_from_the_original_is_written_with_a_warning(source: OnnxModel, tmp_path: Path) -> None:
    options = QuantizeOptions(
        threads=1, samples=60, method="percentile", percentile=51.0, equalization="off", effort="fast"
    )
    with pytest.warns(FidelityWarning, match="below 20 dB.*bench it before it ships") as caught:
        artifact = quantize(source, tmp_path / "x.onnx", precision="int8", calibration="digits", options=options)
    assert check(artifact, "logits SQNR").status == "failed"
    assert [Path(one.filename) for one in caught] == [Path(__file__)], "it points at the caller"


def test_a_tiny_calibration_set_is_warned_of(source: OnnxModel, tmp_path: Path) -> None:
    options = QuantizeOptions(threads=1, samples=20, method="minmax", equalization="off")
    with pytest.warns(CalibrationWarning, match="'digits:train' has 20 images, fewer than 32"):
        quantize(source, tmp_path / "x.onnx", precision="int8", calibration="digits", options=options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "all"}, "profile is 'all', expected one of auto, linear, mha"),
        ({"method": "average"}, "method is 'average', expected one of auto, minmax"),
        ({"percentile": 5.0}, "percentile is 5.0, expected more than 50 and at most 100"),
        ({"min_sqnr_db": float("nan")}, "min_sqnr_db is nan, expected a finite number"),
        ({"percentile": 100.5}, "percentile is 100.5, expected more than 50"),
        ({"equalization": "smooth"}, "equalization is 'smooth', expected one of auto, off"),
        ({"equalization": 1.5}, "equalization 1.5 is out of range"),
        ({"table": Path("vit.json")}, r"table 'vit\.json' must be called NAME\.calib\.json"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        QuantizeOptions(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"precision": "int4"}, UsageError, "precision is 'int4', expected one of fp16"),
        ({"precision": "fp32"}, UsageError, "precision is 'fp32', expected one of fp16"),
        ({"precision": "int8", "target": "tflite"}, UsageError, "target is 'tflite', expected one of tensorrt"),
        ({"precision": "fp8", "target": "onnxruntime"}, UsageError, "'fp8', which target 'onnxruntime' does not have"),
        ({"precision": "int8", "calibration": "absent-folder"}, DataError, "absent-folder"),
        ({"precision": "int8", "calibration": "absent.calib.json"}, ArtifactError, "there is no file"),
    ],
)
def test_requests_that_cannot_be_met_write_nothing(
    source: OnnxModel, tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        quantize(source, tmp_path / "x.onnx", **{"calibration": "digits", **arguments})
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no file '.*absent\.onnx'"):
        quantize(tmp_path / "absent.onnx", tmp_path / "x.onnx", precision="fp16")


def test_images_cannot_be_prepared_for_a_model_without_preprocessing(source: OnnxModel, tmp_path: Path) -> None:
    manifest = source.manifest.model_copy(update={"preprocess": None})
    bare = write_onnx(tmp_path / "bare.onnx", source.load(), manifest)
    with pytest.raises(CalibrationError, match="no preprocessing in its manifest"):
        quantize(bare, tmp_path / "x.onnx", precision="int8", calibration="digits")
