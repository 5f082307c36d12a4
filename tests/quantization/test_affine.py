from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitdeploy.errors import CalibrationError
from vitdeploy.measure.statistics import logits_sqnr_db
from vitdeploy.quantization.affine import (
    convolution_scale,
    dequantize_affine,
    pairwise_scale,
    quantize_affine,
    quantize_fp8,
    scale_of,
    storable,
    symmetric_scale,
)

reals = st.floats(-1e6, 1e6, width=32)
arrays = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=reals)


def round_half_even(value: Fraction) -> int:
    """Python's own exact rounding, which knows nothing of NumPy."""
    return round(value)


@given(arrays, st.floats(2.0**-20, 2.0**20, width=32))
def test_integers_are_those_of_exact_arithmetic_up_to_a_tie(x, scale) -> None:
    got = quantize_affine(x, scale)
    for value, q in zip(x.ravel().tolist(), got.ravel().tolist(), strict=True):
        exact = Fraction(value) / Fraction(scale)
        expected = max(-128, min(127, round_half_even(exact)))
        distance_to_tie = abs(abs(exact - int(exact)) - Fraction(1, 2))
        assert q == expected or distance_to_tie <= abs(exact) * Fraction(1, 2**23)


@given(arrays)
def test_error_is_at_most_half_a_step_within_the_range(x) -> None:
    scale = symmetric_scale(x.min(), x.max())
    back = dequantize_affine(quantize_affine(x, scale), scale).astype(np.float64)
    assert np.abs(back - x.astype(np.float64)).max() <= float(scale) * 0.5 * (1 + 1e-5)


@given(arrays)
def test_quantizing_twice_changes_nothing(x) -> None:
    scale = symmetric_scale(x.min(), x.max())
    once = dequantize_affine(quantize_affine(x, scale), scale)
    assert np.array_equal(quantize_affine(once, scale), quantize_affine(x, scale))


@given(arrays)
def test_negation_commutes_with_narrow_quantization(x) -> None:
    scale = np.float32(0.37)
    assert np.array_equal(quantize_affine(-x, scale, narrow=True), -quantize_affine(x, scale, narrow=True))


@given(hnp.arrays(np.float32, (4, 3), elements=reals))
def test_per_channel_is_per_tensor_of_each_channel(weight) -> None:
    scale = symmetric_scale(weight.min(0), weight.max(0))
    together = quantize_affine(weight, scale, axis=1)
    for channel in range(3):
        assert np.array_equal(together[:, channel], quantize_affine(weight[:, channel], scale[channel]))
    assert np.array_equal(dequantize_affine(together, scale, axis=1)[:, 2], dequantize_affine(together[:, 2], scale[2]))


@given(arrays)
def test_largest_magnitude_uses_the_last_integer(x) -> None:
    scale = symmetric_scale(x.min(), x.max())
    largest = np.abs(quantize_affine(x, scale, narrow=True).astype(int)).max()
    assert largest == (0 if not x.any() else 127) or np.abs(x).max() < 127 * np.finfo(np.float32).tiny


@given(st.floats(2.0**-30, 60000.0 * 127, width=32))
def test_storable_fp16_scale_is_the_next_half_that_is_not_smaller(amax) -> None:
    scale = float(scale_of(amax, steps=127))
    stored = float(storable(scale, "float16"))
    assert stored == float(np.float16(stored)), "FP16 must hold it exactly"
    assert stored >= min(scale, 65504.0)
    below = float(np.nextafter(np.float16(stored), np.float16(0)))
    assert below < scale


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 3)), elements=reals))
def test_pairwise_scale_never_lets_two_products_leave_16_bits(weight) -> None:
    scale = pairwise_scale(weight)
    q = quantize_affine(weight, scale, axis=1, narrow=True).astype(int)
    assert (scale >= symmetric_scale(weight.min(axis=0), weight.max(axis=0))).all()
    for first, second in zip(q[0::2], np.vstack([q[1::2], np.zeros((len(q) % 2, q.shape[1]), int)]), strict=True):
        for a in (0, 255):
            for b in (0, 255):
                assert (np.abs(a * first + b * second) <= 2**15 - 1).all()


