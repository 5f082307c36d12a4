"""Hybrid R+ViT: Google's JAX names to timm's, which are ours, and the arguments that shapes tell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.checkpoints.layouts import google, vit
from vitdeploy.checkpoints.layouts.rename import Rules, renamed

State = Mapping[str, NDArray[Any]]
Tensors = dict[str, NDArray[Any]]

BACKBONE = "patch_embed.backbone."

# Stages and units count from 1 there, from 0 here, so the indices are not in the rules.
GOOGLE: Rules = (
    (r"^conv_root/kernel$", "conv.weight"),
    (r"^gn_root/", "norm."),
    (r"^conv_proj/kernel$", "downsample.conv.weight"),
    (r"^gn_proj/", "downsample.norm."),
    (r"^conv([123])/kernel$", r"conv\1.weight"),
    (r"^gn([123])/", r"norm\1."),
)
SCALE: Rules = ((r"scale$", "weight"),)


def from_google(state: State) -> Tensors:
    """Return the weights of Google's JAX hybrids: kernels are [H, W, in, out] there, norms [1, 1, 1, C]."""
    ours: Tensors = {}
    rest = google.to_timm(state)
    stem = "stem." if any(re.match(r"block\d+/", name) for name in rest) else ""
    for name, value in rest.items():
        found = re.match(r"(?:block(\d+)/unit(\d+)/)?((?:conv|gn)(?:_root|_proj|[123])/\w+)$", name)
        if found is None:
            ours[name] = value
            continue
        place = f"stages.{int(found[1]) - 1}.blocks.{int(found[2]) - 1}." if found[1] else stem
        (key,) = renamed(renamed({found[3]: value}, GOOGLE), SCALE)
        is_kernel = value.ndim == 4 and name.endswith("/kernel")
        ours[f"{BACKBONE}{place}{key}"] = (
            np.ascontiguousarray(value.transpose(3, 2, 0, 1)) if is_kernel else value.reshape(-1)
        )
    return ours


def describe(tensors: State) -> dict[str, Any]:
    """Read the constructor arguments of ``models.hybrid`` off tensors in our names, all but heads and groups."""
    arguments = vit.describe(tensors, token_position=True)
    for name in ("image_size", "channels"):
        arguments.pop(name, None)
    stem = tensors.get(f"{BACKBONE}stem.conv.weight", tensors.get(f"{BACKBONE}conv.weight"))
    units: dict[int, int] = {}
    for name in tensors:
        if found := re.match(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.conv1\.weight$", name):
            units[int(found[1])] = units.get(int(found[1]), 0) + 1
    arguments["units"] = [units[stage] for stage in sorted(units)]
    if stem is not None:
        arguments["stem_width"], arguments["channels"] = int(stem.shape[0]), int(stem.shape[1])
    stride = 4 * 2 ** max(len(units) - 1, 0)  # the stem's, halved by every stage after the first
    cells = tensors["pos_embed"].shape[1] - int("cls_token" in tensors)
    if math.isqrt(cells) ** 2 == cells:
        arguments["image_size"] = math.isqrt(cells) * arguments["patch"] * stride
    return arguments
