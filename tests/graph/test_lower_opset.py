"""Lowering the opset keeps the numbers, or is refused by name."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx_text import check, ops, parse, run

from vitdeploy.errors import GraphError
from vitdeploy.graph.lower_opset import LowerOpset

X = np.linspace(-6, 6, 24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize("opset", [17, 18, 19])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_written_out_below_opset_20(opset: int, approximate: str) -> None:
    model = parse(f'g (float[N, 6] x) => (float[N, 6] y) {{ [act] y = Gelu <approximate = "{approximate}"> (x) }}')
    expected = run(model, x=X)[0]
    assert LowerOpset(opset)(model).modified
    check(model)
    assert model.opset_imports[""] == opset
    assert "Gelu" not in ops(model)
    assert all(node.name.startswith("act/") for node in model.graph)
    np.testing.assert_allclose(run(model, x=X)[0], expected, rtol=1e-5, atol=1e-6)
    assert not LowerOpset(opset)(model).modified


def test_gelu_stays_one_node_at_opset_20() -> None:
    model = parse("g (float[N, 6] x) => (float[N, 6] y) { y = Gelu(x) }")
    assert not LowerOpset(20)(model).modified
    assert ops(model) == ["Gelu"]


def test_axes_and_split_sizes_move_below_opset_18() -> None:
    model = parse(
        """g (float[N, 6] x) => (float[N, 1] y) {
            a, b, c = Split <axis = 1, num_outputs = 3> (x) d = Add(a, b) e = Mul(d, c) y = ReduceMean(e, axes)
        }""",
        axes=np.array([1]),
    )
    expected = run(model, x=X)[0]
    LowerOpset(17)(model)
    check(model)
    np.testing.assert_allclose(run(model, x=X)[0], expected, rtol=1e-6)
    read = {value.name for node in model.graph for value in node.inputs if value is not None}
    assert set(model.graph.initializers) <= read, "constants that became attributes go"


def test_layer_norm_reshape_and_cast_need_nothing() -> None:
    model = parse(
        """g (float[N, 6] x) => (float[N, 3, 2] y) {
            a = LayerNormalization <epsilon = 1e-6> (x, g, b) c = Reshape(a, s) y = Cast <to = 1> (c)
        }""",
        g=np.ones(6, np.float32),
        b=np.zeros(6, np.float32),
        s=np.array([-1, 3, 2]),
    )
    expected = run(model, x=X)[0]
    LowerOpset(17)(model)
    check(model)
    np.testing.assert_array_equal(run(model, x=X)[0], expected)


def test_a_node_that_has_no_older_form_is_refused_by_name() -> None:
    text = (
        "g (float[N, 1, 4, 4] x, float[N, 2, 2, 2] grid) => (float[N, 1, 2, 2] y) { [warp] y = GridSample (x, grid) }"
    )
    with pytest.raises(
        GraphError, match=r"node 'warp' cannot be lowered from opset 20 to 19: GridSample means something"
    ):
        LowerOpset(19)(parse(text))
    text = "g (float[N, 6] x) => (int8[N, 6] y) { [q] y = QuantizeLinear <output_dtype = 3> (x, s) }"
    quantized = parse(text, opset=21, s=np.float32(0.1))
    with pytest.raises(
        GraphError, match=r"node 'q' cannot be lowered from opset 21 to 20: .* no attribute 'output_dtype'"
    ):
        LowerOpset(20)(quantized)


def test_an_operator_unknown_to_the_older_opset_is_refused() -> None:
    model = parse(
        "g (float[N, 6] x) => (float[N, 6] y) { [norm] y = RMSNormalization (x, g) }",
        opset=23,
        g=np.ones(6, np.float32),
    )
    with pytest.raises(GraphError, match=r"node 'norm' .* RMSNormalization does not exist there; export it again"):
        LowerOpset(20)(model)


@pytest.mark.parametrize(
    ("text", "zero", "message"),
    [
        (
            "[q] i = QuantizeLinear(x, s, z) y = DequantizeLinear(i, s, z)",
            np.uint16(7),
            "QuantizeLinear knows no uint16",
        ),
        ("[q] y = DequantizeLinear(w, s, z)", np.int16(0), "DequantizeLinear knows no int16"),
        ("[q] y = Identity(w)", ml_dtypes.int4(0), "Identity knows no int4"),
    ],
)
def test_element_types_that_the_older_opset_has_not(text: str, zero: Any, message: str) -> None:
    """As ONNX Runtime's quantizer writes 16-bit activations: such a graph was lowered to one that nothing opens."""
    constants = {"s": np.float32(0.1), "z": np.asarray(zero), "w": np.full((4, 6), zero)}
    read = {name: value for name, value in constants.items() if f"{name}," in text or f"{name})" in text}
    y = "int4" if "Identity" in text else "float"
    model = parse(f"g (float[N, 6] x) => ({y}[N, 6] y) {{ {text} }}", opset=21, **read)
    with pytest.raises(GraphError, match=f"node 'q' cannot be lowered from opset 21 to 20: {message} there; export it"):
        LowerOpset(20)(model)


def test_attention_of_opset_23_is_named_with_advice_that_helps() -> None:
    model = parse(
        "g (float[N, 2, 4, 8] x) => (float[N, 2, 4, 8] y) { [att] y = Attention (x, x, x) }",
        opset=23,
    )
    message = r"node 'att' .* from opset 23 to 20: Attention .* there; export it again, for opset 20 or older"
    with pytest.raises(GraphError, match=message):
        LowerOpset(20)(model)


@pytest.mark.parametrize("opset", [16, 21])
def test_other_opsets_are_not_offered(opset: int) -> None:
    with pytest.raises(GraphError, match=f"opset {opset} is not offered, expected 17 to 20"):
        LowerOpset(opset)