@given(hnp.arrays(np.float32, st.tuples(*[st.integers(1, 4)] * 2, *[st.integers(1, 3)] * 2), elements=reals))
def test_neighbours_of_a_convolution_never_leave_16_bits(weight) -> None:
    q = quantize_affine(weight, convolution_scale(weight), axis=0, narrow=True).astype(int)
    for output in q.transpose(0, 2, 3, 1):  # [height, width, channels]
        for points in (output.reshape(1, -1), output.reshape(-1, output.shape[-1])):
            pairs = points[:, : points.shape[1] // 2 * 2].reshape(-1, 2)
            same = pairs[np.sign(pairs[:, 0]) == np.sign(pairs[:, 1])]
            assert output.shape[-1] == 1 or (np.abs(same.sum(axis=1)) * 255 <= 2**15 - 1).all()


@pytest.mark.parametrize("channels", [3, 4, 16])
def test_a_convolution_with_such_a_scale_is_exact_in_openvino_on_any_cpu(channels: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((32, channels, 4, 4)).astype(np.float32)
    scale = convolution_scale(weight)
    q = quantize_affine(weight, scale, axis=0, narrow=True)
    step, zero = np.float32(1 / 127), np.uint8(128)
    constants = {"step": step, "zero": zero, "w": q, "scale": scale, "zeros": np.zeros(32, np.int8)}
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[1, {channels}, 32, 32] x) => (float[1, 32, 8, 8] y) {{
        b = QuantizeLinear(x, step, zero)
        d = DequantizeLinear(b, step, zero)
        v = DequantizeLinear<axis = 0>(w, scale, zeros)
        y = Conv<kernel_shape = [4, 4], strides = [4, 4]>(d, v)
    }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.save(model, tmp_path / "conv.onnx")
    images = random.uniform(-1, 1, (1, channels, 32, 32)).astype(np.float32)
    openvino = pytest.importorskip("openvino", reason="openvino is an extra: pip install 'vitdeploy[openvino]'")
    compiled = openvino.Core().compile_model(tmp_path / "conv.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    seen = np.clip(np.round(images / step), -128, 127) * step
    patches = seen.reshape(channels, 8, 4, 8, 4).transpose(1, 3, 0, 2, 4).reshape(64, -1)
    expected = (patches @ (q.reshape(32, -1) * scale[:, None]).T).T.reshape(1, 32, 8, 8)
    assert logits_sqnr_db(compiled(images)[0].reshape(1, -1), expected.reshape(1, -1)) > 80


def test_pairwise_scale_costs_a_gaussian_weight_less_than_half_a_bit() -> None:
    weight = np.random.default_rng(0).standard_normal((768, 64)).astype(np.float32)
    ratio = pairwise_scale(weight) / symmetric_scale(weight.min(axis=0), weight.max(axis=0))
    assert 1.0 < ratio.mean() < np.sqrt(2)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([3.0, -3.0, 1.0, -1.0], 3 / 127),
        ([3.0, 2.0, 1.0, -1.0], 5 / 127.5),
        ([-2.0, 1.0, -1.5, -1.5, 2.5], 3 / 127.5),
        ([0.5], 0.5 / 127),
        ([0.0, 0.0], 1.0),
    ],
)
def test_pairwise_scale_counts_neighbours_of_one_sign_only(column: list[float], expected: float) -> None:
    assert pairwise_scale(np.array(column, np.float32)[:, None]).tolist() == [np.float32(expected)]


def test_float32_scale_is_stored_unchanged() -> None:
    assert storable(0.1, "float32") == np.float32(0.1)


def test_zero_channel_round_trips_exactly() -> None:
    scale = symmetric_scale([0.0, -2.0], [0.0, 1.0])
    assert scale[0] == 1.0
    assert scale[1] == np.float32(2 / 127)
    assert dequantize_affine(quantize_affine(np.zeros((5, 2), "f4"), scale, axis=1), scale, axis=1).any() == 0


def test_zero_point_maps_to_exact_zero() -> None:
    assert quantize_affine(np.zeros(3, "f4"), 0.123).tolist() == [0, 0, 0]
    assert dequantize_affine(np.zeros(3, "i1"), 0.123).tolist() == [0.0, 0.0, 0.0]


def test_ties_go_to_even_as_in_onnx() -> None:
    assert quantize_affine(np.array([0.5, 1.5, 2.5, -0.5, -1.5], "f4"), 1.0).tolist() == [0, 2, 2, 0, -2]


def test_values_beyond_the_range_saturate() -> None:
    assert quantize_affine(np.array([1e9, -1e9], "f4"), 1.0).tolist() == [127, -128]
    assert quantize_affine(np.array([1e9, -1e9], "f4"), 1.0, narrow=True).tolist() == [127, -127]


def test_denormal_range_still_gives_a_normal_scale() -> None:
    assert symmetric_scale(0.0, 1e-44) >= np.finfo(np.float32).tiny


@pytest.mark.parametrize(
    ("lo", "hi", "text"),
    [
        ([0.0, float("nan")], [1.0, 1.0], r"channel 1 is \(nan, 1.0\)"),
        ([0.0], [float("inf")], r"channel 0 is \(0.0, inf\)"),
        (2.0, 1.0, r"range is \(2.0, 1.0\)"),
    ],
)
def test_unusable_range_is_refused_by_channel(lo: list[float] | float, hi: list[float] | float, text: str) -> None:
    with pytest.raises(CalibrationError, match=text):
        symmetric_scale(lo, hi)


def test_integers_are_those_of_onnxruntime() -> None:
    import onnxruntime as ort
    from onnx import parser

    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[n] x, float s) => (int8[n] q, float[n] y)
        <int8 z = {0}> { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"""
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for scale in (np.float32(0.013), np.float32(1.0), np.float32(77.7)):
        x = (rng.standard_normal(4096) * 80 * scale).astype(np.float32)
        q, y = session.run(None, {"x": x, "s": np.asarray(scale)})
        assert np.array_equal(q, quantize_affine(x, scale))
        assert np.array_equal(y, dequantize_affine(q, scale))


@given(hnp.arrays(np.float32, 16, elements=st.floats(-1000, 1000, width=32)))
def test_fp8_picks_the_nearest_e4m3_number(x) -> None:
    scale = scale_of(np.abs(x).max(), steps=448.0)
    grid = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    grid = grid[np.isfinite(grid)]
    steps = (x / scale).astype(np.float64)
    got = quantize_fp8(x, scale).astype(np.float64)
    best = np.abs(steps[:, None] - grid[None]).min(axis=1)
    assert np.allclose(np.abs(got - steps), best, rtol=1e-6, atol=0)


def test_fp8_saturates_instead_of_giving_nan() -> None:
    assert quantize_fp8(np.array([1e9, -1e9], "f4"), 1.0).astype("f4").tolist() == [448.0, -448.0]
