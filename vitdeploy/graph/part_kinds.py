"""What a group of linears is for in a transformer: by structure, so that graphs of every exporter agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import onnx_ir as ir

from vitdeploy.graph.attentions import Attention
from vitdeploy.graph.linear_groups import HEAD, PATCH_EMBEDDING, Linear, LinearGroup

Kind = Literal["patch embedding", "qkv", "attention", "proj", "fc1", "fc2", "convolution", "head", "other linear"]

_PASSED = frozenset(
    ("Add", "Sub", "Mul", "Div", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity")
) | frozenset(("Split", "Slice", "Gather", "Concat", "Pad", "Expand"))
_NONLINEAR = frozenset(
    ("Gelu", "Erf", "Tanh", "Relu", "Sigmoid", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Clip")
)


def kind_of(group: LinearGroup, attentions: Sequence[Attention]) -> Kind:
    """Return what a group is for.

    qkv: feeds the products of an attention; proj: reads what one gives; fc1 and fc2: before and after a non-linear
    function. Arithmetic, shapes and selections between do not count.
    """
    if group.obstacle == PATCH_EMBEDDING:
        return "patch embedding"
    if group.obstacle == HEAD:
        return "head"
    outputs = [value for linear in group.linears for value in linear.node.outputs]
    behind = _first_nodes(outputs, forward=True)
    products = {node for attention in attentions for node in (attention.scores, attention.context)}
    if behind & products:
        return "qkv"
    before = _first_nodes([group.activation], forward=False)
    if before & {attention.context for attention in attentions}:
        return "proj"
    if any(_has_kernel(linear) for linear in group.linears):
        return "convolution"
    if any(node.op_type in _NONLINEAR for node in before):
        return "fc2"
    if any(node.op_type in _NONLINEAR for node in behind):
        return "fc1"
    return "other linear"


def _has_kernel(linear: Linear) -> bool:
    assert linear.weight.const_value is not None
    sizes = linear.weight.const_value.shape.numpy()
    return linear.node.op_type == "Conv" and any(size > 1 for size in sizes[2:])


def _first_nodes(values: Sequence[ir.Value], *, forward: bool) -> set[ir.Node]:
    """Return the first nodes on every way from ``values`` that are not passed, forwards or backwards."""
    pending, seen, found = list(values), set(values), set[ir.Node]()
    while pending:
        value = pending.pop()
        producer = value.producer()
        for node in value.consumers() if forward else () if producer is None else (producer,):
            if node.op_type not in _PASSED or node.domain:
                found.add(node)
                continue
            for further in node.outputs if forward else node.inputs:
                if further is not None and further not in seen:
                    seen.add(further)
                    pending.append(further)
    return found
