"""ONNX files as other tools write them: what they give before adoption is what ``predict`` says of them after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from foreign_onnx import FOREIGN, write_foreign
from notes import Notes
from PIL import Image

from vitdeploy.errors import DataError, GraphError, UsageError
from vitdeploy.preprocess import DIGITS_PREPROCESS, normalize
from vitdeploy.records import Preprocess, Task
from vitdeploy.stages.export import ExportOptions, export
from vitdeploy.stages.predict import predict

pytestmark = pytest.mark.slow

ADOPT = ExportOptions(preprocess="digits")
IMAGE, SCORES = "float[N, 1, 8, 8] pixel_values", "float[N, 10] scores"
PIXELS = np.random.default_rng(1).integers(0, 256, (8, 8), np.uint8)


@pytest.fixture
def photo(tmp_path: Path):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(path, images, output: int = 0):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(images)})[output]


def softmax(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


def predicted(model, photo):
    classes = predict(model, photo, top=99)[0].classes
    return np.array([one.probability for one in sorted(classes, key=lambda one: one.index)])


def foreign(tmp_path: Path, *changes):
    text = FOREIGN
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return write_foreign(tmp_path / "foreign.onnx", text)


def normalized():
    return normalize(PIXELS[None, :, :, None], DIGITS_PREPROCESS)


FLAT = "f = Reshape(pixel_values, flat)"


@pytest.mark.parametrize(
    ("changes", "feed"),
    [
        ([], lambda x: x),
        ([(IMAGE, "float[N, a, b, c] pixel_values")], lambda x: x),
        ([("float[N, 10] scores", "float[N, K] scores")], lambda x: x),
        (
            [(IMAGE, "float[N, 8, 8, 1] pixel_values"), (FLAT, "p0 = Transpose <perm = [0, 3, 1, 2]> (pixel_values) "
              "f = Reshape(p0, flat)")],
            lambda x: x.transpose(0, 2, 3, 1),
        ),
        (
            [(IMAGE, "float[N, a, b, c] pixel_values"), (FLAT, "h0 = Mul(pixel_values, one) "
              "p0 = Transpose <perm = [0, 3, 1, 2]> (h0) f = Reshape(p0, flat)")],
            lambda x: x.transpose(0, 2, 3, 1),
        ),
        (
            [(IMAGE, "float16[N, 1, 8, 8] pixel_values"), (FLAT, "c0 = Cast <to = 1> (pixel_values) "
              "f = Reshape(c0, flat)")],
            lambda x: x.astype(np.float16),
        ),
        (
            [(IMAGE, "double[N, 8, 8, 1] pixel_values"), (FLAT, "c0 = Cast <to = 1> (pixel_values) "
              "f = Reshape(c0, flat)")],
            lambda x: x.transpose(0, 2, 3, 1).astype(np.float64),
        ),
    ],
    ids=["plain", "symbolic", "classes", "nhwc", "symbolic nhwc", "fp16", "double nhwc"],
)  # fmt: skip
def test_inputs_that_a_transpose_or_a_cast_explains_are_taken(
    tmp_path: Path, photo, changes: list[tuple[str, str]], feed: Callable[..., Any]
) -> None:
    source = foreign(tmp_path, *changes)
    model = export(source, tmp_path / "adopted.onnx", options=ADOPT)
    image = model.load().graph.inputs[0]
    assert (image.dtype, [str(size) for size in image.shape]) == (ir.DataType.FLOAT, ["batch", "1", "8", "8"])
    expected = softmax(run(source, feed(normalized()))[0])
    np.testing.assert_allclose(predicted(model, photo), expected, rtol=1e-3, atol=1e-6)
    assert model.manifest.preprocess == DIGITS_PREPROCESS
    onnx.checker.check_model(model.path, full_check=True)


COLOURS = "int64[2] flat = {-1, 64}, float[1, 3, 1, 1] mu = {0.485, 0.456, 0.406}, float[3] s3 = {0.2, 0.3, 0.4}"
COLOURS += ", float w0 = {0.003921569}, float[1, 3, 1, 1] m9 = {123.675, 116.28, 103.53}, float[3] nu = {0.5, 0.4, 0.3}"
GREY = "r0 = ReduceMean <axes = [1]> (h0) f = Reshape(r0, flat)"


@pytest.mark.parametrize(
    ("nodes", "mean", "outcome"),
    [
        ("h0 = Sub(pixel_values, mu)", (0.485, 0.456, 0.406), "refused"),
        ("g0 = Div(pixel_values, w0) h0 = Sub(g0, m9)", (0.485, 0.456, 0.406), "refused"),
        (
            "t0 = Transpose <perm = [0, 2, 3, 1]> (pixel_values) g0 = Sub(t0, nu) "
            "h0 = Transpose <perm = [0, 3, 1, 2]> (g0)",
            (0.5, 0.4, 0.3),
            "refused",
        ),
        ("h0 = Sub(pixel_values, mu)", (0.5,) * 3, "noted"),
        ("g0 = Mul(pixel_values, w0) h0 = Identity(g0)", (0.5,) * 3, "noted"),
        ("h0 = Sub(pixel_values, mu)", (0.0,) * 3, "taken"),
        ("h0 = Identity(pixel_values)", (0.485, 0.456, 0.406), "taken"),
    ],
)
def test_a_graph_that_normalizes_images_itself(
    tmp_path: Path, nodes: str, mean: tuple[float, ...], outcome: str
) -> None:
    """Images that are normalized twice give accuracies that are a little lower, and nothing else shows it."""
    source = foreign(
        tmp_path, (IMAGE, "float[N, 3, 8, 8] pixel_values"), (FLAT, f"{nodes} {GREY}"),
        ("int64[2] flat = {-1, 64}", COLOURS),
    )  # fmt: skip
    std = (0.25 if any(mean) else 1.0,) * 3
    options = ExportOptions(preprocess=Preprocess(size=(8, 8), resize="squash", mean=mean, std=std, source="made"))
    notes = Notes()
    if outcome == "refused":
        with pytest.raises(
            GraphError, match=r"subtracts the mean of images itself, in node .* mean 0 and std 1, as pre"
        ):
            export(source, tmp_path / "x.onnx", options=options)
        return
    export(source, tmp_path / "x.onnx", options=options, progress=notes)
    assert any(line.startswith("the graph begins with arithmetic on colours") for line in notes.lines) is (
        outcome == "noted"
    )


BYTES = "c0 = Cast <to = 1> (pixel_values) d0 = Div(c0, scale) f = Reshape(d0, flat)"


@pytest.mark.parametrize("layout", ["uint8[N, 1, 8, 8]", "uint8[N, 8, 8, 1]"])
def test_a_graph_that_takes_bytes_normalizes_them_itself(tmp_path: Path, photo, layout: str) -> None:
    changes = [(IMAGE, f"{layout} pixel_values"), (FLAT, BYTES), ("float two =", "float scale = {255.0}, float two =")]
    source = foreign(tmp_path, *changes)
    model = export(source, tmp_path / "adopted.onnx", options=ADOPT)
    pixels = PIXELS[None, None] if layout.endswith("1, 8, 8]") else PIXELS[None, :, :, None]
    np.testing.assert_allclose(predicted(model, photo), softmax(run(source, pixels)[0]), rtol=1e-3, atol=1e-6)
    spec = model.manifest.preprocess
    assert (spec.scale, spec.mean, spec.std, spec.size) == (1.0, (0.0,), (1.0,), (8, 8))
    assert "Cast" not in [node.op_type for node in model.load().graph]


def test_bytes_that_are_quantized_values_get_a_cast(tmp_path: Path, photo) -> None:
    dequantized = "q0 = DequantizeLinear(pixel_values, scale, zero) f = Reshape(q0, flat)"
    changes = [(IMAGE, "uint8[N, 1, 8, 8] pixel_values"), (FLAT, dequantized)]
    extra = [("float two =", "float scale = {0.0125}, uint8 zero = {128}, float two =")]
    source = foreign(tmp_path, *changes, *extra)
    model = export(source, tmp_path / "adopted.onnx", options=ADOPT)
    np.testing.assert_allclose(predicted(model, photo), softmax(run(source, PIXELS[None, None])[0]), rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ([(SCORES, "float[N, 10, 1, 1] scores"), ("scores = Add(b, y)", "z0 = Add(b, y) scores = Reshape(z0, four)"),
          ("int64[2] flat", "int64[4] four = {-1, 10, 1, 1}, int64[2] flat")], "is flattened"),
        ([(SCORES, "float[N, 1, 10] scores"), ("scores = Add(b, y)", "z0 = Add(b, y) scores = Reshape(z0, three)"),
          ("int64[2] flat", "int64[3] three = {-1, 1, 10}, int64[2] flat")], "is flattened"),
        ([(SCORES, "float16[N, 10] scores"), ("scores = Add(b, y)", "z0 = Add(b, y) scores = Cast <to = 10> (z0)")],
         ""),
    ],
    ids=["1x1", "row", "fp16"],
)  # fmt: skip
def test_outputs_that_a_flattening_or_a_cast_explains_are_taken(
    tmp_path: Path, photo, changes: list[tuple[str, str]], note: str
) -> None:
    source = foreign(tmp_path, *changes)
    model = export(source, tmp_path / "adopted.onnx", options=ADOPT)
    expected = softmax(run(source, normalized()).reshape(-1))
    np.testing.assert_allclose(predicted(model, photo), expected, rtol=2e-3, atol=1e-5)
    assert [str(size) for size in model.load().graph.outputs[0].shape] == ["batch", "10"]


SEVERAL = (SCORES, f"float[N, 64] q, {SCORES}")


def test_of_several_outputs_one_is_chosen(tmp_path: Path, photo) -> None:
    source = foreign(tmp_path, SEVERAL)
    with pytest.raises(
        GraphError,
        match=r"has the outputs 'q' \(float \[N, 64\]\), 'scores' .*the logits with output_name=",
    ):
        export(source, tmp_path / "x.onnx", options=ADOPT)
    with pytest.raises(GraphError, match=r"has no output 'logits', it has 'q' .*, 'scores'"):
        export(source, tmp_path / "x.onnx", options=ExportOptions(preprocess="digits", output_name="logits"))
    model = export(source, tmp_path / "x.onnx", options=ExportOptions(preprocess="digits", output_name="scores"))
    expected = softmax(run(source, normalized(), output=1)[0])
    np.testing.assert_allclose(predicted(model, photo), expected, rtol=1e-3, atol=1e-6)
    assert [value.name for value in model.load().graph.outputs] == ["logits"]


def test_an_output_called_logits_is_meant(tmp_path: Path) -> None:
    source = foreign(tmp_path, (SCORES, "float[N, 64] q, float[N, 10] logits"), ("scores = Add", "logits = Add"))
    assert export(source, tmp_path / "x.onnx", options=ADOPT).manifest.model.arguments == {"num_classes": 10}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([(SCORES, "int64[N, 1] scores"), ("scores = Add(b, y)", "z0 = Add(b, y) scores = ArgMax <axis = 1> (z0)")],
         r"output 'scores' is int64, expected logits or probabilities"),
        ([(SCORES, "float[N, 2, 5] scores"), ("scores = Add(b, y)", "z0 = Add(b, y) scores = Reshape(z0, three)"),
          ("int64[2] flat", "int64[3] three = {-1, 2, 5}, int64[2] flat")], r"gives 2×5 numbers per image: f"),
        ([(IMAGE, f"{IMAGE}, float[N, 10] prior"), ("scores = Add(b, y)", "z0 = Add(b, y) scores = Add(z0, prior)")],
         r"has the inputs 'pixel_values' \(float .*\), 'prior' .*, expected one input with images"),
        ([(IMAGE, "int8[N, 1, 8, 8] pixel_values"), (FLAT, "c0 = Cast <to = 1> (pixel_values) f = Reshape(c0, flat)")],
         r"is int8 .*: what its numbers mean is not said"),
    ],
    ids=["argmax", "tokens", "inputs", "int8"],
)  # fmt: skip
def test_what_nothing_explains_is_refused_with_the_reason(
    tmp_path: Path, changes: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        export(foreign(tmp_path, *changes), tmp_path / "x.onnx", options=ADOPT)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.onnx").exists()


def test_an_input_that_nothing_reads_goes(tmp_path: Path) -> None:
    source = foreign(tmp_path, (IMAGE, f"{IMAGE}, float[1] more"))
    assert len(export(source, tmp_path / "x.onnx", options=ADOPT).load().graph.inputs) == 1


@pytest.mark.parametrize("sizes", [(-1, 1, 8, 8), (0, 1, 8, 8), (-1, -1, -1, -1)])
def test_sizes_that_older_exporters_write_as_minus_one_are_open(tmp_path: Path, photo, sizes: tuple[int, ...]) -> None:
    source = foreign(tmp_path)
    expected = softmax(run(source, normalized())[0])
    graph = onnx.load(source)
    for dimension, size in zip(graph.graph.input[0].type.tensor_type.shape.dim, sizes, strict=True):
        dimension.dim_value = size
    graph.graph.output[0].type.tensor_type.shape.dim[0].dim_value = sizes[0]
    onnx.save(graph, source)
    model = export(source, tmp_path / "adopted.onnx", options=ADOPT)
    assert [str(size) for size in model.load().graph.inputs[0].shape] == ["batch", "1", "8", "8"]
    np.testing.assert_allclose(predicted(model, photo), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_graph_of_hugging_face_with_four_open_dimensions_gets_the_size_of_its_images(tmp_path: Path) -> None:
    """As optimum exports it: torch's older exporter, and no dimension of the input fixed."""
    import torch
    import transformers

    labels = {index: f"class {index}" for index in range(5)}
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        id2label=labels, label2id={name: index for index, name in labels.items()}, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    module = transformers.ViTForImageClassification(config).eval()
    axes = {"pixel_values": {0: "batch_size", 1: "num_channels", 2: "height", 3: "width"}, "logits": {0: "batch_size"}}
    torch.onnx.export(
        module, (torch.zeros(2, 3, 32, 32),), tmp_path / "model.onnx", dynamo=False, opset_version=14,
        input_names=["pixel_values"], output_names=["logits"], dynamic_axes=axes,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    model = export(tmp_path / "model.onnx", tmp_path / "adopted.onnx")
    graph = model.load().graph
    assert [str(size) for size in graph.inputs[0].shape] == ["batch", "3", "32", "32"]
    assert model.manifest.model.classes == tuple(labels.values())
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8)).save(photo)
    images = processor(Image.open(photo), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = module(images).logits.softmax(1)[0].numpy()
    np.testing.assert_allclose(predicted(model, photo), expected, rtol=1e-4, atol=1e-6)


def as_fp16(model, keep):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=keep)


