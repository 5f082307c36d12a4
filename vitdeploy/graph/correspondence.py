"""Which tensors of two graphs are the same one: by structure, and by name where what surrounds it agrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common

from vitdeploy.graph.linear_groups import shapes_at_batch
from vitdeploy.graph.quiet import quiet

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_TRANSPARENT = frozenset(("Identity", "Cast", "QuantizeLinear", "DequantizeLinear"))
_COMMUTATIVE = frozenset(("Add", "Mul", "Sum", "Max", "Min"))
_CONSTANT = "constant"


@dataclass(frozen=True)
class Pair:
    """A tensor of the first graph and the one of the second that should be equal to it.

    ``rounded``: the second is what a Q/DQ pair makes of it.
    """

    first: ir.Value
    second: ir.Value
    rounded: bool = False


@dataclass(frozen=True)
class Correspondence:
    """The pairs in the order of the second graph's nodes, and how many float tensors have no counterpart in either."""

    pairs: tuple[Pair, ...]
    only_first: int
    only_second: int


def with_types(model: ir.Model) -> ir.Model:
    """Lift constants into initializers and infer types and shapes, in place; what ``correspond`` needs."""
    with quiet():
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.ShapeInferencePass(data_prop=True)(model)
    return model


def correspond(first: ir.Model, second: ir.Model) -> Correspondence:
    """Pair the float tensors of two graphs for one image input, both ``with_types``.

    Two tensors are the same where the operators that lead to them from the input are the same, and no other tensor of
    either graph is reached so. Casts, identities and Q/DQ pairs do not count, and a Gemm counts as MatMul and Add.
    Where that leaves several or none, as behind a node that only one graph has, the name decides, if operator and
    shape agree and the tensors that the two are computed from correspond. Constants play no part, so a wrong weight
    does not hide its linear. What a DequantizeLinear gives corresponds to what was quantized.
    """
    left, right = _Side(first), _Side(second)
    found = _by_structure(left, right)
    _by_name(left, right, found)
    pairs = list(_in_order(left, right, found))
    taken = {pair.first for pair in pairs}
    paired = {pair.second for pair in pairs}
    only_first = sum(value not in taken for value in left.values if value.dtype in FLOATS)
    only_second = sum(value not in paired for value in right.values if value.dtype in FLOATS)
    return Correspondence(tuple(pairs), only_first, only_second)


def sources_of(node: ir.Node, wanted: set[ir.Value]) -> set[ir.Value]:
    """Return the nearest values of ``wanted`` that a node is computed from, through nodes that give none of them."""
    found, pending, seen = set(), [node], set()
    while pending:
        for value in pending.pop().inputs:
            if value is None or value in seen:
                continue
            seen.add(value)
            producer = value.producer()
            if value in wanted:
                found.add(value)
            elif producer is not None:
                pending.append(producer)
    return found


