"""A graph that takes bytes says what the graph of normalised pixels says, at every precision, and builds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vitdeploy import load
from vitdeploy.artifacts import Checkpoint, OnnxModel, load_ir
from vitdeploy.backends import get_backend
from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.cli import main
from vitdeploy.datasets import open_dataset
from vitdeploy.errors import ArtifactError, GraphError, UsageError
from vitdeploy.graph.fuse_preprocess import fuse_preprocess
from vitdeploy.graph.legality import findings
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize, preprocess_from, to_input
from vitdeploy.records import Preprocess
from vitdeploy.records.preprocess import InputForm
from vitdeploy.sessions import BuildTarget
from vitdeploy.stages.bench import BenchOptions, bench
from vitdeploy.stages.export import ExportOptions, export
from vitdeploy.stages.quantize import quantize
from vitdeploy.stages.verify import verify

pytestmark = pytest.mark.slow

SPECS = {
    "imagenet": Preprocess(size=(5, 7), resize_size=8, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "bgr": Preprocess(size=(5, 7), resize_size=8, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4), channel_order="bgr"),
    "inception": Preprocess(size=(5, 7), resize_size=8, scale=1 / 127.5, offset=-1.0, mean=(0, 0, 0), std=(1, 1, 1)),
    "grey": Preprocess(size=(5, 7), channels=1, resize="none", crop="none", mean=(0.3,), std=(0.37,)),
    "bytes": Preprocess(size=(5, 7), resize_size=8, scale=1.0, mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4)),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("form", ["uint8-nhwc", "uint8-nchw"])
@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_the_graph_normalises_as_the_look_up_table_does(name: str, form: InputForm, dtype: str) -> None:
    spec = SPECS[name]
    text = (
        f'<ir_version: 10, opset_import: ["": 20]> g ({dtype}[batch,{spec.channels},5,7] input) '
        f"=> ({dtype}[batch,{spec.channels},5,7] logits) {{ [neg] logits = Neg(input) }}"
    )
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    fused = fuse_preprocess(model, spec, form)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert next(iter(model.graph)).op_type == "Cast"  # TensorRT-RTX takes no UInt8 Transpose
    assert findings(model) == []
    assert fused == spec.model_copy(update={"input": form})
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, spec.channels), np.uint8)
    images = to_input(pixels, fused)
    assert images.dtype == np.uint8
    with open_graph(model) as session:
        (found,) = session.run({"input": images}).values()
    expected = -normalize(pixels, spec)
    tolerance = 1e-6 if dtype == "float" else 1e-3
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
    with pytest.raises(GraphError, match="takes no normalised images"):
        fuse_preprocess(model, fused, form)


@pytest.fixture(scope="module")
def quantized(tiny_onnx: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxModel]:
    folder = tmp_path_factory.mktemp("quantized")
    return {
        "fp32": tiny_onnx,
        "fp16": quantize(tiny_onnx, folder / "fp16.onnx", precision="fp16"),
        "int8": quantize(tiny_onnx, folder / "int8.onnx", precision="int8", calibration="digits:train"),
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_fused_graph_predicts_the_same_and_builds(
    quantized: dict[str, OnnxModel], precision: str, tmp_path: Path
) -> None:
    plain = quantized[precision]
    fused = export(plain, tmp_path / "fused.onnx", options=ExportOptions(fuse_preprocess="nhwc"))
    assert fused.manifest.parents == {"onnx": plain.digest}
    assert fused.manifest.precision == plain.manifest.precision
    assert fused.manifest.plan == plain.manifest.plan
    assert all(check.status == "passed" for check in fused.manifest.checks)
    assert verify(fused).passed
    dataset = open_dataset("digits:test")
    images = [dataset.image(index) for index in range(len(dataset))]
    with load(plain) as one, load(fused) as other:
        before, after = one.outputs(images), other.outputs(images)
        assert other._session.inputs["input"].dtype == np.uint8
        np.testing.assert_allclose(other.embed(images[:9]), one.embed(images[:9]), rtol=0.05, atol=0.02)
    limit = {"fp32": 1e-5, "fp16": 1e-2, "int8": 5e-2}[precision]
    np.testing.assert_allclose(after, before, atol=limit * np.ptp(before))
    least = {"fp32": 1.0, "fp16": 0.99, "int8": 0.97}[precision]
    assert float(np.mean(after.argmax(axis=1) == before.argmax(axis=1))) >= least
    target = BuildTarget(compute_capabilities=("8.9",))
    engine = get_backend("tensorrt-rtx").build(fused, tmp_path / "fused.engine", target)
    assert engine.manifest.preprocess == fused.manifest.preprocess


@pytest.mark.torch
def test_export_of_a_checkpoint_fuses_and_compares_with_pytorch(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    options = ExportOptions(fuse_preprocess="nchw", reference="digits:test")
    fused = export(tiny_checkpoint, tmp_path / "fused.onnx", options=options)
    assert load_ir(fused.path).graph.inputs[0].dtype == ir.DataType.UINT8
    assert [check.name for check in fused.manifest.checks] == [f"logits against PyTorch, batch {n}" for n in (1, 2, 5)]
    report = bench([fused], "digits:test", options=BenchOptions(rounds=1, iterations=2, processes=False))
    (row,) = report.rows
    assert (row.status, row.agreement) == ("ok", 1.0)
    int8 = quantize(fused, tmp_path / "int8.onnx", precision="int8", calibration="digits:train")
    assert int8.manifest.preprocess == fused.manifest.preprocess
    dataset = open_dataset("digits:test")
    pixels = np.stack([np.asarray(dataset.image(index))[..., None] for index in range(50)])
    with load(int8) as model, load(fused) as origin:
        agreed = run_batch(model._session, to_input(pixels, model.preprocess)).argmax(axis=1)
        assert float(np.mean(agreed == origin.outputs(list(pixels)).argmax(axis=1))) >= 0.9


def test_keys_differ_only_where_something_is_fused(tiny_onnx: OnnxModel, tmp_path: Path) -> None:
    from vitdeploy.stages.export import ExportRequest

    request = ExportRequest.open(tiny_onnx, tmp_path / "x.onnx", options=ExportOptions(fuse_preprocess="nhwc"))
    assert request.run().manifest.key == request.key
    other = ExportRequest.open(tiny_onnx, tmp_path / "x.onnx", options=ExportOptions(fuse_preprocess="nchw"))
    assert other.key != request.key
    assert "input" not in tiny_onnx.manifest.model_dump(mode="json")["preprocess"]


def test_what_cannot_be_fused_is_refused(
    tiny_onnx: OnnxModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fused = export(tiny_onnx, tmp_path / "fused.onnx", options=ExportOptions(fuse_preprocess="nhwc"))
    with pytest.raises(GraphError, match="takes no normalised images"):
        export(fused, tmp_path / "twice.onnx", options=ExportOptions(fuse_preprocess="nhwc"))
    assert not (tmp_path / "twice.onnx").exists()
    with pytest.raises(UsageError, match="fuse_preprocess is 'hwc'"):
        export(tiny_onnx, tmp_path / "x.onnx", options=ExportOptions(fuse_preprocess="hwc"))  # type: ignore[arg-type]
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[n,3,8,8] x) => (float[n,3,8,8] y) { y = Neg(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "foreign.onnx")
    with pytest.raises(ArtifactError, match="so its preprocessing is unknown"):
        export(tmp_path / "foreign.onnx", tmp_path / "x.onnx", options=ExportOptions(fuse_preprocess="nhwc"))
    assert main(["export", str(tiny_onnx.path), "-o", str(tmp_path / "y.onnx"), "--fuse-preprocess", "chw"]) == 2
    assert "fuse-preprocess" in capsys.readouterr().err


def test_preprocessing_that_is_taken_over_from_a_fused_graph_describes_images_alone(tmp_path: Path) -> None:
    spec = SPECS["imagenet"].model_copy(update={"input": "uint8-nhwc"})
    (tmp_path / "p.json").write_text(spec.model_dump_json())
    assert preprocess_from(str(tmp_path / "p.json")).input == "float32-nchw"