@pytest.mark.parametrize("keep", [True, False])
def test_fp16_graphs_pass_at_their_own_precision(tmp_path: Path, photo, keep: bool) -> None:
    source = tmp_path / "half.onnx"
    onnx.save(as_fp16(onnx.load(foreign(tmp_path)), keep), source)
    model = export(source, tmp_path / "adopted.onnx", options=ADOPT)
    assert model.manifest.precision == "fp16"
    assert {check.limit for check in model.manifest.checks} == {1e-2}
    feed = normalized() if keep else normalized().astype(np.float16)
    np.testing.assert_allclose(predicted(model, photo), softmax(run(source, feed)[0]), atol=5e-3)
    assert model.load().graph.inputs[0].dtype == ir.DataType.FLOAT


def quantized_dynamically(source, output) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, output)


def quantized_statically(form):
    def quantize(source, output) -> None:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                images = np.random.default_rng(0).standard_normal((8, 1, 1, 8, 8)).astype(np.float32)
                self.batches = iter({"pixel_values": image} for image in images)

            def get_next(self):
                return next(self.batches, None)

        quantize_static(
            source, output, Reader(), quant_format=QuantFormat[form], op_types_to_quantize=["MatMul", "Gemm"]
        )

    return quantize


@pytest.mark.parametrize(
    "quantize",
    [quantized_dynamically, quantized_statically("QDQ"), quantized_statically("QOperator")],
    ids=["dynamic", "QDQ", "QOperator"],
)
@pytest.mark.filterwarnings("ignore")
def test_graphs_that_onnxruntime_quantized_pass_and_are_recorded_as_int8(
    tmp_path: Path, photo, quantize: Callable[..., Any]
) -> None:
    """Scales of dynamically quantized graphs depend on the batch, so before and after are compared at the same."""
    source = tmp_path / "int8.onnx"
    product = ("t = Transpose <perm = [1, 0]> (w) y = MatMul(q, t)", "y = Gemm <transB = 1> (q, w)")
    quantize(foreign(tmp_path, product), source)
    assert {node.op_type for node in onnx.load(source).graph.node} & {
        "MatMulInteger",
        "QLinearMatMul",
        "QuantizeLinear",
    }
    model = export(source, tmp_path / "adopted.onnx", options=ADOPT)
    assert model.manifest.precision == "int8"
    assert [check.value for check in model.manifest.checks] == pytest.approx([0.0] * 3, abs=1e-3)
    np.testing.assert_allclose(predicted(model, photo), softmax(run(source, normalized())[0]), atol=5e-3)


