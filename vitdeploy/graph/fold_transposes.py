"""Store linear weights in the order in which MatMul reads them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.values import is_constant


class FoldTransposes(ir.passes.InPlacePass):
    """Replace ``Transpose(initializer)`` by an initializer that is transposed when it is read.

    A linear layer exports as ``MatMul(x, Transpose(weight))``. Folding with onnxscript's optimizer makes a second copy
    of every weight at once; here one tensor at a time is transposed, while the file is written, so that ViT-H/14
    (2.5 GB) exports in the memory of its weights and little more. The new initializer takes the old one's name where
    nothing else uses it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        folded = 0
        for node in list(graph):
            value = node.inputs[0] if node.domain == "" and node.op_type == "Transpose" else None
            if value is None or not value.is_initializer() or not is_constant(value) or value.is_graph_input():
                continue
            if node.outputs[0].is_graph_output() or value.const_value is None:
                continue
            self._fold(graph, node, value)
            folded += 1
        return ir.passes.PassResult(model, modified=bool(folded))

    def _fold(self, graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
        tensor = value.const_value
        assert tensor is not None
        assert value.name is not None
        rank = len(tensor.shape)
        attribute = node.attributes.get("perm")
        order = tuple(attribute.as_ints()) if attribute is not None else tuple(reversed(range(rank)))
        shape = ir.Shape([tensor.shape.numpy()[axis] for axis in order])
        alone = len(value.uses()) == 1
        name = value.name if alone else f"{value.name}.transposed"
        while not alone and name in graph.initializers:
            name += "_"
        lazy = ir.LazyTensor(_transposed(tensor, order), dtype=tensor.dtype, shape=shape, name=name)
        replacement = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=lazy)
        replacement.metadata_props.update(value.metadata_props)
        node.outputs[0].replace_all_uses_with(replacement)
        graph.remove(node, safe=True)
        if alone:
            del graph.initializers[value.name]
        graph.register_initializer(replacement)


def _transposed(tensor: ir.TensorProtocol, order: tuple[int, ...]) -> Callable[[], ir.TensorProtocol]:
    def read() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(tensor.numpy().transpose(order)))

    return read
