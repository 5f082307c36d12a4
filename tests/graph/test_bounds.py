"""What a graph of others states to be endless or gigantic is refused before anything runs it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from vitdeploy.errors import GraphError
from vitdeploy.graph.bounds import refuse_large, refuse_unbounded

HEAD = '<ir_version: 10, opset_import: ["": 20]> g (float[n,3,8,8] input) => (float[n,3,8,8] logits) '
BODY = (
    "<body = b (int64 i, bool going, float[n,3,8,8] x) => (bool again, float[n,3,8,8] y) "
    "{ again = Identity(going) y = Relu(x) }>"
)


def _loop(turns: str, first: str = "turns") -> str:
    return f"{{ {turns} going = Constant<value = bool {{1}}>() logits = Loop {BODY} ({first}, going, input) }}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (_loop("turns = Constant<value = int64 {4611686018427387904}>()"), r"loops 4611686018427387904 times"),
        (_loop("turns = Constant<value_int = 100001>()"), r"loops 100001 times, expected at most 100000"),
        (_loop("", '""'), "may never end"),
        (_loop("many = Constant<value = int64 {65536}>() turns = Mul(many, many)"), "loops 4294967296 times"),
        (
            _loop("shape = Shape(input) first = Constant<value = int64 {0}>() turns = Gather(shape, first)"),
            "does not state",
        ),
        (
            "{ size = Constant<value = int64[2] {65536, 65536}>() big = ConstantOfShape(size) logits = Relu(input) }",
            r"\(ConstantOfShape\) makes at least 4\.29e\+09 values",
        ),
        (
            "{ size = Constant<value_ints = [4, 100000, 100000]>() big = Expand(input, size) logits = Relu(input) }",
            r"\(Expand\) makes at least 4e\+10",
        ),
        (
            "{ n = Constant<value = int64[4] {1, 1, 99999, 99999}>() big = Tile(input, n) logits = Relu(input) }",
            r"\(Tile\) makes at least 1\.92e\+12",
        ),
        (
            "{ low = Constant<value = int64 {0}>() high = Constant<value = int64 {4611686018427387904}>() "
            "step = Constant<value = int64 {1}>() big = Range(low, high, step) logits = Relu(input) }",
            r"\(Range\) makes at least 4\.61e\+18 values",
        ),
    ],
)
def test_it_is_refused_with_the_node_and_the_number(body: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        refuse_unbounded(ir.from_onnx_text(HEAD + body), "'x.onnx'")


COMPUTED = {
    "through Identity": "size = Identity(given) big = ConstantOfShape(size)",
    "through Cast": "f = Cast<to = 1>(given) size = Cast<to = 7>(f) big = ConstantOfShape(size)",
    "through Mul": "two = Constant<value_ints = [2, 2]>() size = Mul(given, two) big = ConstantOfShape(size)",
    "through Concat": "i = Constant<value_ints = [1]>() size = Concat<axis = 0>(i, given) big = ConstantOfShape(size)",
    "through Gather": "i = Constant<value_ints = [1, 0]>() size = Gather(given, i) big = ConstantOfShape(size)",
    "through Slice": (
        "a = Constant<value_ints = [0]>() b = Constant<value_ints = [9]>() size = Slice(given, a, b) "
        "big = ConstantOfShape(size)"
    ),
    "through ReduceProd and Unsqueeze": (
        "all = ReduceProd<keepdims = 0>(given) axis = Constant<value_ints = [0]>() size = Unsqueeze(all, axis) "
        "big = ConstantOfShape(size)"
    ),
    "through Shape": "i = Constant<value_ints = [1, 1]>() s = Shape(i) p = Pow(given, s) big = ConstantOfShape(p)",
    "Resize by scales": "s = Constant<value_floats = [1.0, 1.0, 9999.0, 9999.0]>() big = Resize(input, , s)",
    "Resize by sizes": "s = Constant<value_ints = [1, 1, 65536, 65536]>() big = Resize(input, , , s)",
    "Upsample": "s = Constant<value_floats = [1.0, 1.0, 9999.0, 9999.0]>() big = Upsample(input, s)",
    "Pad": "p = Constant<value_ints = [0, 0, 0, 0, 0, 0, 70000, 70000]>() big = Pad(input, p)",
    "OneHot": (
        "i = Constant<value_ints = [1]>() d = Constant<value_int = 4611686018427387904>() "
        "v = Constant<value_floats = [0.0, 1.0]>() big = OneHot(i, d, v)"
    ),
    "RandomNormal": "big = RandomNormal<shape = [65536, 65536]>()",
}


@pytest.mark.parametrize("body", COMPUTED.values(), ids=COMPUTED)
def test_a_size_is_followed_through_what_computes_it(body: str) -> None:
    given = "given = Constant<value = int64[2] {65536, 65536}>()"
    with pytest.raises(GraphError, match=r"makes at least \d\S+ values, expected at most 2³¹"):
        refuse_unbounded(ir.from_onnx_text(f"{HEAD}{{ {given} {body} logits = Relu(input) }}"), "'x.onnx'")


def test_turns_of_loops_within_loops_are_multiplied() -> None:
    inner = _loop("turns = Constant<value = int64 {1000}>()").strip("{} ").replace("logits", "y").replace("input", "x")
    heading = "c (int64 j, bool on, float[n,3,8,8] x) => (bool more, float[n,3,8,8] y)"
    outer = f"<body = {heading} {{ more = Identity(on) {inner} }}>"
    text = (
        f"{HEAD}{{ many = Constant<value = int64 {{1000}}>() on = Constant<value = bool {{1}}>() "
        f"logits = Loop {outer} (many, on, input) }}"
    )
    with pytest.raises(GraphError, match="loops 1000 times within 1000 turns of the loops around it"):
        refuse_unbounded(ir.from_onnx_text(text), "'x.onnx'")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("big = ConvTranspose<strides = [40000, 40000]>(input, w) logits = Relu(input)", r"ConvTranspose.*a value has"),
        ("p = MaxPool<kernel_shape = [1, 1], pads = [0, 0, 0, 90000]>(input) "
         "q = Transpose<perm = [0, 1, 3, 2]>(p) big = MatMul(q, p) logits = Relu(input)",
         r"a value has 1\.22e\+11 elements"),
        ("p = MaxPool<kernel_shape = [1, 1], pads = [0, 0, 9000, 9000]>(input) big = Relu(p) logits = Relu(input)",
         r"needs at least 9\.7 GB for 5 images at node 'Relu' \(Relu\), and this machine has 8\.0 GB"),
    ],
)  # fmt: skip
def test_what_shapes_make_larger_than_memory_is_refused(body: str, message: str) -> None:
    weight = "w = Constant<value = float[3,1,1,1] {1.0, 1.0, 1.0}>() "
    model = ir.from_onnx_text(f"{HEAD}{{ {weight}{body} }}")
    with pytest.raises(GraphError, match=message):
        refuse_large(model, "'x.onnx'", batch=5, memory=8 * 10**9)


def test_values_that_are_read_no_more_take_no_memory() -> None:
    chain = " ".join(f"x{index + 1} = Relu(x{index})" for index in range(50))
    body = f"{{ x0 = MaxPool<kernel_shape = [1, 1], pads = [0, 0, 2000, 2000]>(input) {chain} logits = Relu(input) }}"
    refuse_large(ir.from_onnx_text(HEAD + body), "'x.onnx'", batch=5, memory=10**9)


@pytest.mark.parametrize(
    "body",
    [
        _loop("turns = Constant<value = int64 {12}>()"),
        "{ size = Constant<value = int64[4] {-1, 3, 8, 8}>() logits = Reshape(input, size) }",
        "{ size = Shape(input) big = ConstantOfShape(size) logits = Add(input, big) }",
    ],
)
def test_what_has_a_bound_passes(body: str) -> None:
    refuse_unbounded(ir.from_onnx_text(HEAD + body), "'x.onnx'")


def test_a_loop_within_a_branch_counts() -> None:
    inner = _loop("turns = Constant<value = int64 {4611686018427387904}>()").strip("{} ").replace("logits", "z")
    text = (
        HEAD + "{ yes = Constant<value = bool {1}>() logits = If (yes) "
        f"<then_branch = t () => (float[n,3,8,8] z) {{ {inner} }}, "
        "else_branch = e () => (float[n,3,8,8] z) { z = Relu(input) }> }"
    )
    with pytest.raises(GraphError, match="4611686018427387904"):
        refuse_unbounded(ir.from_onnx_text(text), "'x.onnx'")


@pytest.mark.torch  # timm has the preprocessing
def test_export_refuses_an_endless_file_before_it_runs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vitdeploy.cli import main

    path = tmp_path / "endless.onnx"
    ir.save(ir.from_onnx_text(HEAD + _loop("turns = Constant<value = int64 {4611686018427387904}>()")), path)
    code = main(["export", str(path), "--preprocess", "timm:resnet18.a1_in1k", "-o", str(tmp_path / "out.onnx")])
    assert code == 1
    assert "loops 4611686018427387904 times" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()
