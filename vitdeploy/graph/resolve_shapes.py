"""Turn shapes that a graph computes at run time into constants, wherever only the batch is unknown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.batch_arithmetic import (
    Element,
    Multiple,
    Number,
    add,
    broadcast,
    choice,
    divide,
    equal,
    greater,
    largest,
    logical,
    minus,
    modulo,
    multiply,
    negated,
    on_numbers,
    smallest,
    subtract,
)
from vitdeploy.graph.name_inputs_outputs import BATCH
from vitdeploy.graph.values import array_of, is_constant

LARGEST = 4096
"""Elements of a computed shape, index or pad vector; anything larger is data."""

_COMPUTES_SIZES = frozenset(("Shape", "Size", "Expand"))
_BROADCASTING = frozenset(("Add", "Sub", "Mul", "Div", "Pow"))

Elements = NDArray[Any]
"""An object array of ``Element``, in the shape of the tensor that it stands for."""


class ResolveShapes(ir.passes.InPlacePass):
    """Evaluate Shape and what is computed from it, with the batch as the one unknown.

    TorchScript writes each ``view`` as Shape → Gather → Concat → Reshape, and windows and rolls as dozens of integer
    nodes. Followed here are integers, factors of the batch (``4·batch`` windows), and flags; then

    * a computed vector without the batch becomes a constant;
    * a Reshape whose target has the batch once gets −1 in its place;
    * an Expand to the shape that its input has already is removed, and one whose reader broadcasts is passed by.

    Sizes are inferred on the way, because a shape that an exporter stored may be that of the traced batch. A graph
    whose image size is dynamic keeps the chains that depend on it.

    Refused: a division of the batch with a remainder, sums such as ``batch + 1``, and anything data-dependent; these
    nodes stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not any(node.op_type in _COMPUTES_SIZES and node.domain == "" for node in model.graph):
            return ir.passes.PassResult(model, modified=False)
        return ir.passes.PassResult(model, modified=_Resolver(model).run())


