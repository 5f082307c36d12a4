"""Swin v1 and v2 against timm, torchvision and Hugging Face, with the same weights through the checkpoint layouts."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import timm
import torch
import torchvision
from proof import exported, gmacs, logits_of, relative_difference, shrink_norm_inputs, unnoticed
from redrawing import redraw
from rtx import built_for_sm89
from safetensors.numpy import load_file
from timm.layers import resize_rel_pos_bias_table
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from torch import nn
from transformers import SwinConfig, SwinForImageClassification, Swinv2Config, Swinv2ForImageClassification

from vitdeploy.catalog import list_models
from vitdeploy.catalog.swin import VARIANTS
from vitdeploy.catalog.variant import Variant
from vitdeploy.checkpoints.layouts import swin as layouts
from vitdeploy.models import create_model
from vitdeploy.models.derived import DerivedConstants

pytestmark = pytest.mark.slow

CLOSE = 1e-5
TINY = {
    "image_size": 32,
    "patch": 2,
    "num_classes": 7,
    "width": 16,
    "depths": [2, 3, 2],
    "heads": [2, 4, 4],
    "window": 4,
}
FAMILIES = ("swin", "swin_v2")

# Counted by running the references: name → parameters in millions, GMACs.
PUBLISHED = {
    "swin_tiny_patch4_window7_224": (28.288, 4.491),
    "swin_small_patch4_window7_224": (49.606, 8.741),
    "swin_base_patch4_window7_224": (87.768, 15.431),
    "swin_base_patch4_window12_384": (87.904, 47.083),
    "swin_large_patch4_window7_224": (196.532, 34.476),
    "swin_large_patch4_window12_384": (196.736, 103.919),
    "swinv2_tiny_patch4_window8_256": (28.347, 5.940),
    "swinv2_tiny_patch4_window16_256": (28.347, 6.661),
    "swinv2_small_patch4_window8_256": (49.728, 11.546),
    "swinv2_base_patch4_window8_256": (87.919, 20.325),
}
# From the README of the original, which leaves out the network behind the position biases.
README_GMACS = {
    "swinv2_base_patch4_window16_256": 21.8,
    "swinv2_base_patch4_window12to16_256": 21.8,
    "swinv2_base_patch4_window12to24_384": 54.7,
    "swinv2_large_patch4_window12to16_256": 47.5,
    "swinv2_large_patch4_window12to24_384": 115.4,
}


def tiny(family: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(family, **{**TINY, **changes})
    redraw(model)
    return model


def loaded(family: str, state: Mapping[str, Any], **changes: object) -> nn.Module:
    model = tiny(family, **changes)
    model.load_state_dict({name: torch.as_tensor(value) for name, value in without_tables(state).items()})
    return model


def without_tables(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what loading keeps: tables that follow from the shape are compared with the model's own, then left out."""
    return {name: value for name, value in state.items() if not re.search(layouts.REBUILT, name)}


def arrays(reference: nn.Module) -> dict[str, Any]:
    return {name: value.numpy() for name, value in reference.state_dict().items()}


def timm_reference(
    family: str, image_size: tuple[int, int] = (32, 32), trained: tuple[int, ...] = (0, 0, 0)
) -> nn.Module:
    common = {"img_size": image_size, "patch_size": 2, "num_classes": 7, "embed_dim": 16}
    common |= {"depths": (2, 3, 2), "num_heads": (2, 4, 4), "window_size": 4}
    if family == "swin":
        reference = timm.models.swin_transformer.SwinTransformer(**common)
    else:
        reference = timm.models.swin_transformer_v2.SwinTransformerV2(**common, pretrained_window_sizes=trained)
    redraw(reference)
    return reference


def torchvision_reference(family: str) -> nn.Module:
    swin = torchvision.models.swin_transformer
    blocks = {"swin": (None, swin.PatchMerging), "swin_v2": (swin.SwinTransformerBlockV2, swin.PatchMergingV2)}
    block, merging = blocks[family]
    reference = swin.SwinTransformer(
        patch_size=[2, 2],
        embed_dim=16,
        depths=[2, 3, 2],
        num_heads=[2, 4, 4],
        window_size=[4, 4],
        num_classes=7,
        block=block,
        downsample_layer=merging,
    )
    redraw(reference)
    return reference


