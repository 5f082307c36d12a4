"""The expected error of a layer is the error that its rounding has on the rows it was estimated from."""

import numpy as np
import onnx_ir as ir
import pytest
from present import present

from vitdeploy.graph.linear_groups import find_linear_groups
from vitdeploy.quantization.activation import Activation
from vitdeploy.quantization.affine import dequantize_affine, quantize_affine
from vitdeploy.quantization.layer_error import Choices, LayerError
from vitdeploy.quantization.observers import METHODS, TensorObserver
from vitdeploy.quantization.placement import Format, quantize_weight
from vitdeploy.quantization.prepared import prepare
from vitdeploy.quantization.scaling import smoothing_factor
from vitdeploy.records import Treatment

WIDTH, OUTPUTS = 32, 48
TEXT = """<ir_version: 10, opset_import: ["" : 20]>
g (float[batch, 3, 8, 8] input) => (float[batch, 20] logits) {
    c = Conv <strides = [2, 2]> (input, patch) r = Reshape (c, to_tokens) x = Transpose <perm = [0, 2, 1]> (r)
    n = LayerNormalization (x, gamma, beta) m = MatMul (n, w) h = Add (m, bias)
    pooled = ReduceMean <keepdims = 0> (h, tokens) logits = Gemm (pooled, head)
}"""


def group(weight):
    values = {
        "patch": np.ones((WIDTH, 3, 2, 2)), "to_tokens": np.array([0, WIDTH, 16]), "gamma": np.ones(WIDTH),
        "beta": np.zeros(WIDTH), "w": weight, "bias": np.zeros(OUTPUTS), "tokens": np.array([1]),
        "head": np.ones((OUTPUTS, 20)),
    }  # fmt: skip
    model = ir.from_onnx_text(TEXT)
    for node in model.graph:
        for value in node.inputs:
            if value.name in values and value.name not in model.graph.initializers:
                array = np.asarray(values[value.name])
                array = array if array.dtype == np.int64 else array.astype(np.float32)
                value.const_value = ir.tensor(array, name=value.name)
                model.graph.register_initializer(present(value))
    return next(found for found in find_linear_groups(prepare(model)) if not found.obstacle)


def seen(rows):
    observer = TensorObserver("n")
    observer.update(rows[:, None], np.arange(len(rows), dtype=np.uint64))
    return Activation.of(observer)


def outliers(rows: int = 2000):
    x = np.random.default_rng(0).standard_normal((rows, WIDTH)) * np.geomspace(0.05, 20, WIDTH) + np.linspace(
        -3, 8, WIDTH
    )
    return x.astype(np.float32)


WEIGHT = (np.random.default_rng(1).standard_normal((WIDTH, OUTPUTS)) * np.geomspace(4, 0.2, WIDTH)[:, None]).astype(
    np.float32
)
TREATMENTS = [
    Treatment(ranges=method, scaling=alpha, shifted=shifted)
    for method in ("minmax", "mse")
    for alpha in (None, 0.5, 1.0)
    for shifted in (False, True)
]


def measured(linear, rows, treatment, form):
    """Return the squared error of the outputs per row, by rounding everything."""
    activation, weight = seen(rows), WEIGHT
    if treatment.shifted:
        activation = activation.shifted(activation.middle)
    if treatment.scaling is not None:
        factor = smoothing_factor(activation.channel_amax, np.abs(WEIGHT).max(axis=1), treatment.scaling)
        activation, weight = activation.scaled(factor), WEIGHT * factor[:, None]
    low, high = activation.interval(treatment.ranges, 99.99)
    if form.cpu:
        scale = (high - low) / 255
        zero = np.rint(-low / scale)
        rounded = (np.clip(np.rint(activation.rows / scale) + zero, 0, 255) - zero) * scale
    else:
        scale = max(-low, high) / 127
        rounded = dequantize_affine(quantize_affine(activation.rows, scale), scale)
    linear.weight.const_value = ir.tensor(weight, name="w")
    integers = quantize_weight(linear, form)
    error = rounded @ dequantize_affine(integers.values, integers.scale, axis=1) - activation.rows @ weight
    linear.weight.const_value = ir.tensor(WEIGHT, name="w")
    return float(np.square(error, dtype=np.float64).sum(axis=1).mean())


@pytest.mark.parametrize("cpu", [False, True])
@pytest.mark.parametrize("treatment", TREATMENTS, ids=str)
def test_it_is_the_measured_error_nearly(treatment: Treatment, cpu: bool) -> None:
    rows, form = outliers(), Format("float32", cpu=cpu)
    found = group(WEIGHT)
    expected = LayerError(found, seen(rows), form).of(treatment)
    (linear,) = found.linears
    assert 10 * np.log10(expected / measured(linear, rows, treatment, form)) == pytest.approx(0, abs=2.0)


def test_the_best_treatment_has_the_least_error_of_all() -> None:
    rows, form = outliers(), Format()
    error = LayerError(group(WEIGHT), seen(rows), form)
    choices = Choices(METHODS, 99.99, (0.25, 0.5, 1.0), shifted=True)
    best = error.best(choices, Treatment(), least_gain_db=0.0)
    assert error.of(best) <= min(error.of(treatment) for treatment in TREATMENTS) * 1.001
    assert best.shifted
    assert best.scaling is not None


def test_a_gain_below_the_least_leaves_the_simplest_treatment() -> None:
    flat = np.random.default_rng(2).uniform(-1, 1, (2000, WIDTH)).astype(np.float32)
    weight = np.full((WIDTH, OUTPUTS), 0.5, np.float32)
    error = LayerError(group(weight), seen(flat), Format())
    choices = Choices(METHODS, 99.99, (0.5,), shifted=True)
    assert error.best(choices, Treatment(), least_gain_db=0.2) == Treatment()
