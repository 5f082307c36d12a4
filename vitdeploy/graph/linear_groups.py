"""Find the linear layers of a graph by structure, in the groups that change precision together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from vitdeploy.graph.name_nodes import module_path

MINIMUM_FEATURES = 16
PATCH_EMBEDDING = "patch embedding: the first layer from the image"
HEAD = "head: feeds the output"
CONVOLUTION = "convolution"
"""How the obstacle of a convolution with a kernel or groups begins."""
_WRAPPERS = frozenset(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"))
_POINTWISE = frozenset(("Add", "Sub", "Mul", "Div", "Neg", "Cast", *_WRAPPERS))
_SELECTION = frozenset(("Concat", "Gather", "Slice", "Split"))
_TO_OUTPUT = _POINTWISE | _SELECTION | {"ReduceMean", "ReduceSum", "Mean", "Sum", "Softmax", "LogSoftmax", "Sigmoid"}
_TO_EXP = _POINTWISE | _SELECTION | {"Pow", "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceMax"}


@dataclass(frozen=True)
class Linear:
    """One MatMul, Gemm or Conv with a constant weight.

    ``channel_axis`` is the axis of ``weight`` that runs over output channels; ``path`` is the module's path.
    """

    node: ir.Node
    weight: ir.Value
    channel_axis: int
    in_features: int
    out_features: int
    path: str


@dataclass(frozen=True)
class LinearGroup:
    """Linears that read one tensor, so that one Q/DQ pair serves all of them (q, k, v after a LayerNorm).

    ``activation`` is that tensor: what the linears read, or where they read it through Reshapes and Transposes of their
    own, the last tensor that they share; of a convolution with a kernel, what was laid out as its map. ``uses`` are its
    consumers on the way to the linears, as (node, input index).
    ``obstacle`` says why a profile leaves the group in high precision, "" where nothing speaks against integers.
    """

    name: str
    linears: tuple[Linear, ...]
    activation: ir.Value
    uses: tuple[tuple[ir.Node, int], ...]
    obstacle: str = ""

    @property
    def convolves(self) -> bool:
        """Return whether a kernel or groups are all that speaks against it: kernels of a CPU take such convolutions."""
        return self.obstacle.startswith(CONVOLUTION)

    @property
    def is_depthwise(self) -> bool:
        """Return whether each of its convolutions multiplies every channel with a kernel of its own."""
        sizes = [linear.weight.const_value.shape.numpy() for linear in self.linears if linear.weight.const_value]
        return self.convolves and all(one[1] == 1 for one in sizes)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the linears' nodes."""
        return tuple(str(linear.node.name) for linear in self.linears)


def find_linear_groups(model: ir.Model) -> tuple[LinearGroup, ...]:
    """Return every MatMul, Gemm and Conv with a constant weight, grouped by the tensor it reads, in graph order.

    A group has an obstacle where it is the patch embedding (the first layer from the image), a head (nothing but
    arithmetic and selection up to an output), a convolution with a kernel or groups, a layer with one row per image
    (a GEMV: class-token linears, squeeze-and-excite gates), one with fewer than 16 input or output features, or part
    of a performer (its features go through Exp and span many decades). Names play no part in that; they only name the
    groups.

    Weights must be initializers (``FoldTransposes`` and onnx_ir's ``LiftConstantsToInitializersPass`` see to it), and
    node names unique (``NameNodes``).
    """
    graph = model.graph
    shapes = shapes_at_batch_one(model)
    linears = [linear for node in graph if (linear := linear_of(node)) is not None]
    nodes = {linear.node for linear in linears}
    inputs = {value for value in graph.inputs if not value.is_initializer()}
    fed = _downstream(graph, inputs)
    raw = fed - _downstream(graph, {output for node in nodes for output in node.outputs})
    linears = [linear for linear in linears if linear.node.inputs[0] in fed]
    performers = _performer_paths(linears)
    obstacles = {
        linear.node: _obstacle(linear, raw, shapes.get(str(_activation(linear).name)), performers) for linear in linears
    }
    by_origin: dict[tuple[ir.Value, str], list[Linear]] = {}
    for linear in linears:
        origin = _upstream(_activation(linear))[-1]
        by_origin.setdefault((origin, obstacles[linear.node]), []).append(linear)
    groups = [_group(part, obstacle) for (_, obstacle), part in by_origin.items() for part in _sharing(part)]
    return tuple(_uniquely_named(groups))