@pytest.mark.parametrize(
    ("end", "task", "activation"),
    [
        ("scores = Softmax <axis = 1> (z0)", "single-label", "softmax"),
        ("s0 = Softmax(z0) scores = Identity(s0)", "single-label", "softmax"),
        ("e0 = Exp(z0) s0 = ReduceSum <keepdims = 1> (e0, last) scores = Div(e0, s0)", "single-label", "softmax"),
        ("scores = LogSoftmax(z0)", "single-label", "none"),
        ("scores = Sigmoid(z0)", "multi-label", "sigmoid"),
        ("s0 = Sigmoid(z0) scores = Clip(s0)", "multi-label", "sigmoid"),
    ],
)
def test_an_activation_at_the_end_is_seen_and_not_applied_again(
    tmp_path: Path, photo, end: str, task: str, activation: str
) -> None:
    changes = [
        ("scores = Add(b, y)", f"z0 = Add(b, y) {end}"),
        ("int64[2] flat", "int64[1] last = {-1}, int64[2] flat"),
    ]
    source = foreign(tmp_path, *changes)
    model = export(source, tmp_path / "adopted.onnx", options=ADOPT)
    assert (model.manifest.model.task, model.manifest.model.activation) == (task, activation)
    given = run(source, normalized())[0]
    expected = np.exp(given) if "Log" in end else given
    np.testing.assert_allclose(predicted(model, photo), expected, rtol=1e-3, atol=1e-6)


