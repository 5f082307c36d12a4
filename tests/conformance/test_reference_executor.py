"""Quantized graphs of every family and profile are what ONNX's definition says, by a NumPy executor of our own.

Stated rounding. Node by node, each on what the runtime's own node read: integers are the same but for values within
1e-5 of a tie, which may go to the next integer; FP32 results differ by 1e-5 of the tensor's largest value, FP16 by
2⁻⁹, which is two roundings; ONNX Runtime rounds the bias of a convolution of integers to the step of a product, which
adds half of that. As a whole, fused and in integer kernels: logits of weights in 8 bits by 1e-5; of integer
activations, where one value at a tie moves all that follows, by a tenth of the power of the quantization's own error,
and by less than that error with convolutions of integers, whose rounded biases bring more values over a tie.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from present import present
from reference_executor import along, execute
from small_families import FAMILIES

from vitdeploy.artifacts import OnnxModel
from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.datasets import load_pixels, open_dataset
from vitdeploy.graph.values import DATA_MOVEMENT
from vitdeploy.measure.statistics import logits_sqnr_db
from vitdeploy.preprocess import normalize
from vitdeploy.quantization.collector import with_outputs
from vitdeploy.quantization.request import QuantizeOptions
from vitdeploy.records import Precision, Target
from vitdeploy.stages.quantize import quantize

pytestmark = pytest.mark.slow

QUICK = QuantizeOptions(method="minmax", equalization="off", effort="fast", samples=24, threads=1)
CONVOLVING = ("pvt", "pvt_v2", "patchconvnet")
"""Families with convolutions behind the first layer."""
CLEAR_DB, CLEAR_WITH_CONVOLUTIONS_DB = 10, 0
BOUNDS = {np.dtype(np.float32): 1e-5, np.dtype(np.float16): 2.0**-9}
TIE = 1e-5


@dataclass(frozen=True)
class Form:
    """What a graph is quantized to."""

    precision: Precision
    target: Target
    options: QuantizeOptions = QUICK


FORMS = {
    "linear": Form("int8", "tensorrt"),
    "mha": Form("int8", "tensorrt", replace(QUICK, profile="mha")),
    "cpu": Form("int8", "onnxruntime"),
    "full": Form("int8", "onnxruntime", replace(QUICK, profile="full")),
    "weights": Form("int8-weight-only", "onnxruntime"),
    "fp8": Form("fp8", "tensorrt"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, small_export: Callable[[str], OnnxModel]) -> OnnxModel:
    return small_export(request.param)


@pytest.fixture(scope="module")
def quantized(exported: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ir.Model]:
    """A function form → the family's graph in that form, quantized once."""

    @functools.cache
    def graph_of(name: str) -> OnnxModel:
        form, path = FORMS[name], tmp_path_factory.mktemp(name) / "out.onnx"
        return quantize(
            exported, path, precision=form.precision, target=form.target, options=form.options, progress=None,
            calibration=None if form.precision == "int8-weight-only" else "digits:train",
        )  # fmt: skip

    return lambda name: graph_of(name).load()


def images(model: OnnxModel) -> np.ndarray:
    spec = present(model.manifest.preprocess)
    return normalize(load_pixels(open_dataset("digits:validation", samples=3), spec), spec)


def feed(graph: ir.Model, pixels: np.ndarray) -> dict[str, np.ndarray]:
    entry = graph.graph.inputs[0]
    return {present(entry.name): pixels.astype(present(entry.dtype).numpy())}


def computed(graph: ir.Model, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return every tensor that ONNX Runtime computes and NumPy can hold."""
    names = [
        str(value.name)
        for node in graph.graph
        for value in node.outputs
        if value.dtype != ir.DataType.FLOAT8E4M3FN and value.name
    ]
    with open_graph(with_outputs(graph, names)) as session:
        return session.run(feed(graph, pixels))


def near_ties(graph: ir.Model, found: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return how far what a QuantizeLinear rounded is from a tie, in steps."""
    node = next(node for node in graph.graph if node.outputs[0].name == name)
    x, scale = found[str(present(node.inputs[0]).name)], present(present(node.inputs[1]).const_value).numpy()
    steps = x.astype(np.float64) / along(scale, 0, x.ndim)
    return np.abs(np.abs(steps - np.trunc(steps)) - 0.5) / np.maximum(np.abs(steps), 1)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "full"])
def test_every_node_gives_what_its_definition_says(
    exported: OnnxModel, quantized: Callable[[str], ir.Model], form: str
) -> None:
    hold_each_node(quantized(form), images(exported))


