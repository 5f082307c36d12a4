"""The FP16 pass: what it converts, what it leaves in FP32, and that TensorRT's builder takes the result."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import check, ops, parse, run

from vitdeploy.errors import GraphError
from vitdeploy.graph.clamp_masks import MASKED, ClampMasks
from vitdeploy.graph.fp16 import ConvertToFloat16
from vitdeploy.graph.legality import count_unsorted

RNG = np.random.default_rng(0)


def normal(*shape, scale: float = 1.0) -> np.ndarray:
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


def convert(model: ir.Model, keep: Collection[str] = ()) -> dict[str, str]:
    """Convert, and assert what holds for every result: valid, sorted, float32 outside, and idempotent."""
    outside = [(v.name, v.dtype, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]
    step = ConvertToFloat16(keep)
    step(model)
    check(model)
    assert count_unsorted(model.graph) == 0
    assert [(v.name, v.dtype, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)] == outside
    before = ir.to_proto(model).SerializeToString()
    assert not ConvertToFloat16(keep)(model).modified
    assert ir.to_proto(model).SerializeToString() == before
    return step.islands


def precisions(model: ir.Model) -> dict[str, str]:
    """Return op → precision of its first floating-point output, casts aside."""
    return {node.op_type: node.outputs[0].dtype.name for node in model.graph if node.op_type != "Cast"}


BLOCK = """g (float[batch, 5, 8] input) => (float[batch, 5, 8] logits) {
    [norm1] n = LayerNormalization <epsilon = 1e-6> (input, gamma, beta)
    [qkv] m = MatMul(n, w)  [qkv_bias] p = Add(m, b)  [split] q, k, v = Split <axis = 2, num_outputs = 3> (p)
    [scale] qs = Mul(q, c)  [kt] kt = Transpose <perm = [0, 2, 1]> (k)
    [scores] s = MatMul(qs, kt)  [softmax] a = Softmax <axis = -1> (s)  [context] o = MatMul(a, v)
    [gelu] h = Gelu(o)  [residual] logits = Add(h, input)
}"""


def block(**replaced: Any) -> ir.Model:
    values = {
        "gamma": normal(8),
        "beta": normal(8),
        "w": normal(8, 24, scale=0.3),
        "b": normal(24),
        "c": np.float32(0.35),
    }
    return parse(BLOCK, **{**values, **replaced})


def test_a_block_runs_in_fp16_with_one_cast_in_and_one_out() -> None:
    model = block()
    x = normal(3, 5, 8)
    expected = run(model, input=x)[0]
    assert convert(model) == {}
    assert ops(model).count("Cast") == 2
    assert set(precisions(model).values()) == {"FLOAT16"}
    assert {v.dtype.name for v in model.graph.initializers.values() if v.dtype.is_floating_point()} == {"FLOAT16"}
    assert sorted(model.graph.initializers) == sorted(block().graph.initializers), "names of parameters stay"
    error = np.abs(run(model, input=x)[0] - expected).max()
    assert 0 < error < 2e-2 * np.abs(expected).max()


def test_nodes_kept_by_request_stay_in_fp32_between_casts() -> None:
    model = block()
    islands = convert(model, keep={"softmax", "gelu"})
    assert islands == {"softmax": "kept by request", "gelu": "kept by request"}
    found = precisions(model)
    assert (found["Softmax"], found["Gelu"], found["MatMul"]) == ("FLOAT", "FLOAT", "FLOAT16")
    assert ops(model).count("Cast") == 2 + 2 * 2


def test_a_value_that_both_sides_read_is_cast_once() -> None:
    model = parse(
        "g (float[batch, 4] input) => (float[batch, 4] logits) {"
        "[a] a = Relu(input) [b] b = Neg(a) [c] c = Abs(a) [d] d = Sqrt(a) [e] e = Add(b, c) [f] logits = Add(d, e) }"
    )
    convert(model, keep={"b", "c"})
    assert ops(model).count("Cast") == 5  # input down; a up once for b and c; b and c down; output up


def test_a_constant_that_both_sides_read_exists_twice() -> None:
    model = parse(
        "[a] a = Mul(input, k) [b] logits = Add(a, k)",
        k=normal(4),
    )
    convert(model, keep={"b"})
    assert {name: v.dtype.name for name, v in model.graph.initializers.items()} == {"k": "FLOAT", "k.fp16": "FLOAT16"}


def test_layer_norm_of_large_activations_does_not_overflow() -> None:
    """Squares of 2000 leave FP16, the operator computes them in FP32 (stash_type 1)."""
    model = parse(
        "logits = LayerNormalization <epsilon = 1e-6> (input, g, b)",
        g=np.ones(4, np.float32),
        b=np.zeros(4, np.float32),
    )
    x = normal(9, 4, scale=2000)
    expected = run(model, input=x)[0]
    convert(model)
    assert precisions(model) == {"LayerNormalization": "FLOAT16"}
    np.testing.assert_allclose(run(model, input=x)[0], expected, atol=4e-3)


def test_a_decomposed_layer_norm_keeps_squares_and_epsilon_in_fp32() -> None:
    model = parse(
        """g (float[batch, 5, 8] input) => (float[batch, 5, 8] logits) {
            [mean] m = ReduceMean(input, axes) [sub] d = Sub(input, m)
            [pow] p = Pow(d, two) [var] v = ReduceMean(p, axes)
            [eps] e = Add(v, epsilon) [sqrt] s = Sqrt(e) [div] n = Div(d, s) [gamma] logits = Mul(n, gamma)
        }""",
        axes=np.array([-1]),
        two=np.float32(2),
        epsilon=np.float32(1e-6),
        gamma=normal(8),
    )
    x = normal(2, 5, 8, scale=1500)
    expected = run(model, input=x)[0]
    islands = convert(model)
    assert set(islands) == {"mean", "sub", "pow", "var", "eps", "sqrt", "div"}
    assert precisions(model)["Mul"] == "FLOAT16"
    np.testing.assert_allclose(run(model, input=x)[0], expected, atol=1e-2)


PERFORMER = """g (float[batch, 6, 8] input) => (float[batch, 6, 8] logits) {
    [norm] n = LayerNormalization <epsilon = 1e-5> (input, gamma, beta)
    [kqv] m = MatMul(n, w)  [kqv_bias] p = Add(m, b)  [split] k, q, v = Split <axis = 2, num_outputs = 3> (p)
    [kk] k2 = Mul(k, k) [ks] k3 = ReduceSum(k2, axes) [kh] k4 = Mul(k3, half) [kw] k5 = MatMul(k, r)
    [kd] k6 = Sub(k5, k4) [kexp] kp = Exp(k6)
    [qq] q2 = Mul(q, q) [qs] q3 = ReduceSum(q2, axes) [qh] q4 = Mul(q3, half) [qw] q5 = MatMul(q, r)
    [qd] q6 = Sub(q5, q4) [qexp] qp = Exp(q6)
    [kt] kt = Transpose <perm = [0, 2, 1]> (kp) [kv] kv = MatMul(kt, v) [num] num = MatMul(qp, kv)
    [sumk] sk = ReduceSum(kt, axes) [den] den = MatMul(qp, sk) [eps] e = Add(den, epsilon) [div] y = Div(num, e)
    [proj] z = MatMul(y, u) [skip] logits = Add(v, z)
}"""


def performer() -> ir.Model:
    return parse(
        PERFORMER,
        gamma=np.full(8, 2.0, np.float32),
        beta=normal(8),
        w=normal(8, 24),
        b=normal(24),
        r=normal(8, 4),
        u=normal(8, 8, scale=0.3),
        half=np.float32(0.5),
        epsilon=np.float32(1e-8),
        axes=np.array([-1]),
    )


def test_the_performers_exponentials_stay_in_fp32_from_norm_to_quotient() -> None:
    model = performer()
    x = normal(3, 6, 8)
    expected = run(model, input=x)[0]
    islands = convert(model)
    assert {"kqv", "kqv_bias", "split", "kexp", "qexp", "kv", "num", "sumk", "den", "eps", "div", "qw", "kd"} <= set(
        islands
    )
    assert {"norm", "proj", "skip"}.isdisjoint(islands)
    assert model.graph.initializers["epsilon"].const_value.numpy() == np.float32(1e-8)
    np.testing.assert_allclose(run(model, input=x)[0], expected, rtol=2e-2, atol=2e-2)


def test_cosine_attentions_normalisation_stays_in_fp32() -> None:
    model = parse(
        """g (float[batch, 4, 8] input) => (float[batch, 4, 8] logits) {
            [fc] m = MatMul(input, w) [bias] p = Add(m, b) [shape] r = Reshape(p, s)
            [l2] n = ReduceL2(r, axes) [clip] c = Max(n, tiny)
            [div] d = Div(r, c) [head] h = MatMul(d, w2) [back] logits = Reshape(h, t)
        }""",
        w=normal(8, 8),
        b=np.zeros(8, np.float32),
        w2=normal(4, 4),
        s=np.array([-1, 4, 2, 4]),
        t=np.array([-1, 4, 8]),
        axes=np.array([-1]),
        tiny=np.float32(1e-12),
    )
    islands = convert(model)
    assert set(islands) == {"l2", "clip", "div"}
    assert run(model, input=np.zeros((1, 4, 8), np.float32))[0].max() == 0, "0 / 1e-12 is 0, not NaN"


def test_group_norm_stays_in_fp32_and_nothing_behind_it() -> None:
    """As opset 20 writes it: Reshape, InstanceNormalization, Reshape, and the affine part, which may be FP16."""
    model = parse(
        """g (float[batch, 4, 2, 2] input) => (float[batch, 4, 2, 2] logits) {
            [fold] r = Reshape(input, s) [norm] n = InstanceNormalization <epsilon = 1e-5> (r, ones, zeros)
            [unfold] u = Reshape(n, t) [gamma] m = Mul(u, g) [beta] logits = Add(m, b)
        }""",
        s=np.array([-1, 2, 8]),
        t=np.array([-1, 4, 2, 2]),
        ones=np.ones(2, np.float32),
        zeros=np.zeros(2, np.float32),
        g=normal(4, 1, 1),
        b=normal(4, 1, 1),
    )
    x = normal(3, 4, 2, 2, scale=1000)
    expected = run(model, input=x)[0]
    assert convert(model) == {"norm": "a normalisation sums squares over many elements"}
    np.testing.assert_allclose(run(model, input=x)[0], expected, atol=5e-3)


@pytest.mark.parametrize("fill", [-np.inf, -3.4e38, -1e9])
def test_masks_become_finite(fill: float) -> None:
    mask = np.triu(np.full((4, 4), fill, np.float32), 1)
    model = parse("[m] a = Add(input, mask) [s] logits = Softmax(a)", mask=mask[:1])
    x = normal(9, 4, scale=30)
    expected = run(model, input=x)[0]
    assert convert(model) == {}
    assert model.graph.initializers["mask"].const_value.numpy().min() == MASKED
    np.testing.assert_allclose(run(model, input=x)[0], expected, atol=2e-3)
    assert not np.isnan(run(model, input=x)[0]).any()


def test_a_constant_that_leaves_the_range_upwards_is_no_mask() -> None:
    model = parse(
        "[big] a = Add(input, k) [s] logits = Relu(a)",
        k=np.array([-1e9, 1e9, 0, 0], np.float32),
    )
    assert not ClampMasks()(model).modified
    islands = convert(model)
    assert islands == {"big": "the constant 'k' leaves the FP16 range"}


@pytest.mark.parametrize(
    ("op", "constant", "stays"),
    [
        ("Add", np.float32(1e-12), True),
        ("Add", np.full(4, 1e-7, np.float32), False),
        ("Add", np.float32(0.0), False),
        ("Mul", np.full(4, 1e-6, np.float32), True),
        ("Mul", np.array([1e-6, 0.1, 0.2, 0.3], np.float32), False),
        ("Div", np.float32(1e-5), True),
        ("Max", np.float32(1e-12), True),
    ],
)
def test_constants_too_small_for_fp16_keep_their_reader_in_fp32(op: str, constant: Any, stays: bool) -> None:
    text = f"[r] a = Relu(input) [n] b = {op}(a, k) [s] logits = Softmax(b)"
    islands = convert(parse(text, k=constant))
    assert set(islands) == ({"n"} if stays else set())


def test_weights_beyond_the_range_keep_their_linear_in_fp32() -> None:
    model = parse("[fc] a = MatMul(input, w) [s] logits = Softmax(a)",
                  w=normal(4, 4, scale=1e5))  # fmt: skip
    assert set(convert(model)) == {"fc"}


QDQ = """g (float[batch, 4] input) => (float[batch, 3] logits) {
    [norm] n = Softmax(input)
    [q] xq = QuantizeLinear(n, xs, xz) [dq] xd = DequantizeLinear(xq, xs, xz)
    [wdq] wd = DequantizeLinear <axis = 1> (wq, ws, wz)
    [fc] logits = MatMul(xd, wd)
}"""


def qdq(opset: int, weight_scale: list[float]) -> ir.Model:
    return parse(
        QDQ,
        opset=opset,
        xs=np.float32(2.0**-7),
        xz=np.int8(0),
        wq=RNG.integers(-127, 128, (4, 3)).astype(np.int8),
        ws=np.array(weight_scale, np.float32),
        wz=np.zeros(3, np.int8),
    )


def test_scales_become_fp16_and_integers_stay() -> None:
    model = qdq(19, [2.0**-6, 2.0**-8, 0.01])
    x = 100 * np.eye(4, dtype=np.float32)  # the softmax is exactly 0 and 1, so no rounding moves a quantized step
    expected = run(model, input=x)[0]
    assert convert(model) == {}
    types = {name: value.dtype.name for name, value in model.graph.initializers.items()}
    assert types == {"xs": "FLOAT16", "xz": "INT8", "wq": "INT8", "ws": "FLOAT16", "wz": "INT8"}
    assert {n.outputs[0].dtype.name for n in model.graph if n.op_type == "DequantizeLinear"} == {"FLOAT16"}
    assert ops(model).count("Cast") == 2
    np.testing.assert_allclose(run(model, input=x)[0], expected, rtol=5e-3, atol=2e-3)


def test_a_scale_that_loses_bits_in_fp16_stays_float32_with_a_reason() -> None:
    islands = convert(qdq(19, [1e-6, 0.01, 0.01]))
    assert islands == {"wdq": "the scale 'ws' loses bits in FP16"}


def test_below_opset_19_scales_must_stay_float32() -> None:
    model = qdq(17, [0.01, 0.01, 0.01])
    expected = run(model, input=np.eye(4, dtype=np.float32))[0]
    convert(model)
    types = {name: value.dtype.name for name, value in model.graph.initializers.items()}
    assert types["xs"] == types["ws"] == "FLOAT"
    assert precisions(model)["MatMul"] == "FLOAT16"
    np.testing.assert_allclose(run(model, input=np.eye(4, dtype=np.float32))[0], expected, rtol=5e-3, atol=1e-3)


def test_casts_and_fills_of_the_graph_are_retyped() -> None:
    model = parse(
        """g (float[batch, 4] input) => (float[batch, 4] logits) {
            [greater] m = Greater(input, half) [cast] f = Cast <to = 1> (m) [shape] s = Shape(input)
            [fill] o = ConstantOfShape <value = float[1] {2.0}> (s) [mul] p = Mul(f, o) [add] logits = Add(p, input)
        }""",
        half=np.float32(0.5),
    )
    x = normal(3, 4)
    expected = run(model, input=x)[0]
    convert(model)
    assert precisions(model) == {
        "Greater": "BOOL", "Shape": "INT64", "ConstantOfShape": "FLOAT16", "Mul": "FLOAT16", "Add": "FLOAT16",
    }  # fmt: skip
    (cast,) = (node for node in model.graph if node.name == "cast")
    assert cast.outputs[0].dtype == ir.DataType.FLOAT16
    np.testing.assert_allclose(run(model, input=x)[0], expected, atol=2e-3)


def test_a_float32_only_operand_stays() -> None:
    model = parse(
        "g (float[1, 1, 4, 4] input) => (float[1, 1, 8, 8] logits) "
        '{ [up] logits = Resize <mode = "nearest"> (input, , scales) }',
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    convert(model)
    assert model.graph.initializers["scales"].dtype == ir.DataType.FLOAT
    assert precisions(model) == {"Resize": "FLOAT16"}


def test_an_output_that_is_read_inside_keeps_its_name_and_type() -> None:
    model = parse(
        "g (float[batch, 4] input) => (float[batch, 4] logits, float[batch, 4] z) "
        "{ logits = Relu(input) z = Neg(logits) }"
    )
    x = normal(2, 4)
    expected = run(model, input=x)
    convert(model)
    for ours, theirs in zip(run(model, input=x), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=4e-3)


def test_a_subgraph_is_refused_by_name() -> None:
    text = """g (float[batch, 4] input, bool flag) => (float[batch, 4] logits) {
        [choose] logits = If (flag) <
            then_branch = t () => (float[batch, 4] y) { y = Relu(input) },
            else_branch = e () => (float[batch, 4] z) { z = Neg(input) }>
    }"""
    with pytest.raises(GraphError, match=r"node 'choose' \(If\) has a subgraph, which FP16 conversion refuses"):
        ConvertToFloat16()(parse(text))


def test_a_custom_operator_runs_in_fp32() -> None:
    text = """g (float[batch, 4] input) => (float[batch, 4] logits) {
        [a] a = Relu(input) [b] b = com.microsoft.QuickGelu(a) [c] logits = Neg(b) }"""
    model = parse(text)
    model.opset_imports["com.microsoft"] = 1
    for node in model.graph:
        node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(["batch", 4])
    step = ConvertToFloat16()
    step(model)
    assert step.islands == {"b": "com.microsoft::QuickGelu is no standard operator"}
    assert ops(model) == ["Cast", "Relu", "Cast", "QuickGelu", "Cast", "Neg", "Cast"]


@pytest.mark.parametrize(
    "make", [block, performer, lambda: qdq(20, [0.01, 0.01, 0.01])], ids=["block", "performer", "qdq"]
)
def test_tensorrt_rtx_parses_and_builds_the_result(make: Callable[..., Any]) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX exists for x86-64 only")
    model = make()
    convert(model)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(ir.to_proto(model).SerializeToString()), [
        parser.get_error(i).desc() for i in range(parser.num_errors)
    ]
    halves = [
        network.get_layer(i).get_output(0).dtype == trt.DataType.HALF
        for i in range(network.num_layers)
        if network.get_layer(i).type
        in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.SOFTMAX, trt.LayerType.NORMALIZATION)
    ]
    assert any(halves)
    assert network.get_input(0).dtype == network.get_output(0).dtype == trt.DataType.FLOAT
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    shape = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("input", (1, *shape), (2, *shape), (4, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert plan.nbytes > 1000
