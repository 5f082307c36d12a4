"""The outside of a foreign graph: made one float32 input [N, C, H, W] and one float32 output [N, outputs].

Where a transpose, a cast, a flattening or a choice says it all, nodes are put in front and behind; everything else is
refused with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.errors import GraphError
from vitdeploy.graph.values import DATA_MOVEMENT, array_of
from vitdeploy.records import Preprocess

if TYPE_CHECKING:
    import onnx_ir as ir

LOGITS = "logits"
_TO_LAST = (0, 2, 3, 1)
_TO_FIRST = (0, 3, 1, 2)
_ELEMENTWISE = frozenset(("Cast", "Add", "Sub", "Mul", "Div", "Identity", "Clip", "DequantizeLinear", "QuantizeLinear"))


def fit_input(model: ir.Model, spec: Preprocess, where: str) -> tuple[Preprocess, tuple[str, ...]]:
    """Give the graph one float32 input [N, C, H, W] of the preprocessing's size, in place.

    Channels last become a Transpose, FP16, BF16 and FP64 a Cast. A graph that takes bytes normalizes them itself, so
    that the preprocessing that comes back hands pixels on as they are.

    Returns:
        The preprocessing, and what was done in words.
    Raises:
        GraphError: There is another number of inputs, or the one is no batch of images of that size.
    """
    import onnx_ir as ir

    image = _only_input(model, where)
    for value in (image, *model.graph.outputs):
        _open_sizes(value)
    notes: list[str] = []
    bytes_in = image.dtype == ir.DataType.UINT8
    if not bytes_in and (own := _own_normalization(image, spec, where)):
        notes.append(own)
    last = _channels_last(image, spec, where)
    wanted = [image.shape[0] if image.shape is not None else None, spec.channels, *spec.size]
    if bytes_in:
        spec = _as_bytes(spec)
        notes.append(f"input {image.name!r} takes bytes, so mean, std and scale of the preprocessing are not applied")
        if _retyped(image):
            bytes_in = False
    converted = image.dtype if image.dtype != ir.DataType.FLOAT else None
    if not last and converted is None:
        image.shape = ir.Shape(wanted)
        return spec, tuple(notes)
    fed = ir.Value(name=f"{image.name}_nchw", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(wanted))
    value, nodes = fed, list[ir.Node]()
    if last:
        value = _append(nodes, "Transpose", value, {"perm": _TO_LAST}, ir.DataType.FLOAT, [wanted[i] for i in _TO_LAST])
        notes.append(f"input {image.name!r} takes channels last: a Transpose was put in front")
    if converted is not None:
        sizes = list(value.shape) if value.shape is not None else None
        value = _append(nodes, "Cast", value, {"to": int(converted)}, converted, sizes)
        if not spec_is_bytes(spec):
            notes.append(f"input {image.name!r} is {converted.name.lower()}: a Cast was put in front")
    model.graph.inputs[list(model.graph.inputs).index(image)] = fed
    image.replace_all_uses_with(value)
    for node in reversed(nodes):
        _insert_first(model.graph, node)
    return spec, tuple(notes)


def _open_sizes(value: ir.Value) -> None:
    """Leave sizes open that older exporters write as -1 or 0."""
    import onnx_ir as ir

    if value.shape is not None and any(isinstance(size, int) and size < 1 for size in value.shape):
        value.shape = ir.Shape([None if isinstance(size, int) and size < 1 else size for size in value.shape])


def choose_output(model: ir.Model, name: str | None, where: str) -> tuple[str, ...]:
    """Keep one output of the graph, in place: the one called ``name``, the only one, or ``logits``.

    Raises:
        GraphError: There is none, or several and none is named.
    """
    outputs = list(model.graph.outputs)
    chosen = [value for value in outputs if value.name == name] if name is not None else outputs
    if name is not None and not chosen:
        raise GraphError(f"{where} has no output {name!r}, it has {_listed(outputs)}")
    if len(chosen) > 1:
        chosen = [value for value in outputs if value.name == LOGITS]
    if len(chosen) != 1:
        raise GraphError(f"{where} has the outputs {_listed(outputs)}: name that of the logits with output_name='NAME'")
    model.graph.outputs[:] = chosen
    if len(outputs) == 1:
        return ()
    others = ", ".join(repr(value.name) for value in outputs if value is not chosen[0])
    return (f"output {chosen[0].name!r} was taken, {others} left out",)


def fit_output(model: ir.Model, shape: Sequence[int], batch: int, where: str) -> tuple[int, tuple[str, ...]]:
    """Give the graph one float32 output [N, outputs], in place.

    Args:
        model: A graph with one output.
        shape: What that output was when the graph ran.
        batch: On how many images.
        where: What errors call the graph.
    Returns:
        The number of outputs per image, and what was done in words.
    Raises:
        GraphError: It holds no floating-point numbers, or no row of them per image.
    """
    import onnx_ir as ir

    output = model.graph.outputs[0]
    if output.dtype is None or not output.dtype.is_floating_point():
        kind = "of no number type" if output.dtype is None else output.dtype.name.lower()
        raise GraphError(
            f"{where}: output {output.name!r} is {kind}, expected logits or probabilities: class indices and labels "
            f"that the graph itself chose cannot be measured; export it without its last step"
        )
    per_image = list(shape[1:])
    count = 1
    for size in per_image:
        count *= size
    if not shape or shape[0] != batch or count != max(per_image, default=1) or not count:
        sizes = "×".join(map(str, per_image)) or "no"
        tokens = ": features of every token or place, as a model without its head gives them" if count > 1 else ""
        raise GraphError(
            f"{where}: output {output.name!r} gives {sizes} numbers per image{tokens}; expected one row [N, classes]"
        )
    dtype, notes = output.dtype, []
    nodes: list[ir.Node] = []
    value = output
    rows = [output.shape[0] if output.shape is not None and len(output.shape) else None, count]
    if len(per_image) != 1:
        value = (
            _append(nodes, "Flatten", value, {"axis": 1}, dtype, rows) if per_image else _column(model, nodes, value)
        )
        notes.append(f"output {output.name!r} is flattened to [N, {count}]")
    if dtype != ir.DataType.FLOAT:
        value = _append(nodes, "Cast", value, {"to": int(ir.DataType.FLOAT)}, ir.DataType.FLOAT, rows)
    value.shape = ir.Shape(rows)
    model.graph.outputs[0] = value
    model.graph.extend(nodes)
    return count, tuple(notes)


def spec_is_bytes(spec: Preprocess) -> bool:
    """Return whether a preprocessing hands pixels on as they are."""
    plain = spec.scale == 1.0 and not spec.offset
    return plain and not any(spec.mean) and all(value == 1.0 for value in spec.std)


def _as_bytes(spec: Preprocess) -> Preprocess:
    zeros, ones = (0.0,) * spec.channels, (1.0,) * spec.channels
    return spec.model_copy(update={"scale": 1.0, "offset": 0.0, "mean": zeros, "std": ones})


def _only_input(model: ir.Model, where: str) -> ir.Value:
    """Return the image input; inputs that nothing reads are removed."""
    import onnx_ir as ir

    graph = model.graph
    fed = [value for value in graph.inputs if not value.is_initializer()]
    used = [value for value in fed if value.uses() or value.is_graph_output()]
    if len(used) != 1:
        raise GraphError(f"{where} has the inputs {_listed(fed)}, expected one input with images")
    graph.inputs[:] = [value for value in graph.inputs if value is used[0] or value.is_initializer()]
    image = used[0]
    known = (
        ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.UINT8,
    )  # fmt: skip
    if image.dtype not in known:
        raise GraphError(
            f"{where}: input {_text(image)}, expected float32, float16 or bytes (uint8): what its numbers mean is not "
            f"said"
        )
    if image.shape is None or len(image.shape) != 4:
        raise GraphError(f"{where}: input {_text(image)}, expected images [N, C, H, W] or [N, H, W, C]")
    return image


def _channels_last(image: ir.Value, spec: Preprocess, where: str) -> bool:
    """Return whether an input is [N, H, W, C], by its sizes, and where both fit by what reads it.

    Raises:
        GraphError: It is neither.
    """
    assert image.shape is not None
    sizes = list(image.shape)[1:]
    first, last = (spec.channels, *spec.size), (*spec.size, spec.channels)
    fits_first, fits_last = (
        all(not isinstance(size, int) or size == right for size, right in zip(sizes, order, strict=True))
        for order in (first, last)
    )
    if fits_first != fits_last:
        return fits_last
    if not fits_first:
        spelled = "×".join(map(str, first))
        raise GraphError(
            f"{where}: input {_text(image)}, but the preprocessing gives {spelled} (channels, height, width): name "
            f"the preprocessing that belongs to this model"
        )
    return _read_by_transpose(image)


def _read_by_transpose(value: ir.Value) -> bool:
    """Return whether what reads the images first moves the channels from the end to the front."""
    front, seen = [value], set()
    while front:
        for node in front.pop().consumers():
            if node in seen:
                continue
            seen.add(node)
            if node.op_type == "Transpose" and node.attributes.get("perm") is not None:
                return tuple(node.attributes["perm"].as_ints()) == _TO_FIRST
            if node.op_type in _ELEMENTWISE:
                front.extend(node.outputs)
    return False


def _own_normalization(image: ir.Value, spec: Preprocess, where: str) -> str:
    """Return a note where the graph begins with arithmetic on colours, "" where it does not.

    Raises:
        GraphError: It subtracts the mean that the preprocessing subtracts.
    """
    if spec_is_bytes(spec) or not (any(spec.mean) or any(value != 1.0 for value in spec.std)):
        return ""
    found, front, seen = "", [image], set()
    while front:
        for node in front.pop().consumers():
            if node in seen or node.op_type not in (*_ELEMENTWISE, "Transpose"):
                continue
            seen.add(node)
            front.extend(node.outputs)
            constants = [array_of(value) for value in node.inputs]
            for values in (array.reshape(-1) for array in constants if array is not None):
                colours = values.size == spec.channels > 1 and node.op_type in ("Add", "Sub", "Mul", "Div")
                if colours or (values.size == 1 and node.op_type in ("Mul", "Div") and _is_of_bytes(float(values[0]))):
                    found = found or f"{node.name!r} ({node.op_type})"
                if colours and any(np.allclose(abs(values), np.multiply(spec.mean, by), rtol=1e-3) for by in (1, 255)):
                    raise GraphError(
                        f"{where} subtracts the mean of images itself, in node {node.name!r}, and so does the "
                        "preprocessing: name one with mean 0 and std 1, as preprocess='FILE.json'"
                    )
    if not found:
        return ""
    return (
        f"the graph begins with arithmetic on colours, in node {found}: if it normalizes images itself, name a "
        "preprocessing with mean 0 and std 1"
    )


def _is_of_bytes(factor: float) -> bool:
    return any(abs(factor * by - 1) < 1e-2 for by in (255, 1 / 255))


def _retyped(image: ir.Value) -> bool:
    """Retype an input of bytes as float32 where only casts read it, through movements of elements; return whether so.

    Pixels in 0…255 are exact in float32, so casts to bytes and back would do nothing.
    """
    import onnx_ir as ir

    moved, front = [image], [image]
    while front:
        for node in front.pop().consumers():
            if node.op_type == "Cast":
                continue
            if node.op_type not in DATA_MOVEMENT or node.inputs[0] not in moved:
                return False
            moved.extend(node.outputs)
            front.extend(node.outputs)
    for value in moved:
        if value.is_graph_output():
            return False
        value.type = ir.TensorType(ir.DataType.FLOAT)
    return True


def _append(
    nodes: list[ir.Node],
    op_type: str,
    value: ir.Value,
    attributes: dict[str, object],
    dtype: ir.DataType,
    shape: Sequence[object] | None,
) -> ir.Value:
    import onnx_ir as ir

    node = ir.node(op_type, [value], attributes, name=f"{value.name}/{op_type}")  # type: ignore[arg-type]
    result = node.outputs[0]
    result.name, result.type = f"{value.name}_{op_type.lower()}", ir.TensorType(dtype)
    if shape is not None:
        result.shape = ir.Shape(shape)  # type: ignore[arg-type]
    nodes.append(node)
    return result


def _column(model: ir.Model, nodes: list[ir.Node], value: ir.Value) -> ir.Value:
    """Make [N] a column [N, 1]; opset 12 and older have the axes as an attribute, which Reshape does without."""
    import numpy as np
    import onnx_ir as ir

    name = f"{value.name}_column_shape"
    tensor = ir.tensor(np.array([-1, 1], np.int64), name=name)
    target = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([2]), const_value=tensor)
    model.graph.register_initializer(target)
    node = ir.node("Reshape", [value, target], name=f"{value.name}/Reshape")
    node.outputs[0].name, node.outputs[0].type = f"{value.name}_column", value.type
    nodes.append(node)
    return node.outputs[0]


def _insert_first(graph: ir.Graph, node: ir.Node) -> None:
    if len(graph):
        graph.insert_before(graph[0], node)
    else:
        graph.append(node)


def _listed(values: Sequence[ir.Value]) -> str:
    return ", ".join(f"{value.name!r} ({_kind(value)})" for value in values)


def _text(value: ir.Value) -> str:
    return f"{value.name!r} is {_kind(value)}"


def _kind(value: ir.Value) -> str:
    kind = value.dtype.name.lower() if value.dtype is not None else "of unknown type"
    sizes = ", ".join(str(size) for size in value.shape) if value.shape is not None else "unknown shape"
    return f"{kind} [{sizes}]"
