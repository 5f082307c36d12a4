"""Swin v1 and v2: the names of timm, torchvision and Hugging Face to those of the original files."""

from __future__ import annotations

import math
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
    """Return Microsoft's weights, whose names are ours."""
    return dict(state)


def from_timm(state: State) -> dict[str, NDArray[Any]]:
    """Return timm's weights (0.9 and newer) under our names; timm merges patches at the start of a stage."""
    return renamed(state, TIMM)


def from_torchvision(state: State) -> dict[str, NDArray[Any]]:
    """Return torchvision's weights under our names.

    The key's third of v2's qkv bias is left out; torchvision sets it to zero at each call.
    """
    ours = renamed(renamed(state, TORCHVISION), TORCHVISION_BLOCK)
    for key in [key for key in ours if key.endswith(".attn.logit_scale")]:
        block = key.removesuffix("logit_scale")
        if f"{block}qkv.bias" in ours:
            ours[f"{block}q_bias"], _, ours[f"{block}v_bias"] = np.split(ours.pop(f"{block}qkv.bias"), 3)
    return ours


def from_huggingface(state: State) -> dict[str, NDArray[Any]]:
    """Return the weights of a Hugging Face file under our names; query, key and value become one tensor."""
    ours = renamed(renamed(state, HUGGINGFACE), HUGGINGFACE_BLOCK)
    if any(key.endswith(".attn.logit_scale") for key in ours):
        ours = renamed(ours, HUGGINGFACE_V2_BIAS)
    return joined(ours, ("query", "key", "value"), "qkv")


def split_tables(tensors: State) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return weights, and the tables that the model makes itself; the latter prove what it was built with."""
    tables = {name: value for name, value in tensors.items() if re.search(REBUILT, name)}
    return {name: value for name, value in tensors.items() if name not in tables}, tables


def describe(tensors: State) -> dict[str, Any]:
    """Read the constructor arguments that both versions share off tensors in our names."""
    width, channels, patch = tensors["patch_embed.proj.weight"].shape[:3]
    depths, heads = [], []
    for stage in STAGES:
        blocks = {name.split(".")[3] for name in tensors if name.startswith(f"layers.{stage}.blocks.")}
        if not blocks:
            break
        depths.append(len(blocks))
        attention = f"layers.{stage}.blocks.0.attn."
        scale, table = tensors.get(f"{attention}logit_scale"), tensors.get(f"{attention}relative_position_bias_table")
        heads.append(int(scale.shape[0] if scale is not None else table.shape[1] if table is not None else 0))
    arguments: dict[str, Any] = {
        "width": int(width),
        "channels": int(channels),
        "patch": int(patch),
        "depths": depths,
        "heads": heads,
        "qkv_bias": any(name.endswith((".attn.qkv.bias", ".attn.q_bias")) for name in tensors),
        "absolute_position": "absolute_pos_embed" in tensors,
    }
    if "layers.0.blocks.0.mlp.fc1.weight" in tensors:
        arguments["mlp_ratio"] = tensors["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / width
    return arguments


def proofs(tensors: State, tables: State) -> dict[str, tuple[Any, str]]:
    """Return what tables prove: argument → (value, the tensor that proves it).

    ``window`` from the rows of v1's bias tables or the side of the stored ones, ``pretrained_windows`` from v2's
    largest offset, ``image_size`` from the number of windows that a mask is for.
    """
    sides = {stage: _sides(stage, {**tensors, **tables}) for stage in STAGES}
    known = {stage: found for stage, found in sides.items() if found}
    if not known:
        return {}
    side, by = max(known.values(), key=lambda found: found[0])
    proven: dict[str, tuple[Any, str]] = {"window": (side, by)}
    trained = {stage: _trained_window(tables, stage) for stage in known}
    if all(trained.values()):
        first = f"layers.{min(known)}.blocks.0.attn.relative_coords_table"
        values = [window or 0 for window in trained.values()]
        natural = all(value == known[stage][0] for stage, value in zip(known, values, strict=True))
        proven["pretrained_windows"] = ([0] * len(values) if natural else values, first)
    size = _image_size(tensors, tables, known, side)
    if size is not None:
        proven["image_size"] = size
    return proven


def _sides(stage: int, tensors: State) -> tuple[int, str] | None:
    """Return the window's side in a stage, and the tensor that tells it."""
    attention = f"layers.{stage}.blocks.0.attn."
    for part, rows_of in (
        ("relative_coords_table", lambda table: (table.shape[-2] + 1) // 2),
        ("relative_position_bias_table", lambda table: (math.isqrt(table.shape[0]) + 1) // 2),
        ("relative_position_index", lambda table: math.isqrt(math.isqrt(table.size))),
    ):
        if (table := tensors.get(f"{attention}{part}")) is not None and table.ndim >= 1:
            return int(rows_of(table)), f"{attention}{part}"
    return None


def _trained_window(tables: State, stage: int) -> int | None:
    """Return the window p that v2's offsets are measured in: the largest one is log₂(8 (w − 1) / (p − 1) + 1) / 3."""
    table = tables.get(f"layers.{stage}.blocks.0.attn.relative_coords_table")
    if table is None or table.size == 0:
        return None
    side, largest = (table.shape[-2] + 1) // 2, float(table.max())
    reach = 2 ** (3 * largest) - 1
    return round(8 * (side - 1) / reach) + 1 if reach > 0 else side


def _image_size(
    tensors: State, tables: State, sides: Mapping[int, tuple[int, str]], window: int
) -> tuple[int, str] | None:
    patch = int(tensors["patch_embed.proj.weight"].shape[2])
    for name, mask in tables.items():
        found = re.match(r"layers\.(\d+)\.blocks\.\d+\.attn_mask$", name)
        if found and mask.ndim == 3:
            tokens = mask.shape[0] * mask.shape[1]
            if math.isqrt(tokens) ** 2 == tokens:
                return math.isqrt(tokens) * patch * 2 ** int(found[1]), name
    for stage, (side, by) in sides.items():
        if side < window:  # a stage that is smaller than the window is one window
            return side * patch * 2**stage, by
    return None


def dropped(tables: State) -> dict[str, str]:
    """Return why stored tables are left out; of many the first stands for all."""
    if not tables:
        return {}
    first, *others = tables
    return {first: f"the architecture gives it, and {len(others)} more such tables, which were compared"}


def narrow_stage(module: Any) -> tuple[int, int] | None:
    """Return the grid of the first stage that is one window along one side alone, None where no stage is."""
    grids = (part.windows for part in module.modules() if hasattr(part, "windows"))
    for windows in grids:
        if min(windows.height, windows.width) == windows.side < max(windows.height, windows.width):
            return windows.height, windows.width
    return None


def computed_tables(module: Any) -> dict[str, NDArray[Any]]:
    """Return the tables that a Swin of ours computes with, under the names and in the shapes of Microsoft's files."""
    tables: dict[str, NDArray[Any]] = {}
    for stage, layer in enumerate(module.layers):
        for index, block in enumerate(layer.blocks):
            place, attention = f"layers.{stage}.blocks.{index}.", block.attn
            tokens = attention.windows.side**2
            tables[f"{place}attn.relative_position_index"] = attention.relative_positions.numpy().reshape(
                tokens, tokens
            )
            if attention.mask is not None:
                tables[f"{place}attn_mask"] = attention.mask.numpy().reshape(-1, tokens, tokens)
            if hasattr(attention, "offsets"):
                side = 2 * attention.windows.side - 1
                tables[f"{place}attn.relative_coords_table"] = attention.offsets.numpy().reshape(1, side, side, 2)
    return tables


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
