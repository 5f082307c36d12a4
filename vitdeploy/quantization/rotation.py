"""The graph of a plan in the basis of its channels that the plan asks for, and what was observed in that basis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import CalibrationError
from vitdeploy.graph.attention_values import AttentionValues, find_attention_values
from vitdeploy.graph.channel_places import channel_axis
from vitdeploy.graph.linear_groups import LinearGroup
from vitdeploy.graph.residual_streams import Change, ResidualStream, find_residual_streams
from vitdeploy.graph.rotation import Matrix, rotation, rotation_that_keeps_means
from vitdeploy.quantization.activation import Activation
from vitdeploy.quantization.layer_scale import fold_layer_scales
from vitdeploy.quantization.observers import TensorObserver
from vitdeploy.quantization.placement import Format
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.quantization.scaling import scale_by_constants, smoothing_factor, weight_amax
from vitdeploy.records import Rotated

_ALPHA_OF_VALUES = 0.5


@dataclass(frozen=True)
class Basis:
    """A prepared graph whose channels turned, what became of the inputs of its linears, and what turned in it."""

    prepared: Prepared
    observers: Mapping[str, TensorObserver]
    turned: Mapping[str, tuple[Change, Matrix]] = field(default_factory=dict)
    rotated: tuple[Rotated, ...] = ()

    def activation(self, group: LinearGroup) -> Activation:
        """Return the input of a group of this graph as it would have been observed in it.

        Raises:
            CalibrationError: It was not observed.
        """
        name = str(group.activation.name)
        found = Activation.of(observed(self.observers, group.activation, group.name))
        if name not in self.turned:
            return found
        change, matrix = self.turned[name]
        return found.turned(change.offset, change.divisor, change.positions, matrix)


def observed(observers: Mapping[str, TensorObserver], value: ir.Value, group: str) -> TensorObserver:
    """Return the observer of a tensor that a group reads.

    Raises:
        CalibrationError: There is none.
    """
    if str(value.name) not in observers:
        raise CalibrationError(f"the range of {value.name!r} (group {group!r}) was not calibrated: calibrate again")
    return observers[str(value.name)]


class Bases:
    """Makes the bases of one graph; the last one is kept, because trials in turn are mostly of the same."""

    def __init__(self, prepared: Prepared, observers: Mapping[str, TensorObserver], form: Format) -> None:
        self.plain, self.form = Basis(prepared, observers), form
        self._last: tuple[tuple[frozenset[Rotated], frozenset[str]], Basis] | None = None

    def of(self, rotated: tuple[Rotated, ...], fixed: frozenset[str] = frozenset()) -> Basis:
        """Return the graph in which that is turned, as far as it can be, but no tensor of ``fixed``.

        LayerScale is folded first. Only what quantized linears read counts: a stream or the values of an attention of
        which a tensor was not observed row by row stay as they are.
        """
        if not rotated:
            return self.plain
        key = frozenset(rotated), fixed
        if self._last is None or self._last[0] != key:
            self._last = None  # two graphs with weights of their own are enough
            self._last = key, self._turned(*key)
        return self._last[1]

    def _turned(self, rotated: frozenset[Rotated], fixed: frozenset[str]) -> Basis:
        prepared, observers = self.plain.prepared.clone(), self.plain.observers
        graph = prepared.graph.graph
        for group in prepared.linears:
            fold_layer_scales(graph, group, self.form)
        changed: dict[str, tuple[Change, Matrix]] = {}
        done: list[Rotated] = []
        if "stream" in rotated:
            for stream in find_residual_streams(prepared.graph, prepared.shapes):
                if self._is_known(stream):
                    matrix = rotation_that_keeps_means(stream.width)
                    changed |= {name: (change, matrix) for name, change in stream.apply(graph, matrix).items()}
            done += ["stream"] if changed else []
        if "values" in rotated:
            found = [
                one
                for one in find_attention_values(prepared.linears, prepared.attentions, prepared.shapes)
                if not fixed & one.places.tensors.keys()
                and self._has_rows(str(one.group.activation.name), one.heads.size)
            ]
            for one in found:
                changed[str(one.group.activation.name)] = self._turned_values(graph, one)
            done += ["values"] if found else []
        return Basis(prepared, observers, changed, tuple(done))

    def _turned_values(self, graph: ir.Graph, values: AttentionValues) -> tuple[Change, Matrix]:
        """Share each channel's difficulty with its weights, then turn: a large channel must not cover the others."""
        group, matrix = values.group, rotation(values.heads.shape[1])
        amax = self.plain.observers[str(group.activation.name)].channel_amax
        factor = smoothing_factor(amax, weight_amax(group), _ALPHA_OF_VALUES)
        scale_by_constants(graph, group, factor, values.places)
        for turn in values.turns:
            turn.apply(graph, matrix)
        return Change(np.zeros(factor.size), factor.astype(np.float64), values.heads), matrix

    def _is_known(self, stream: ResidualStream) -> bool:
        """Return whether rows were observed of all tensors behind the stream's norms that linears in 8 bits read."""
        sizes = {name: size for norm in stream.norms for name, size in norm.tensors.items()}
        observed = [name for name in sizes if name in self.plain.observers]
        return bool(observed) and all(self._has_rows(name, sizes[name]) for name in observed)

    def _has_rows(self, name: str, width: int) -> bool:
        observer = self.plain.observers.get(name)
        if observer is None or not observer.sample.images:
            return False
        groups = [group for group in self.plain.prepared.linears if str(group.activation.name) == name]
        axes = [channel_axis(group, self.plain.prepared.shapes) for group in groups]
        return None not in axes and observer.sample.images[0].shape[1] == width
