"""Where Q/DQ lands, that the rewritten graph computes what it says, and that runtimes take it."""

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import check, ops, parse, run

from vitdeploy.errors import GraphError
from vitdeploy.graph.fp16 import ConvertToFloat16
from vitdeploy.graph.insert_qdq import ActivationPair, InsertQDQ, QdqPlacement, QuantizedTensor
from vitdeploy.graph.legality import count_unsorted
from vitdeploy.quantization.affine import dequantize_affine, quantize_affine, quantize_fp8, scale_of

RNG = np.random.default_rng(0)


def normal(*shape) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def value(model: ir.Model, name: str):
    return next(v for node in model.graph for v in (*node.inputs, *node.outputs) if v is not None and v.name == name)


def uses(model: ir.Model, tensor: str, *names):
    nodes = {node.name: node for node in model.graph}
    return tuple((nodes[name], list(nodes[name].inputs).index(value(model, tensor))) for name in names)


def integers(weight: np.ndarray, axis: int) -> QuantizedTensor:
    other = tuple(i for i in range(weight.ndim) if i != axis)
    scale = scale_of(np.abs(weight).max(axis=other), steps=127)
    return QuantizedTensor(quantize_affine(weight, scale, axis=axis, narrow=True), scale, axis)


def insert(model: ir.Model, activations=(), weights=None, dtype=ir.DataType.INT8):
    ends = [(v.name, v.dtype, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]
    result = InsertQDQ(QdqPlacement(tuple(activations), weights or {}, dtype))(model)
    check(model)
    assert count_unsorted(model.graph) == 0
    assert [(v.name, v.dtype, str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)] == ends
    return result


def two_linears():
    weights: dict[str, Any] = {"w1": normal(4, 8), "b1": normal(8), "w2": normal(8, 4)}
    model = parse(
        """[norm] n = Relu(input) [fc1] a = MatMul(n, w1) [bias] c = Add(a, b1)
        [act] g = Gelu(c) [fc2] logits = MatMul(g, w2)""",
        **weights,
    )
    return model, weights


def test_a_linear_reads_rounded_values_and_integer_weights() -> None:
    model, weights = two_linears()
    x = normal(5, 4)
    insert(
        model, [ActivationPair(value(model, "n"), 0.02, uses(model, "n", "fc1"))], {"w1": integers(weights["w1"], 1)}
    )
    assert ops(model) == [
        "Relu", "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul", "Add", "Gelu", "MatMul"
    ]  # fmt: skip
    rounded = dequantize_affine(quantize_affine(np.maximum(x, 0), 0.02), 0.02)
    stored = integers(weights["w1"], 1)
    expected = rounded @ dequantize_affine(stored.values, stored.scale, axis=1) + weights["b1"]
    after_gelu = run(parse("g (float[N,M] x) => (float[N,M] y) { y = Gelu(x) }"), x=expected.astype(np.float32))[0]
    np.testing.assert_allclose(run(model, input=x)[0], after_gelu @ weights["w2"], rtol=1e-4, atol=1e-5)


def test_scales_and_zero_points_are_what_tensorrt_takes() -> None:
    model, weights = two_linears()
    insert(
        model, [ActivationPair(value(model, "n"), 0.02, uses(model, "n", "fc1"))], {"w1": integers(weights["w1"], 1)}
    )
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = node.inputs[1].const_value, node.inputs[2].const_value
        assert scale.dtype == ir.DataType.FLOAT
        assert zero.dtype == ir.DataType.INT8
        assert not zero.numpy().any()
        assert zero.shape == scale.shape
    (weight,) = [node for node in model.graph if node.name == "w1/DequantizeLinear"]
    assert weight.attributes["axis"].as_int() == 1
    assert weight.inputs[0].const_value.dtype == ir.DataType.INT8
    assert weight.inputs[1].const_value.shape == [8]
    assert "w1" not in model.graph.initializers, "the float weight is gone"


def test_one_pair_serves_all_listed_consumers_and_others_keep_the_float_tensor() -> None:
    model = parse(
        """n = Relu(input) [q] q = MatMul(n, w) [k] k = MatMul(n, w) [skip] r = Add(n, input)
        s = Add(q, k) logits = Add(s, r)""",
        w=normal(4, 4),
    )
    insert(model, [ActivationPair(value(model, "n"), 0.1, uses(model, "n", "q", "k"))])
    assert Counter(ops(model))["QuantizeLinear"] == 1
    nodes = {node.name: node for node in model.graph}
    assert nodes["q"].inputs[0] is nodes["k"].inputs[0]
    assert nodes["q"].inputs[0].producer().op_type == "DequantizeLinear"
    assert nodes["skip"].inputs[0].name == "n"


def test_equal_scales_on_one_tensor_are_one_pair_and_different_ones_are_two() -> None:
    for scales, pairs in (((0.1, 0.1), 1), ((0.1, 0.2), 2)):
        model = parse("n = Relu(input) [q] q = MatMul(n, w) [k] k = MatMul(n, w) logits = Add(q, k)", w=normal(4, 4))
        tensor = value(model, "n")
        insert(
            model,
            [ActivationPair(tensor, scale, uses(model, "n", name)) for scale, name in zip(scales, "qk", strict=True)],
        )
        assert Counter(ops(model))["QuantizeLinear"] == pairs


def test_a_shared_weight_is_stored_once_as_integers() -> None:
    model = parse("[a] a = MatMul(input, w) [b] logits = MatMul(a, w)", w=normal(4, 4))
    before = run(model, input=np.eye(4, dtype=np.float32))[0]
    insert(model, weights={"w": integers(model.graph.initializers["w"].const_value.numpy(), 1)})
    assert Counter(ops(model)) == {"DequantizeLinear": 1, "MatMul": 2}
    np.testing.assert_allclose(run(model, input=np.eye(4, dtype=np.float32))[0], before, atol=0.1)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", ["", ", b"])
def test_gemm_becomes_matmul_and_add(transposed: int, bias: str) -> None:
    weight = normal(3, 4) if transposed else normal(4, 3)
    body = f"[fc_Gemm] logits = Gemm <transB = {transposed}> (input, w{bias})"
    text = f"g (float[N, 4] input) => (float[N, 3] logits) {{ {body} }}"
    constants: dict[str, Any] = {"w": weight, **({"b": normal(3)} if bias else {})}
    model, x = parse(text, **constants), normal(5, 4)
    before = run(model, input=x)[0]
    insert(model, weights={"w": integers(weight, 0 if transposed else 1)})
    assert ops(model) == ["DequantizeLinear", "MatMul"] + (["Add"] if bias else [])
    assert next(node for node in model.graph if node.op_type == "DequantizeLinear").attributes["axis"].as_int() == 1
    np.testing.assert_allclose(run(model, input=x)[0], before, atol=0.1)


@pytest.mark.parametrize("factor", ["alpha = 0.5", "beta = 2.0", "transA = 1"])
def test_gemm_with_factors_stays_gemm(factor: str) -> None:
    shape = "[4, N]" if "transA" in factor else "[N, 4]"
    text = f"g (float{shape} input) => (float[N, 3] logits) {{ logits = Gemm <{factor}> (input, w, b) }}"
    weight, x = normal(4, 3), normal(4, 4)
    model = parse(text, w=weight, b=normal(3))
    before = run(model, input=x)[0]
    insert(model, weights={"w": integers(weight, 1)})
    assert ops(model) == ["DequantizeLinear", "Gemm"]
    np.testing.assert_allclose(run(model, input=x)[0], before, atol=0.1)


def test_convolution_weights_have_a_scale_per_output_channel() -> None:
    weight = normal(6, 3, 1, 1)
    model = parse(
        "g (float[N, 3, 4, 4] input) => (float[N, 6, 4, 4] logits) { [c] logits = Conv (input, w) }", w=weight
    )
    x = normal(2, 3, 4, 4)
    before = run(model, input=x)[0]
    pair = ActivationPair(model.graph.inputs[0], 0.03, uses(model, "input", "c"))
    insert(model, [pair], {"w": integers(weight, 0)})
    assert ops(model) == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv"]
    np.testing.assert_allclose(run(model, input=x)[0], before, atol=0.3)


def test_output_that_is_rounded_for_a_reader_keeps_its_float_value_for_the_caller() -> None:
    text = "g (float[N, 4] input) => (float[N, 4] logits, float[N, 4] n) { n = Relu(input) [m] logits = MatMul(n, w) }"
    model, x = parse(text, w=normal(4, 4)), normal(3, 4)
    insert(model, [ActivationPair(value(model, "n"), 1.0, uses(model, "n", "m"))])
    np.testing.assert_array_equal(run(model, input=x)[1], np.maximum(x, 0))


def test_names_that_are_taken_are_not_used_twice() -> None:
    model = parse("[n_scale] n = Relu(input) [m] logits = MatMul(n, w)", w=normal(4, 4))
    next(iter(model.graph)).outputs[0].name = "t"
    extra = ir.node("Identity", [model.graph.inputs[0]], name="t/QuantizeLinear")
    extra.outputs[0].name = "t.scale"
    model.graph.append(extra)
    insert(model, [ActivationPair(value(model, "t"), 0.1, uses(model, "t", "m"))], {"w": integers(normal(4, 4), 1)})
    names = [v.name for node in model.graph for v in node.outputs] + list(model.graph.initializers)
    assert len(names) == len(set(names))
    assert len({node.name for node in model.graph}) == len(ops(model))


def test_fp8_is_the_same_mechanism_with_e4m3() -> None:
    model, weights = two_linears()
    scale = scale_of(np.abs(weights["w1"]).max(axis=0), steps=448)
    weight = QuantizedTensor(quantize_fp8(weights["w1"], scale, axis=1), scale, 1)
    pair = ActivationPair(value(model, "n"), 0.02, uses(model, "n", "fc1"))
    x = normal(5, 4)
    before = run(model, input=x)[0]
    insert(model, [pair], {"w1": weight}, ir.DataType.FLOAT8E4M3FN)
    quantize = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    assert quantize.outputs[0].dtype == ir.DataType.FLOAT8E4M3FN
    after = run(model, input=x)[0]
    assert np.abs(after - before).max() <= 0.1 * np.abs(before).max()  # E4M3 has 3 bits behind the point
    assert np.any(after != before)


def test_fp8_is_refused_below_opset_19() -> None:
    model, _ = two_linears()
    model.opset_imports[""] = 18
    with pytest.raises(GraphError, match="FP8 needs opset 19 or newer, the graph has 18"):
        InsertQDQ(QdqPlacement(dtype=ir.DataType.FLOAT8E4M3FN))(model)


def test_per_channel_scales_are_refused_below_opset_13() -> None:
    model, weights = two_linears()
    model.opset_imports[""] = 12
    with pytest.raises(GraphError, match="opset 13 or newer, the graph has 12"):
        InsertQDQ(QdqPlacement(weights={"w1": integers(weights["w1"], 1)}))(model)


def test_a_weight_that_is_not_there_is_named() -> None:
    model, weights = two_linears()
    with pytest.raises(GraphError, match="weight 'w9' is not in the graph"):
        insert(model, weights={"w9": integers(weights["w1"], 1)})


def test_a_tensor_of_another_graph_is_named() -> None:
    model, _ = two_linears()
    other, _ = two_linears()
    with pytest.raises(GraphError, match="tensor 'n' is not in the graph"):
        insert(model, [ActivationPair(value(other, "n"), 0.1, ())])


def test_nothing_to_do_changes_nothing() -> None:
    model, _ = two_linears()
    before = ir.to_proto(model).SerializeToString()
    assert not insert(model).modified
    assert ir.to_proto(model).SerializeToString() == before


def test_a_copy_can_be_rewritten_and_made_fp16_without_touching_the_original() -> None:
    model, weights = two_linears()
    before = ir.to_proto(model).SerializeToString()
    copy = model.clone()
    insert(
        copy, [ActivationPair(value(copy, "n"), 0.0199999, uses(copy, "n", "fc1"))], {"w1": integers(weights["w1"], 1)}
    )
    ConvertToFloat16()(copy)
    assert ir.to_proto(model).SerializeToString() == before
    assert "DequantizeLinear" in ops(copy)