class _Resolver:
    def __init__(self, model: ir.Model) -> None:
        self.model, self.graph = model, model.graph
        self.known: dict[ir.Value, Elements | None] = {}
        self.symbol = self._batch_symbol()
        self.schemas = {
            domain: version for domain, version in model.opset_imports.items() if domain == "" and version is not None
        }

    def run(self) -> bool:
        changed = False
        for node in list(self.graph):
            if node.domain != "" or any(_has_graph(attribute) for attribute in node.attributes.values()):
                continue
            values = _evaluate(self, node)
            if values is not None and not node.outputs[0].is_graph_output():
                self.known[node.outputs[0]] = values
                changed = self._replace(node.outputs[0], values) or changed
            if node.op_type == "Reshape":
                changed = self._constant_target(node) or changed
            if node.op_type in _BROADCASTING:
                changed = self._read_before_expand(node) or changed
            self._infer(node)
            if node.op_type == "Expand":
                changed = self._remove_expand(node) or changed
        return changed

    def elements(self, value: ir.Value | None) -> Elements | None:
        """Return what is known of a small tensor's elements, None for data."""
        if value is None:
            return None
        if value in self.known:
            return self.known[value]
        found = None
        if is_constant(value) and (value.shape is None or value.shape.is_static()) and _size(value) <= LARGEST:
            array = array_of(value)
            if array is not None and array.dtype.kind in "iufb":
                found = _objects(array)
        self.known[value] = found
        return found

    def shape(self, value: ir.Value | None) -> list[Element] | None:
        """Return the sizes of a value, None where its rank is unknown."""
        if value is None:
            return None
        if value.shape is None:
            array = array_of(value) if is_constant(value) else None
            return None if array is None else list(array.shape)
        return [self._size_of(size) for size in value.shape]

    def _size_of(self, size: int | ir.SymbolicDim) -> Element:
        if isinstance(size, int):
            return size
        if self.symbol is None or size.value is None:
            return None
        found = re.fullmatch(rf"(?:(\d+)\*)?{re.escape(self.symbol)}", str(size.value).replace(" ", ""))
        return None if found is None else Multiple(int(found[1] or 1))

    def _batch_symbol(self) -> str | None:
        """Return the name of the batch dimension, naming it where it has none; None for a fixed batch."""
        fed = [value for value in self.graph.inputs if not value.is_initializer()]
        if len(fed) != 1 or fed[0].shape is None or not len(fed[0].shape):
            return None
        first = fed[0].shape[0]
        if isinstance(first, int):
            return None
        if first.value is None:
            fed[0].shape = ir.Shape([BATCH, *list(fed[0].shape)[1:]])
            return BATCH
        return str(first.value)

    def _replace(self, value: ir.Value, values: Elements) -> bool:
        """Replace a value of which every element is a number by a constant; return whether it was one."""
        if not all(isinstance(element, (bool, int, float)) for element in values.reshape(-1)) or not value.uses():
            return False
        if value.dtype is None:
            return False
        self._constant(value, values.astype(value.dtype.numpy()))
        return True

    def _constant(self, value: ir.Value, array: NDArray[Any]) -> ir.Value:
        name = f"{value.name}.static"
        while name in self.graph.initializers:
            name += "_"
        tensor = ir.tensor(array, name=name)
        constant = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.graph.register_initializer(constant)
        value.replace_all_uses_with(constant)
        return constant

    def _constant_target(self, node: ir.Node) -> bool:
        """Give a Reshape a constant target with −1 for the batch; return whether its sizes are known."""
        target = node.inputs[1]
        sizes = _reshaped(self, node)
        if target is None or is_constant(target) or sizes is None or None in sizes:
            return False
        if sum(isinstance(size, Multiple) for size in sizes) > 1:
            return False
        array = np.array([-1 if isinstance(size, Multiple) else size for size in sizes], np.int64)
        name = f"{node.outputs[0].name}.target"
        while name in self.graph.initializers:
            name += "_"
        tensor = ir.tensor(array, name=name)
        constant = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.graph.register_initializer(constant)
        node.replace_input_with(1, constant)
        return True

    def _remove_expand(self, node: ir.Node) -> bool:
        source, output = node.inputs[0], node.outputs[0]
        before, after = self.shape(source), self.shape(output)
        if source is None or output.is_graph_output() or before is None or before != after or None in before:
            return False
        output.replace_all_uses_with(source)
        self.graph.remove(node, safe=True)
        return True

    def _read_before_expand(self, node: ir.Node) -> bool:
        """Skip an Expand to the size of the other operand of a broadcasting operator; return whether there was one."""
        changed = False
        for index in range(2):
            expand = node.inputs[index].producer() if node.inputs[index] is not None else None  # type: ignore[union-attr]
            if expand is None or expand.op_type != "Expand" or expand.domain:
                continue
            other = self.shape(node.inputs[1 - index])
            if other is not None and None not in other and other == self.shape(expand.outputs[0]):
                node.replace_input_with(index, expand.inputs[0])
                changed = True
        return changed

    def _infer(self, node: ir.Node) -> None:
        """Set the shapes of a node's outputs."""
        own = _own_shape(self, node)
        if own is not None:
            node.outputs[0].shape = self._stored(own)
            if node.inputs[0] is not None:
                node.outputs[0].type = node.inputs[0].type
            return
        if node.op_type == "Constant":
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
            if tensor is not None:
                node.outputs[0].type, node.outputs[0].shape = (
                    ir.TensorType(tensor.dtype),
                    ir.Shape(tensor.shape.numpy()),
                )
            return
        for value, found in zip(node.outputs, _inferred(self, node), strict=False):
            if found is None or not found.HasField("tensor_type"):
                value.shape = None
                continue
            kind = found.tensor_type
            if kind.elem_type:
                value.type = ir.TensorType(ir.DataType(kind.elem_type))
            value.shape = _shape_of(kind) if kind.HasField("shape") else None

    def _stored(self, sizes: Sequence[Element]) -> ir.Shape:
        symbol = self.symbol or BATCH
        return ir.Shape([_stored_size(size, symbol) for size in sizes])


def _stored_size(size: Element, symbol: str) -> int | str | None:
    if isinstance(size, Multiple):
        return size.text(symbol)
    return None if size is None else int(size)


def _shape_of(kind: onnx.TypeProto.Tensor) -> ir.Shape:
    sizes: list[int | str | None] = []
    for size in kind.shape.dim:
        known = size.HasField("dim_value")
        sizes.append(size.dim_value if known else (size.dim_param or None))
    return ir.Shape(sizes)


