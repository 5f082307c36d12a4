"""Write Einsum as the MatMul that it stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.insert_qdq import new_initializer
from vitdeploy.graph.values import array_of


class LowerEinsum(ir.passes.InPlacePass):
    """Replace products of two tensors that Keras, JAX and hand-written attention export as Einsum, exactly.

    ``abc,cde->abde`` with a constant second factor: MatMul(x, W [c, d·e]) and a Reshape; of several summed axes
    (``abcd,cde->abe``) a Reshape in front. A constant Add behind that runs over the last axes goes between, where a
    linear has its bias. ``aecd,abcd->acbe`` of two activations: MatMul of the last axes, with Transposes where axes are
    in another order.

    Refused: one, three or more operands, ``...``, a letter twice in an operand or in one operand alone and not in the
    output, constant factors with an axis in common that is not summed, activations with several axes of their own.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, lowered = model.graph, 0
        for node in list(graph):
            if node.op_type == "Einsum" and not node.domain:
                lowered += _lowered(graph, node)
        return ir.passes.PassResult(model, modified=bool(lowered))


@dataclass(frozen=True)
class _Product:
    """``a`` and ``b`` [letters] make ``out``; ``shared`` axes stay, ``summed`` go, the rest is of one operand alone."""

    a: str
    b: str
    out: str

    @property
    def shared(self) -> str:
        return "".join(letter for letter in self.out if letter in self.a and letter in self.b)

    @property
    def summed(self) -> str:
        return "".join(letter for letter in self.a if letter in self.b and letter not in self.out)

    @property
    def of_a(self) -> str:
        return "".join(letter for letter in self.a if letter not in self.b)

    @property
    def of_b(self) -> str:
        return "".join(letter for letter in self.out if letter in self.b and letter not in self.a)

    @property
    def is_plain(self) -> bool:
        letters = (self.a, self.b, self.out)
        once = all(text.isalpha() and len(set(text)) == len(text) for text in letters)
        known = set(self.out) <= set(self.a) | set(self.b)
        alone = set(self.a) ^ set(self.b)
        return once and known and alone <= set(self.out) and bool(self.summed)


