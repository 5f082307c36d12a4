"""A model repository parses with Triton's own protobuf, and its warm-up is what the model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from vitdeploy.artifacts import Engine, OnnxModel, load_ir, write_engine, write_onnx
from vitdeploy.backends.onnxruntime import OnnxRuntimeSession
from vitdeploy.cli import main
from vitdeploy.errors import FidelityWarning, UsageError
from vitdeploy.reading import parse_yaml
from vitdeploy.records import BuildInfo
from vitdeploy.sessions import SessionOptions
from vitdeploy.stages.export import ExportOptions, export
from vitdeploy.stages.triton import TritonOptions, write_triton_repository


class Triton:
    """Triton's messages, made of the descriptor that its client 2.73 carries (``data/triton_model_config.json``)."""

    def __init__(self) -> None:
        described = (Path(__file__).parent / "data" / "triton_model_config.json").read_text("utf8")
        file = json_format.Parse(described, FileDescriptorProto())
        self._pool = descriptor_pool.DescriptorPool()
        self._pool.Add(file)
        self.FP32, self.UINT8 = self._number("DataType", "TYPE_FP32"), self._number("DataType", "TYPE_UINT8")
        self.GPU = self._number("ModelInstanceGroup.Kind", "KIND_GPU")
        self.AUTO = self._number("ModelInstanceGroup.Kind", "KIND_AUTO")
        self.REJECT = self._number("ModelQueuePolicy.TimeoutAction", "REJECT")
        self._config = message_factory.GetMessageClass(self._pool.FindMessageTypeByName("inference.ModelConfig"))

    def _number(self, enum: str, name: str) -> int:
        return int(self._pool.FindEnumTypeByName(f"inference.{enum}").values_by_name[name].number)

    def config(self, folder: Path) -> Any:
        return text_format.Parse((folder / "config.pbtxt").read_text(), self._config())


@pytest.fixture(scope="module")
def triton() -> Triton:
    return Triton()


def engine_of(graph: OnnxModel, path: Path, **build: Any) -> Engine:
    info = BuildInfo(**{"backend": "tensorrt", "version": "10.13", "batch": (1, 8, 32), **build})
    update = {"kind": "engine", "build": info, "golden_sha256": None, "parents": {"onnx": graph.digest}}
    assert graph.golden is not None
    manifest = graph.manifest.model_copy(update={**update, "golden": graph.golden.to_text()})
    return write_engine(path, b"plan", manifest)


def test_the_parser_refuses_what_triton_does_not_know(triton: Triton, tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text('name: "x" largest_batch: 3')
    with pytest.raises(text_format.ParseError, match="largest_batch"):
        triton.config(tmp_path)


def test_a_graph_is_served_by_onnx_runtime_and_warmed_up_with_a_golden_sample(
    tiny_onnx: OnnxModel, triton: Triton, tmp_path: Path
) -> None:
    folder = write_triton_repository([tiny_onnx], tmp_path / "models") / "tiny"
    config = triton.config(folder)
    assert (config.name, config.platform, config.max_batch_size) == ("tiny", "onnxruntime_onnx", 32)
    (image,), (logits,) = config.input, config.output
    assert (image.name, list(image.dims), image.data_type) == (
        "input",
        [1, 8, 8],
        triton.FP32,
    )
    assert (logits.name, list(logits.dims), logits.label_filename) == ("logits", [10], "labels.txt")
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.timeout_action) == (
        512,
        triton.REJECT,
    )
    assert (config.instance_group[0].count, config.instance_group[0].kind) == (2, triton.AUTO)
    assert (folder / "labels.txt").read_text().splitlines() == list(tiny_onnx.manifest.model.classes)
    assert (folder / "1" / "model.onnx").read_bytes() == tiny_onnx.path.read_bytes()
    (warmup,) = config.model_warmup
    value = warmup.inputs["input"]
    assert (warmup.batch_size, list(value.dims), value.data_type) == (
        1,
        [1, 8, 8],
        triton.FP32,
    )
    sample = np.frombuffer((folder / "warmup" / value.input_data_file).read_bytes(), np.float32).reshape(1, 1, 8, 8)
    with OnnxRuntimeSession(str(folder / "1" / "model.onnx"), SessionOptions(threads=1)) as session:
        found = session.run({"input": sample})["logits"]
    assert tiny_onnx.golden is not None
    np.testing.assert_allclose(found, tiny_onnx.golden.outputs[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (None, None),
        ("onnxruntime", None),
        ("tensorrt", r"made for TensorRT, .*vd.build\(..., backend='tensorrt'\)"),
        ("openvino", r"made for OpenVINO, .*vd.quantize\(..., target='onnxruntime'\)"),
    ],
)
def test_a_graph_for_another_runtime_than_triton_has_is_served_with_a_warning(
    tiny_onnx: OnnxModel, tmp_path: Path, target: str | None, said: str | None
) -> None:
    manifest = tiny_onnx.manifest.model_copy(update={"target": target})
    graph = write_onnx(tmp_path / "m.onnx", tiny_onnx.load(), manifest, tiny_onnx.golden)
    if said is None:
        write_triton_repository([graph], tmp_path / "models")
    else:
        with pytest.warns(FidelityWarning, match=said):
            write_triton_repository([graph], tmp_path / "models")
    assert (tmp_path / "models" / "m" / "config.pbtxt").is_file()


def test_a_graph_that_takes_bytes_says_so(tiny_onnx: OnnxModel, triton: Triton, tmp_path: Path) -> None:
    fused = export(tiny_onnx, tmp_path / "tiny.bytes.onnx", options=ExportOptions(fuse_preprocess="nhwc"))
    folder = write_triton_repository([fused], tmp_path / "models") / "tiny_bytes"
    config = triton.config(folder)
    assert (list(config.input[0].dims), config.input[0].data_type) == (
        [8, 8, 1],
        triton.UINT8,
    )
    assert len((folder / "warmup" / "golden").read_bytes()) == 64


