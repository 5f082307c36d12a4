"""PVT v1, v2 and v2 Linear against timm and Hugging Face, with the same weights through the checkpoint layouts."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from proof import exported, gmacs, logits_of, relative_difference, shrink_norm_inputs, unnoticed
from redrawing import redraw
from rtx import built_for_sm89
from safetensors.numpy import load_file
from torch import nn
from transformers import PvtConfig, PvtForImageClassification, PvtV2Config, PvtV2ForImageClassification

from vitdeploy.catalog.pvt import VARIANTS
from vitdeploy.catalog.variant import Variant
from vitdeploy.checkpoints.layouts import pvt as layouts
from vitdeploy.checkpoints.positions import FAMILY_RULES, resize_positions
from vitdeploy.models import create_model

pytestmark = pytest.mark.slow

CLOSE = 1e-5
SHAPE: dict[str, Any] = {
    "widths": [8, 16, 20, 32],
    "depths": [2, 1, 1, 1],
    "heads": [1, 2, 5, 8],
    "mlp_ratios": [2, 2, 3, 2],
}
SHAPE |= {"sr_ratios": [4, 2, 2, 1], "num_classes": 7}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "v1": ("pvt", {**SHAPE, "image_size": 64}),
    "v2": ("pvt_v2", {**SHAPE, "image_size": 64}),
    "v2 linear": ("pvt_v2", {**SHAPE, "image_size": 56, "linear": True}),
    "v2 linear by a matrix": ("pvt_v2", {**SHAPE, "image_size": 64, "linear": True}),
}

# Counted by running the references: name → parameters in millions, GMACs.
PUBLISHED = {
    "pvt_tiny": (13.229, 1.933),
    "pvt_small": (24.486, 3.816),
    "pvt_medium": (44.208, 6.659),
    "pvt_large": (61.369, 9.814),
    "pvt_v2_b0": (3.667, 0.566),
    "pvt_v2_b1": (14.009, 2.108),
    "pvt_v2_b2": (25.363, 4.027),
    "pvt_v2_b2_li": (22.554, 3.889),
    "pvt_v2_b3": (45.239, 6.897),
    "pvt_v2_b4": (62.556, 10.101),
    "pvt_v2_b5": (81.956, 11.717),
}


def tiny(name: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    family, arguments = MODELS[name]
    model = create_model(family, **{**arguments, **changes})
    redraw(model)
    return model


def loaded(name: str, state: Mapping[str, Any], **changes: object) -> nn.Module:
    model = tiny(name, **changes)
    model.load_state_dict({key: torch.as_tensor(value) for key, value in state.items()})
    return model


def picture(name: str, batch: int = 2) -> torch.Tensor:
    size = MODELS[name][1]["image_size"]
    return torch.randn(batch, 3, size, size)


def timm_reference(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model of timm, and its weights under our names."""
    reference = timm.models.pvt_v2.PyramidVisionTransformerV2(
        embed_dims=SHAPE["widths"],
        depths=SHAPE["depths"],
        num_heads=SHAPE["heads"],
        mlp_ratios=SHAPE["mlp_ratios"],
        sr_ratios=SHAPE["sr_ratios"],
        num_classes=7,
        linear="linear" in name,
    )
    redraw(reference)
    return reference, layouts.from_timm({key: value.numpy() for key, value in reference.state_dict().items()})


