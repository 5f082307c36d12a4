"""Express a graph in an older opset, for runtimes that know no newer one."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from vitdeploy.errors import GraphError
from vitdeploy.graph.values import array_of

OLDEST, NEWEST = 17, 20
"""17 brought LayerNormalization as one node (decomposed it overflows in FP16), 20 brought Gelu."""

_CHANGED_MEANING = frozenset(
    ("Resize", "GroupNormalization", "Attention", "RotaryEmbedding", "Upsample", "DFT", "GridSample")
)
_AXES_AS_INPUT = frozenset(
    ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
     "ReduceSumSquare")
)  # fmt: skip


class LowerOpset(ir.passes.InPlacePass):
    """Lower the ONNX opset to ``opset``, 17 to 20; a graph at or below it is left alone.

    Rewritten: Gelu (below 20) into ``0.5 x (1 + erf(x / √2))`` or its tanh form, the axes input of reductions (below
    18) into an attribute, ``num_outputs`` of Split (below 18) into sizes. Every other node may stay where its
    attributes and number of inputs exist in the older operator and its meaning did not change. onnx's own converter has
    no adapter for Gelu.

    Raises:
        GraphError: A node cannot be expressed; the message names it, its operator and both versions.
    """

    def __init__(self, opset: int) -> None:
        super().__init__()
        if not OLDEST <= opset <= NEWEST:
            raise GraphError(f"opset {opset!r} is not offered, expected {OLDEST} to {NEWEST}")
        self.opset = opset

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        current = model.opset_imports.get("", 0)
        if current <= self.opset:
            return ir.passes.PassResult(model, modified=False)
        for node in list(model.graph):
            if node.domain != "":
                continue
            if node.op_type == "Gelu" and self.opset < 20:
                _expand_gelu(model.graph, node)
            elif node.op_type in _AXES_AS_INPUT and self.opset < 18:
                _axes_to_attribute(node)
            elif node.op_type == "Split" and self.opset < 18:
                _split_by_sizes(model.graph, node)
        for node in model.graph:
            if node.domain == "":
                node.version = None
                self._require(node, current)
        model.opset_imports[""] = self.opset
        common.RemoveUnusedNodesPass()(model)  # constants that became attributes
        return ir.passes.PassResult(model, modified=True)

    def _require(self, node: ir.Node, current: int) -> None:
        """Raise unless ``node`` means the same in the older opset."""
        reason = None
        try:
            old = onnx.defs.get_schema(node.op_type, self.opset)
            new = onnx.defs.get_schema(node.op_type, current)
        except onnx.defs.SchemaError:
            reason = "does not exist"
        else:
            if old.since_version == new.since_version:
                return
            inputs = len(node.inputs)
            missing = [name for name in node.attributes if name not in old.attributes]
            if node.op_type in _CHANGED_MEANING:
                reason = "means something else"
            elif missing:
                reason = f"has no attribute {missing[0]!r}"
            elif inputs > old.max_input or len(node.outputs) > old.max_output:
                reason = f"takes at most {old.max_input} inputs"
            elif unknown := _unknown_types(node, old):
                reason = f"knows no {' and '.join(unknown)}"
        if reason is not None:
            advice = (
                "use a higher opset=" if self._fits_newest(node) else f"export it again, for opset {NEWEST} or older"
            )
            raise GraphError(
                f"node {node.name!r} cannot be lowered from opset {current} to {self.opset}: {node.op_type} {reason} "
                f"there; {advice}"
            )

    def _fits_newest(self, node: ir.Node) -> bool:
        """Return whether the newest opset that is offered knows the operator, so that choosing it may help."""
        try:
            onnx.defs.get_schema(node.op_type, NEWEST)
        except onnx.defs.SchemaError:
            return False
        return self.opset < NEWEST


def _unknown_types(node: ir.Node, schema: onnx.defs.OpSchema) -> list[str]:
    """Return the element types among a node's inputs and outputs that a schema does not take there."""
    unknown: dict[str, None] = {}
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            if value is None or value.dtype is None or not formals:
                continue
            name = value.dtype.name.lower()
            if f"tensor({name})" not in formals[min(index, len(formals) - 1)].types:
                unknown[name] = None
    return list(unknown)


def _expand_gelu(graph: ir.Graph, node: ir.Node) -> None:
    """Write Gelu with Erf or Tanh (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    approximate = node.attributes.get("approximate")
    maker = _Maker(graph, node)
    if approximate is None or approximate.as_string() == "none":
        inner = maker.op("Erf", maker.op("Div", x, maker.number("sqrt2", math.sqrt(2.0))))
    else:
        cube = maker.op("Mul", maker.op("Mul", x, x), x)
        sum_ = maker.op("Add", x, maker.op("Mul", cube, maker.number("cubic", 0.044715)))
        inner = maker.op("Tanh", maker.op("Mul", sum_, maker.number("slope", math.sqrt(2.0 / math.pi))))
    gated = maker.op("Mul", x, maker.op("Add", inner, maker.number("one", 1.0)))
    result = maker.op("Mul", gated, maker.number("half", 0.5))
    ir.convenience.replace_nodes_and_values(graph, node, [node], maker.nodes, [y], [result])


class _Maker:
    """Makes nodes and constants named after the node that they replace, in its floating-point type."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.name = graph, node.name
        x = node.inputs[0]
        assert x is not None
        self.type, self.shape = x.type, x.shape
        self.dtype = x.dtype or ir.DataType.FLOAT
        self.nodes: list[ir.Node] = []

    def op(self, op_type: str, *inputs: ir.Value) -> ir.Value:
        name = f"{self.name}/{op_type}"
        count = sum(node.op_type == op_type for node in self.nodes)
        node = ir.node(op_type, inputs, name=f"{name}_{count}" if count else name)
        node.outputs[0].name = f"{node.name}_out"
        node.outputs[0].type, node.outputs[0].shape = self.type, self.shape
        self.nodes.append(node)
        return node.outputs[0]

    def number(self, role: str, value: float) -> ir.Value:
        name = f"{self.name}.{role}"
        tensor = ir.tensor(np.array(value, dtype=self.dtype.numpy()), name=name)
        constant = ir.Value(name=name, type=ir.TensorType(self.dtype), shape=ir.Shape(()), const_value=tensor)
        self.graph.register_initializer(constant)
        return constant


def _axes_to_attribute(node: ir.Node) -> None:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return
    axes = array_of(node.inputs[1])
    if axes is None:
        raise GraphError(f"node {node.name!r} computes the axes it reduces, which no opset below 18 can express")
    node.resize_inputs(1)
    node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.reshape(-1)])
    node.attributes.pop("noop_with_empty_axes", None)


def _split_by_sizes(graph: ir.Graph, node: ir.Node) -> None:
    count = node.attributes.pop("num_outputs", None)
    if count is None or (len(node.inputs) > 1 and node.inputs[1] is not None):
        return
    x, axis = node.inputs[0], node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    size = None if x is None or x.shape is None else x.shape[axis]
    if not isinstance(size, int):
        raise GraphError(f"node {node.name!r} splits a dimension of unknown size, which no opset below 18 can express")
    step = -(-size // count.as_int())
    sizes = [min(step, size - start) for start in range(0, size, step)]
    name = f"{node.name}.sizes"
    tensor = ir.tensor(np.array(sizes, dtype=np.int64), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([len(sizes)]), const_value=tensor)
    graph.register_initializer(value)
    node.resize_inputs(2)
    node.replace_input_with(1, value)
