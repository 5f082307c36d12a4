"""Swin v1 and v2: the names of timm, torchvision and Hugging Face to those of the original files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitdeploy.checkpoints.layouts.rename import Rules, joined, renamed

State = Mapping[str, NDArray[Any]]
TableRule = Literal["bicubic", "geometric"]

STAGES = range(8)

REBUILT = r"\.(?:relative_position_index|relative_coords_table|attn_mask)$"
"""Keys of tensors that follow from the architecture alone; files have them, and the model makes its own."""

TIMM: Rules = (
    *((rf"^layers\.{stage + 1}\.downsample\.", f"layers.{stage}.downsample.") for stage in STAGES),
    (r"^head\.fc\.", "head."),
)

TORCHVISION: Rules = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    *((rf"^features\.{2 * stage + 1}\.", f"layers.{stage}.blocks.") for stage in STAGES),
    *((rf"^features\.{2 * stage + 2}\.", f"layers.{stage}.downsample.") for stage in STAGES),
)
TORCHVISION_BLOCK: Rules = ((r"\.mlp\.0\.", ".mlp.fc1."), (r"\.mlp\.3\.", ".mlp.fc2."))

HUGGINGFACE: Rules = (
    (r"^swin(?:v2)?\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^swin(?:v2)?\.embeddings\.norm\.", "patch_embed.norm."),
    (r"^swin(?:v2)?\.embeddings\.position_embeddings$", "absolute_pos_embed"),
    (r"^swin(?:v2)?\.encoder\.layers\.", "layers."),
    (r"^swin(?:v2)?\.layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
HUGGINGFACE_BLOCK: Rules = (
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.self\.continuous_position_bias_mlp\.", ".attn.cpb_mlp."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
HUGGINGFACE_V2_BIAS: Rules = ((r"\.attn\.query\.bias$", ".attn.q_bias"), (r"\.attn\.value\.bias$", ".attn.v_bias"))


def from_original(state: State) -> dict[str, NDArray[Any]]:
    """Return Microsoft's weights without the tensors that the model rebuilds."""
    return {key: value for key, value in state.items() if not re.search(REBUILT, key)}


def from_timm(state: State) -> dict[str, NDArray[Any]]:
    """Return timm's weights (0.9 and newer) under our names; timm merges patches at the start of a stage."""
    return renamed(from_original(state), TIMM)


def from_torchvision(state: State) -> dict[str, NDArray[Any]]:
    """Return torchvision's weights under our names.

    The key's third of v2's qkv bias is left out; torchvision sets it to zero at each call.
    """
    ours = renamed(renamed(from_original(state), TORCHVISION), TORCHVISION_BLOCK)
    for key in [key for key in ours if key.endswith(".attn.logit_scale")]:
        block = key.removesuffix("logit_scale")
        if f"{block}qkv.bias" in ours:
            ours[f"{block}q_bias"], _, ours[f"{block}v_bias"] = np.split(ours.pop(f"{block}qkv.bias"), 3)
    return ours


def from_huggingface(state: State) -> dict[str, NDArray[Any]]:
    """Return the weights of a Hugging Face file under our names; query, key and value become one tensor."""
    ours = renamed(renamed(from_original(state), HUGGINGFACE), HUGGINGFACE_BLOCK)
    if any(key.endswith(".attn.logit_scale") for key in ours):
        ours = renamed(ours, HUGGINGFACE_V2_BIAS)
    return joined(ours, ("query", "key", "value"), "qkv")


def resize_table(table: NDArray[Any], side: int, rule: TableRule = "bicubic") -> NDArray[np.float32]:
    """Resize a relative-position bias table [(2v − 1)², H] of window v to one of window ``side``.

    ``bicubic`` (a = −0.75, no aligned corners) is the rule of the original repository. ``geometric`` is timm's, from
    BEiT: entries are thought to lie at distances 0, 1, 1 + q, 1 + q + q², … with the q that makes them reach as far as
    the new window does, and are interpolated linearly.
    """
    before, after = round(len(table) ** 0.5), 2 * side - 1
    cells = table.astype(np.float64).reshape(before, before, -1)
    weights = _bicubic(before, after) if rule == "bicubic" else _geometric(before, after)
    resized = np.einsum("yY,xX,YXh->yxh", weights, weights, cells)
    return resized.reshape(after**2, -1).astype(np.float32)


def _bicubic(before: int, after: int) -> NDArray[np.float64]:
    """Return the matrix [after, before] of cubic convolution (Keys 1981) along one axis; edge values repeat outside."""
    weights = np.zeros((after, before))
    for row in range(after):
        at = (row + 0.5) * before / after - 0.5
        base = int(np.floor(at))
        for cell in range(base - 1, base + 3):
            t = abs(at - cell)
            near = (1.25 * t - 2.25) * t**2 + 1
            far = -0.75 * (((t - 5) * t + 8) * t - 4)
            weights[row, min(max(cell, 0), before - 1)] += near if t <= 1 else far
    return weights


def _geometric(before: int, after: int) -> NDArray[np.float64]:
    """Return the matrix [after, before] of linear interpolation between geometrically spaced entries of one axis."""
    half, reach = before // 2, after // 2
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (ratio**half - 1) / (ratio - 1) > reach else (ratio, high)
    distances = np.cumsum(ratio ** np.arange(half))
    places = np.concatenate([-distances[::-1], [0], distances])
    return np.stack([np.interp(np.arange(-reach, reach + 1), places, column) for column in np.eye(before)], axis=1)
