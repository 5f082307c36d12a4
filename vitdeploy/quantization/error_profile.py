"""Look inside a quantized graph: how the error grows with depth, and how well each activation fits its 8 bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.values import DATA_MOVEMENT, collect_graphs_like, is_constant
from vitdeploy.quantization.affine import FP8_MAX
from vitdeploy.quantization.collector import with_outputs
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.records import DepthPoint, ErrorProfile, RoundedTensor
from vitdeploy.sessions import Opener, Session

MOST_IMAGES = 8
"""Enough for numbers of tensors, each of which has thousands of values per image."""


@dataclass
class _Power:
    """Sums of squares of a signal and of what is left of it."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
        self.signal += float(np.sum(np.square(theirs, dtype=np.float64)))
        self.noise += float(np.sum(np.square(ours.astype(np.float64) - theirs)))

    @property
    def sqnr_db(self) -> float | None:
        if self.noise == 0:
            return None
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf


@dataclass
class _Pair:
    """A QuantizeLinear of an activation with its DequantizeLinear, and what was seen of them."""

    group: str
    tensor: str
    rounded: str
    least: float
    most: float
    low: float = math.inf
    high: float = -math.inf
    beyond: int = 0
    count: int = 0
    power: _Power = field(default_factory=_Power)

    def add(self, exact: NDArray[np.float32], rounded: NDArray[np.float32]) -> None:
        self.low, self.high = min(self.low, float(exact.min())), max(self.high, float(exact.max()))
        half = (self.most - self.least) / 510  # a value is clipped where it is further from the end than a rounding
        self.beyond += int(np.sum((exact < self.least - half) | (exact > self.most + half)))
        self.count += exact.size
        self.power.add(rounded, exact)

    @property
    def record(self) -> RoundedTensor:
        return RoundedTensor(
            group=self.group,
            tensor=self.tensor,
            low=self.low,
            high=self.high,
            least=self.least,
            most=self.most,
            clipped=self.beyond / self.count,
            sqnr_db=self.power.sqnr_db,
        )


def profile_errors(
    prepared: Prepared, after: ir.Model, images: Iterable[NDArray[np.float32]], open_graph: Opener
) -> ErrorProfile:
    """Compare a quantized graph with the prepared one that it was made of, on images [1, C, H, W] one by one.

    Sums of the residual stream are the same in both whatever is scaled or shifted between them; inside the branches
    values of one name may differ by a factor.
    """
    pairs = _pairs(prepared, after)
    ours = {str(value.name) for node in after.graph for value in node.outputs}
    sums = [name for name in _residual_sums(prepared.graph) if name in ours]
    depth = {name: _Power() for name in sums}
    wanted = list(dict.fromkeys([*sums, *(name for pair in pairs for name in (pair.tensor, pair.rounded))]))
    count = 0
    if not wanted:
        return ErrorProfile(images=0)
    # one session after the other: the sums of a few images are smaller than the weights of a second session
    kept = [np.array(image) for image in images]
    with _opened(prepared.graph, sums, open_graph) as old:
        references = [_run(old, image) for image in kept]
    collect_graphs_like(prepared.graph)
    with open_graph(with_outputs(after, wanted)) as new:
        for image, reference in zip(kept, references, strict=True):
            found = _run(new, image)
            for name, power in depth.items():
                power.add(found[name], reference[name])
            for pair in pairs:
                pair.add(found[pair.tensor], found[pair.rounded])
            count += 1
    tensors = sorted((pair.record for pair in pairs if pair.count), key=_worst_first)
    points = tuple(DepthPoint(tensor=name, sqnr_db=power.sqnr_db) for name, power in depth.items())
    return ErrorProfile(images=count, depth=points, tensors=tuple(tensors))


def _opened(model: ir.Model, tensors: Sequence[str], open_graph: Opener) -> Session:
    return open_graph(with_outputs(model, tensors) if tensors else model)


def _run(session: Session, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    (spec,) = session.inputs.values()
    fixed = spec.shape[0]
    fed = image if fixed is None else np.repeat(image, fixed, axis=0)
    found = session.run({spec.name: np.ascontiguousarray(fed, spec.dtype)})
    return {name: array.astype(np.float32, copy=False) for name, array in found.items()}


def _residual_sums(model: ir.Model) -> list[str]:
    """Return sums of two computed values that a norm reads, or several nodes: a norm in parts, and the next sum."""
    return [
        str(node.outputs[0].name)
        for node in model.graph
        if node.op_type == "Add"
        and not node.domain
        and not any(value is None or is_constant(value) for value in node.inputs)
        and (len(readers := node.outputs[0].consumers()) > 1 or any(r.op_type == "LayerNormalization" for r in readers))
    ]


def _pairs(prepared: Prepared, after: ir.Model) -> list[_Pair]:
    names = {str(group.activation.name): group.name for group in prepared.linears}
    for attention in prepared.attentions:
        for value in (*attention.scores.inputs, *attention.context.inputs):
            assert value is not None
            names.setdefault(str(value.name), attention.name)
    found = []
    for node in after.graph:
        source = node.inputs[0] if node.op_type == "QuantizeLinear" else None
        if source is None or is_constant(source):
            continue
        back = next((use for use in node.outputs[0].consumers() if use.op_type == "DequantizeLinear"), None)
        ends = _ends(node)
        if back is None or ends is None:
            continue
        producer = source.producer()
        before = None if producer is None or not producer.inputs else producer.inputs[0]
        of_what = (source, *_moved_on(back.outputs[0]), *([] if before is None else [before]))
        group = next((names[str(value.name)] for value in of_what if str(value.name) in names), "")
        found.append(_Pair(group, str(source.name), str(back.outputs[0].name), *ends))
    return found


def _moved_on(value: ir.Value) -> Iterator[ir.Value]:
    """Yield what moves make of a value: Q/DQ may stand in front of those that lead to a linear."""
    for node in value.consumers():
        if node.op_type in DATA_MOVEMENT and not node.domain:
            for output in node.outputs:
                yield output
                yield from _moved_on(output)


def _ends(node: ir.Node) -> tuple[float, float] | None:
    """Return the least and the greatest value that a QuantizeLinear of a whole tensor represents."""
    scale, zero = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if scale is None or scale.const_value is None or scale.const_value.size != 1:
        return None
    step = float(scale.const_value.numpy().astype(np.float32).reshape(-1)[0])
    dtype = node.outputs[0].dtype if zero is None or zero.const_value is None else zero.const_value.dtype
    if dtype == ir.DataType.FLOAT8E4M3FN:
        return -FP8_MAX * step, FP8_MAX * step
    at = 0 if zero is None or zero.const_value is None else int(zero.const_value.numpy().reshape(-1)[0])
    low, high = (-128, 127) if dtype == ir.DataType.INT8 else (0, 255)
    return (low - at) * step, (high - at) * step


def _worst_first(tensor: RoundedTensor) -> float:
    return math.inf if tensor.sqnr_db is None else tensor.sqnr_db