def products_left_out(model: ir.Model) -> tuple[str, ...]:
    """Return the products with a constant weight that no group has, each as its node's name and the reason.

    They lie in the body of an If or a Loop, have their weight on the left, or one that is no matrix.
    """
    found = []
    for node in model.graph.all_nodes():
        if node.domain or node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        constant = [
            value is not None and value.is_initializer() and value.const_value is not None for value in node.inputs
        ]
        if node.graph is not model.graph and any(constant[:2]):
            found.append(f"{node.name!r} lies inside another node")
        elif constant[:2] == [True, False]:
            found.append(f"{node.name!r} has its weight on the left")
        elif constant[:2] == [False, True] and linear_of(node) is None:
            found.append(f"{node.name!r} has a weight that is no matrix")
    return tuple(found)


def shapes_at_batch_one(model: ir.Model) -> dict[str, tuple[int | None, ...]]:
    """Return the shape of every value for a batch of one image; an unknown dimension is None."""
    return shapes_at_batch(model, 1)


def shapes_at_batch(model: ir.Model, batch: int) -> dict[str, tuple[int | None, ...]]:
    """Return the shape of every value for a batch of that many images; an unknown dimension is None.

    Shapes are inferred anew with the batch fixed, because a symbolic batch is lost behind the first Reshape. A graph
    with a fixed batch keeps it.
    """
    copy = model.clone()
    for value in copy.graph.inputs:
        if value.shape is not None:
            sizes = [size if isinstance(size, int) else None for size in value.shape]
            value.shape = ir.Shape([batch if axis == 0 and size is None else size for axis, size in enumerate(sizes)])
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    inferred = ir_passes.ShapeInferencePass()(copy).model
    return {
        str(value.name): tuple(size if isinstance(size, int) else None for size in value.shape)
        for value in (*inferred.graph.inputs, *(output for node in inferred.graph for output in node.outputs))
        if value.shape is not None
    }


def path_of(node: ir.Node) -> str:
    """Return the module that a node belongs to: what the exporter recorded, else the node's name before ``/OpType``."""
    path = module_path(node)
    if path:
        return path
    name = str(node.name)
    parts = name.strip("/").split("/")[:-1]
    # TorchScript repeats the container: /blocks/blocks.0/attn/qkv/MatMul
    following = [*parts[1:], ""][: len(parts)]
    kept = [part for part, after in zip(parts, following, strict=True) if not after.startswith(f"{part}.")]
    return ".".join(kept)


def linear_of(node: ir.Node) -> Linear | None:
    """Return what a MatMul, Gemm or Conv with a constant weight is; None for every other node."""
    if node.domain or node.op_type not in ("MatMul", "Gemm", "Conv") or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    if weight is None or not weight.is_initializer() or weight.is_graph_input() or weight.const_value is None:
        return None
    sizes = weight.const_value.shape.numpy()
    path = path_of(node) or str(weight.name).removesuffix(".weight")
    if node.op_type == "Conv":
        groups = _integer(node, "group", 1)
        return Linear(node, weight, 0, sizes[1] * groups, sizes[0], path)
    if len(sizes) != 2 or _integer(node, "transA", 0):
        return None
    if node.op_type == "Gemm" and _integer(node, "transB", 0):
        return Linear(node, weight, 0, sizes[1], sizes[0], path)
    return Linear(node, weight, 1, sizes[0], sizes[1], path)


def _obstacle(linear: Linear, raw: set[ir.Value], shape: tuple[int | None, ...] | None, performers: set[str]) -> str:
    if linear.node.inputs[0] in raw:
        return PATCH_EMBEDDING
    if _reaches(linear.node, _TO_OUTPUT, to_output=True):
        return HEAD
    rows = _rows(linear, shape)
    if rows == 1:
        return "one row per image: a GEMV gains nothing"
    if min(linear.in_features, linear.out_features) < MINIMUM_FEATURES:
        return f"{linear.in_features} → {linear.out_features} features, integers pay from {MINIMUM_FEATURES}"
    inside = any(linear.path.startswith(f"{path}.") for path in performers)
    if inside or _reaches(linear.node, _TO_EXP, to_output=False):
        return "performer: its features pass through Exp and span many decades"
    if linear.node.op_type == "Conv":
        assert linear.weight.const_value is not None
        *_, height, width = linear.weight.const_value.shape.numpy()
        if height * width != 1 or _integer(linear.node, "group", 1) != 1:
            return f"{CONVOLUTION} {height}×{width}, only those of 1×1 without groups are linears"
    return ""


def _rows(linear: Linear, shape: tuple[int | None, ...] | None) -> int | None:
    """Rows that the weight multiplies for one image, None where the shape is not known."""
    if shape is None or len(shape) < 2:
        return None
    sizes = shape[2:] if linear.node.op_type == "Conv" else shape[:-1]
    rows = 1
    for size in sizes:
        if size is None:
            return None
        rows *= size
    return rows


