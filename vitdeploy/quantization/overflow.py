"""Which nodes of an FP32 graph give values that FP16 cannot hold, and the plan entries that keep them in FP32."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.clamp_masks import FLOAT16_MAX
from vitdeploy.quantization.collector import with_outputs
from vitdeploy.records import PlanEntry, PrecisionPlan
from vitdeploy.sessions import Opener

REASON = "values leave the FP16 range"
GROUP = "beyond FP16"


@dataclass(frozen=True)
class Overflow:
    """A node of the graph, the value that it gives, and the largest magnitude seen of it."""

    node: ir.Node
    value: str
    peak: float

    def __str__(self) -> str:
        return f"node {self.node.name!r} ({self.node.op_type}) gives {self.value!r} up to {self.peak:.3g}"


def find_overflows(model: ir.Model, batches: Iterable[NDArray[np.float32]], open_graph: Opener) -> tuple[Overflow, ...]:
    """Return the overflows of a graph on some images [b, C, H, W], in the order of its nodes.

    Sizes and types must be known. Constants are no concern here: the FP16 pass knows them.
    """
    nodes = {
        str(value.name): node
        for node in model.graph
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT and value.name and not value.is_graph_output()
    }
    peaks = dict.fromkeys(nodes, 0.0)
    with open_graph(with_outputs(model, tuple(nodes))) as session:
        (fed,) = session.inputs.values()
        for images in batches:
            whole = images if fed.shape[0] is None else np.resize(images, (fed.shape[0], *images.shape[1:]))
            for name, array in session.run({fed.name: whole}).items():
                if name in peaks and array.size:
                    peaks[name] = max(peaks[name], float(np.abs(array).max()))
    return tuple(Overflow(node, name, peaks[name]) for name, node in nodes.items() if peaks[name] > FLOAT16_MAX)


def keeping(overflows: Sequence[Overflow]) -> PlanEntry:
    """Return the entry that keeps the nodes that give such values, and those that read them, in FP32."""
    names: dict[str, None] = {}
    for overflow in overflows:
        readers = [reader for value in overflow.node.outputs for reader in value.consumers()]
        names |= dict.fromkeys(str(node.name) for node in (overflow.node, *readers))
    return PlanEntry(group=GROUP, nodes=tuple(names), precision="fp32", reason=REASON)


def extended(plan: PrecisionPlan, overflows: Sequence[Overflow]) -> PrecisionPlan:
    """Return the plan with that entry; a group that has one of these nodes goes to FP32 as a whole."""
    kept = {name for entry in plan.entries if entry.precision == "fp32" for name in entry.nodes}
    overflows = [overflow for overflow in overflows if overflow.node.name not in kept]
    if not overflows:
        return plan
    entry = keeping(overflows)
    wanted = set(entry.nodes)
    entries = [
        one.model_copy(update={"precision": "fp32", "reason": REASON})
        if one.precision == "fp16" and wanted & set(one.nodes)
        else one
        for one in plan.entries
    ]
    return plan.model_copy(update={"entries": (*entries, entry)})
