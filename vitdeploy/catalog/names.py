"""The names by which people know a model: those of timm, torchvision, Hugging Face, the papers and their repositories.

Every weight file in a variant's ``checkpoints`` gives names too: ``timm:NAME.TAG`` is known as ``NAME``, ``NAME.TAG``
and ``timm/NAME.TAG``, ``hf:OWNER/NAME`` by its id. Names that differ in case or in ``-``, ``_``, ``/`` and blanks only
are the same where no two variants share them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from vitdeploy.catalog.variant import Variant

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    # The paper's and Google's names; torchvision's; ids of Hugging Face.
    "vit_tiny_patch16_224": ("ViT-Ti/16", "Ti_16", "WinKawaks/vit-tiny-patch16-224"),
    "vit_small_patch16_224": ("ViT-S/16", "S_16", "WinKawaks/vit-small-patch16-224"),
    "vit_small_patch32_224": ("ViT-S/32", "S_32"),
    "vit_base_patch16_224": ("ViT-B/16", "B_16", "vit_b_16", "google/vit-base-patch16-224"),
    "vit_base_patch16_384": ("ViT-B/16-384", "google/vit-base-patch16-384"),
    "vit_base_patch32_224": ("ViT-B/32", "B_32", "vit_b_32"),
    "vit_base_patch32_384": ("ViT-B/32-384", "google/vit-base-patch32-384"),
    "vit_base_patch8_224": ("ViT-B/8", "B_8"),
    "vit_large_patch16_224": ("ViT-L/16", "L_16", "vit_l_16", "google/vit-large-patch16-224"),
    "vit_large_patch16_384": ("ViT-L/16-384", "google/vit-large-patch16-384"),
    "vit_large_patch32_224": ("ViT-L/32", "L_32", "vit_l_32"),
    "vit_large_patch32_384": ("ViT-L/32-384", "google/vit-large-patch32-384"),
    "vit_huge_patch14_224": ("ViT-H/14", "H_14", "vit_h_14"),
    # The hybrids, as Google's configurations name them.
    "vit_tiny_r_s16_p8_224": ("R+ViT-Ti/16", "R_Ti_16", "R+Ti/16"),
    "vit_small_r26_s32_224": ("R26+ViT-S/32", "R26_S_32", "R26+S/32"),
    "vit_base_r50_s16_384": ("R50+ViT-B/16", "R50+ViT-B_16", "R50+B/16", "vit_base_resnet50_384"),
    "vit_large_r50_s32_224": ("R50+ViT-L/32", "R50_L_32", "R50+L/32"),
    # DeiT and DeiT-III.
    "deit_tiny_patch16_224": ("DeiT-Ti", "DeiT-T", "DeiT-Tiny", "facebook/deit-tiny-patch16-224"),
    "deit_small_patch16_224": ("DeiT-S", "DeiT-Small", "facebook/deit-small-patch16-224"),
    "deit_base_patch16_224": ("DeiT-B", "DeiT-Base", "facebook/deit-base-patch16-224"),
    "deit_base_patch16_384": ("DeiT-B-384", "DeiT-B↑384", "facebook/deit-base-patch16-384"),
    "deit_tiny_distilled_patch16_224": (
        *("DeiT-Ti⚗", "DeiT-Ti-distilled", "facebook/deit-tiny-distilled-patch16-224"),
    ),
    "deit_small_distilled_patch16_224": (
        *("DeiT-S⚗", "DeiT-S-distilled", "facebook/deit-small-distilled-patch16-224"),
    ),
    "deit_base_distilled_patch16_224": (*("DeiT-B⚗", "DeiT-B-distilled", "facebook/deit-base-distilled-patch16-224"),),
    "deit_base_distilled_patch16_384": (
        *("DeiT-B⚗↑384", "DeiT-B-distilled-384", "facebook/deit-base-distilled-patch16-384"),
    ),
    "deit3_small_patch16_224": ("DeiT-III-S", "deit_small_patch16_LS"),
    "deit3_small_patch16_384": ("DeiT-III-S-384",),
    "deit3_medium_patch16_224": ("DeiT-III-M", "deit_medium_patch16_LS"),
    "deit3_base_patch16_224": ("DeiT-III-B", "deit_base_patch16_LS"),
    "deit3_base_patch16_384": ("DeiT-III-B-384",),
    "deit3_large_patch16_384": ("DeiT-III-L-384",),
    "deit3_large_patch16_224": ("DeiT-III-L", "deit_large_patch16_LS"),
    "deit3_huge_patch14_224": ("DeiT-III-H", "deit_huge_patch14_LS"),
    # T2T-ViT: with a small t the token module is a transformer.
    "t2t_vit_7": ("T2T-ViT-7",),
    "t2t_vit_10": ("T2T-ViT-10",),
    "t2t_vit_12": ("T2T-ViT-12",),
    "t2t_vit_14": ("T2T-ViT-14",),
    "t2t_vit_19": ("T2T-ViT-19",),
    "t2t_vit_24": ("T2T-ViT-24",),
    "t2t_vit_t_14": ("T2T-ViTt-14", "T2T-ViT_t-14"),
    "t2t_vit_t_19": ("T2T-ViTt-19", "T2T-ViT_t-19"),
    "t2t_vit_t_24": ("T2T-ViTt-24", "T2T-ViT_t-24"),
    "t2t_vit_14_resnext": ("T2T-ViT-14-ResNeXt",),
    "t2t_vit_14_wide": ("T2T-ViT-14-Wide",),
    "tnt_ti_patch16_224": ("TNT-Ti",),
    "tnt_s_patch16_224": ("TNT-S", "tnt_s"),
    "tnt_b_patch16_224": ("TNT-B", "tnt_b"),
    "pvt_tiny": ("PVT-Tiny", "PVT-T"),
    "pvt_small": ("PVT-Small", "PVT-S"),
    "pvt_medium": ("PVT-Medium", "PVT-M"),
    "pvt_large": ("PVT-Large", "PVT-L"),
    **{f"pvt_v2_b{size}": (f"PVTv2-B{size}", f"PVT-v2-B{size}") for size in range(6)},
    "pvt_v2_b2_li": ("PVTv2-B2-Li", "PVTv2-B2-Linear", "pvt_v2_b2_linear"),
    # Swin: the papers' names are Microsoft's weights; torchvision's swin_t is its own training.
    "swin_tiny_patch4_window7_224": ("Swin-T", "Swin-Tiny"),
    "swin_small_patch4_window7_224": ("Swin-S", "Swin-Small"),
    "swin_base_patch4_window7_224": ("Swin-B", "Swin-Base"),
    "swin_base_patch4_window12_384": ("Swin-B-384",),
    "swin_large_patch4_window7_224": ("Swin-L", "Swin-Large"),
    "swin_large_patch4_window12_384": ("Swin-L-384",),
    "swinv2_tiny_patch4_window8_256": ("SwinV2-T", "Swin-V2-Tiny"),
    "swinv2_small_patch4_window8_256": ("SwinV2-S", "Swin-V2-Small"),
    "swinv2_base_patch4_window8_256": ("SwinV2-B", "Swin-V2-Base"),
    **{f"patchconvnet_{name.lower()}": (name, f"PatchConvNet-{name}") for name in ("S60", "S120", "B60", "B120")},
    **{f"patchconvnet_{name.lower()}": (name, f"PatchConvNet-{name}") for name in ("L60", "L120")},
    "patchconvnet_s60_multi": ("S60_multi", "PatchConvNet-S60-multi"),
}


def with_names(entry: Variant) -> Variant:
    """Return a variant with all of its other names, each once, in the order in which they are shown."""
    names = dict.fromkeys((*OTHER_NAMES.get(entry.name, ()), *entry.aliases, *_names_of_files(entry.checkpoints)))
    return replace(entry, aliases=tuple(name for name in names if name != entry.name))


def _names_of_files(checkpoints: Iterable[str]) -> Iterator[str]:
    for file in checkpoints:
        hub, _, name = file.partition(":")
        if hub == "timm":
            yield name.partition(".")[0]
            yield name
            yield f"timm/{name}"
        elif hub == "hf":
            yield name


def loosely(name: str) -> str:
    """Return what names have in common that differ in case and separators only."""
    return re.sub(r"[-_/\s]+", "-", name.casefold())