def _performer_paths(linears: Iterable[Linear]) -> set[str]:
    """Return the modules whose linears feed an Exp: the innermost, so that not all of what holds them is one."""
    paths = {linear.path.rpartition(".")[0] for linear in linears if _reaches(linear.node, _TO_EXP, to_output=False)}
    return {path for path in paths - {""} if not any(other.startswith(f"{path}.") for other in paths)}


def _reaches(node: ir.Node, through: frozenset[str], *, to_output: bool) -> bool:
    """Return whether ``node`` leads to a graph output, or else to an Exp, by operators of ``through`` alone."""
    pending, seen = list(node.outputs), set(node.outputs)
    while pending:
        value = pending.pop()
        if to_output and value.is_graph_output():
            return True
        for consumer in value.consumers():
            if not to_output and consumer.op_type == "Exp":
                return True
            if consumer.op_type in through and not consumer.domain:
                fresh = [output for output in consumer.outputs if output not in seen]
                seen.update(fresh)
                pending.extend(fresh)
    return False


def _downstream(graph: ir.Graph, sources: set[ir.Value]) -> set[ir.Value]:
    """Return ``sources`` and every value that is computed from one of them."""
    found = set(sources)
    for node in graph:
        if any(value in found for value in node.inputs if value is not None):
            found.update(node.outputs)
    return found


def _activation(linear: Linear) -> ir.Value:
    value = linear.node.inputs[0]
    assert value is not None
    return value


def _upstream(value: ir.Value) -> list[ir.Value]:
    """Return the value and what it was before each Reshape, Transpose or the like, back to where it was computed."""
    chain = [value]
    while (producer := chain[-1].producer()) is not None and producer.op_type in _WRAPPERS and not producer.domain:
        source = producer.inputs[0]
        if source is None or source.is_initializer():
            break
        chain.append(source)
    return chain


def _sharing(linears: list[Linear]) -> Iterator[list[Linear]]:
    """Split linears of one origin where a wrapper on the way has other readers, which must not see rounded values."""
    if len({_activation(linear) for linear in linears}) == 1 or _wrappers_are_private(linears):
        yield linears
        return
    by_activation: dict[ir.Value, list[Linear]] = {}
    for linear in linears:
        by_activation.setdefault(_activation(linear), []).append(linear)
    yield from by_activation.values()


def _wrappers_are_private(linears: list[Linear]) -> bool:
    shared = _shared_value(linears)
    nodes = {linear.node for linear in linears}
    between: set[ir.Value] = set()
    for linear in linears:
        chain = _upstream(_activation(linear))
        between.update(chain[: chain.index(shared)])
    producers = {value.producer() for value in between}
    return all(consumer in nodes or consumer in producers for value in between for consumer in value.consumers())


def _shared_value(linears: list[Linear]) -> ir.Value:
    """Return the last value that all linears read, directly or through wrappers."""
    chains = [_upstream(_activation(linear)) for linear in linears]
    return next(value for value in chains[0] if all(value in chain for chain in chains))


def _group(linears: list[Linear], obstacle: str) -> LinearGroup:
    shared = _shared_value(linears)
    uses: list[tuple[ir.Node, int]] = []
    for linear in linears:
        chain = _upstream(_activation(linear))
        index = chain.index(shared)
        reader = linear.node if index == 0 else chain[index - 1].producer()
        assert reader is not None
        if (reader, 0) not in uses:
            uses.append((reader, 0))
    if obstacle.startswith(CONVOLUTION):
        for value in _upstream(shared)[1:]:
            reader, only = shared.producer(), len(shared.uses()) == 1 and not shared.is_graph_output()
            if reader is None or not only:
                break
            shared, uses = value, [(reader, 0)]
    return LinearGroup(_group_name([linear.path for linear in linears]), tuple(linears), shared, tuple(uses), obstacle)


def _group_name(paths: list[str]) -> str:
    """Return ``blocks.0.attn.qkv``, or ``blocks.0.attn.{q,k,v}`` where several linears share their input."""
    paths = list(dict.fromkeys(paths))
    if len(paths) == 1:
        return paths[0]
    parts = [path.split(".") for path in paths]
    common = 0
    while all(len(part) > common + 1 for part in parts) and len({part[common] for part in parts}) == 1:
        common += 1
    tails = ",".join(".".join(part[common:]) for part in parts)
    return ".".join([*parts[0][:common], f"{{{tails}}}"])


def _uniquely_named(groups: list[LinearGroup]) -> Iterator[LinearGroup]:
    used: Counter[str] = Counter()
    for group in groups:
        name = group.name or group.nodes[0]
        used[name] += 1
        name = name if used[name] == 1 else f"{name}#{used[name]}"
        yield LinearGroup(name, group.linears, group.activation, group.uses, group.obstacle)


def _integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()
