"""The names by which people know a model are names of the catalogue."""

from __future__ import annotations

import pytest

from vitdeploy import catalog
from vitdeploy.errors import ModelError


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("swinv2_tiny_window8_256", "swinv2_tiny_patch4_window8_256"),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", "vit_base_patch16_224"),
        ("vit_b_16", "vit_base_patch16_224"),
        ("vit_b_32", "vit_base_patch32_224"),
        ("vit_l_16", "vit_large_patch16_224"),
        ("vit_h_14", "vit_huge_patch14_224"),
        ("google/vit-base-patch16-224", "vit_base_patch16_224"),
        ("facebook/deit-base-distilled-patch16-384", "deit_base_distilled_patch16_384"),
        ("microsoft/swin-tiny-patch4-window7-224", "swin_tiny_patch4_window7_224"),
        ("DeiT-S", "deit_small_patch16_224"),
        ("T2T-ViT-14", "t2t_vit_14"),
        ("PVTv2-B2", "pvt_v2_b2"),
        ("TNT-S", "tnt_s_patch16_224"),
        ("R50+ViT-B/16", "vit_base_r50_s16_384"),
        ("S60", "patchconvnet_s60"),
    ],
)
def test_names_of_timm_torchvision_hugging_face_and_papers(name: str, variant: str) -> None:
    assert catalog.variant(name).name == variant


def test_a_name_that_nobody_uses_is_refused() -> None:
    with pytest.raises(ModelError, match="there is no model 'DeiT-XXL'"):
        catalog.variant("DeiT-XXL")