def huggingface_reference(family: str) -> nn.Module:
    config, model = {
        "swin": (SwinConfig, SwinForImageClassification),
        "swin_v2": (Swinv2Config, Swinv2ForImageClassification),
    }[family]
    shape = {"embed_dim": 16, "depths": [2, 3, 2], "num_heads": [2, 4, 4], "window_size": 4}
    reference = model(config(image_size=32, patch_size=2, num_labels=7, **shape))
    redraw(reference)
    return reference


@pytest.mark.parametrize("image_size", [(32, 32), (64, 96), (16, 16)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_timm(family: str, image_size: tuple[int, int]) -> None:
    reference = timm_reference(family, image_size)
    ours = loaded(family, layouts.from_timm(arrays(reference)), image_size=image_size)
    x = torch.randn(3, 3, *image_size)
    assert relative_difference(logits_of(ours, x), logits_of(reference, x)) <= CLOSE


def test_v2_pretrained_with_another_window_equals_timm() -> None:
    reference = timm_reference("swin_v2", trained=(3, 3, 2))
    state = layouts.from_timm(arrays(reference))
    ours = loaded("swin_v2", state, pretrained_windows=[3, 3, 2])
    x = torch.randn(3, 3, 32, 32)
    assert relative_difference(logits_of(ours, x), logits_of(reference, x)) <= CLOSE
    assert relative_difference(logits_of(loaded("swin_v2", state), x), logits_of(reference, x)) > 100 * CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_torchvision(family: str) -> None:
    reference = torchvision_reference(family)
    ours = loaded(family, layouts.from_torchvision(arrays(reference)))
    x = torch.randn(3, 3, 32, 32)
    assert relative_difference(logits_of(ours, x), logits_of(reference, x)) <= CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_hugging_face_by_the_names_in_its_files(family: str) -> None:
    reference = huggingface_reference(family)
    ours = loaded(family, layouts.from_huggingface(hugging_face_file(reference)))
    x = torch.randn(3, 3, 32, 32)
    assert relative_difference(logits_of(ours, x), logits_of(reference, x)) <= CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_original_files_load_without_the_tensors_that_follow_from_the_shape(family: str) -> None:
    model = tiny(family)
    rebuilt = {"relative_position_index": 0, "attn_mask": 0, "relative_coords_table": 0}
    names = {f"layers.0.blocks.1.{part}" for part in ("attn_mask", "attn.relative_position_index", "attn.qkv.weight")}
    file = {**arrays(model), **{f"layers.0.blocks.1.attn.{name}": value for name, value in rebuilt.items()}}
    assert set(without_tables(layouts.from_original({**file, **dict.fromkeys(names, np.zeros(()))}))) == set(
        model.state_dict()
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reference", [timm_reference, torchvision_reference, huggingface_reference])
def test_every_layer_norm_has_the_eps_of_its_reference(family: str, reference: Callable[[str], nn.Module]) -> None:
    theirs = reference(family)
    layout = {
        "timm_reference": layouts.from_timm,
        "torchvision_reference": layouts.from_torchvision,
        "huggingface_reference": layouts.from_huggingface,
    }[reference.__name__]
    state = hugging_face_file(theirs) if reference is huggingface_reference else arrays(theirs)
    ours = loaded(family, layout(state))
    shrink_norm_inputs(ours)
    shrink_norm_inputs(theirs)
    x = torch.randn(2, 3, 32, 32)
    assert relative_difference(logits_of(ours, x), logits_of(theirs, x)) <= CLOSE
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    assert relative_difference(logits_of(ours, x), logits_of(theirs, x)) > 100 * CLOSE


def hugging_face_file(model: nn.Module) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_comparison_notices_every_parameter(family: str) -> None:
    assert unnoticed(tiny(family, absolute_position=True), torch.randn(2, 3, 32, 32)) == set()


@pytest.mark.filterwarnings(
    "ignore:Using a non-tuple sequence:UserWarning", "ignore:torch.searchsorted:UserWarning"
)  # timm's
@pytest.mark.parametrize("rule", ["bicubic", "geometric"])
@pytest.mark.parametrize(("before", "after"), [(7, 12), (4, 5), (12, 7)])
def test_bias_tables_are_resized_by_the_rules_of_microsoft_and_timm(
    rule: Literal["bicubic", "geometric"], before: int, after: int
) -> None:
    table = torch.randn((2 * before - 1) ** 2, 3)
    resize = {"bicubic": resize_rel_pos_bias_table_simple, "geometric": resize_rel_pos_bias_table}[rule]
    expected = resize(table, new_window_size=(after, after), new_bias_shape=((2 * after - 1) ** 2, 3))
    ours = torch.from_numpy(layouts.resize_table(table.numpy(), after, rule))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_variant_has_the_published_size(variant: Variant) -> None:
    with torch.device("meta"):
        model = create_model(variant.name)
        counted = gmacs(model, 3, variant.preprocess.size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == variant.parameters
    assert counted == pytest.approx(variant.gmacs, abs=5e-4)
    if variant.name in PUBLISHED:
        assert (round(parameters / 1e6, 3), round(counted, 3)) == PUBLISHED[variant.name]
    if variant.name in README_GMACS:
        derived = [module for module in model.modules() if isinstance(module, DerivedConstants)]
        constants = sum(gmacs(Deriving(module), 3, (1, 1)) for module in derived)
        assert round(counted - constants, 1) == README_GMACS[variant.name]


class Deriving(nn.Module):
    """The part of a module that an export leaves out."""

    def __init__(self, module: DerivedConstants) -> None:
        super().__init__()
        self.module = module

    def forward(self, _: torch.Tensor) -> None:
        self.module.derive()


@pytest.mark.parametrize("name", [f"swin_{size}" for size in ("t", "s", "b", "v2_t", "v2_s", "v2_b")])
def test_variant_has_as_many_parameters_and_the_preprocessing_as_in_torchvision(name: str) -> None:
    (variant,) = list_models(name)
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    transform = weights.transforms()
    # torchvision's v2 has a bias for keys too, which its forward sets to zero.
    depths, width = variant.arguments["depths"], variant.arguments["width"]
    unused = sum(depth * (width << stage) for stage, depth in enumerate(depths)) if variant.family == "swin_v2" else 0
    assert variant.parameters == weights.meta["num_params"] - unused
    assert variant.top1 == pytest.approx(weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100)
    assert (*variant.preprocess.size, variant.preprocess.resize_size) == (
        *transform.crop_size * 2,
        *transform.resize_size,
    )
    assert variant.preprocess.interpolation == transform.interpolation.value


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "patch4" in v.name], ids=lambda variant: variant.name)
def test_variant_has_the_parameters_of_the_timm_checkpoint_it_names(variant: Variant) -> None:
    (name,) = {name.removeprefix("timm:").split(".")[0] for name in variant.checkpoints if name.startswith("timm:")}
    with torch.device("meta"):
        reference = timm.create_model(name)
    assert sum(parameter.numel() for parameter in reference.parameters()) == variant.parameters
    for checkpoint in variant.checkpoints:
        if checkpoint.startswith("timm:"):
            timm.get_pretrained_cfg(checkpoint.removeprefix("timm:"), allow_unregistered=False)


BLOCK = ["LayerNormalization"] * 2 + ["MatMul"] * 6 + ["Add"] * 7 + ["Split", "Mul", "Softmax", "Gelu"]
BLOCK += ["Reshape", "Transpose"] * 4
COSINE = ["ReduceL2", "Clip", "Div"] * 2
# Windows count as heads in a shifted block, which takes 4 more Reshapes. Gathers: into windows, to the shifted ones,
# and to the groups that are merged; the last stage has one window, whose tokens lie as merging left them.
AROUND = ["Conv", "Reshape", "Transpose", *["LayerNormalization"] * 2, "ReduceMean", "Gemm"]
AROUND += ["Reshape", "LayerNormalization", "MatMul", *["Gather"] * 3, *["Reshape"] * 4]


@pytest.mark.parametrize("family", FAMILIES)
def test_graph_is_small_right_at_every_batch_and_builds_an_engine(family: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = tiny(family, image_size=16, depths=[2, 2], heads=[2, 4])
    operators = exported(model, torch.randn(2, 3, 16, 16), path)
    assert Counter(operators) == Counter(AROUND + 4 * (BLOCK + COSINE if family == "swin_v2" else BLOCK))
    assert built_for_sm89(path) > 0