def test_the_user_can_say_that_classes_behind_a_sigmoid_exclude_each_other(tmp_path: Path) -> None:
    source = foreign(tmp_path, ("scores = Add(b, y)", "z0 = Add(b, y) scores = Sigmoid(z0)"))
    options = ExportOptions(preprocess="digits", task="single-label")
    assert export(source, tmp_path / "x.onnx", options=options).manifest.model.task == "single-label"


ONE = [(SCORES, "float[N, 1] scores"), ("scores = Add(b, y)", "z0 = Add(b, y) scores = ReduceMax <axes = [1]> (z0)")]


@pytest.mark.parametrize(
    ("changes", "options", "task"),
    [
        ([], {}, "binary"),
        ([("scores = Reduce", "r0 = Reduce"), (" (z0)", " (z0) scores = Sigmoid(r0)")], {}, "binary"),
        ([("float[N, 1] scores", "float[N] scores"), ("<axes = [1]>", "<axes = [1], keepdims = 0>")], {}, "binary"),
        ([], {"task": "regression"}, "regression"),
    ],
    ids=["logit", "sigmoid", "vector", "number"],
)
def test_one_output_is_the_second_of_two_classes_or_a_number(
    tmp_path: Path, photo, changes: list[tuple[str, str]], options: dict[str, Any], task: str
) -> None:
    source = foreign(tmp_path, *ONE, *changes)
    model = export(source, tmp_path / "x.onnx", options=ExportOptions(preprocess="digits", **options))
    assert model.manifest.model.task == task
    value = float(run(source, normalized()).reshape(-1)[0])
    if task == "regression":
        found = predict(model, photo)[0]
        assert (found.classes, found.values) == ((), (pytest.approx(value, rel=1e-4),))
        return
    positive = value if changes and "Sigmoid" in changes[1][1] else 1 / (1 + np.exp(-value))
    np.testing.assert_allclose(predicted(model, photo), np.array([1 - positive, positive]), rtol=1e-3)


