"""What counts as a legal graph."""

import numpy as np
import pytest
from onnx_text import parse

from vitdeploy.graph.legality import FORBIDDEN, findings

LEGAL = "[a] a = Relu(input) [b] logits = Neg(a)"


def test_a_plain_graph_is_legal() -> None:
    assert findings(parse(LEGAL)) == []


def test_run_time_sizes_are_found_and_counted() -> None:
    model = parse(
        """g (float[batch, 4] input) => (float[batch, 4] logits) {
            [a] s = Shape(input) [b] t = Shape(input) [c] u = Add(s, t)
            [d] v = Div(u, two) [e] logits = Expand(input, v)
        }""",
        two=np.array(2),
    )
    found = {finding.subject: finding for finding in findings(model)}
    assert found["Shape"].count == 2
    assert "2 × Shape computes sizes at run time" in str(found["Shape"])
    assert set(found) == {"Shape", "Expand"}


def test_a_node_of_another_domain_is_found() -> None:
    model = parse("[a] logits = com.microsoft.Gelu(input)")
    (finding,) = findings(model)
    assert str(finding).startswith("com.microsoft::Gelu is no operator of ONNX: it stays in high precision, and")
    (finding,) = findings(parse("[a] logits = com.microsoft.nchwc.Conv(input)"))
    assert str(finding).startswith(
        "com.microsoft.nchwc::Conv is laid out for the kind of CPU on which ONNX Runtime wrote"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[a] logits = Neg(a) [b] a = Relu(input)",
            "TensorRT refuses",
        ),
        (
            "[a] a = Relu(input) [a] logits = Neg(a)",
            "no name of its own",
        ),
        ("g (float[batch, 4] x) => (float[batch, 4] logits) { [a] logits = Neg(x) }", "is not the one 'input'"),
        ("g (float16[batch, 4] input) => (float16[batch, 4] logits) { [a] logits = Neg(input) }", "expected FLOAT"),
        ("g (float[2, 4] input) => (float[2, 4] logits) { [a] logits = Neg(input) }", "no dynamic dimension 'batch'"),
    ],
)
def test_structure_is_judged(text: str, expected: str) -> None:
    (finding,) = findings(parse(text))
    assert expected in str(finding)


def test_every_forbidden_operator_has_a_reason() -> None:
    assert all(len(why) > 10 and not why.endswith(".") for why in FORBIDDEN.values())
    assert {"Shape", "Expand", "If", "Loop", "Resize", "Einsum", "ScatterND"} <= set(FORBIDDEN)
