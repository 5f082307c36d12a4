"""Which nodes of a graph must stay in FP32 when the rest goes to FP16, and why.

FP16 has 11 significant bits between 2⁻¹⁴ ≈ 6.1e-5 and 65504. What leaves that range in a vision transformer is
known: squares and sums over a channel, exponentials outside a softmax (the performer of T2T-ViT spans more than 20
decades), and the small constants that keep a denominator from zero. LayerNormalization and Softmax are not among them:
the former computes in FP32 inside by its definition (``stash_type`` 1), the latter subtracts the maximum first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.clamp_masks import FLOAT16_MAX
from vitdeploy.graph.values import DATA_MOVEMENT, array_of, is_constant, scalar_of

FLOAT16_TINY = 2.0**-14
"""Smallest FP16 number with full precision; below it bits are lost one by one, and 2⁻²⁵ is zero."""

_REDUCTIONS = frozenset(
    ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
     "ReduceSumSquare", "CumSum")
)  # fmt: skip
_NORMALISATIONS = frozenset(
    ("LpNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization", "RMSNormalization")
)
_STOPS = frozenset(("LayerNormalization", "Softmax", "Conv", "Gelu", "QuantizeLinear", "DequantizeLinear"))
_GUARDS = frozenset(("Add", "Sub", "Max", "Min", "Clip"))
_ELEMENTWISE = frozenset(("Add", "Sub", "Mul", "Div", "Max", "Min", "Clip"))
Upstream = Literal["none", "to a sum", "to a normalisation"]
_FLOW = frozenset(("Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Neg", "Abs")) | _REDUCTIONS | DATA_MOVEMENT


def fp32_islands(graph: ir.Graph, keep: Collection[str] = ()) -> dict[ir.Node, str]:
    """Return the nodes that stay in FP32, each with the reason.

    keep: names of nodes that the caller wants in FP32. Types of all values must be known.
    """
    islands = {node: "kept by request" for node in graph if node.name in keep}
    for node in graph:
        if node.domain != "":
            islands.setdefault(node, f"{node.domain}::{node.op_type} is no standard operator")
            continue
        seed = _seed(node)
        if seed is not None:
            reason, upstream = seed
            for member in _grow(node, upstream):
                islands.setdefault(member, reason)
    _trim(islands)
    return islands


def _seed(node: ir.Node) -> tuple[str, Upstream] | None:
    """Return why a node needs FP32, and how far upstream its island reaches.

    What feeds an exponential matters to its last bit, linears included, so that island reaches back to a
    normalisation. An epsilon guards a small number, so what computes that number belongs to it, back to the sum or
    linear whose result is of normal size.
    """
    if node.op_type == "Exp":
        return "an exponential outside a softmax leaves the FP16 range", "to a normalisation"
    if node.op_type in _NORMALISATIONS:
        return "a normalisation sums squares over many elements", "none"
    if node.op_type in _REDUCTIONS:
        return "a sum over many elements can leave the FP16 range", "none"
    if _squares(node):
        return "a square leaves the FP16 range where |x| > 256", "none"
    constant = _unfit_constant(node)
    if constant is None:
        return None
    reason, large = constant
    guards = node.op_type in _GUARDS or (large and node.op_type in _ELEMENTWISE)
    return reason, "to a sum" if guards else "none"


def _squares(node: ir.Node) -> bool:
    if node.op_type == "Pow":
        exponent = scalar_of(node.inputs[1])
        return exponent is None or exponent > 1.0
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


def _unfit_constant(node: ir.Node) -> tuple[str, bool] | None:
    """Return why a constant of this node does not survive in FP16, and whether that is because it is too large."""
    for index, value in enumerate(node.inputs):
        if value is None or not is_constant(value) or value.dtype != ir.DataType.FLOAT:
            continue
        array = array_of(value)
        if array is None or array.size == 0:
            continue
        low, high = float(array.min()), float(array.max())
        largest = max(-low, high)
        if not (np.isfinite(low) and np.isfinite(high)) or largest > FLOAT16_MAX:
            return f"the constant {value.name!r} leaves the FP16 range", True
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if index == 1 and _loses_bits(array):
                return f"the scale {value.name!r} loses bits in FP16", False
        elif 0.0 < largest < FLOAT16_TINY and not _harmless(node, index, array.size):
            return f"the constant {value.name!r} = {largest:.3g} is too small for FP16", False
    return None


def _harmless(node: ir.Node, index: int, size: int) -> bool:
    """Return whether a tiny constant may be rounded: a bias that is tiny in every channel adds nothing to activations.

    One tiny number that is added is an epsilon, and matters.
    """
    if node.op_type in ("Gemm", "Conv", "LayerNormalization"):
        return index == 2
    return node.op_type in ("Add", "Sub") and size > 1


def _loses_bits(scale: np.ndarray) -> bool:
    """Return whether a scale rounded to FP16 is off by more than a normal FP16 number would be."""
    rounded = scale.astype(np.float16).astype(np.float32)
    return bool(np.any(np.abs(rounded - scale) > 2.0**-11 * np.abs(scale)))


def _grow(seed: ir.Node, upstream: Upstream) -> set[ir.Node]:
    """Return the island of a seed: what computes its operands, and what its result runs through.

    Downstream the intermediate result passes through roots, reductions, products of two activations and constants'
    sums, until a Div or Mul by it brings it back to normal size; that node is the last one of the island.
    """
    island = {seed}
    front = [] if upstream == "none" else [seed]
    while front:
        for value in front.pop().inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer not in island and _reaches(producer, upstream):
                island.add(producer)
                front.append(producer)
    if seed.op_type in _NORMALISATIONS | {"QuantizeLinear", "DequantizeLinear"}:
        return island  # what they give is of normal size
    front = list(island) if seed.op_type == "Exp" else [seed]
    while front:
        for reader in _readers(front.pop()):
            if reader in island:
                continue
            if _flows(reader):
                island.add(reader)
                front.append(reader)
            elif reader.op_type in ("Div", "Mul"):
                island.add(reader)
    return island


def _reaches(node: ir.Node, upstream: Upstream) -> bool:
    """Return whether an island that grows upstream takes this node in."""
    if node.domain != "" or node.op_type in _STOPS:
        return False
    if upstream == "to a normalisation":
        return True
    return node.op_type in ("Sub", "Mul", "Div") or (node.op_type != "Add" and _flows(node))


def _flows(node: ir.Node) -> bool:
    """Return whether a node hands an out-of-range intermediate on."""
    if node.op_type in _FLOW:
        return True
    computed = [value for value in node.inputs if value is not None and not is_constant(value)]
    if node.op_type == "MatMul":
        return len(computed) == 2
    return node.op_type in _ELEMENTWISE and len(computed) == 1


def _readers(node: ir.Node) -> Iterable[ir.Node]:
    return [reader for value in node.outputs for reader in value.consumers()]


def _trim(islands: dict[ir.Node, str]) -> None:
    """Take pure data movement off the rims, so that casts sit where the arithmetic is."""
    changed = True
    while changed:
        changed = False
        for node in [node for node in islands if node.op_type in DATA_MOVEMENT]:
            feeding = {value.producer() for value in node.inputs if value is not None and not is_constant(value)}
            fed = not feeding & islands.keys()
            read = not set(_readers(node)) & islands.keys()
            if islands[node] != "kept by request" and (fed or read):
                del islands[node]
                changed = True
