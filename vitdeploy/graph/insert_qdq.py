"""Write integers into a graph: QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import GraphError

OLDEST_OPSETS = {ir.DataType.INT8: ("per-channel INT8", 13), ir.DataType.FLOAT8E4M3FN: ("FP8", 19)}


@dataclass(frozen=True)
class QuantizedTensor:
    """A constant as int8 or E4M3 ``values`` and ``scale``: real = scale * values, per index of ``axis`` or per tensor.

    A MatMul weight [K, N] has ``scale`` [N] and ``axis`` 1; a Conv weight [O, I, k, k] has [O] and 0.
    """

    values: NDArray[Any]
    scale: NDArray[np.float32]
    axis: int | None = None


@dataclass(frozen=True)
class ActivationPair:
    """One Q/DQ pair: the tensor, its scale, and the consumers, as (node, input index), that read the rounded values.

    With a ``zero_point`` the integers are uint8, without one they are of the placement's type, around 0.
    """

    value: ir.Value
    scale: float
    uses: tuple[tuple[ir.Node, int], ...]
    zero_point: int | None = None


@dataclass(frozen=True)
class QdqPlacement:
    """What becomes integer: activation pairs, and weights by the name of their initializer.

    ``dtype`` is INT8 or FLOAT8E4M3FN, for activations as for weights.
    """

    activations: tuple[ActivationPair, ...] = ()
    weights: Mapping[str, QuantizedTensor] = field(default_factory=dict)
    dtype: ir.DataType = ir.DataType.INT8


class InsertQDQ(ir.passes.InPlacePass):
    """Put Q/DQ pairs on activations and integer weights with DequantizeLinear in place of float ones.

    Cases:
        activation   x → QuantizeLinear → DequantizeLinear → the listed consumers; others go on reading x. Pairs of
                     equal scale and zero point on one tensor are one pair.
        weight       initializer w → int8 initializer → DequantizeLinear (axis), for all its readers.
        Gemm         with a quantized weight becomes MatMul and Add, the weight transposed where ``transB`` says so:
                     ONNX Runtime has an integer Gemm only for int32 biases, an integer MatMul for any. A Gemm with
                     transA, alpha or beta stays.

    Scales are float32 here; ``ConvertToFloat16`` makes them FP16 where the remainder is. Zero points are explicit,
    because an absent one means uint8 (and TensorRT accepts only 0), and each has its own, because ONNX Runtime rewrites
    them in place (``session.x64quantprecision``). Nodes keep their order, so a sorted graph stays
    sorted, and a pair is named after its tensor.

    Raises:
        GraphError: A tensor or weight is not in the graph, or the opset is too old.
    """

    def __init__(self, placement: QdqPlacement) -> None:
        super().__init__()
        self.placement = placement

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        opset = model.opset_imports.get("", 0)
        what, oldest = OLDEST_OPSETS[self.placement.dtype]
        if opset < oldest:
            raise GraphError(
                f"{what} needs opset {oldest} or newer, the graph has {opset}: "
                "export it again with vd.export(..., options=vd.ExportOptions(opset=20))"
            )
        self._names = {str(value.name) for node in model.graph for value in node.outputs} | set(
            model.graph.initializers
        )
        self._names.update(str(node.name) for node in model.graph)
        pairs: dict[tuple[ir.Value, float, int | None], ir.Value] = {}
        for pair in self.placement.activations:
            key = (pair.value, pair.scale, pair.zero_point)
            if key not in pairs:
                pairs[key] = self._insert_pair(model.graph, pair)
            for node, index in pair.uses:
                node.replace_input_with(index, pairs[key])
        for name, weight in self.placement.weights.items():
            self._replace_weight(model.graph, name, weight)
        return ir.passes.PassResult(model, modified=bool(pairs or self.placement.weights))

    def _insert_pair(self, graph: ir.Graph, pair: ActivationPair) -> ir.Value:
        value = pair.value
        if value.graph is not graph:
            raise GraphError(f"tensor {value.name!r} is not in the graph that is to be quantized")
        scale = self._constant(graph, f"{value.name}.scale", np.float32(pair.scale))
        dtype = self.placement.dtype if pair.zero_point is None else ir.DataType.UINT8
        number = np.array(pair.zero_point or 0).astype(dtype.numpy())
        zero = self._constant(graph, f"{value.name}.zero_point", number)
        down = ir.node("QuantizeLinear", [value, scale, zero], name=self._name(f"{value.name}/QuantizeLinear"))
        name = self._name(f"{value.name}/DequantizeLinear")
        up = ir.node("DequantizeLinear", [down.outputs[0], scale, zero], name=name)
        for node, stored in ((down, dtype), (up, ir.DataType.FLOAT)):
            node.outputs[0].name = self._name(f"{node.name}_out")
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(stored), value.shape
            node.metadata_props.update(_origin(value))
        producer = value.producer()
        if producer is not None:
            graph.insert_after(producer, [down, up])
        else:
            graph.insert_before(graph[0], [down, up])
        return up.outputs[0]

    def _replace_weight(self, graph: ir.Graph, name: str, weight: QuantizedTensor) -> None:
        old = graph.initializers.get(name)
        if old is None or not old.uses():
            raise GraphError(f"weight {name!r} is not in the graph that is to be quantized")
        readers = list(old.uses())
        transposed = [node for node, index in readers if index == 1 and _is_plain_gemm(node)]
        if transposed and len(transposed) == len(readers):
            weight = self._as_matmul_weight(transposed[0], weight)
        elif transposed:
            transposed = []
        real = self._dequantized(graph, str(old.name), weight, before=_first(graph, [node for node, _ in readers]))
        for node, index in readers:
            if node in transposed:
                self._as_matmul(graph, node, real)
            else:
                node.replace_input_with(index, real)
        del graph.initializers[name]

    def _dequantized(self, graph: ir.Graph, name: str, weight: QuantizedTensor, before: ir.Node) -> ir.Value:
        values = self._constant(graph, f"{name}.quantized", weight.values)
        scale = self._constant(graph, f"{name}.scale", weight.scale)
        zero = self._zero_point(graph, f"{name}.zero_point", weight.scale.shape)
        attributes = {} if weight.axis is None else {"axis": weight.axis}
        node = ir.node(
            "DequantizeLinear", [values, scale, zero], attributes, name=self._name(f"{name}/DequantizeLinear")
        )
        node.outputs[0].name = self._name(f"{node.name}_out")
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape(weight.values.shape)
        node.metadata_props.update(before.metadata_props)
        graph.insert_before(before, node)
        return node.outputs[0]

    def _as_matmul_weight(self, gemm: ir.Node, weight: QuantizedTensor) -> QuantizedTensor:
        if not _flag(gemm, "transB"):
            return weight
        axis = None if weight.axis is None else 1 - weight.axis
        return QuantizedTensor(np.ascontiguousarray(weight.values.T), weight.scale, axis)

    def _as_matmul(self, graph: ir.Graph, gemm: ir.Node, weight: ir.Value) -> None:
        """Replace y = Gemm(x, w, b) by y = Add(MatMul(x, w), b)."""
        source, bias, output = gemm.inputs[0], gemm.inputs[2] if len(gemm.inputs) > 2 else None, gemm.outputs[0]
        path = str(gemm.name).removesuffix("/Gemm")
        product = ir.node("MatMul", [source, weight], name=self._name(f"{path}/MatMul"))
        product.metadata_props.update(gemm.metadata_props)
        nodes = [product]
        if bias is not None:
            product.outputs[0].name = self._name(f"{product.name}_out")
            product.outputs[0].type, product.outputs[0].shape = output.type, output.shape
            nodes.append(ir.node("Add", [product.outputs[0], bias], name=self._name(f"{path}/Add")))
            nodes[-1].metadata_props.update(gemm.metadata_props)
        ir.convenience.replace_nodes_and_values(graph, gemm, [gemm], nodes, [output], [nodes[-1].outputs[0]])

    def _zero_point(self, graph: ir.Graph, name: str, shape: tuple[int, ...]) -> ir.Value:
        return self._constant(graph, name, np.zeros(shape, self.placement.dtype.numpy()))

    def _constant(self, graph: ir.Graph, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
        return new_initializer(graph, self._name(name), np.asarray(array))

    def _name(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def new_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Add a constant to the graph and return its value; the name must be free."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _is_plain_gemm(node: ir.Node) -> bool:
    factors = [node.attributes[name].as_float() for name in ("alpha", "beta") if name in node.attributes]
    return node.op_type == "Gemm" and not _flag(node, "transA") and all(factor == 1.0 for factor in factors)


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].as_int())


def _first(graph: ir.Graph, nodes: list[ir.Node]) -> ir.Node:
    return next(node for node in graph if node in nodes)


def _origin(value: ir.Value) -> dict[str, str]:
    producer = value.producer()
    return {} if producer is None else dict(producer.metadata_props)
