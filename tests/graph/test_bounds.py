"""What a graph of others states to be endless or gigantic is refused before anything runs it."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from vitdeploy.errors import GraphError
from vitdeploy.graph.bounds import refuse_unbounded

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
        (_loop("one = Constant<value = int64 {3}>() turns = Mul(one, one)"), "does not state"),
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
            r"\(Tile\) makes at least 1e\+10",
        ),
        (
            "{ low = Constant<value = int64 {0}>() high = Constant<value = int64 {4611686018427387904}>() "
            "step = Constant<value = int64 {1}>() big = Range(low, high, step) logits = Relu(input) }",
            r"\(Range\) makes 4\.61e\+18 values",
        ),
    ],
)
def test_it_is_refused_with_the_node_and_the_number(body: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        refuse_unbounded(ir.from_onnx_text(HEAD + body), "'x.onnx'")


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
def test_export_refuses_an_endless_file_before_it_runs_it(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    from vitdeploy.cli import main

    path = tmp_path / "endless.onnx"
    ir.save(ir.from_onnx_text(HEAD + _loop("turns = Constant<value = int64 {4611686018427387904}>()")), path)
    code = main(["export", str(path), "--preprocess", "timm:resnet18.a1_in1k", "-o", str(tmp_path / "out.onnx")])
    assert code == 1
    assert "loops 4611686018427387904 times" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()
