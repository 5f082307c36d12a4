"""PVT v1 and v2: the names of timm and Hugging Face to those of the original files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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


def describe(tensors: State, *, second: bool) -> dict[str, Any]:
    """Read the constructor arguments of v1 or v2 off tensors in our names, all but the heads."""
    stages = sum(f"patch_embed{stage + 1}.proj.weight" in tensors for stage in STAGES)
    projections = [tensors[f"patch_embed{stage + 1}.proj.weight"] for stage in range(stages)]
    widths = [int(projection.shape[0]) for projection in projections]
    reductions = [tensors.get(f"block{stage + 1}.0.attn.sr.weight") for stage in range(stages)]
    # Linear attention has a 1×1 convolution behind its pooling in every stage, the last one included.
    linear = second and all(reduction is not None and reduction.shape[-1] == 1 for reduction in reductions)
    arguments: dict[str, Any] = {
        "widths": widths,
        "channels": int(projections[0].shape[1]),
        "depths": [
            len({name.split(".")[1] for name in tensors if name.startswith(f"block{stage + 1}.")})
            for stage in range(stages)
        ],
        "mlp_ratios": [
            tensors[f"block{stage + 1}.0.mlp.fc1.weight"].shape[0] / width for stage, width in enumerate(widths)
        ],
        "patches": [int(projection.shape[-1]) for projection in projections],
        "qkv_bias": "block1.0.attn.q.bias" in tensors,
    }
    if linear:
        arguments["linear"] = True
    else:
        arguments["sr_ratios"] = [1 if reduction is None else int(reduction.shape[-1]) for reduction in reductions]
    return arguments


def image_size(positions: int, patch: int) -> int | None:
    """Return the side of a square image from the rows of the first position table, None where that is no square."""
    side = math.isqrt(positions)
    return side * patch if side * side == positions else None
