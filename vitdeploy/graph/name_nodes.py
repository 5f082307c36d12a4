"""Readable node and value names, the same in every export of the same model."""

from __future__ import annotations

import ast
import re
from collections import Counter

import onnx_ir as ir

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
KIND_KEY = "pkg.torch.export.graph_signature.InputSpec.kind"
_PARAMETER_KINDS = ("PARAMETER", "BUFFER")
_ROLES = {
    ("MatMul", 1): "weight",
    ("Gemm", 1): "weight",
    ("Gemm", 2): "bias",
    ("Conv", 1): "weight",
    ("Conv", 2): "bias",
    ("Reshape", 1): "shape",
    ("Expand", 1): "shape",
    ("Gather", 1): "indices",
    ("Split", 1): "sizes",
    ("Pad", 1): "pads",
}


class NameNodes(ir.passes.InPlacePass):
    """Name nodes after their modules: ``blocks.0.attn.qkv/MatMul``, the second of its kind ``…/MatMul_1``.

    The dynamo exporter records module paths in ``metadata_props``; a node that an optimizer made takes the path of a
    node that reads it. Values are named after their node (``…/MatMul_out``), folded constants after the node that
    reads them (``blocks.0.attn/Reshape.shape``); parameters keep their names, graph inputs and outputs too.

    A graph without module paths keeps its names; only empty and repeated ones are replaced.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = [node.name for node in model.graph]
        if any(SCOPES_KEY in node.metadata_props for node in model.graph):
            self._name_by_module(model.graph)
        else:
            complete_names(model.graph)
        return ir.passes.PassResult(model, modified=before != [node.name for node in model.graph])

    def _name_by_module(self, graph: ir.Graph) -> None:
        paths: dict[ir.Node, str] = {}
        used: Counter[str] = Counter()
        for node in graph:
            path = module_path(node)
            if path is None:
                path = _path_of_neighbour(node, paths)
            paths[node] = path
            node.name = _numbered(f"{path}/{node.op_type}" if path else node.op_type, used)
        _park(graph)
        for node in graph:
            for index, value in enumerate(node.outputs):
                if not value.is_graph_output():
                    value.name = f"{node.name}_out" if index == 0 else f"{node.name}_out{index}"
        self._name_constants(graph)

    def _name_constants(self, graph: ir.Graph) -> None:
        named: set[ir.Value] = {value for value in graph.initializers.values() if _is_parameter(value)}
        used = Counter(str(value.name) for value in named)
        for node in graph:
            for index, value in enumerate(node.inputs):
                if value is None or not value.is_initializer() or value.is_graph_input() or value in named:
                    continue
                named.add(value)
                role = _ROLES.get((node.op_type, index), "constant")
                value.name = _numbered(f"{node.name}.{role}", used)
                if value.const_value is not None:
                    value.const_value.name = value.name


def module_path(node: ir.Node) -> str | None:
    """Return the module that the exporter says a node comes from, ``""`` for the model itself, None if unknown."""
    text = node.metadata_props.get(SCOPES_KEY)
    if text is None:
        return None
    scopes = ast.literal_eval(text)
    path = str(scopes[-2]) if len(scopes) > 1 else ""
    return re.sub(r"@\d+", "", path)  # the exporter marks the second call of a module as "act@1"


def _path_of_neighbour(node: ir.Node, paths: dict[ir.Node, str]) -> str:
    """Return the path of a reader whose module is known, else of a feeding node: both are stable across exports."""
    for value in node.outputs:
        for reader in value.consumers():
            path = module_path(reader)
            if path is not None:
                return path
    feeding = [value.producer() for value in node.inputs if value is not None]
    return next((paths[producer] for producer in feeding if producer in paths), "")


def _is_parameter(value: ir.Value) -> bool:
    return value.metadata_props.get(KIND_KEY, "").rpartition(".")[2] in _PARAMETER_KINDS


def _numbered(name: str, used: Counter[str]) -> str:
    used[name] += 1
    if used[name] == 1:
        return name
    return _numbered(f"{name}_{used[name] - 1}", used)


def _park(graph: ir.Graph) -> None:
    """Move all names that will be given anew out of the way, so that no two values ever share one."""
    inner = [value for node in graph for value in node.outputs if not value.is_graph_output()]
    folded = [v for v in graph.initializers.values() if not _is_parameter(v) and not v.is_graph_input()]
    for index, value in enumerate([*inner, *folded]):
        value.name = f"__{index}__"


def complete_names(graph: ir.Graph) -> None:
    """Give every node without a name, and all but the first of one name, a name of its own, in place."""
    used: Counter[str] = Counter(node.name for node in graph if node.name)
    seen: set[str] = set()
    for node in graph:
        if not node.name or node.name in seen:
            node.name = _numbered(node.name or node.op_type, used)
        seen.add(node.name)
