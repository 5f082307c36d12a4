"""Which part of a model a node, and a layer that a runtime made of several, belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from small_vit import write_small_vit

from vitdeploy.artifacts import OnnxModel
from vitdeploy.graph.parts import part_of_layer, parts_of
from vitdeploy.records import Precision
from vitdeploy.records.layer_profile import Part

EXPECTED = {
    "embedding": ["Conv", "Add"],
    "attention": ["MatMul", "Softmax"],
    "mlp": ["MatMul", "Gelu"],
    "norm": ["LayerNormalization"],
    "head": ["Gemm"],
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_parts_are_found_by_structure_whatever_nodes_are_called(tmp_path: Path, precision: Precision) -> None:
    model = write_small_vit(tmp_path / "vit.onnx", precision).load()
    parts = parts_of(model)
    found: dict[str, list[str]] = {}
    for node in model.graph:
        assert node.name
        assert parts[node.name] == parts[str(node.outputs[0].name)]
        found.setdefault(parts[node.name], []).append(node.op_type)
    for part, operators in EXPECTED.items():
        assert set(operators) <= set(found[part]), (part, found)
    products = {part: sum(one in ("MatMul", "Gemm", "Conv") for one in found[part]) for part in found}
    assert products["embedding"] == products["head"] == 1
    assert products["attention"] >= 2 * products["mlp"]  # q, k, v or one for all, two of activations, the projection
    assert found["residual"]
    assert set(found["residual"]) == {"Add"}
    assert ("QuantizeLinear" in found.get("conversion", ())) == (precision == "int8")
    assert "other" not in found


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "products", "additions"),
    [
        ("pvt", {"embedding": 2, "attention": 22, "mlp": 8, "head": 1}, 8),
        ("swin_v2", {"embedding": 1, "attention": 16, "mlp": 8, "other": 1, "head": 1}, 8),
    ],
)
def test_families_with_convolutions_and_norms_behind_blocks_have_their_parts_too(
    small_export: Callable[[str], OnnxModel], family: str, products: dict[str, int], additions: int
) -> None:
    from vitdeploy.graph.precisions import PRODUCTS

    model = small_export(family).load()
    parts = parts_of(model)
    assert Counter(parts[str(node.name)] for node in model.graph if node.op_type in PRODUCTS) == products
    assert sum(parts[str(node.name)] == "residual" for node in model.graph) == additions


def test_a_layer_of_a_runtime_belongs_to_what_went_into_it() -> None:
    parts: dict[str, Part] = {
        "q": "conversion",
        "a/MatMul": "attention",
        "x": "residual",
        "n": "norm",
        "fc1/Add": "mlp",
    }
    assert part_of_layer("FullyConnected", ("q", "a/MatMul/Dequantized", "x"), parts) == "attention"
    assert part_of_layer("SkipLayerNormalization", ("x", "n"), parts) == "norm"
    assert part_of_layer("Reorder", ("a/MatMul",), parts) == "layout"
    assert part_of_layer("FakeQuantize", ("n",), parts) == "conversion"
    assert part_of_layer("Subgraph", ("nobody",), parts) == "other"


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("blocks.0.attn.qkv/MatMul", "attention"),
        ("encoder.layer.3.mlp.fc1/Gemm", "mlp"),
        ("blocks.1.norm1/LayerNormalization", "norm"),
        ("patch_embed.proj/Conv", "embedding"),
        ("head/Gemm", "head"),
        ("node_17", "other"),
    ],
)
def test_without_the_model_the_words_of_names_decide(source: str, part: str) -> None:
    assert part_of_layer("gemm", (source,), {}) == part
