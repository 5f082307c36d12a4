"""Shapes that exporters compute at run time become constants, with the batch as the one unknown."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import check, ops, parse, run

from vitdeploy.errors import GraphError
from vitdeploy.graph.clean import clean
from vitdeploy.graph.fix_image_size import FixImageSize
from vitdeploy.graph.pad_tokens import PadTokens
from vitdeploy.graph.remove_no_ops import RemoveNoOps
from vitdeploy.graph.resolve_shapes import ResolveShapes
from vitdeploy.graph.simplify import Simplify

RNG = np.random.default_rng(0)
INT = {f"i{number}": np.array(number) for number in (0, 1, 2, 3, 4, 6, 7, 8)}
VECTORS = {"minus1": np.array([-1]), "v0": np.array([0]), "v1": np.array([1]), "v2": np.array([2]), "v3": np.array([3])}


def graph(body: str, image: str = "[N, 6, 4, 8]", out: str = "[M, a, b]", **constants: Any) -> ir.Model:
    text = f"g (float{image} x) => (float{out} y) {{ {body} }}"
    known = {**INT, **VECTORS, **constants}
    return parse(text, **{name: value for name, value in known.items() if _reads(text, name)})


def _reads(text: str, name: str) -> bool:
    return any(f"{before}{name}{after}" in text for before in "( ," for after in ",)")


def assert_same(model: ir.Model, before: ir.Model) -> None:
    for batch in (1, 2, 5):
        x = RNG.standard_normal((batch, 6, 4, 8)).astype(np.float32)
        np.testing.assert_array_equal(run(model, x=x)[0], run(before, x=x)[0])


CHAINS = {
    "torch script view": """s = Shape (x) b = Gather (s, i0) u = Unsqueeze (b, v0) t = Concat <axis = 0> (u, v3, minus1)
        y = Reshape (x, t)""",
    "sizes multiplied": """s = Shape (x) b = Gather (s, i0) h = Gather (s, i2) w = Gather (s, i3) hw = Mul (h, w)
        ub = Unsqueeze (b, v0) uhw = Unsqueeze (hw, v0) c = Gather (s, i1) uc = Unsqueeze (c, v0)
        t = Concat <axis = 0> (ub, uc, uhw) y = Reshape (x, t)""",
    "windows and back": """s = Shape (x) h = Gather (s, i2) nh = Div (h, i2) n = Gather (s, i0) rows = Mul (n, nh)
        ur = Unsqueeze (rows, v0) t = Concat <axis = 0> (ur, v3, minus1) r = Reshape (x, t)
        s2 = Shape (r) m = Gather (s2, i0) back = Div (m, i2) ub = Unsqueeze (back, v0)
        t2 = Concat <axis = 0> (ub, v2, minus1) y = Reshape (r, t2)""",
    "a slice of the shape": """s = Shape <start = 0, end = 2> (x) t = Concat <axis = 0> (s, minus1)
        y = Reshape (x, t)""",
    "through floats": """s = Shape (x) h = Gather (s, i2) f = Cast <to = 1> (h) g = Div (f, half) c = Ceil (g)
        k = Cast <to = 7> (c) uk = Unsqueeze (k, v0) b = Gather (s, i0) ub = Unsqueeze (b, v0)
        t = Concat <axis = 0> (ub, uk, minus1) y = Reshape (x, t)""",
    "expand's own target": """s = Shape (x) b = Gather (s, i0) ub = Unsqueeze (b, v0)
        w = Concat <axis = 0> (ub, v3, minus1) k = Shape (w)
        ones = ConstantOfShape <value: tensor = int64[1] one {1}> (k) m = Mul (ones, minus1)
        q = Equal (w, m) t = Where (q, ones, w) ub2 = Slice (t, v0, v1, v0) t2 = Concat <axis = 0> (ub2, v3, minus1)
        y = Reshape (x, t2)""",
    "copied sizes": """s = Shape (x) b = Gather (s, i0) ub = Unsqueeze (b, v0) z = Concat <axis = 0> (ub, v0, minus1)
        y = Reshape (x, z)""",
}  # fmt: skip


@pytest.mark.parametrize("text", CHAINS.values(), ids=CHAINS)
def test_a_computed_target_becomes_a_constant_with_one_free_size(text: str) -> None:
    model, before = (graph(text, half=np.float32(2)) for _ in range(2))
    Simplify()(model)
    check(model)
    assert set(ops(model)) == {"Reshape"}
    for node in model.graph:
        target = node.inputs[1].const_value.numpy()
        assert np.sum(target < 0) == 1, target
        assert not np.any(target == 0), target
    assert_same(model, before)
    assert not ResolveShapes()(model).modified


def test_with_a_fixed_batch_every_size_is_a_number() -> None:
    model = graph(CHAINS["windows and back"], image="[4, 6, 4, 8]")
    Simplify()(model)
    assert [node.inputs[1].const_value.numpy().tolist() for node in model.graph] == [[4, 2, 96]]


def test_a_wrong_stored_shape_of_the_traced_batch_is_not_believed() -> None:
    """The legacy exporter stores shapes of the batch that it traced, also where the batch is dynamic."""
    text = CHAINS["torch script view"].replace("y = Reshape (x, t)", "r = Reshape (x, t) y = Neg (r)")
    model, before = (graph(text) for _ in range(2))
    for node in model.graph:
        if node.op_type == "Reshape":
            node.outputs[0].shape = ir.Shape([1, 3, 64])
    ResolveShapes()(model)
    assert_same(model, before)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("s = Shape (x) b = Gather (s, i0) d = Div (b, i2) u = Unsqueeze (d, v0) t = Concat <axis = 0> (u, v3, minus1) "
         "y = Reshape (x, t)", "Div"),
        ("s = Shape (x) b = Gather (s, i0) d = Add (b, i1) u = Unsqueeze (d, v0) t = Concat <axis = 0> (u, v3, minus1) "
         "y = Reshape (x, t)", "Add"),
        ("s = Shape (x) b = Gather (s, i0) d = Min (b, i4) u = Unsqueeze (d, v0) t = Concat <axis = 0> (u, v3, minus1) "
         "y = Reshape (x, t)", "Min"),
    ],
    ids=["half a batch", "one more than the batch", "at most four"],
)  # fmt: skip
def test_what_is_no_multiple_of_the_batch_stays_computed(text: str, left: str) -> None:
    model = graph(text)
    Simplify()(model)
    assert left in ops(model)
    assert ops(model)[-1] == "Reshape"
    assert model.graph[-1].inputs[1].const_value is None


@pytest.mark.parametrize(
    ("cut", "size"),
    [("v0, v1, v0", 1), ("v1, v2, v0", None), ("v0, all, v0", "N"), ("v0, v2, v1", "N")],
    ids=["the first image", "the second image, which may not be there", "all images", "along another axis"],
)
def test_the_size_of_a_cut_along_the_batch_is_that_of_every_batch(cut: str, size: int | str | None) -> None:
    text = f"c = Slice (x, {cut}) s = Shape (c) y = Cast <to = 1> (s)"
    model = graph(text, out="[k]", all=np.array([2**63 - 1]))
    ResolveShapes()(model)
    first = model.graph[0].outputs[0].shape[0]
    assert (first if isinstance(first, int) else first.value) == size


@pytest.mark.parametrize(
    ("condition", "batch", "resolved"),
    [("Equal (b, i0)", "N", False), ("Greater (b, i0)", "N", True), ("Equal (b, i2)", "N", None)],
)
def test_conditions_on_the_batch_are_decided_only_where_every_batch_agrees(
    condition: str, batch: str, resolved: bool | None
) -> None:
    text = f"""s = Shape (x) b = Gather (s, i0) c = {condition} k = Where (c, i2, i3) u = Unsqueeze (k, v0)
        ub = Unsqueeze (b, v0) t = Concat <axis = 0> (ub, u, minus1) y = Reshape (x, t)"""
    model, before = (graph(text) for _ in range(2))
    Simplify()(model)
    assert ("Where" in ops(model)) is (resolved is None)
    if resolved is not None:
        assert model.graph[-1].inputs[1].const_value.numpy().tolist() == [
            -1,
            2 if resolved else 3,
            96 if resolved else 64,
        ]
    assert_same(model, before)


def test_an_unknown_image_size_keeps_its_chain_and_a_known_one_folds_it() -> None:
    text = CHAINS["sizes multiplied"]
    model = graph(text, image="[N, 6, H, W]")
    Simplify()(model)
    assert "Shape" in ops(model)
    FixImageSize((6, 4, 8))(model)
    Simplify()(model)
    assert ops(model) == ["Reshape"]
    assert_same(model, graph(text))


def test_another_image_size_than_the_graph_has_is_refused() -> None:
    with pytest.raises(GraphError, match=r"expected \[N, 3, 32, 32\]"):
        FixImageSize((3, 32, 32))(graph(CHAINS["sizes multiplied"], image="[N, 3, 4, W]"))


TOKEN = (
    "s = Shape (x) b = Gather (s, i0) u = Unsqueeze (b, v0) t = Concat <axis = 0> (u, v1, v3) e = Expand (token, t) "
)
ROWS = "r = Reshape (x, rows) "
TOKENS = {
    "before, then positions": (ROWS + TOKEN + "c = Concat <axis = 1> (e, r) y = Add (c, position)", ["Pad", "Add"]),
    "before, nothing added": (ROWS + TOKEN + "c = Concat <axis = 1> (e, r) y = Neg (c)", ["Pad", "Add", "Neg"]),
    "behind": (ROWS + TOKEN + "c = Concat <axis = -2> (r, e) y = Add (position, c)", ["Pad", "Add"]),
    "on both sides": (
        ROWS + TOKEN + "f = Expand (other, t) c = Concat <axis = 1> (e, r, f) y = Neg (c)", ["Pad", "Add", "Neg"]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "left"), TOKENS.values(), ids=TOKENS)
def test_tokens_are_padded_and_added_to_the_bit(text: str, left: list[str]) -> None:
    def make() -> ir.Model:
        constants = {"token": RNG.standard_normal((1, 1, 3)), "other": RNG.standard_normal((1, 1, 3))}
        constants["position"] = RNG.standard_normal((1, 65, 3))
        singles: dict[str, Any] = {name: value.astype(np.float32) for name, value in constants.items()}
        return graph(text, rows=np.array([0, 64, 3]), **singles)

    model = make()
    before = model.clone()
    Simplify()(model)
    assert PadTokens()(model).modified
    Simplify()(model)
    check(model)
    assert ops(model) == ["Reshape", *left]
    assert_same(model, before)
    assert not PadTokens()(model).modified


def test_tokens_that_are_computed_from_the_image_stay() -> None:
    text = ROWS + "m = ReduceMean (r, v1) c = Concat <axis = 1> (m, r) y = Neg (c)"
    model = graph(text, rows=np.array([0, 64, 3]))
    assert not PadTokens()(model).modified


def test_an_expand_whose_reader_broadcasts_is_passed_by() -> None:
    text = "n = ReduceL2 (x, v1) s = Shape (x) e = Expand (n, s) y = Div (x, e)"
    model, before = (graph(text, out="[M, a, b, c]") for _ in range(2))
    Simplify()(model)
    assert ops(model) == ["ReduceL2", "Div"]
    assert_same(model, before)


def test_an_expand_that_widens_the_other_operand_stays() -> None:
    text = "n = ReduceL2 (x, v1) e = Expand (n, wide) m = ReduceMean (x, v1) y = Div (m, e)"
    model = graph(text, out="[M, a, b, c]", wide=np.array([1, 6, 4, 8]))
    Simplify()(model)
    assert "Expand" in ops(model)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("p = Pad (x, none) y = Neg (p)", ["Neg"]),
        ("p = Pad (x, some) y = Neg (p)", ["Pad", "Neg"]),
        ("p = Slice (x, v0, all, v3) y = Neg (p)", ["Neg"]),
        ("p = Slice (x, v0, eight, v3) y = Neg (p)", ["Neg"]),
        ("p = Slice (x, v0, eight, v3, minus1) y = Neg (p)", ["Slice", "Neg"]),
        ("p = Slice (x, v1, all, v3) y = Neg (p)", ["Slice", "Neg"]),
        ("p = Slice (x, v0, seven, v3) y = Neg (p)", ["Slice", "Neg"]),
        ("p = Concat <axis = 1> (x) y = Neg (p)", ["Neg"]),
        ("p = Concat <axis = 1> (x, x) y = Neg (p)", ["Concat", "Neg"]),
    ],
)
def test_moves_that_move_nothing_are_removed(text: str, left: list[str]) -> None:
    constants: dict[str, Any] = {"none": np.zeros(8, np.int64), "some": np.array([0, 0, 0, 0, 0, 0, 0, 1])}
    constants |= {"all": np.array([np.iinfo(np.int64).max]), "eight": np.array([8]), "seven": np.array([7])}
    model = graph(text, out="[M, a, b, c]", **constants)
    for node in model.graph:
        node.outputs[0].shape = ir.Shape(["N", 6, 4, 8])
    RemoveNoOps()(model)
    assert ops(model) == left


def test_clean_gives_a_graph_without_computed_shapes() -> None:
    head = "p = ReduceMean <keepdims = 0> (y1, v1) y = MatMul (p, w)"
    text = ROWS + TOKEN + "c = Concat <axis = 1> (e, r) y1 = Add (c, position) " + head
    constants = {"token": np.ones((1, 1, 3), "f4"), "position": np.ones((1, 65, 3), "f4"), "w": np.ones((3, 5), "f4")}
    model = graph(text, image="[N, 6, H, W]", out="[M, 5]", rows=np.array([0, 64, 3]), **constants)
    clean(model, image=(6, 4, 8))
    assert ops(model) == ["Reshape", "Pad", "Add", "ReduceMean", "MatMul"]
