"""A loaded model says of an image the same whatever the image comes as, and what PyTorch said at the training."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from PIL import Image

from vitdeploy import load
from vitdeploy.artifacts import Checkpoint, OnnxModel, write_onnx
from vitdeploy.artifacts.reference import load_reference
from vitdeploy.datasets import open_dataset
from vitdeploy.errors import ArtifactError, DataError, GraphError, UsageError
from vitdeploy.measure.heads import softmax
from vitdeploy.records import Manifest, ModelSpec
from vitdeploy.runtime.prediction import predictions
from vitdeploy.runtime.predictor import Predictor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tiny_onnx: OnnxModel) -> Iterator[Predictor]:
    with load(tiny_onnx.path) as opened:
        yield opened


@pytest.fixture(scope="module")
def digits() -> list[Image.Image]:
    dataset = open_dataset("digits:test")
    return [dataset.image(index) for index in range(len(dataset))]


def leading(predictions: object) -> list[tuple[int, float]]:
    assert isinstance(predictions, list)
    return [(found.classes[0].index, found.classes[0].probability) for found in predictions]


def test_outputs_are_those_of_pytorch_on_the_whole_test_split(
    model: Predictor, tiny_onnx: OnnxModel, digits: list[Image.Image]
) -> None:
    reference = load_reference(tiny_onnx)
    assert reference is not None
    expected = reference.logits
    found = model.outputs(digits)
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.ptp(expected))
    top = [prediction.classes[0].index for prediction in model.predict(digits, top=1)]
    np.testing.assert_array_equal(top, expected.argmax(axis=1))


@pytest.mark.torch
def test_top1_is_that_of_the_evaluation_during_training(tiny_checkpoint: Checkpoint, model: Predictor) -> None:
    from lightning_fabric import Fabric

    from vitdeploy.sources.load import load_source
    from vitdeploy.training.evaluation import Evaluation

    dataset = open_dataset("digits:test")
    assert dataset.labels is not None
    score = Evaluation(dataset, model.preprocess, Fabric(accelerator="cpu")).score(
        load_source(tiny_checkpoint.path).module
    )
    top = model.outputs([dataset.image(index) for index in range(len(dataset))]).argmax(axis=1)
    assert float(np.mean(top == dataset.labels)) == score.top1


def test_an_image_says_the_same_in_every_form(model: Predictor, digits: list[Image.Image], tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(9)]
    for path, image in zip(paths, digits, strict=False):
        image.save(path)
    arrays = [np.asarray(image) for image in digits[:9]]
    expected = leading(model.predict(digits[:9]))
    colour = [np.repeat(array[..., None], 3, axis=2) for array in arrays]
    forms: dict[str, object] = {
        "paths": paths,
        "texts": [str(path) for path in paths],
        "folder": tmp_path,
        "folder among files": [tmp_path],
        "grey arrays": arrays,
        "one channel": [array[..., None] for array in arrays],
        "a batch": np.stack(arrays)[..., None],
        "bytes-like": [bytearray(paths[0].read_bytes()), *(memoryview(path.read_bytes()) for path in paths[1:])],
        "open files": (io.BytesIO(path.read_bytes()) for path in paths),
        "Hugging Face's rows": [
            {"bytes": None, "path": str(path)} if i % 2 else {"bytes": path.read_bytes(), "path": "elsewhere"}
            for i, path in enumerate(paths)
        ],
        "a column of names": np.array([str(path) for path in paths]),
        "a column of arrays": np.array([*arrays, None], dtype=object)[:-1],
        "an iterator": iter(paths),
        "a generator of several kinds": (array if i % 2 else paths[i] for i, array in enumerate(arrays)),
        "colour": np.stack(colour),
    }
    for name, form in forms.items():
        found = leading(model.predict(form))  # type: ignore[arg-type]
        assert [index for index, _ in found] == [index for index, _ in expected], name
        np.testing.assert_allclose([p for _, p in found], [p for _, p in expected], rtol=1e-5, err_msg=name)
    assert [found.image for found in model.predict(tmp_path)] == [str(path) for path in paths]
    assert [found.image for found in model.predict(arrays[:2])] == ["image 0", "image 1"]
    assert leading(model.predict(paths[3])) == leading(model.predict(arrays[3]))
    assert len(model.predict(arrays[3])) == 1
    for one in (bytearray(paths[3].read_bytes()), io.BytesIO(paths[3].read_bytes()), {"bytes": paths[3].read_bytes()}):
        assert leading(model.predict(one)) == leading(model.predict(paths[3]))


def test_a_column_of_arrow_has_images(model: Predictor, digits: list[Image.Image], tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra: pip install 'vitdeploy[parquet]'")
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, digits, strict=False):
        image.save(path)
    expected = leading(model.predict(paths))
    for column in (pyarrow.array([path.read_bytes() for path in paths]), pyarrow.array([str(path) for path in paths])):
        assert leading(model.predict(column)) == expected


class _Upload:
    """As Starlette's, on which FastAPI's rests."""

    async def read(self) -> bytes:
        return b""


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (io.BytesIO(), r"'image 0', an open file \(BytesIO\), has nothing left to be read: seek\(0\)"),
        (io.StringIO("a.png"), "gives str, expected bytes: open it in mode 'rb'"),
        (_Upload(), r"an open file \(_Upload\), is read with await"),
        ("", "the name of an image is empty"),
        ([""], "the name of an image is empty"),
        (np.array([""]), "the name of an image is empty"),
        ({"image": b""}, "dict is no image"),
    ],
)
def test_an_image_in_a_wrapper_that_holds_none_is_refused_by_what_is_wrong(
    model: Predictor, image: object, reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        model.predict(image)  # type: ignore[arg-type]


@pytest.mark.parametrize("send", [pickle.dumps, lambda model: pickle.dumps(model.predict), copy.copy, copy.deepcopy])
def test_an_open_model_goes_to_no_other_process(model: Predictor, send: Callable[[object], object]) -> None:
    with pytest.raises(UsageError, match="take a batch_predictor, which can be pickled"):
        send(model)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((8, 8), np.float32), r"float32 and shape \[8, 8\] is no image: expected uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \[3, 8, 8\] is no image"),
        (np.zeros((8, 8, 4), np.uint8), "with 1 or 3 channels, red first"),
        (np.zeros((0, 8, 8, 1), np.uint8), "is no image"),
        (7, "int is no image: expected a path"),
        ([None], "NoneType is no image"),
        (np.zeros((9, 8), np.uint8), "'image 0': an image of 8×9 pixels does not fit the input of 8×8"),
    ],
)
def test_what_is_no_image_is_refused(model: Predictor, image: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        model.predict(image)  # type: ignore[arg-type]


def test_no_image_and_no_class_are_usage_errors(model: Predictor) -> None:
    with pytest.raises(UsageError, match="no images were given"):
        model.predict([])
    with pytest.raises(UsageError, match="top=0 and batch=16: expected at least 1"):
        model.predict(np.zeros((8, 8), np.uint8), top=0)
    with pytest.raises(UsageError, match="batch=0"):
        model.stream([], batch=0)


def test_a_stream_takes_at_most_two_batches_ahead(model: Predictor, digits: list[Image.Image]) -> None:
    taken = itertools.count()
    last = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal last
        while True:
            last = next(taken)
            yield np.asarray(digits[last % 7])

    stream = model.stream(endless(), top=1, batch=4)
    for done, prediction in enumerate(itertools.islice(stream, 40)):
        assert prediction.image == f"image {done}"
        assert last <= done + 4 + 16  # the batch that is out, and what may be ahead
    stream.close()  # type: ignore[attr-defined]
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("vitdeploy-")]
    assert [name for name in threads if name != "vitdeploy-feed"] == []


def test_a_stream_of_single_images_gives_each_before_the_next_is_there(
    model: Predictor, digits: list[Image.Image]
) -> None:
    answered = threading.Event()

    def camera() -> Iterator[NDArray[np.uint8]]:
        for image in digits[:3]:
            yield np.asarray(image)
            assert answered.wait(30)
            answered.clear()

    found = []
    for prediction in model.stream(camera(), batch=1):
        found.append(prediction)
        answered.set()
    assert len(found) == 3


def test_a_stream_goes_on_past_what_cannot_be_read(model: Predictor, digits: list[Image.Image], tmp_path: Path) -> None:
    for index in range(6):
        digits[index].save(tmp_path / f"{index}.png")
    (tmp_path / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    (tmp_path / "4.png").write_bytes(b"")
    left_out: dict[str, str] = {}
    found = list(model.stream(tmp_path, on_error=lambda name, error: left_out.update({Path(name).name: str(error)})))
    assert [Path(one.image).name for one in found] == ["0.png", "1.png", "3.png", "5.png"]
    assert set(left_out) == {"2.png", "4.png"}
    assert "is empty" in left_out["4.png"]
    with pytest.raises(DataError, match=r"2\.png"):
        model.predict(tmp_path)


def test_a_folder_without_images_among_others_ends_nothing(
    model: Predictor, digits: list[Image.Image], tmp_path: Path
) -> None:
    full, empty, linked = tmp_path / "full", tmp_path / "empty", tmp_path / "circle"
    for folder in (full, empty):
        folder.mkdir()
    linked.mkdir()
    (linked / "itself").symlink_to(linked)
    digits[0].save(full / "0.png")
    left_out: dict[str, str] = {}
    given = [full, empty, linked, full / "missing.png", full]
    found = list(model.stream(given, on_error=lambda name, error: left_out.update({Path(name).name: str(error)})))
    assert [Path(one.image).name for one in found] == ["0.png", "0.png"]
    assert list(left_out) == ["empty", "circle", "missing.png"]
    assert left_out["empty"] == f"folder {str(empty)!r} holds no images"
    for alone in (empty, linked):
        with pytest.raises(DataError, match=f"{alone.name}' holds no images"):
            list(model.stream(alone, on_error=lambda name, error: None))


def test_the_error_of_a_source_is_met_by_the_caller(model: Predictor, digits: list[Image.Image]) -> None:
    def broken() -> Iterator[Image.Image]:
        yield digits[0]
        raise OSError("the camera was unplugged")

    with pytest.raises(OSError, match="unplugged"):
        list(model.stream(broken(), batch=1))


def test_features_times_the_head_are_the_logits(
    model: Predictor, tiny_onnx: OnnxModel, digits: list[Image.Image]
) -> None:
    graph = tiny_onnx.load()
    head = graph.graph.outputs[0].producer()
    assert head is not None
    assert head.op_type == "Gemm"
    weight, bias = (head.inputs[index].const_value.numpy() for index in (1, 2))
    assert head.attributes["transB"].as_int() == 1
    features = model.embed(digits[:50])
    assert features.shape == (50, 32)
    np.testing.assert_allclose(features @ weight.T + bias, model.outputs(digits[:50]), rtol=1e-4, atol=1e-4)


@pytest.mark.torch
def test_features_are_what_pytorchs_head_is_given(
    tiny_checkpoint: Checkpoint, model: Predictor, digits: list[Image.Image]
) -> None:
    import torch

    from vitdeploy.preprocess import normalize
    from vitdeploy.sources.load import load_source

    module = load_source(tiny_checkpoint.path).module.eval()
    seen: list[torch.Tensor] = []
    module.get_submodule("head").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = np.stack([np.asarray(image)[..., None] for image in digits[:20]])
    with torch.no_grad():
        module(torch.from_numpy(normalize(pixels, model.preprocess)))
    np.testing.assert_allclose(model.embed(digits[:20]), seen[0].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_features_of_a_quantized_graph_feed_its_own_head(
    tiny_onnx: OnnxModel, digits: list[Image.Image], tmp_path: Path, precision: str
) -> None:
    from vitdeploy.stages.quantize import quantize

    output = tmp_path / "q.onnx"
    if precision == "int8":
        quantized = quantize(tiny_onnx, output, precision="int8", calibration="digits:train")
    else:
        quantized = quantize(tiny_onnx, output, precision="fp16")
    weight, bias = (tiny_onnx.load().graph.outputs[0].producer().inputs[i].const_value.numpy() for i in (1, 2))
    with load(quantized) as opened:
        features, logits = opened.embed(digits[:20]), opened.outputs(digits[:20])
    np.testing.assert_allclose(features @ weight.T + bias, logits, atol=0.02 * np.ptp(logits))


def test_features_of_a_rotated_stream_are_refused(tiny_onnx: OnnxModel, tmp_path: Path) -> None:
    from vitdeploy.artifacts import write_onnx
    from vitdeploy.records import PrecisionPlan

    plan = PrecisionPlan(profile="linear", remainder="fp32", rotated=("stream",))
    manifest = tiny_onnx.manifest.model_copy(update={"plan": plan})
    rotated = write_onnx(tmp_path / "rotated.onnx", tiny_onnx.load(), manifest, tiny_onnx.golden)
    with load(rotated) as opened, pytest.raises(GraphError, match="in another basis"):
        opened.embed(np.zeros((1, 8, 8, 1), np.uint8))


HEADS = {
    "two heads": ("a = Gemm(x, w) b = Gemm(x, w) logits = Add(a, b)", "a sum of several tensors"),
    "pooled after the head": ("y = MatMul(x, w) logits = Mul(y, y)", "come from Mul node"),
    "no weight": ("t = Transpose <perm = [1, 0]> (x) logits = MatMul(x, t)", "come from MatMul node"),
    "two outputs": ("logits = Gemm(x, w) more = Identity(x)", "2 outputs, expected one"),
}


def test_a_class_without_a_name_is_called_by_its_number() -> None:
    logits = np.array([[0.0, 3.0, 1.0]], np.float32)
    for classes, names in (((), ["class 1", "class 2"]), (("a", "b", "c"), ["b", "c"]), (("0", "1", "2"), ["1", "2"])):
        model = ModelSpec(family="vit", name="vit", arguments={"num_classes": 3}, classes=classes)
        (found,) = predictions(["x.png"], logits, model, 2)
        assert [one.name for one in found.classes] == names
        assert [model.class_name(one.index) for one in found.classes] == names


@pytest.mark.parametrize("name", HEADS)
def test_a_head_whose_input_is_not_the_features_is_refused(name: str) -> None:
    import onnx

    from vitdeploy.graph.head_input import find_head_input

    body, reason = HEADS[name]
    more = ", float[n,4] more" if "more" in body else ""
    text = (
        f'<ir_version: 10, opset_import: ["": 20]> g (float[n,4] x) => (float[n,4] logits{more}) '
        f"<float[4,4] w = {{1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}}> {{ {body} }}"
    )
    with pytest.raises(GraphError, match=reason):
        find_head_input(ir.serde.deserialize_model(onnx.parser.parse_model(text)))


def test_features_behind_a_softmax_and_a_bias_are_found(tmp_path: Path) -> None:
    import onnx

    from vitdeploy.graph.head_input import find_head_input

    text = (
        '<ir_version: 10, opset_import: ["": 20]> g (float[n,4] x) => (float[n,4] probabilities) '
        "<float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, float[4] b = {0,1,2,3}> "
        "{ f = Relu(x) y = MatMul(f, w) z = Add(b, y) probabilities = Softmax(z) }"
    )
    assert find_head_input(ir.serde.deserialize_model(onnx.parser.parse_model(text))).name == "f"


def test_a_model_of_features_embeds_with_its_outputs(
    tiny_onnx: OnnxModel, digits: list[Image.Image], tmp_path: Path
) -> None:
    spec = tiny_onnx.manifest.model.model_copy(update={"task": "features", "classes": ()})
    manifest = tiny_onnx.manifest.model_copy(update={"model": spec})
    with load(write_onnx(tmp_path / "features.onnx", tiny_onnx.load(), manifest)) as opened:
        np.testing.assert_array_equal(opened.embed(digits[:4]), opened.outputs(digits[:4]))
        (prediction,) = opened.predict(digits[0])
        assert prediction.classes == ()
        np.testing.assert_array_equal(np.array(prediction.values, np.float32), opened.embed(digits[0])[0])


def test_probabilities_come_from_the_outputs(model: Predictor, digits: list[Image.Image]) -> None:
    expected = softmax(model.outputs(digits[:1]).astype(np.float64))[0]
    classes = model.predict(digits[0], top=10)[0].classes
    assert [one.probability for one in classes] == sorted(expected.tolist(), reverse=True)
    assert [one.name for one in classes] == [model.classes[one.index] for one in classes]


def test_a_graph_without_preprocessing_is_refused(tiny_onnx: OnnxModel, tmp_path: Path) -> None:
    manifest: Manifest = tiny_onnx.manifest.model_copy(update={"preprocess": None})
    bare = write_onnx(tmp_path / "bare.onnx", tiny_onnx.load(), manifest)
    with pytest.raises(ArtifactError, match="carries no preprocessing"):
        load(bare.path)


def test_importing_load_brings_neither_torch_nor_a_graph_library() -> None:
    absent = ("torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxscript")
    program = f"import sys; from vitdeploy import load; load; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (np.zeros((0, 0, 3), np.uint8), "an array of uint8 and shape [0, 0, 3] is no image"),
        (np.zeros((8, 8, 3)), "an array of float64 and shape [8, 8, 3] is no image"),
        (np.zeros((2, 8, 8, 4), np.uint8), "an array of uint8 and shape [2, 8, 8, 4] is no image"),
        (None, "NoneType is no image"),
        ((False, None), "tuple is no image"),
        (7, "int is no image"),
    ],
)
def test_a_camera_that_gives_a_broken_frame_goes_on(model: Predictor, broken: Any, said: str) -> None:
    frames = [np.full((8, 8), 9, np.uint8), broken, np.full((8, 8), 200, np.uint8)]
    left_out: dict[str, str] = {}
    found = model.stream(iter(frames), batch=1, on_error=lambda name, error: left_out.update({name: str(error)}))
    assert [one.image for one in found] == ["image 0", "image 2"]
    assert [(name, text.partition(":")[0]) for name, text in left_out.items()] == [("image 1", said)]
    with pytest.raises(DataError, match="is no image: expected"):
        model.predict(frames)