def huggingface_reference(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model of transformers, and the weights of the file that it writes under our names."""
    shape: dict[str, Any] = {
        "depths": SHAPE["depths"],
        "hidden_sizes": SHAPE["widths"],
        "num_attention_heads": SHAPE["heads"],
    }
    shape |= {"mlp_ratios": SHAPE["mlp_ratios"], "num_labels": 7, "image_size": MODELS[name][1]["image_size"]}
    reference: Any
    if name == "v1":
        reference = PvtForImageClassification(PvtConfig(**shape, sequence_reduction_ratios=SHAPE["sr_ratios"]))
    else:
        linear = "linear" in name
        reference = PvtV2ForImageClassification(
            PvtV2Config(**shape, sr_ratios=SHAPE["sr_ratios"], linear_attention=linear)
        )
    redraw(reference)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        return reference, layouts.from_huggingface(load_file(Path(folder) / "model.safetensors"))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "v1"])
def test_v2_equals_timm(name: str) -> None:
    reference, state = timm_reference(name)
    x = picture(name)
    assert relative_difference(logits_of(loaded(name, state), x), logits_of(reference, x)) <= CLOSE


@pytest.mark.parametrize("name", MODELS)
def test_equals_hugging_face_by_the_names_in_its_files(name: str) -> None:
    """Whose every LayerNorm has the eps of its config, also those that the original leaves at 1e-5."""
    reference, state = huggingface_reference(name)
    x = picture(name)
    assert relative_difference(logits_of(loaded(name, state, inner_eps=1e-6), x), logits_of(reference, x)) <= CLOSE


@pytest.mark.parametrize(
    ("name", "reference", "eps"),
    [
        ("v2", timm_reference, {}),
        ("v2 linear", timm_reference, {}),
        ("v1", huggingface_reference, {"inner_eps": 1e-6}),
        ("v2", huggingface_reference, {"inner_eps": 1e-6}),
    ],
)
def test_every_layer_norm_has_the_eps_of_its_reference(
    name: str, reference: Callable[..., Any], eps: dict[str, Any]
) -> None:
    theirs, state = reference(name)
    ours = loaded(name, state, **eps)
    shrink_norm_inputs(ours)
    shrink_norm_inputs(theirs)
    x = picture(name)
    assert relative_difference(logits_of(ours, x), logits_of(theirs, x)) <= CLOSE
    for wrong in ({"eps": 1e-5}, {"inner_eps": 1e-6 if not eps else 1e-5}):
        other = loaded(name, state, **{**eps, **wrong})
        shrink_norm_inputs(other)
        assert relative_difference(logits_of(other, x), logits_of(theirs, x)) > 100 * CLOSE


@pytest.mark.parametrize("name", MODELS)
def test_norms_after_projections_and_reductions_have_the_eps_of_the_original_files(name: str) -> None:
    """Which PyTorch's default gives them: pvt.py and pvt_v2.py set 1e-6 for the blocks' and final norms only."""
    eps = {key: module.eps for key, module in tiny(name).named_modules() if isinstance(module, nn.LayerNorm)}
    inner = {key for key in eps if key.startswith("patch_embed") or key.endswith("attn.norm")}
    assert {eps[key] for key in inner} == {1e-5}
    assert {eps[key] for key in eps.keys() - inner} == {1e-6}


@pytest.mark.parametrize("name", MODELS)
def test_the_comparison_notices_every_parameter(name: str) -> None:
    assert unnoticed(tiny(name), picture(name)) == set()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_variant_has_the_published_size(variant: Variant) -> None:
    with torch.device("meta"):
        model = create_model(variant.name)
        counted = gmacs(model, 3, variant.preprocess.size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == variant.parameters
    assert (round(parameters / 1e6, 3), round(counted, 3)) == PUBLISHED[variant.name]
    assert variant.gmacs == PUBLISHED[variant.name][1]
    for checkpoint in variant.checkpoints:
        if checkpoint.startswith("timm:"):
            timm.get_pretrained_cfg(checkpoint.removeprefix("timm:"), allow_unregistered=False)
            with torch.device("meta"):
                reference = timm.create_model(variant.name)
            assert sum(parameter.numel() for parameter in reference.parameters()) == parameters


@pytest.mark.parametrize(("before", "after"), [((7, 7), (12, 12)), ((14, 14), (7, 7)), ((4, 6), (5, 9))])
@pytest.mark.parametrize("extra", [0, 1])
def test_position_is_resized_by_the_rule_that_the_original_applies_at_each_call(
    before: tuple[int, int], after: tuple[int, int], extra: int
) -> None:
    position = torch.randn(1, extra + before[0] * before[1], 5)
    cells = position[:, extra:].transpose(1, 2).reshape(1, 5, *before)
    expected = nn.functional.interpolate(cells, size=after, mode="bilinear").flatten(2).transpose(1, 2)
    expected = torch.cat([position[:, :extra], expected], dim=1)
    ours = torch.from_numpy(resize_positions(position.numpy(), after, extra, FAMILY_RULES["pvt"], before=before))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


BLOCK = ["LayerNormalization"] * 2 + ["MatMul"] * 7 + ["Add"] * 7 + ["Split", "Mul", "Softmax", "Gelu"]
BLOCK += ["Reshape", "Transpose"] * 4
MAP = ["Reshape", "Transpose", "Conv", "Transpose", "Reshape"]
EMBED = ["Conv", "Transpose", "Reshape", "LayerNormalization"]
STAGES = [*EMBED, "Reshape", "Transpose", *EMBED, "Gemm"]
REDUCED = [*MAP, "LayerNormalization"]
# Stages of two and of one block: what stands around the blocks, and what reductions and convolutions add to them.
OPERATORS = {
    "v1": [*STAGES, "Add", "Pad", "Add", "Gather", "LayerNormalization", *REDUCED, *REDUCED],
    "v2": [*STAGES, "LayerNormalization", "LayerNormalization", "ReduceMean", *MAP, *MAP, *MAP],
}
LINEAR = OPERATORS["v2"] + [*REDUCED, "Gelu", "Relu"] * 3
# 7 divides 14×14 tokens, and 7×7 need no pooling; 12×12 and 6×6 take a product with a constant.
OPERATORS |= {"v2 linear": LINEAR + ["AveragePool"] * 2, "v2 linear by a matrix": LINEAR + ["MatMul"] * 3}
OPERATORS["v2"] = [*OPERATORS["v2"], *REDUCED, *REDUCED]


@pytest.mark.parametrize("name", MODELS)
def test_graph_is_small_right_at_every_batch_and_builds_an_engine(name: str, tmp_path: Path) -> None:
    two = {key: values[:2] for key, values in SHAPE.items() if key != "num_classes"}
    two |= {"sr_ratios": [2, 1], "patches": [4, 2] if name == "v1" else [7, 3]}
    two |= {} if name == "v1" else {"strides": [4, 2]}
    size = 48 if "matrix" in name else 56
    path = tmp_path / "model.onnx"
    operators = exported(tiny(name, **two, image_size=size), torch.randn(2, 3, size, size), path)
    assert Counter(operators) == Counter(BLOCK * 3 + OPERATORS[name])
    assert built_for_sm89(path) > 0