def _inferred(resolver: _Resolver, node: ir.Node) -> list[onnx.TypeProto | None]:
    """Return the types of a node's outputs by ONNX's own inference of that one operator."""
    unknown: list[onnx.TypeProto | None] = [None for _ in node.outputs]
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None:
            continue
        sizes = resolver.shape(value)
        if value.dtype is None:
            return unknown
        kind = onnx.TypeProto()
        kind.tensor_type.elem_type = int(value.dtype)
        if sizes is not None:
            kind.tensor_type.shape.SetInParent()
            for size in sizes:
                dimension = kind.tensor_type.shape.dim.add()
                if isinstance(size, Multiple):
                    dimension.dim_param = size.text(resolver.symbol or BATCH)
                elif size is not None:
                    dimension.dim_value = int(size)
        types[str(value.name)] = kind
        if is_constant(value) and _size(value) <= LARGEST:
            array = array_of(value)
            if array is not None:
                data[str(value.name)] = onnx.numpy_helper.from_array(array, str(value.name))
    try:
        schema = onnx.defs.get_schema(node.op_type, resolver.schemas[""])
        proto = ir.serde.serialize_node(node)
        found = onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=[onnx.helper.make_opsetid("", resolver.schemas[""])]
        )
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, KeyError, ValueError, TypeError):
        return unknown
    return [found.get(str(value.name)) for value in node.outputs]


def _own_shape(resolver: _Resolver, node: ir.Node) -> list[Element] | None:
    """Return the output sizes of what reads a computed shape, None for every other operator."""
    if node.op_type == "Reshape":
        return _reshaped(resolver, node)
    if node.op_type == "Expand":
        before, target = resolver.shape(node.inputs[0]), resolver.elements(node.inputs[1])
        if before is None or target is None:
            return None
        wanted = list(target.reshape(-1))
        rank = max(len(before), len(wanted))
        pairs = zip([1] * (rank - len(before)) + before, [1] * (rank - len(wanted)) + wanted, strict=True)
        return [broadcast(left, right) for left, right in pairs]
    if node.op_type == "Slice":
        return _sliced_sizes(resolver, node)
    return None


def _sliced_sizes(resolver: _Resolver, node: ir.Node) -> list[Element] | None:
    """Return the sizes of a Slice that cuts along the batch, None for every other one."""
    sizes = resolver.shape(node.inputs[0])
    rest = [resolver.elements(value) for value in node.inputs[1:]]
    if sizes is None or not any(isinstance(size, Multiple) for size in sizes) or any(values is None for values in rest):
        return None
    starts, ends, *others = [values.reshape(-1) for values in rest if values is not None]
    axes = others[0] if others else range(len(starts))
    steps = others[1] if len(others) > 1 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not all(isinstance(number, int) for number in (start, end, axis, step)):
            return None
        sizes[axis] = _sliced_size(sizes[axis], start, end, step)
    return sizes


