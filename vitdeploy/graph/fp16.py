"""Convert a float32 graph to FP16: precision written into the graph, as TensorRT's strongly typed networks want it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from vitdeploy.errors import GraphError
from vitdeploy.graph.clamp_masks import ClampMasks
from vitdeploy.graph.fp16_islands import fp32_islands
from vitdeploy.graph.quiet import quiet

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


class ConvertToFloat16(ir.passes.InPlacePass):
    """Run every node in FP16 but those that must not; inputs and outputs of the graph stay float32.

    Each node is either FP16 or FP32 as a whole (``fp32_islands`` says which and why; ``keep`` names nodes that the
    caller wants in FP32). Where precisions meet there is one Cast per value and direction, placed right behind the node
    that makes the value, so a sorted graph stays sorted. Constants are converted in place. An operand that the
    operator's schema gives as float32 only (the scales of Resize; scales of Q/DQ below opset 19) stays float32.
    Integers, zero points and the int8 weights of a Q/DQ graph are not touched; from opset 19 on their scales
    become FP16, so that DequantizeLinear hands FP16 on.

    onnxruntime's converter leaves Casts unsorted and mixed operand types around nodes of its block list, which
    TensorRT's parser refuses.

    After the call ``islands`` maps the name of each node left in FP32 to the reason.

    Raises:
        GraphError: The graph has subgraphs, or a value whose type cannot be inferred.
    """

    def __init__(self, keep: Collection[str] = ()) -> None:
        super().__init__()
        self.keep = frozenset(keep)
        self.islands: dict[str, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self._prepare(model)
        ClampMasks()(model)
        graph = model.graph
        islands = fp32_islands(graph, self.keep)
        self.islands = {str(node.name): reason for node, reason in islands.items()}
        converter = _Converter(graph, model.opset_imports.get("", 0), set(islands))
        modified = converter.convert()
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=modified)

    def _prepare(self, model: ir.Model) -> None:
        with quiet():
            common.InlinePass()(model)
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            common.ShapeInferencePass(strict_mode=False, data_prop=True)(model)
        for node in model.graph:
            for attribute in node.attributes.values():
                if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                    raise GraphError(
                        f"node {node.name!r} ({node.op_type}) has a subgraph, which FP16 conversion refuses"
                    )
            for value in (*node.inputs, *node.outputs):
                if value is not None and value.name and value.dtype is None:
                    kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
                    raise GraphError(
                        f"the type of {value.name!r} cannot be inferred, so node {node.name!r} ({kind}) cannot be "
                        "converted to FP16"
                    )


class _Converter:
    """Holds what one conversion needs: which nodes stay FP32, and the casts made so far."""

    def __init__(self, graph: ir.Graph, opset: int, fp32: set[ir.Node]) -> None:
        self.graph, self.opset, self.fp32 = graph, opset, fp32
        self.copies: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.lowered: set[ir.Value] = set()
        self.names = {str(value.name) for node in graph for value in node.outputs} | set(graph.initializers)

    def convert(self) -> bool:
        """Retype the nodes, then insert casts and convert constants; return whether anything became FP16."""
        nodes = list(self.graph)
        wanted = [
            (node, index, self._input_type(node, index))
            for node in nodes
            for index, value in enumerate(node.inputs)
            if value is not None and value.dtype == FLOAT
        ]
        outputs = list(self.graph.outputs)
        changed = False
        for node in nodes:
            changed = self._retype_outputs(node) or changed
        for node, index, dtype in wanted:
            value = node.inputs[index]
            assert value is not None
            if value.dtype != dtype:
                node.replace_input_with(index, self._as(value, dtype))
                changed = True
        for index, value in enumerate(outputs):
            if value in self.lowered:
                self._restore_output(index, value)
        self._drop_identity_casts()
        self._take_over_names()
        return changed

    def _take_over_names(self) -> None:
        """Let a converted constant have the name of the original where nothing reads that any more."""
        for (value, _), copy in self.copies.items():
            if copy.is_initializer() and not value.uses() and not value.is_graph_output():
                name = str(value.name)
                del self.graph.initializers[name]
                copy.name = name

    def _drop_identity_casts(self) -> None:
        """Remove casts of the original graph that now change nothing."""
        for node in list(self.graph):
            value = node.inputs[0] if node.op_type == "Cast" else None
            if value is None or value.dtype != node.outputs[0].dtype or node.outputs[0].is_graph_output():
                continue
            node.outputs[0].replace_all_uses_with(value)
            self.graph.remove(node, safe=True)

    def _retype_outputs(self, node: ir.Node) -> bool:
        changed = False
        if node in self.fp32 or _lifts(node):
            return False
        for index, value in enumerate(node.outputs):
            if value.dtype != FLOAT or not self._output_allows(node, index):
                continue
            value.type = ir.TensorType(FLOAT16)  # a new one: a cloned graph shares its types with the original
            self.lowered.add(value)
            changed = True
        if changed:
            _retype_attributes(node)
        return changed

    def _input_type(self, node: ir.Node, index: int) -> ir.DataType:
        if node in self.fp32 or (node.op_type == "Cast" and node.outputs[0].dtype == FLOAT16):
            return FLOAT
        schema = onnx.defs.get_schema(node.op_type, self.opset, node.domain)
        return FLOAT16 if _allows(schema, schema.inputs, index) else FLOAT

    def _output_allows(self, node: ir.Node, index: int) -> bool:
        schema = onnx.defs.get_schema(node.op_type, self.opset, node.domain)
        return "dtype" not in node.attributes and _allows(schema, schema.outputs, index)

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return ``value`` in ``dtype``: a converted constant, or the output of one Cast behind its producer."""
        key = (value, dtype)
        if key not in self.copies:
            constant = value.is_initializer() and not value.is_graph_input()
            self.copies[key] = self._constant(value, dtype) if constant else self._cast(value, dtype)
        return self.copies[key]

    def _constant(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        tensor = value.const_value
        assert tensor is not None
        assert value.name is not None
        name = self._name(f"{value.name}.{_suffix(dtype)}")
        shape = ir.Shape(tensor.shape.numpy())
        lazy = ir.LazyTensor(_converted(tensor, dtype), dtype=dtype, shape=shape, name=name)
        copy = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape, const_value=lazy)
        self.graph.register_initializer(copy)
        return copy

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = self._name(f"{value.name}.{_suffix(dtype)}")
        node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{name}/Cast")
        node.outputs[0].name = name
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, node)
        else:
            self.graph.insert_before(self.graph[0], node)
        return node.outputs[0]

    def _restore_output(self, index: int, value: ir.Value) -> None:
        """Let the graph's output be float32 again, under its own name."""
        name, shape = value.name, value.shape
        value.name = self._name(f"{name}.{_suffix(FLOAT16)}")
        node = ir.node("Cast", [value], {"to": int(FLOAT)}, name=f"{name}/Cast")
        node.outputs[0].name = name
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(FLOAT), shape
        producer = value.producer()
        assert producer is not None
        self.graph.insert_after(producer, node)
        self.graph.outputs[index] = node.outputs[0]

    def _name(self, name: str) -> str:
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name


def _allows(schema: onnx.defs.OpSchema, formals: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> bool:
    """Return whether an operand may be FP16: its type is a variable that ranges over float and float16."""
    formal = formals[min(index, len(formals) - 1)]
    for constraint in schema.type_constraints:
        if constraint.type_param_str == formal.type_str:
            return "tensor(float16)" in constraint.allowed_type_strs
    return False


def _lifts(node: ir.Node) -> bool:
    """Return whether a node is a Cast from FP16 to FP32: a graph that was converted before wants it so."""
    return node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype == FLOAT16


def _retype_attributes(node: ir.Node) -> None:
    """Let Cast and ConstantOfShape make FP16 where they made float32."""
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(FLOAT16))
    elif node.op_type == "ConstantOfShape":
        attribute = node.attributes.get("value")
        fill = attribute.as_tensor().numpy() if attribute is not None else np.zeros(1, np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(fill.astype(np.float16)))


def _converted(tensor: ir.TensorProtocol, dtype: ir.DataType) -> Callable[[], ir.TensorProtocol]:
    def read() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(tensor.numpy()).astype(dtype.numpy()))

    return read


def _suffix(dtype: ir.DataType) -> str:
    return "fp16" if dtype == FLOAT16 else "fp32"
