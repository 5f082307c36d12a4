"""PVT v1 and v2: the names of timm and Hugging Face to those of the original files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.checkpoints.layouts.rename import Rules, joined, renamed

State = Mapping[str, NDArray[Any]]

STAGES = range(8)

TIMM_V2: Rules = (
    (r"^patch_embed\.", "patch_embed1."),
    *((rf"^stages\.{stage}\.downsample\.", f"patch_embed{stage + 1}.") for stage in STAGES),
    *((rf"^stages\.{stage}\.blocks\.", f"block{stage + 1}.") for stage in STAGES),
    *((rf"^stages\.{stage}\.norm\.", f"norm{stage + 1}.") for stage in STAGES),
)
TIMM_V2_BLOCK: Rules = ((r"\.mlp\.dwconv\.", ".mlp.dwconv.dwconv."),)

HUGGINGFACE: Rules = (
    *((rf"^pvt\.encoder\.patch_embeddings\.{stage}\.cls_token$", "cls_token") for stage in STAGES),
    *(
        (rf"^pvt\.encoder\.patch_embeddings\.{stage}\.position_embeddings$", f"pos_embed{stage + 1}")
        for stage in STAGES
    ),
    *((rf"^pvt\.encoder\.patch_embeddings\.{stage}\.", f"patch_embed{stage + 1}.") for stage in STAGES),
    *((rf"^pvt\.encoder\.block\.{stage}\.", f"block{stage + 1}.") for stage in STAGES),
    (r"^pvt\.encoder\.layer_norm\.", "norm."),
    (r"^classifier\.", "head."),
)
HUGGINGFACE_V2: Rules = (
    *((rf"^pvt_v2\.encoder\.layers\.{stage}\.patch_embedding\.", f"patch_embed{stage + 1}.") for stage in STAGES),
    *((rf"^pvt_v2\.encoder\.layers\.{stage}\.blocks\.", f"block{stage + 1}.") for stage in STAGES),
    *((rf"^pvt_v2\.encoder\.layers\.{stage}\.layer_norm\.", f"norm{stage + 1}.") for stage in STAGES),
    (r"^classifier\.", "head."),
)
HUGGINGFACE_EMBEDDING: Rules = (
    (r"^(patch_embed\d+)\.projection\.", r"\1.proj."),
    (r"^(patch_embed\d+)\.layer_norm\.", r"\1.norm."),
)
HUGGINGFACE_BLOCK: Rules = (
    (r"\.layer_norm_(\d)\.", r".norm\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.(?:self\.)?query\.", ".attn.q."),
    (r"\.attention\.(?:self\.)?layer_norm\.", ".attn.norm."),
    (r"\.attention\.(?:self\.)?(?:sequence|spatial)_reduction\.", ".attn.sr."),
    (r"\.attention\.(?:self\.)?(key|value|proj)\.", r".attn.\1."),
    (r"\.mlp\.dense(\d)\.", r".mlp.fc\1."),
)


def from_timm(state: State) -> dict[str, NDArray[Any]]:
    """Return timm's weights of PVT v2 under our names; timm has no v1."""
    return renamed(renamed(state, TIMM_V2), TIMM_V2_BLOCK)


def from_huggingface(state: State) -> dict[str, NDArray[Any]]:
    """Return the weights of a Hugging Face file, v1 or v2, under our names; key and value become one tensor."""
    ours = renamed(state, HUGGINGFACE + HUGGINGFACE_V2)
    ours = renamed(renamed(ours, HUGGINGFACE_EMBEDDING), HUGGINGFACE_BLOCK)
    return joined(ours, ("key", "value"), "kv")


def resize_position(position: NDArray[Any], before: tuple[int, int], after: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a position embedding of PVT v1, [1, H·W, D] or with a class token in front, from one grid to another.

    Bilinear without aligned corners, as the original does at each call.
    """
    extra = position.shape[1] - before[0] * before[1]
    cells = position[0, extra:].astype(np.float64).reshape(*before, -1)
    rows, columns = (_bilinear(*lengths) for lengths in zip(before, after, strict=True))
    resized = np.einsum("yY,xX,YXd->yxd", rows, columns, cells).reshape(after[0] * after[1], -1)
    return np.concatenate([position[0, :extra], resized])[None].astype(np.float32)


def _bilinear(before: int, after: int) -> NDArray[np.float64]:
    """Return the matrix [after, before] of linear interpolation along one axis; edge values repeat outside."""
    at = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    return np.stack([np.interp(at, np.arange(before), column) for column in np.eye(before)], axis=1)
