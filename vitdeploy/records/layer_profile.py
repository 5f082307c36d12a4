"""Where the time of a call goes: the layers that a runtime executes, and the parts of the model that they belong to."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from vitdeploy.records.base import Record

Part = Literal["embedding", "attention", "mlp", "norm", "residual", "head", "conversion", "layout", "other"]
PARTS: dict[Part, str] = {
    "embedding": "Patch and position embedding",
    "attention": "Attention",
    "mlp": "MLP",
    "norm": "Normalisation",
    "residual": "Residual additions",
    "head": "Head",
    "conversion": "Quantize, dequantize, cast",
    "layout": "Reshape, transpose, reorder",
    "other": "Other",
}
"""Parts of a model in the order in which a report lists them, and what it calls them."""


class LayerCost(Record):
    """One layer that a runtime executes: ``ms`` per call, the ``precision`` that it computes in, the model's ``part``.

    ``sources`` are the nodes and values of the model that went into it, as far as the runtime names them.
    """

    name: str
    operator: str
    precision: str
    part: Part
    ms: float
    sources: tuple[str, ...] = ()


class LayerProfile(Record):
    """The layers of one row at one batch size, in the order in which they ran, from ``calls`` calls of their own.

    ``call_ms`` is the median of the whole calls while they were profiled, which slows them down: the row's own latency
    is in its timings. The share of a layer is its part of ``layers_ms``, the sum over the layers.
    """

    batch: int
    calls: int
    call_ms: float
    layers: tuple[LayerCost, ...]

    @property
    def layers_ms(self) -> float:
        """The sum over the layers."""
        return sum(layer.ms for layer in self.layers)

    def by_part(self) -> dict[Part, float]:
        """Return part → milliseconds, in the order of ``PARTS``, without parts that have no layer."""
        return {part: sum(layer.ms for layer in found) for part, found in self._grouped().items()}

    def precisions_of(self, part: Part) -> dict[str, float]:
        """Return precision → share of a part's time, the largest first."""
        found: defaultdict[str, float] = defaultdict(float)
        for layer in self._grouped().get(part, ()):
            found[layer.precision] += layer.ms
        total = sum(found.values())
        return {name: ms / total if total else 0.0 for name, ms in sorted(found.items(), key=lambda pair: -pair[1])}

    def _grouped(self) -> dict[Part, list[LayerCost]]:
        return {part: found for part in PARTS if (found := [layer for layer in self.layers if layer.part == part])}


class PartChange(Record):
    """What a part of the model takes in one run and in another; 0 where the run has no such layer."""

    part: Part
    before_ms: float
    after_ms: float


class LayerChange(Record):
    """Layers of two runs that do the same work, by the nodes of the model that went into them.

    ``before`` or ``after`` is empty where only the other run has such a layer: a conversion that was added, or a node
    that one runtime fuses with its neighbour and the other does not.
    """

    part: Part
    before: tuple[str, ...]
    after: tuple[str, ...]
    before_ms: float
    after_ms: float


class ProfileChange(Record):
    """Where one row is faster or slower than another, part by part and for the layers that differ most."""

    before: str
    after: str
    before_ms: float
    after_ms: float
    parts: tuple[PartChange, ...]
    layers: tuple[LayerChange, ...]