@pytest.mark.parametrize("exported", CONVOLVING, indirect=True)
def test_convolutions_in_8_bits_are_those_of_the_definition(
    exported: OnnxModel, quantized: Callable[[str], ir.Model]
) -> None:
    graph, pixels = quantized("full"), images(exported)
    assert sum(quantized_convolution(node) for node in graph.graph) >= 2
    hold_each_node(graph, pixels)
    hold_logits(graph, exported, pixels, CLEAR_WITH_CONVOLUTIONS_DB)


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that gives a value, before its elements are moved."""
    node = present(value).producer()
    while node is not None and node.op_type in DATA_MOVEMENT:
        node = present(node.inputs[0]).producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def quantized_convolution(node: ir.Node) -> bool:
    return node.op_type == "Conv" and all(dequantizer(value) is not None for value in node.inputs[:2])


def half_a_step(convolution: ir.Node) -> float:
    """Return by how much ONNX Runtime rounds the bias of a convolution of integers, whose step is that of a product."""
    dequantizers = [present(dequantizer(value)) for value in convolution.inputs[:2]]
    scales = [present(present(node.inputs[1]).const_value).numpy() for node in dequantizers]
    return 0.5 * float(scales[0].max()) * float(scales[1].max())


def hold_each_node(graph: ir.Model, pixels: np.ndarray) -> None:
    theirs = computed(graph, pixels)
    ours = execute(graph, pixels, theirs)
    biases = {str(node.outputs[0].name): half_a_step(node) for node in graph.graph if quantized_convolution(node)}
    assert len(theirs) > 20
    for name, array in theirs.items():
        expected = ours[name]
        assert array.shape == expected.shape, name
        assert array.dtype == expected.dtype, name
        if array.dtype in (np.int8, np.uint8):
            away = np.abs(array.astype(int) - expected.astype(int))
            assert away.max() <= 1, name
            assert np.all(near_ties(graph, theirs, name)[away > 0] < TIE), name
        elif array.dtype in BOUNDS:
            size = float(np.abs(expected.astype(np.float64)).max())
            off = np.abs(array.astype(np.float64) - expected.astype(np.float64))
            assert float(off.max()) <= BOUNDS[array.dtype] * size + biases.get(name, 0.0), name
        else:
            np.testing.assert_array_equal(array, expected, err_msg=name)


@pytest.mark.parametrize("form", ["cpu", "weights"])
def test_fused_in_integer_kernels_it_gives_the_same_logits(
    exported: OnnxModel, quantized: Callable[[str], ir.Model], form: str
) -> None:
    graph, pixels = quantized(form), images(exported)
    if form == "cpu":
        hold_logits(graph, exported, pixels, CLEAR_DB)
        return
    (logits,) = (present(value.name) for value in graph.graph.outputs)
    expected = execute(graph, pixels)[logits]
    with open_graph(graph) as session:
        found = session.run(feed(graph, pixels))[logits]
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def hold_logits(graph: ir.Model, exported: OnnxModel, pixels: np.ndarray, clear_db: float) -> None:
    """Hold the logits of integer kernels against the definition: the error of 8 bits is that much larger."""
    (logits,) = (present(value.name) for value in graph.graph.outputs)
    expected = execute(graph, pixels)[logits]
    exact = execute(exported.load(), pixels)[logits]
    with open_graph(graph) as session:
        found = session.run(feed(graph, pixels))[logits]
    assert logits_sqnr_db(found, expected) > logits_sqnr_db(expected, exact) + clear_db or np.array_equal(
        found, expected
    )


def test_the_executor_rounds_as_the_standard_says() -> None:
    from reference_executor import dequantized, quantized

    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0], np.float32)
    one = np.array(1.0, np.float32)
    assert quantized(x, one, np.array(0, np.int8)).tolist() == [0, 2, 2, 0, -2, 127, -128]
    assert quantized(x, one, np.array(10, np.uint8)).tolist() == [10, 12, 12, 10, 8, 255, 0]
    eight = quantized(np.array([449.0, 17.0, -0.0019], np.float32), one, np.zeros((), ml_dtypes.float8_e4m3fn))
    assert eight.astype(np.float32).tolist() == [448.0, 16.0, -0.001953125]
    weight = np.array([[1, -2], [3, 4]], np.int8)
    steps = np.array([0.5, 2.0], np.float32)
    assert dequantized(weight, steps, axis=1).tolist() == [[0.5, -4.0], [1.5, 8.0]]
    assert dequantized(weight, steps, axis=0).tolist() == [[0.5, -1.0], [6.0, 8.0]]
