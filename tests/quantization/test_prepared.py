"""A graph's groups are found once, and mapped to the copies that are quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from readout_vit import write_readout_vit
from small_vit import small_vit

from vitdeploy.graph import attentions, linear_groups
from vitdeploy.quantization import prepared
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.quantization.request import QuantizeOptions
from vitdeploy.stages.quantize import quantize

pytestmark = pytest.mark.slow


def test_a_clone_has_the_same_groups_in_its_own_graph() -> None:
    first = Prepared.of(ir.serde.deserialize_model(small_vit(depth=2)))
    copy = first.clone()
    linears, found = linear_groups.find_linear_groups(copy.graph), attentions.find_attentions(copy.graph)
    again = Prepared(copy.graph, linears, found, linear_groups.shapes_at_batch(copy.graph, 2))
    assert copy == again  # nodes and values compare by identity, so these are those of the copy
    assert copy.linears
    assert copy.attentions
    assert not {linear.node for group in copy.linears for linear in group.linears} & set(first.graph.graph)


def test_all_copies_share_the_memory_of_the_weights() -> None:
    first = Prepared.of(ir.serde.deserialize_model(small_vit(depth=1)))
    weights = [linear.weight.const_value for group in first.clone().linears for linear in group.linears]
    originals = [linear.weight.const_value for group in first.linears for linear in group.linears]
    assert weights
    for weight, original in zip(weights, originals, strict=True):
        assert weight is not None
        assert original is not None
        assert np.shares_memory(weight.numpy(), original.numpy())


def test_all_trials_share_one_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []

    def counted(find):
        def search(model):
            searches.append(find.__name__)
            return find(model)

        return search

    monkeypatch.setattr(prepared, "find_linear_groups", counted(linear_groups.find_linear_groups))
    monkeypatch.setattr(prepared, "find_attentions", counted(attentions.find_attentions))
    model = write_readout_vit(tmp_path / "vit.onnx", 1)
    options = QuantizeOptions(threads=1, samples=90)  # tries ranges, scaling, shift and bias correction
    quantize(model, tmp_path / "int8.onnx", precision="int8", calibration="digits", options=options)
    assert sorted(searches) == ["find_attentions", "find_linear_groups"]