def test_images_of_any_size_have_one_in_the_warm_up(tiny_onnx: OnnxModel, triton: Triton, tmp_path: Path) -> None:
    fused = export(tiny_onnx, tmp_path / "tiny.bytes.onnx", options=ExportOptions(fuse_preprocess="nhwc"))
    assert fused.manifest.preprocess is not None
    whole = fused.manifest.preprocess.model_copy(update={"frame": "any", "resize": "squash"})
    write_onnx(
        tmp_path / "any.onnx", fused.load(), fused.manifest.model_copy(update={"preprocess": whole}), fused.golden
    )
    config = triton.config(write_triton_repository([tmp_path / "any.onnx"], tmp_path / "models") / "any")
    assert list(config.input[0].dims) == [-1, -1, 1]
    assert list(config.model_warmup[0].inputs["input"].dims) == [8, 8, 1]


def test_an_engine_is_served_up_to_its_largest_batch(tiny_onnx: OnnxModel, triton: Triton, tmp_path: Path) -> None:
    engine = engine_of(tiny_onnx, tmp_path / "tiny.engine")
    two = engine_of(tiny_onnx, tmp_path / "two.engine", profiles=((1, 1, 1), (1, 8, 16)))
    one = engine_of(tiny_onnx, tmp_path / "one.engine", batch=(1, 1, 1))
    models = write_triton_repository([engine, two, one], tmp_path / "models", options=TritonOptions(instances=3))
    config = triton.config(models / "tiny")
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 32)
    assert (config.instance_group[0].count, config.instance_group[0].kind) == (
        3,
        triton.GPU,
    )
    assert (models / "tiny" / "1" / "model.plan").read_bytes() == b"plan"
    config = triton.config(models / "two")
    assert (config.max_batch_size, list(config.instance_group[0].profile)) == (16, ["1"])
    config = triton.config(models / "one")
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")


def test_a_graph_of_a_fixed_batch_is_not_batched(tiny_onnx: OnnxModel, triton: Triton, tmp_path: Path) -> None:
    import onnx_ir as ir

    graph = load_ir(tiny_onnx.path)
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape([2, *list(value.shape)[1:]])
    fixed = write_onnx(tmp_path / "fixed.onnx", graph, tiny_onnx.manifest, tiny_onnx.golden)
    folder = write_triton_repository([fixed], tmp_path / "models") / "fixed"
    config = triton.config(folder)
    assert config.max_batch_size == 0
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([2, 1, 8, 8], [2, 10])
    assert config.model_warmup[0].batch_size == 0
    assert len((folder / "warmup" / "golden").read_bytes()) == 2 * 64 * 4


def test_a_kserve_manifest_names_where_the_folder_lies(tiny_onnx: OnnxModel, tmp_path: Path) -> None:
    engine = engine_of(tiny_onnx, tmp_path / "tiny2.engine")
    options = TritonOptions(storage_uri="s3://models/vit")
    models = write_triton_repository([tiny_onnx, engine], tmp_path / "models", options=options)
    found: Any = parse_yaml((models / "kserve.yaml").read_text())
    model = found["spec"]["predictor"]["model"]
    assert (found["kind"], found["metadata"]["name"]) == ("InferenceService", "tiny")
    assert (model["modelFormat"]["name"], model["protocolVersion"]) == ("triton", "v2")
    assert model["storageUri"] == "s3://models/vit"
    assert model["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert not (write_triton_repository([tiny_onnx], tmp_path / "other") / "kserve.yaml").exists()


def test_what_triton_does_not_serve_is_refused(tiny_onnx: OnnxModel, tmp_path: Path) -> None:
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "rtx": ({"backend": "tensorrt-rtx"}, "a plan of tensorrt-rtx, and Triton runs those of tensorrt alone"),
        "static": ({"batch": (8, 8, 8)}, r"takes batches of 8 to 8, and Triton sends smaller ones: .*\(1, 8, 8\)"),
        "stripped": ({"stripped": True}, "has no weights"),
    }
    for name, (build, reason) in cases.items():
        engine = engine_of(tiny_onnx, tmp_path / f"{name}.engine", **build)
        with pytest.raises(UsageError, match=reason):
            write_triton_repository([engine], tmp_path / "models")
    with pytest.raises(UsageError, match="two artifacts would be the model 'tiny'"):
        write_triton_repository([tiny_onnx, engine_of(tiny_onnx, tmp_path / "tiny.engine")], tmp_path / "models")
    with pytest.raises(UsageError, match="no artifact was named"):
        write_triton_repository([], tmp_path / "models")
    assert not (tmp_path / "models").exists()
    with pytest.raises(UsageError, match="is not empty"):
        write_triton_repository([tiny_onnx], tmp_path)


def test_the_command_writes_a_repository_a_bundle_or_both(
    tiny_onnx: OnnxModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph, models, bundle = str(tiny_onnx.path), tmp_path / "models", tmp_path / "tiny.bundle"
    assert main(["package", graph, "--triton", str(models)]) == 0
    assert f"wrote {models}" in capsys.readouterr().out
    assert main(["package", graph, "--triton", str(tmp_path / "more"), "-o", str(bundle)]) == 0
    assert (bundle / "manifest.json").is_file()
    assert (tmp_path / "more" / "tiny" / "config.pbtxt").read_text() == (models / "tiny" / "config.pbtxt").read_text()
    assert main(["package", graph]) == 2
    assert "pass --output NAME, --triton FOLDER or both" in capsys.readouterr().err
