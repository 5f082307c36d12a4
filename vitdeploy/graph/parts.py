"""Which part of a transformer each node of a graph belongs to: by structure, so that graphs of every exporter agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from vitdeploy.graph.precisions import PRODUCTS
from vitdeploy.graph.values import is_constant
from vitdeploy.records.layer_profile import Part

CONVERSIONS = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "FakeQuantize", "Convert")
)
LAYOUT = frozenset(
    ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Split", "Slice", "Gather", "Concat", "Pad",
     "Expand", "Tile", "Roll", "StridedSlice", "VariadicSplit", "Reorder", "ReorderInput", "ReorderOutput", "Reformat",
     "NoOp", "Shuffle")
)  # fmt: skip
NORMS = frozenset(
    ("LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
     "RMSNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization", "MVN")
)  # fmt: skip
ATTENTIONS = frozenset(("Attention", "QAttention", "MultiHeadAttention", "ScaledDotProductAttention"))
_PASSED = LAYOUT | CONVERSIONS | frozenset(("Add", "Sub", "Mul", "Div"))
_NONLINEAR = frozenset(
    ("Gelu", "FastGelu", "BiasGelu", "Erf", "Tanh", "Relu", "Sigmoid", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu",
     "Clip", "Swish", "Mish")
)  # fmt: skip
_ORDER: tuple[Part, ...] = ("attention", "mlp", "head", "embedding", "norm", "residual", "conversion", "layout")
_STREAM = ("norm", "residual", "embedding")  # of which two values meet only where the residual stream goes on
_WORDS: tuple[tuple[Part, tuple[str, ...]], ...] = (
    ("embedding", ("patch_embed", "pos_embed", "cls_token", "embeddings", "conv_proj", "conv1")),
    ("norm", ("norm", "ln_", "layernorm")),
    ("attention", ("attn", "attention", "qkv")),
    ("mlp", ("mlp", "ffn", "fc1", "fc2", "intermediate")),
    ("head", ("head", "classifier")),
)


def parts_of(model: ir.Model) -> dict[str, Part]:
    """Return node or value → part, for every node that has a name and every value that a node gives.

    A linear belongs to the attention where its output reaches the products of one or its input comes from one, to the
    MLP where a non-linear function stands before or behind it, and where neither is so to what its name says;
    arithmetic, shapes, selections and quantization between do not count. What has one changing input belongs to where
    that comes from (bias, activation, scale); an addition of two is ``residual``. What quantizes, converts or only
    moves values is ``conversion`` or ``layout``, wherever it stands.
    """
    products = [node for node in model.graph if node.op_type in PRODUCTS]
    linear = {node for node in products if any(_is_weight(value) for value in node.inputs[1:2])}
    attention = {node for node in products if node not in linear and _touches_a_softmax(node)}
    parts: dict[ir.Node, Part] = {}
    for node in model.graph:
        parts[node] = _part(node, parts, linear, attention)
    found: dict[str, Part] = {}
    for node, part in parts.items():
        if node.op_type in CONVERSIONS or node.op_type in LAYOUT:
            part = "conversion" if node.op_type in CONVERSIONS else "layout"
        for name in (node.name, *(value.name for value in node.outputs)):
            if name:
                found[name] = part
    return found


def part_of_layer(operator: str, sources: Iterable[str], parts: Mapping[str, Part]) -> Part:
    """Return what a layer of a runtime is for, by its operator and the nodes and values that went into it.

    ``parts`` is what ``parts_of`` gives of the model; where it is empty (an engine without its model), the words in the
    names of the sources decide.
    """
    if operator in CONVERSIONS:
        return "conversion"
    if operator in LAYOUT:
        return "layout"
    names = list(sources)
    found = {part for name in names if (part := _known(name, parts)) is not None}
    if operator in NORMS and not found & {"attention", "mlp"}:
        return "norm"
    return next((part for part in _ORDER if part in found), "other")


def _known(name: str, parts: Mapping[str, Part]) -> Part | None:
    """Return the part of a source: a node, a value, or a name that a runtime made by adding to one of these."""
    if not parts:
        return _by_words(name)
    while name:
        if name in parts:
            return parts[name]
        name = name.rpartition("/")[0]
    return None


def _by_words(name: str) -> Part | None:
    return next((part for part, words in _WORDS if any(word in name.lower() for word in words)), None)


def _part(node: ir.Node, parts: Mapping[ir.Node, Part], linear: set[ir.Node], attention: set[ir.Node]) -> Part:
    if node in attention or node.op_type in ATTENTIONS or node.op_type == "Softmax":
        return "attention"
    if node in linear:
        return _part_of_linear(node, linear, attention)
    if node.op_type in NORMS:
        return "norm"
    makers = [value.producer() for value in node.inputs if value is not None and not is_constant(value)]
    found = list(dict.fromkeys(parts[maker] for maker in makers if maker is not None and maker in parts))
    if not found:
        return "embedding"
    if node.op_type == "Add" and len(makers) > 1 and (len(found) > 1 or found[0] in _STREAM):
        return "residual"
    return found[0]


def _part_of_linear(node: ir.Node, linear: set[ir.Node], attention: set[ir.Node]) -> Part:
    behind, ends = _first_nodes(node.outputs, forward=True)
    before, starts = _first_nodes(node.inputs[:1], forward=False)
    if behind & attention or before & attention or any(one.op_type in ATTENTIONS for one in behind | before):
        return "attention"
    if starts:
        return "embedding"
    if any(one.op_type in _NONLINEAR for one in behind | before):
        return "mlp"
    return "head" if ends and not behind else _by_words(node.name or "") or "other"


def _first_nodes(values: Iterable[ir.Value | None], *, forward: bool) -> tuple[set[ir.Node], bool]:
    """Return the first nodes on every way from ``values`` that are not passed, and whether a way leaves the graph."""
    pending = [value for value in values if value is not None]
    seen, found, leaves = set(pending), set[ir.Node](), False
    while pending:
        value = pending.pop()
        producer = value.producer()
        leaves = leaves or (value.is_graph_output() if forward else value.is_graph_input())
        for node in value.consumers() if forward else () if producer is None else (producer,):
            if node.op_type not in _PASSED:
                found.add(node)
                continue
            for further in node.outputs if forward else node.inputs:
                if further is not None and further not in seen:
                    seen.add(further)
                    pending.append(further)
    return found, leaves


def _is_weight(value: ir.Value | None) -> bool:
    """Return whether a value is a constant behind quantization, casts and transposes."""
    while value is not None and not is_constant(value):
        producer = value.producer()
        if producer is None or producer.op_type not in CONVERSIONS | {"Transpose", "Reshape", "Identity"}:
            return False
        value = producer.inputs[0]
    return value is not None


def _touches_a_softmax(node: ir.Node) -> bool:
    """Return whether a product of two activations has a softmax before or behind it."""
    return any(
        one.op_type == "Softmax"
        for values, forward in ((node.outputs, True), (node.inputs[:2], False))
        for one in _first_nodes(values, forward=forward)[0]
    )