def test_names_of_two_classes_belong_to_one_output(tmp_path: Path, photo) -> None:
    source, labels = foreign(tmp_path, *ONE), tmp_path / "labels.txt"
    for text, names in (("good\nbad\n", ("good", "bad")), ("bad\n", ("not bad", "bad"))):
        labels.write_text(text)
        model = export(source, tmp_path / "x.onnx", options=ExportOptions(preprocess="digits", labels=labels))
        assert model.manifest.model.classes == names
        assert {one.name for one in predict(model, photo)[0].classes} == set(names)
    labels.write_text("a\nb\nc\n")
    with pytest.raises(DataError, match="has 3 class names, the model has 2 classes"):
        export(source, tmp_path / "x.onnx", options=ExportOptions(preprocess="digits", labels=labels))


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("binary", [], "task='binary' is for one output, and the model has 10"),
        ("multi-label", ONE, "task='multi-label' needs several outputs"),
        ("single-label", ONE, "task='single-label' needs several outputs"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(
    tmp_path: Path, task: Task, changes: list[tuple[str, str]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export(foreign(tmp_path, *changes), tmp_path / "x.onnx", options=ExportOptions(preprocess="digits", task=task))


NAMES = {str(index): f"digit {index}" for index in range(10)}
PROCESSOR = {"size": {"height": 8, "width": 8}, "resample": 2, "image_mean": [0.30603], "image_std": [0.376196]}


@pytest.mark.parametrize(
    ("config", "task", "names"),
    [
        ({"id2label": dict(reversed(NAMES.items()))}, "single-label", tuple(NAMES.values())),
        ({"problem_type": "multi_label_classification", "id2label": NAMES}, "multi-label", tuple(NAMES.values())),
        ({"problem_type": "regression"}, "regression", ()),
        ({"architectures": ["ViTModel"], "model_type": "vit"}, "features", ()),
        ({"architectures": ["ViTForImageClassification"], "model_type": "vit"}, "single-label", ()),
        ({"id2label": {"0": "a", "1": "b"}}, "single-label", ()),
    ],
)
@pytest.mark.parametrize("folder", [".", "onnx"])
def test_the_configuration_beside_the_file_counts(
    tmp_path: Path, photo, config: dict[str, Any], task: str, names: tuple[Any, ...], folder: str
) -> None:
    """As optimum writes a model.onnx, and as the hub has it below the folder of the model."""
    source = foreign(tmp_path)
    (tmp_path / folder).mkdir(exist_ok=True)
    source = source.rename(tmp_path / folder / "model.onnx")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    model = export(source, tmp_path / "adopted.onnx")
    assert (model.manifest.model.task, model.manifest.model.classes) == (task, names)
    assert model.manifest.preprocess.size == (8, 8)
    found = predict(model, photo, top=10)[0]
    logits = run(source, normalized())[0]
    if task in ("regression", "features"):
        np.testing.assert_allclose(found.values, logits, rtol=1e-3, atol=1e-5)
    else:
        expected = 1 / (1 + np.exp(-logits)) if task == "multi-label" else softmax(logits)
        np.testing.assert_allclose(predicted(model, photo), expected, rtol=1e-3, atol=1e-6)


def test_one_output_of_hugging_face_without_a_problem_type_is_a_number(tmp_path: Path) -> None:
    source = foreign(tmp_path, *ONE)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "id2label": {"0": "LABEL_0"}}))
    assert export(source, tmp_path / "x.onnx", options=ADOPT).manifest.model.task == "regression"
    options = ExportOptions(preprocess="digits", task="binary")
    assert export(source, tmp_path / "x.onnx", options=options).manifest.model.task == "binary"