class _Writer:
    """Collects nodes; the product has the name of the node that it replaces, which says where in the model it is."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node, self.nodes = graph, node, list[ir.Node]()
        self.stem = node.name or node.outputs[0].name or "Einsum"

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        name = self.node.name if op_type == "MatMul" else f"{self.stem}/{op_type}_{len(self.nodes)}"
        node = ir.node(op_type, inputs, attributes, name=name)
        node.metadata_props.update(self.node.metadata_props)
        node.outputs[0].name = f"{self.stem}/{op_type}_{len(self.nodes)}_out"
        node.outputs[0].type = self.node.outputs[0].type or inputs[0].type
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        while name in self.graph.initializers:
            name += "_"
        return new_initializer(self.graph, name, np.ascontiguousarray(array))

    def permuted(self, value: ir.Value, letters: str, wanted: str) -> ir.Value:
        if letters == wanted:
            return value
        return self.op("Transpose", value, perm=[letters.index(letter) for letter in wanted])

    def reshaped(self, value: ir.Value, sizes: Sequence[int]) -> ir.Value:
        return self.op("Reshape", value, self.constant(f"{self.stem}/shape", np.asarray(sizes, np.int64)))


def _lowered(graph: ir.Graph, node: ir.Node) -> bool:
    product = _parsed(node)
    if product is None:
        return False
    first, second = node.inputs
    assert first is not None
    assert second is not None
    writer = _Writer(graph, node)
    if (array := array_of(second)) is not None:
        done = _linear(writer, product, first, second, array)
    elif (array := array_of(first)) is not None:
        done = _linear(writer, _Product(product.b, product.a, product.out), second, first, array)
    else:
        done = _of_activations(writer, product, first, second)
    if done is None:
        return False
    old, new = done
    new.shape = old.shape
    last = old.producer()
    replaced = [node] if last is None or last is node else [node, last]
    ir.convenience.replace_nodes_and_values(graph, node, replaced, writer.nodes, [old], [new])
    return True


def _parsed(node: ir.Node) -> _Product | None:
    equation = node.attributes["equation"].as_string().replace(" ", "") if "equation" in node.attributes else ""
    operands, arrow, out = equation.partition("->")
    terms = operands.split(",")
    if len(terms) != 2 or len(node.inputs) != 2 or None in node.inputs:
        return None
    if not arrow:
        together = terms[0] + terms[1]
        out = "".join(sorted(letter for letter in set(together) if together.count(letter) == 1))
    product = _Product(terms[0], terms[1], out)
    return product if product.is_plain else None


def _linear(
    writer: _Writer, product: _Product, x: ir.Value, weight: ir.Value, array: NDArray[Any]
) -> tuple[ir.Value, ir.Value] | None:
    """Write x·W; return the value that is replaced, behind a bias where there is one, and what takes its place."""
    if product.shared or not product.of_a or not product.of_b or array.ndim != len(product.b):
        return None
    size = dict(zip(product.b, array.shape, strict=True))
    known = None if x.shape is None else dict(zip(product.a, x.shape, strict=True))
    if known is not None and any(isinstance(known[k], int) and known[k] != size[k] for k in product.summed):
        return None  # an axis of one that is repeated
    kept, summed, columns = product.of_a, product.summed, product.of_b
    order = [product.b.index(letter) for letter in (*summed, *columns)]
    flat = array.transpose(order).reshape(math.prod(size[k] for k in summed), -1)
    value = writer.permuted(x, product.a, kept + summed)
    if len(summed) > 1:
        value = writer.reshaped(value, [*[0] * len(kept), len(flat)])
    value = writer.op("MatMul", value, writer.constant(f"{weight.name}.matrix", flat))
    old, behind = writer.node.outputs[0], kept + columns
    sizes = [size[letter] for letter in columns]
    if behind == product.out and len(columns) > 1 and (bias := _bias(old, len(product.out), sizes)) is not None:
        add, name, vector = bias
        value = writer.op("Add", value, writer.constant(f"{name}.vector", vector))
        writer.nodes[-1].name = add.name
        old = add.outputs[0]
    if len(columns) > 1:
        value = writer.reshaped(value, [*[0] * len(kept), *sizes])
    return old, writer.permuted(value, behind, product.out)


def _bias(output: ir.Value, rank: int, sizes: Sequence[int]) -> tuple[ir.Node, str | None, NDArray[Any]] | None:
    """Return the Add that alone reads a product, and its constant over exactly the axes that the product made."""
    uses = tuple(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0].node.op_type != "Add" or uses[0].node.domain:
        return None
    constant = uses[0].node.inputs[1 - uses[0].idx]
    array = array_of(constant)
    if constant is None or array is None or array.ndim > rank:
        return None
    if array.shape[-len(sizes) :] != tuple(sizes) or array.size != math.prod(sizes):
        return None
    return uses[0].node, constant.name, array.reshape(-1)


def _of_activations(
    writer: _Writer, product: _Product, first: ir.Value, second: ir.Value
) -> tuple[ir.Value, ir.Value] | None:
    if len(product.summed) != 1 or len(product.of_a) != 1 or len(product.of_b) != 1:
        return None
    if product.out.index(product.of_a) > product.out.index(product.of_b):
        product, first, second = _Product(product.b, product.a, product.out), second, first
    shared, summed = product.shared, product.summed
    left = writer.permuted(first, product.a, shared + product.of_a + summed)
    right = writer.permuted(second, product.b, shared + summed + product.of_b)
    value = writer.op("MatMul", left, right)
    return writer.node.outputs[0], writer.permuted(value, shared + product.of_a + product.of_b, product.out)
