"""T2T-ViT as in the paper's repository; parameters count the stored position table and random features too."""

from __future__ import annotations

from vitdeploy.catalog.presets import cropped
from vitdeploy.catalog.variant import Variant

SOURCE = "T2T-ViT README"
PREPROCESS = "T2T-ViT evaluation, crop 0.9"


def _variant(
    name: str,
    shape: tuple[int, int, int, float],
    cost: tuple[int, float],
    top1: float | None,
    file: str | None,
    token_module: str = "performer",
) -> Variant:
    """Return a variant; ``shape`` is (width, depth, heads, mlp_ratio), ``cost`` (parameters, GMACs)."""
    width, depth, heads, mlp_ratio = shape
    return Variant(
        name=name,
        family="t2t",
        arguments={
            "image_size": 224,
            "token_module": token_module,
            "width": width,
            "depth": depth,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
        },
        preprocess=cropped(224, 0.9, PREPROCESS),
        parameters=cost[0],
        gmacs=cost[1],
        top1=top1,
        source=SOURCE if top1 else "no published weights",
        checkpoints=(file,) if file else (),
    )


VARIANTS = (
    _variant("t2t_vit_7", (256, 7, 4, 2.0), (4_310_222, 1.147), 0.717, "71.7_T2T_ViT_7.pth.tar"),
    _variant("t2t_vit_10", (256, 10, 4, 2.0), (5_889_230, 1.516), 0.752, "75.2_T2T_ViT_10.pth.tar"),
    _variant("t2t_vit_12", (256, 12, 4, 2.0), (6_941_902, 1.763), 0.765, "76.5_T2T_ViT_12.pth.tar"),
    _variant("t2t_vit_14", (384, 14, 6, 3.0), (21_545_550, 4.783), 0.815, "81.5_T2T_ViT_14.pth.tar"),
    _variant("t2t_vit_19", (448, 19, 7, 3.0), (39_177_422, 8.480), 0.819, "81.9_T2T_ViT_19.pth.tar"),
    _variant("t2t_vit_24", (512, 24, 8, 3.0), (64_105_934, 13.662), 0.823, "82.3_T2T_ViT_24.pth.tar"),
    _variant("t2t_vit_t_14", (384, 14, 6, 3.0), (21_541_070, 6.089), 0.817, "81.7_T2T_ViTt_14.pth.tar", "transformer"),
    _variant("t2t_vit_t_19", (448, 19, 7, 3.0), (39_172_942, 9.785), 0.824, "82.4_T2T_ViTt_19.pth.tar", "transformer"),
    _variant("t2t_vit_t_24", (512, 24, 8, 3.0), (64_101_454, 14.967), 0.826, "82.6_T2T_ViTt_24.pth.tar", "transformer"),
    _variant("t2t_vit_14_resnext", (384, 14, 32, 3.0), (21_545_550, 4.783), None, None),
    _variant("t2t_vit_14_wide", (768, 4, 12, 3.0), (25_156_302, 5.229), None, None),
)