def test_the_key_knows_what_decides_the_result(tmp_path: Path) -> None:
    from vitdeploy.stages.export import ExportRequest

    source = foreign(tmp_path, SEVERAL)

    def key(**options: Any):
        return ExportRequest.open(
            source, tmp_path / "x.onnx", options=ExportOptions(preprocess="digits", output_name="scores", **options)
        ).key

    made = export(source, tmp_path / "x.onnx", options=ExportOptions(preprocess="digits", output_name="scores"))
    assert made.manifest.key == key()
    assert key(task="multi-label") != key()
    (tmp_path / "config.json").write_text(json.dumps({"id2label": NAMES}))
    assert key() != made.manifest.key


def test_attention_of_opset_23_is_written_out_and_measured_as_it_was(tmp_path: Path, photo) -> None:
    source = foreign(
        tmp_path,
        ('opset_import: ["" : 14]', 'opset_import: ["" : 23]'),
        ("<ir_version: 7", "<ir_version: 11"),
        (
            "f = Reshape(pixel_values, flat)",
            "t8 = Reshape(pixel_values, rows) a8 = Attention <q_num_heads = 2, kv_num_heads = 2> (t8, t8, t8) "
            "f = Reshape(a8, flat)",
        ),
        ("m = ReduceMean <axes = [-1]> (f)", "m = ReduceMean(f, last)"),
        ("v = ReduceMean <axes = [-1]> (p)", "v = ReduceMean(p, last)"),
        ("int64[2] flat = {-1, 64}", "int64[2] flat = {-1, 64}, int64[3] rows = {-1, 8, 8}, int64[1] last = {-1}"),
    )
    model = export(source, tmp_path / "adopted.onnx", options=ADOPT)
    assert "Attention" not in {node.op_type for node in model.load().graph}
    np.testing.assert_allclose(predicted(model, photo), softmax(run(source, normalized())[0]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (
            "r0 = RandomNormalLike(pixel_values) n0 = Add(pixel_values, r0)",
            r"\(RandomNormalLike\) draws random numbers",
        ),
        ("r0 = Bernoulli(pixel_values) n0 = Mul(pixel_values, r0)", r"\(Bernoulli\) draws random numbers"),
        (
            "n0, m0, v0 = BatchNormalization <training_mode = 1> (pixel_values, s1, s1, s1, s1)",
            r"\(BatchNormalization\) takes mean and variance of the batch",
        ),
    ],
)
def test_a_graph_in_training_mode_is_refused(tmp_path: Path, nodes: str, reason: str) -> None:
    """ONNX Runtime draws the same numbers in each session: before and after adoption would be equal."""
    scale = ("int64[2] flat = {-1, 64}", "int64[2] flat = {-1, 64}, float[1] s1 = {1.0}")
    opset = ('opset_import: ["" : 14]', 'opset_import: ["" : 17]')
    source = foreign(tmp_path, (FLAT, f"{nodes} f = Reshape(n0, flat)"), scale, opset)
    with pytest.raises(GraphError, match=f"was exported in training mode: node .*{reason}; .* model.eval"):
        export(source, tmp_path / "x.onnx", options=ADOPT)


def test_random_numbers_that_reach_no_output_are_no_reason(tmp_path: Path, photo) -> None:
    source = foreign(tmp_path, (FLAT, f"r0 = RandomNormalLike(pixel_values) {FLAT}"))
    model = export(source, tmp_path / "x.onnx", options=ADOPT)
    np.testing.assert_allclose(predicted(model, photo), softmax(run(source, normalized())[0]), rtol=1e-3, atol=1e-6)