def _sliced_size(size: Element, start: int, end: int, step: int) -> Element:
    if isinstance(size, Multiple):
        if start == 0 and step == 1 and end >= np.iinfo(np.int32).max:
            return size
        known = start >= 0 and step > 0 and 0 <= end <= size.factor  # within every batch
        return max(0, -(-(end - start) // step)) if known else None
    return len(range(int(size))[start:end:step]) if isinstance(size, int) else None


def _reshaped(resolver: _Resolver, node: ir.Node) -> list[Element] | None:
    """Return the sizes after a Reshape: 0 copies (unless ``allowzero``), −1 is what is left."""
    before, target = resolver.shape(node.inputs[0]), resolver.elements(node.inputs[1])
    if target is None:
        return None
    sizes = list(target.reshape(-1))
    if not ("allowzero" in node.attributes and node.attributes["allowzero"].as_int()):
        for index, size in enumerate(sizes):
            if size == 0 and not isinstance(size, bool):
                sizes[index] = None if before is None or index >= len(before) else before[index]
    rest = [index for index, size in enumerate(sizes) if size == -1]
    if len(rest) != 1:
        return sizes
    others: Element = 1
    for index, size in enumerate(sizes):
        others = others if index == rest[0] else multiply(others, size)
    total: Element = 1
    for size in before if before is not None else [None]:
        total = multiply(total, size)
    sizes[rest[0]] = divide(total, others)
    return sizes


def _evaluate(resolver: _Resolver, node: ir.Node) -> Elements | None:
    """Return the elements of a node's output where they are known at least in part, None for data."""
    rule = _RULES.get(node.op_type)
    if rule is None or len(node.outputs) != 1:
        return None
    try:
        values = rule(resolver, node)
    except (IndexError, ValueError, TypeError, ZeroDivisionError, OverflowError):
        return None  # the node itself is wrong: whoever runs it says so
    return values if values is not None and values.size <= LARGEST else None


def _shape_rule(resolver: _Resolver, node: ir.Node) -> Elements | None:
    sizes = resolver.shape(node.inputs[0])
    if sizes is None:
        return None
    start = node.attributes["start"].as_int() if "start" in node.attributes else 0
    end = node.attributes["end"].as_int() if "end" in node.attributes else len(sizes)
    return _objects(sizes[slice(start, end)])


def _size_rule(resolver: _Resolver, node: ir.Node) -> Elements | None:
    total: Element = 1
    for size in resolver.shape(node.inputs[0]) or [None]:
        total = multiply(total, size)
    return _objects(total)


def _structural(move: Callable[[ir.Node, list[Elements]], Elements]) -> Callable[[_Resolver, ir.Node], Elements | None]:
    """Return a rule for an operator that only moves elements."""

    def rule(resolver: _Resolver, node: ir.Node) -> Elements | None:
        inputs = [resolver.elements(value) for value in node.inputs if value is not None]
        if not inputs or any(values is None for values in inputs):
            return None
        return move(node, [values for values in inputs if values is not None])

    return rule


def _elementwise(compute: Callable[..., Element]) -> Callable[[_Resolver, ir.Node], Elements | None]:
    """Return a rule for an operator that computes each element from those at the same place."""

    def rule(resolver: _Resolver, node: ir.Node) -> Elements | None:
        inputs = [resolver.elements(value) for value in node.inputs if value is not None]
        if not inputs or any(values is None for values in inputs):
            return None
        arrays = np.broadcast_arrays(*[values for values in inputs if values is not None])
        return _objects_of([compute(*row) for row in zip(*(a.reshape(-1) for a in arrays), strict=True)], arrays[0])

    return rule


def _cast_rule(resolver: _Resolver, node: ir.Node) -> Elements | None:
    values = resolver.elements(node.inputs[0])
    if values is None:
        return None
    dtype = ir.DataType(node.attributes["to"].as_int())
    if dtype == ir.DataType.BOOL:
        to: Callable[[Number], Number] = bool
    elif dtype.is_integer():
        to = math.trunc
    else:
        to = float

    def cast(element: Element) -> Element:
        if element is None or (isinstance(element, Multiple) and dtype != ir.DataType.BOOL):
            return element
        return True if isinstance(element, Multiple) else to(element)

    return _objects_of([cast(element) for element in values.reshape(-1)], values)


def _reduce_product(resolver: _Resolver, node: ir.Node) -> Elements | None:
    values = resolver.elements(node.inputs[0])
    if values is None or values.ndim != 1:
        return None
    total: Element = 1
    for element in values:
        total = multiply(total, element)
    keep = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int()
    return _objects([total] if keep else total)


def _gathered(node: ir.Node, inputs: list[Elements]) -> Elements:
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return _objects(np.take(inputs[0], inputs[1].astype(np.int64), axis=axis))


def _concatenated(node: ir.Node, inputs: list[Elements]) -> Elements:
    return np.concatenate(inputs, axis=node.attributes["axis"].as_int())


def _axes(inputs: list[Elements], rank: int) -> list[int]:
    return sorted(int(axis) % rank for axis in inputs[1].reshape(-1))


def _unsqueezed(node: ir.Node, inputs: list[Elements]) -> Elements:
    rank = inputs[0].ndim + inputs[1].size
    result = inputs[0]
    for axis in _axes(inputs, rank):
        result = np.expand_dims(result, axis)
    return result


def _squeezed(node: ir.Node, inputs: list[Elements]) -> Elements:
    axes = tuple(_axes(inputs, inputs[0].ndim)) if len(inputs) > 1 else None
    return _objects(np.squeeze(inputs[0], axis=axes))


def _transposed(node: ir.Node, inputs: list[Elements]) -> Elements:
    order = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
    return np.transpose(inputs[0], order)


def _reshaped_vector(node: ir.Node, inputs: list[Elements]) -> Elements:
    sizes = [int(size) for size in inputs[1].reshape(-1)]
    return inputs[0].reshape([inputs[0].shape[i] if size == 0 else size for i, size in enumerate(sizes)])


def _sliced(node: ir.Node, inputs: list[Elements]) -> Elements:
    starts, ends = inputs[1].reshape(-1), inputs[2].reshape(-1)
    axes = inputs[3].reshape(-1) if len(inputs) > 3 else range(len(starts))
    steps = inputs[4].reshape(-1) if len(inputs) > 4 else [1] * len(starts)
    index: list[slice] = [slice(None)] * inputs[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = inputs[0].shape[int(axis)]
        stop = None if int(step) < 0 and int(end) < -size else int(end)
        index[int(axis)] = slice(int(start), stop, int(step))
    return inputs[0][tuple(index)]


def _filled(resolver: _Resolver, node: ir.Node) -> Elements | None:
    target = resolver.elements(node.inputs[0])
    if target is None or not all(isinstance(size, int) for size in target.reshape(-1)):
        return None
    sizes = [int(size) for size in target.reshape(-1)]
    if math.prod(sizes) > LARGEST:
        return None
    fill = node.attributes["value"].as_tensor().numpy().reshape(-1)[0] if "value" in node.attributes else np.float32(0)
    return _objects(np.full(sizes, fill))


def _expanded(resolver: _Resolver, node: ir.Node) -> Elements | None:
    values, target = resolver.elements(node.inputs[0]), resolver.elements(node.inputs[1])
    if values is None or target is None or not all(isinstance(size, int) for size in target.reshape(-1)):
        return None
    sizes = np.broadcast_shapes(values.shape, tuple(int(size) for size in target.reshape(-1)))
    return np.broadcast_to(values, sizes).copy() if math.prod(sizes) <= LARGEST else None


_RULES: dict[str, Callable[[_Resolver, ir.Node], Elements | None]] = {
    "Shape": _shape_rule,
    "Size": _size_rule,
    "Cast": _cast_rule,
    "ReduceProd": _reduce_product,
    "ConstantOfShape": _filled,
    "Expand": _expanded,
    "Gather": _structural(_gathered),
    "Concat": _structural(_concatenated),
    "Unsqueeze": _structural(_unsqueezed),
    "Squeeze": _structural(_squeezed),
    "Transpose": _structural(_transposed),
    "Reshape": _structural(_reshaped_vector),
    "Slice": _structural(_sliced),
    "Identity": _structural(lambda node, inputs: inputs[0]),
    "Mul": _elementwise(multiply),
    "Div": _elementwise(divide),
    "Add": _elementwise(add),
    "Sub": _elementwise(subtract),
    "Mod": _elementwise(modulo),
    "Equal": _elementwise(equal),
    "Greater": _elementwise(greater),
    "Less": _elementwise(lambda left, right: greater(right, left)),
    "GreaterOrEqual": _elementwise(lambda left, right: negated(greater(right, left))),
    "LessOrEqual": _elementwise(lambda left, right: negated(greater(left, right))),
    "Where": _elementwise(choice),
    "Not": _elementwise(negated),
    "And": _elementwise(logical(lambda left, right: left and right)),
    "Or": _elementwise(logical(lambda left, right: left or right)),
    "Max": _elementwise(largest),
    "Min": _elementwise(smallest),
    "Floor": _elementwise(on_numbers(math.floor)),
    "Ceil": _elementwise(on_numbers(math.ceil)),
    "Abs": _elementwise(on_numbers(abs)),
    "Neg": _elementwise(minus),
}


def _objects(values: Any) -> Elements:
    """Return an object array of Python numbers, multiples and None."""
    if isinstance(values, np.ndarray) and values.dtype == object:
        return values
    if isinstance(values, np.ndarray):
        return _objects_of(values.reshape(-1).tolist(), values)
    if isinstance(values, list):
        return _objects_of(values, np.empty(len(values)))
    result = np.empty((), object)
    result[()] = values
    return result


def _objects_of(flat: list[Element], like: NDArray[Any]) -> Elements:
    result = np.empty(len(flat), object)
    result[:] = flat
    return result.reshape(like.shape)


def _size(value: ir.Value) -> int:
    if value.const_value is not None:
        return int(value.const_value.size)
    return 0 if value.shape is None else math.prod(size for size in value.shape if isinstance(size, int))


def _has_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
