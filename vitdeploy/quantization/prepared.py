"""A graph that is ready to be quantized, with its groups: found once, for the plan, its realisation and all trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir
import onnx_ir.passes.common as common

from vitdeploy.graph.attentions import Attention, find_attentions
from vitdeploy.graph.fold_transposes import FoldTransposes
from vitdeploy.graph.linear_groups import LinearGroup, find_linear_groups, shapes_at_batch
from vitdeploy.graph.name_nodes import NameNodes
from vitdeploy.graph.quiet import quiet
from vitdeploy.graph.values import hold_as_arrays


@dataclass(frozen=True)
class Prepared:
    """A float graph, its linear groups and its attentions, which refer to nodes and values of ``graph``.

    ``shapes`` are those of all values for a batch of two images, by name.
    """

    graph: ir.Model
    linears: tuple[LinearGroup, ...]
    attentions: tuple[Attention, ...]
    shapes: Mapping[str, tuple[int | None, ...]]

    @classmethod
    def of(cls, model: ir.Model) -> Prepared:
        """Prepare a graph in place and find its groups."""
        prepare(model)
        return cls(model, find_linear_groups(model), find_attentions(model), shapes_at_batch(model, 2))

    def clone(self) -> Prepared:
        """Return a copy of the graph, whose weights are shared, and the same groups in that copy."""
        copy = self.graph.clone()
        nodes = dict(zip(self.graph.graph, copy.graph, strict=True))
        values = {value.name: value for value in (*copy.graph.inputs, *copy.graph.initializers.values())}
        values |= {value.name: value for node in copy.graph for value in node.outputs}
        linears = tuple(
            replace(
                group,
                linears=tuple(
                    replace(linear, node=nodes[linear.node], weight=values[linear.weight.name])
                    for linear in group.linears
                ),
                activation=values[group.activation.name],
                uses=tuple((nodes[node], index) for node, index in group.uses),
            )
            for group in self.linears
        )
        attentions = tuple(
            replace(found, scores=nodes[found.scores], softmax=nodes[found.softmax], context=nodes[found.context])
            for found in self.attentions
        )
        return Prepared(copy, linears, attentions, self.shapes)


def prepare(model: ir.Model) -> ir.Model:
    """Bring weights into initializers, name every node and infer shapes, in place, so that groups can be found."""
    hold_as_arrays(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    FoldTransposes()(model)
    NameNodes()(model)
    with quiet():
        common.ShapeInferencePass()(model)
    return model