class _Side:
    """One graph: its computed values in order, by name, with shapes, and by the operators that lead to them."""

    def __init__(self, model: ir.Model) -> None:
        self.inputs = [value for value in model.graph.inputs if not value.is_initializer()]
        self.shapes = shapes_at_batch(model, 2)
        self.order: list[ir.Value] = []
        self.values: list[ir.Value] = []
        self._paths: dict[ir.Value, int] = {value: hash(("input", index)) for index, value in enumerate(self.inputs)}
        for node in model.graph:
            if all(self.is_constant(value) for value in node.inputs):
                continue
            for index, value in enumerate(node.outputs):
                self._paths[value] = self._path(node, index)
                self.order.append(value)
                if node.op_type not in _TRANSPARENT:
                    self.values.append(value)
        self.by_name = {str(value.name): value for value in self.values}

    def is_constant(self, value: ir.Value | None) -> bool:
        """Return whether a value does not depend on the image."""
        return value is None or value not in self._paths

    def shape(self, value: ir.Value) -> tuple[int | None, ...] | None:
        """Return the shape for two images."""
        return self.shapes.get(str(value.name))

    def unique_paths(self) -> dict[int, ir.Value]:
        """Return the values to which no other is equal in the operators that lead to it."""
        counts = Counter(self._paths[value] for value in self.values)
        return {self._paths[value]: value for value in self.values if counts[self._paths[value]] == 1}

    def _path(self, node: ir.Node, index: int) -> int:
        known = [_CONSTANT if self.is_constant(value) else self._paths[value] for value in _present(node)]
        if node.op_type in _TRANSPARENT and not node.domain:
            return int(known[0])
        if node.op_type == "Gemm":
            product = hash(("MatMul", "", 0, (), tuple(known[:2])))
            return product if len(known) < 3 else hash(("Add", "", 0, (), tuple(sorted((product, known[2]), key=str))))
        order = tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else ()
        if node.op_type in _COMMUTATIVE:
            known = sorted(known, key=str)
        return hash((node.op_type, node.domain, index, order, tuple(known)))

    def origin(self, value: ir.Value, other: _Side) -> ir.Value:
        """Return the value that both graphs may have: through what changes no shape and only this graph has."""
        while (node := value.producer()) is not None:
            inputs = [source for source in _present(node) if not self.is_constant(source)]
            alone = str(value.name) not in other.by_name and len(inputs) == 1
            if node.op_type not in _TRANSPARENT and not (alone and self.shape(inputs[0]) == self.shape(value)):
                return value
            value = inputs[0]
        return value

    def origins(self, node: ir.Node, other: _Side, like: str) -> list[ir.Value]:
        """Return what a node is computed from; an Add behind a MatMul is taken together with it ``like`` a Gemm."""
        inputs = [value for value in _present(node) if not self.is_constant(value)]
        product = inputs[0].producer() if len(inputs) == 1 else None
        if like == "Gemm" and node.op_type == "Add" and product is not None and product.op_type == "MatMul":
            inputs = [value for value in _present(product) if not self.is_constant(value)]
        return [self.origin(value, other) for value in inputs]


def _by_structure(left: _Side, right: _Side) -> dict[ir.Value, ir.Value]:
    """Return the values of the second graph with those of the first that the same operators lead to."""
    found: dict[ir.Value, ir.Value] = dict(zip(right.inputs, left.inputs, strict=False))
    known = left.unique_paths()
    for path, value in right.unique_paths().items():
        if path in known and left.shape(known[path]) == right.shape(value):
            found[value] = known[path]
    return found


def _by_name(left: _Side, right: _Side, found: dict[ir.Value, ir.Value]) -> None:
    """Add the values of equal name, operator and shape whose sources do not contradict it."""
    taken = set(found.values())
    for value in right.values:
        other = left.by_name.get(str(value.name))
        if value in found or other is None or other in taken or left.shape(other) != right.shape(value):
            continue
        node, counterpart = value.producer(), other.producer()
        assert node is not None
        assert counterpart is not None
        if not _alike(counterpart, node):
            continue
        ours = right.origins(node, left, counterpart.op_type)
        theirs = left.origins(counterpart, right, node.op_type)
        if len(ours) != len(theirs):
            continue
        if all(found[a] is b if a in found else b not in taken for a, b in zip(ours, theirs, strict=True)):
            found[value] = other
            taken.add(other)


def _alike(first: ir.Node, second: ir.Node) -> bool:
    kinds = {first.op_type, second.op_type}
    return first.domain == second.domain and (len(kinds) == 1 or kinds in ({"Gemm", "Add"}, {"Gemm", "MatMul"}))


def _in_order(left: _Side, right: _Side, found: dict[ir.Value, ir.Value]) -> Iterator[Pair]:
    rounded = {
        left.origin(value, right): value for value in left.order if _op(value) == "DequantizeLinear"
    }  # of a first graph that is quantized too
    for value in right.order:
        if value.dtype not in FLOATS:
            continue
        if value in found:
            if found[value].dtype in FLOATS:
                yield Pair(found[value], value)
        elif _op(value) == "DequantizeLinear":
            source = found.get(right.origin(value, left))
            if source is not None and source.dtype in FLOATS:
                yield Pair(rounded.get(source, source), value, rounded=True)


def _op(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None else node.op_type


def _present(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]
