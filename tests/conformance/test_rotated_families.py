"""Which residual streams and attentions of each family can turn, and that nothing but rounding tells the difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from exporters import adopt, export_foreign
from readout_vit import run

from vitdeploy.artifacts import OnnxModel
from vitdeploy.graph.attention_values import find_attention_values
from vitdeploy.graph.residual_streams import find_residual_streams
from vitdeploy.graph.rotation import rotation, rotation_that_keeps_means
from vitdeploy.quantization.layer_scale import fold_layer_scales
from vitdeploy.quantization.placement import Format
from vitdeploy.quantization.prepared import Prepared

pytestmark = pytest.mark.slow

TURNED = {
    "vit": (7, 3),
    "deit": (7, 3),
    "swin": (5, 3),
    "swin_v2": (0, 3),
    "pvt": (2, 4),
    "t2t": (9, 3),
    "tnt": (10, 6),
}
"""Norms that read a stream which turns, and attentions whose values do."""


def turned(graph: ir.Model) -> tuple[int, int]:
    """Turn all that can turn, in place; return how many norms read it, and how many attentions have turned values."""
    prepared = Prepared.of(graph)
    for group in prepared.linears:
        fold_layer_scales(graph.graph, group, Format())
    streams = find_residual_streams(graph, prepared.shapes)
    for stream in streams:
        stream.apply(graph.graph, rotation_that_keeps_means(stream.width))
    values = find_attention_values(prepared.linears, prepared.attentions, prepared.shapes)
    for one in values:
        for turn in one.turns:
            turn.apply(graph.graph, rotation(one.heads.shape[1]))
    return sum(len(stream.norms) for stream in streams), len(values)


def distance(before: ir.Model, after: ir.Model) -> float:
    """Return the largest difference of the logits relative to the largest logit."""
    (value,) = before.graph.inputs
    assert value.shape is not None
    shape = [3, *(int(size) for size in list(value.shape)[1:] if isinstance(size, int))]
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for model in (before, after):
        model.graph.inputs[0].name = "input"
    left, right = run(before, images), run(after, images)
    return float(np.abs(left - right).max() / np.abs(left).max())


@pytest.mark.parametrize("family", TURNED)
def test_a_family_turns_where_its_structure_allows_it(family: str, small_export: Callable[[str], OnnxModel]) -> None:
    model = small_export(family)
    after = model.load()
    nodes = len(Prepared.of(model.load()).graph.graph)
    assert turned(after) == TURNED[family]
    assert len(after.graph) == nodes
    assert distance(model.load(), after) < 1e-5


@pytest.mark.parametrize("exporter", ["dynamo, opset 20", "TorchScript, opset 13", "TorchScript, opset 17"])
@pytest.mark.parametrize("name", ["timm ViT", "timm DeiT"])
def test_a_graph_of_another_exporter_turns_too(name: str, exporter: str, tmp_path: Path) -> None:
    model = adopt(export_foreign(name, exporter, tmp_path / "foreign.onnx"), tmp_path / "adopted.onnx")
    after = model.load()
    assert turned(after) == (5, 2)
    assert distance(model.load(), after) < 1e-5
