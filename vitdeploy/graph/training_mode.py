"""Graphs that were exported in training mode: what they give depends on chance, or on the other images of a batch."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.errors import GraphError

RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
)


def refuse_training_mode(model: ir.Model, where: str) -> None:
    """Refuse nodes in front of the outputs that draw random numbers or take the statistics of the batch.

    ONNX Runtime draws the same numbers in every session, so that such a graph looks reproducible.

    Raises:
        GraphError: There is such a node; the line names it.
    """
    for node in _before(list(model.graph.outputs)):
        attribute = node.attributes.get("training_mode")
        if node.op_type in RANDOM:
            reason = "draws random numbers"
        elif node.op_type == "BatchNormalization" and attribute is not None and attribute.as_int():
            reason = "takes mean and variance of the batch"
        else:
            continue
        raise GraphError(
            f"{where} was exported in training mode: node {node.name!r} ({node.op_type}) {reason}; export it again "
            "after model.eval()"
        )


def _before(values: list[ir.Value]) -> list[ir.Node]:
    """Return the nodes that some values depend on."""
    found: dict[ir.Node, None] = {}
    front = list(values)
    while front:
        node = front.pop().producer()
        if node is not None and node not in found:
            found[node] = None
            front.extend(value for value in node.inputs if value is not None)
    return list(found)
