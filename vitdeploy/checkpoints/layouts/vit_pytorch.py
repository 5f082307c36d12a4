"""vit-pytorch: eight layouts of one model, told apart by their keys, to the names of ``models.vit_pytorch``.

What the versions changed without a change of keys is read off shapes where it can be; ``settled`` decides the rest from
what the user says, or asks; nothing that changes logits is assumed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitdeploy.checkpoints.layouts.rename import Rules, renamed
from vitdeploy.errors import CheckpointError

State = Mapping[str, NDArray[Any]]
Tensors = dict[str, NDArray[Any]]

T = TypeVar("T")
DEFAULT_HEAD_WIDTH = 64
DEFAULT_CHANNELS = 3


@dataclass(frozen=True)
class Layout:
    """What a range of versions stores and means.

    ambiguous_scale: some of the versions scale attention by the width, others by the head's width.
    default_heads: heads are 64 wide by default; in the oldest versions they are width / heads wide.
    one_pool: only one pool fits the keys.
    """

    versions: str
    norm_after_pool: bool = False
    ambiguous_scale: bool = False
    default_heads: bool = True
    one_pool: bool = False


BLOCK: Rules = (
    (r"^transformer\.layers\.(\d+)\.0\.(?:fn\.)*norm\.", r"blocks.\1.norm1."),
    (r"^transformer\.layers\.(\d+)\.0\.(?:fn\.)*to_qkv\.", r"blocks.\1.attn.qkv."),
    (r"^transformer\.layers\.(\d+)\.0\.(?:fn\.)*to_out\.0\.", r"blocks.\1.attn.proj."),
    (r"^transformer\.layers\.(\d+)\.1\.(?:fn\.)*norm\.", r"blocks.\1.norm2."),
    (r"^transformer\.layers\.(\d+)\.1\.(?:fn\.)+net\.0\.", r"blocks.\1.mlp.fc1."),
    (r"^transformer\.layers\.(\d+)\.1\.(?:fn\.)+net\.3\.", r"blocks.\1.mlp.fc2."),
    (r"^transformer\.layers\.(\d+)\.1\.net\.0\.", r"blocks.\1.norm2."),  # since 1.4.0 the norm is inside
    (r"^transformer\.layers\.(\d+)\.1\.net\.1\.", r"blocks.\1.mlp.fc1."),
    (r"^transformer\.layers\.(\d+)\.1\.net\.4\.", r"blocks.\1.mlp.fc2."),
    (r"^transformer\.norm\.", "norm."),
    (r"^pos_embedding$", "pos_embed"),
    (r"^mlp_head\.0\.", "norm."),
    (r"^mlp_head\.1\.", "head."),
    (r"^mlp_head\.", "head."),
)
LINEAR_PATCHES: Rules = ((r"^(?:patch_to_embedding|to_patch_embedding\.1)\.", "patch_embed.proj."),)
NORMED_PATCHES: Rules = (
    (r"^to_patch_embedding\.1\.", "patch_embed.norm1."),
    (r"^to_patch_embedding\.2\.", "patch_embed.proj."),
    (r"^to_patch_embedding\.3\.", "patch_embed.norm2."),
)


def layout_of(state: State) -> Layout:
    """Return the versions that write these keys, the newest first that fits.

    Raises:
        CheckpointError: They are of a version before 0.3.0, whose head has two layers.
    """
    if any(re.match(r"transformer\.net\.|mlp_head\.[2-9]\.", name) for name in state):
        raise CheckpointError(
            "these are weights of vit-pytorch 0.0.1–0.2.7, whose head has two layers: versions from 0.3.0 on are read, "
            "so train the head anew in a newer one"
        )
    if state["pos_embedding"].ndim == 2:
        return Layout("1.16.1 and later", one_pool=True)
    if "transformer.norm.weight" in state:
        patches_alone = "cls_token" in state and state["cls_token"].shape[1] == 0
        return Layout("1.16.0", one_pool=True) if patches_alone else Layout("1.4.0–1.16.0")
    if "to_patch_embedding.2.weight" in state:
        return Layout("1.0.0–1.3.x", norm_after_pool=True)
    if "patch_to_embedding.weight" in state:
        return Layout("0.3.0–0.6.8", norm_after_pool=True, ambiguous_scale=True, default_heads=False)
    if any(".fn.fn." in name for name in state):
        return Layout("0.7.0–0.9.x", norm_after_pool=True)
    return Layout("0.10.0–0.40.x", norm_after_pool=True)


def from_package(state: State) -> Tensors:
    """Return the weights under our names, the linear projection of patches still as rows of pixels.

    The class token of a model that has none is an empty tensor there, and left out here.
    """
    patches = NORMED_PATCHES if "to_patch_embedding.2.weight" in state else LINEAR_PATCHES
    ours = renamed(renamed(state, patches), BLOCK)
    for name in ("cls_token", "pos_embed"):
        if name in ours and ours[name].ndim == 2:
            ours[name] = ours[name][None]
    if "cls_token" in ours and ours["cls_token"].size == 0:
        del ours["cls_token"]
    return ours


def settled(
    tensors: State, layout: Layout, overrides: Mapping[str, Any]
) -> tuple[Tensors, dict[str, Any], tuple[str, ...]]:
    """Return the tensors, the constructor's arguments, and which versions write such keys, in words.

    ``overrides`` are the arguments that the user passes: ``heads`` or ``head_width``, ``pool``, ``channels`` or
    ``patch``, ``image_size``, and for versions before 0.7.0 ``scale_by_width``.

    Raises:
        CheckpointError: The keys cannot tell an argument that has no default, or an override does not fit them.
    """
    notes = (f"its layout is that of vit-pytorch {layout.versions}",)
    width = tensors["norm.weight"].shape[0]
    tokens = int("cls_token" in tensors)
    with _Unknowns() as unknowns:
        heads, head_width = unknowns.try_read(_heads, tensors, layout, overrides) or (0, 0)
        channels, patch = unknowns.try_read(_patch, tensors, overrides) or (0, 0)
        pool = unknowns.try_read(_pool, layout, tokens, overrides)
        scale_by_width = unknowns.try_read(_scale_by_width, layout, int(width), head_width, overrides)
    arguments: dict[str, Any] = {
        "image_size": _image_size(tensors, patch, tokens, overrides),
        "patch": patch,
        "channels": channels,
        "width": int(width),
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "heads": heads,
        "head_width": head_width,
        "hidden": int(tensors["blocks.0.mlp.fc1.weight"].shape[0]),
        "pool": pool,
        "pixel_norm": "patch_embed.norm1.weight" in tensors,
        "class_token": bool(tokens),
        "norm_after_pool": layout.norm_after_pool,
        "scale_by_width": scale_by_width,
        "project_out": "blocks.0.attn.proj.weight" in tensors,
    }
    if "head.weight" in tensors:
        arguments["num_classes"] = int(tensors["head.weight"].shape[0])
    ours = dict(tensors)
    if not arguments["pixel_norm"]:
        # A patch's pixels are in the order row, column, channel; without a norm on them the linear is a convolution.
        rows = ours["patch_embed.proj.weight"].reshape(-1, patch, patch, channels)
        ours["patch_embed.proj.weight"] = np.ascontiguousarray(rows.transpose(0, 3, 1, 2))
    return ours, arguments, notes


class _Unknowns:
    """Collects what the keys do not tell, so that one message names all of it when the block ends."""

    def __init__(self) -> None:
        self._missing: list[str] = []

    def try_read(self, read: Callable[..., T], *arguments: Any) -> T | None:
        """Return what ``read`` finds, or None where the keys do not tell it."""
        try:
            return read(*arguments)
        except CheckpointError as error:
            self._missing.append(str(error))
            return None

    def __enter__(self) -> _Unknowns:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._missing and kind is None:
            raise CheckpointError("; ".join(self._missing))


def _heads(tensors: State, layout: Layout, overrides: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of heads and the width of one; their product is all that the keys tell.

    Raises:
        CheckpointError: The user passes neither, or values whose product is another.
    """
    inner = int(tensors["blocks.0.attn.qkv.weight"].shape[0]) // 3
    if "blocks.0.attn.proj.weight" not in tensors:  # only a single head as wide as the model goes without
        found = (1, inner)
    elif "heads" in overrides or "head_width" in overrides:
        heads = int(overrides.get("heads") or inner // max(int(overrides["head_width"]), 1))
        found = (heads, int(overrides.get("head_width") or inner // max(heads, 1)))
    else:
        usual = layout.default_heads and inner % DEFAULT_HEAD_WIDTH == 0
        why = f", which are {inner // DEFAULT_HEAD_WIDTH} of vit-pytorch's default dim_head" if usual else ""
        raise CheckpointError(
            f"the keys do not tell how many heads share the {inner} rows of q: pass it, as in "
            f"arguments={{'heads': {inner // DEFAULT_HEAD_WIDTH if usual else 8}}}{why}"
        )
    wanted = {"heads": found[0], "head_width": found[1]}
    if math.prod(found) != inner or any(overrides.get(name, value) != value for name, value in wanted.items()):
        raise CheckpointError(f"{found[0]} heads of {found[1]} do not make the {inner} rows of q that the weights have")
    return found


def _pool(layout: Layout, tokens: int, overrides: Mapping[str, Any]) -> str:
    """Return how tokens are pooled: without a class token by their mean, else the keys of most versions do not tell.

    Raises:
        CheckpointError: They do not, and no override does.
    """
    if layout.one_pool or not tokens:
        return "cls" if tokens else "mean"
    if "pool" not in overrides:
        raise CheckpointError(
            f"vit-pytorch {layout.versions} has a class token whether it reads that or the mean of all tokens, and the "
            "keys do not tell which: pass arguments={'pool': 'cls'}, its default, or arguments={'pool': 'mean'}"
        )
    return str(overrides["pool"])


def _scale_by_width(layout: Layout, width: int, head_width: int, overrides: Mapping[str, Any]) -> bool:
    """Return whether attention is scaled by the width; an override decides where the keys cannot tell."""
    if not layout.ambiguous_scale or width == head_width:
        return bool(overrides.get("scale_by_width", False))
    if "scale_by_width" not in overrides:
        raise CheckpointError(
            "vit-pytorch 0.3.0–0.6.6 scale attention by dim ** -0.5, 0.6.7 and 0.6.8 by dim_head ** -0.5, under the "
            "same keys: pass arguments={'scale_by_width': True} for the former, "
            "arguments={'scale_by_width': False} for the latter"
        )
    return bool(overrides["scale_by_width"])


def _patch(tensors: State, overrides: Mapping[str, Any]) -> tuple[int, int]:
    """Return channels and the side of a patch; their product, channels · side², is what the keys tell."""
    pixels = int(tensors["patch_embed.proj.weight"].shape[1])
    if "patch" in overrides and "channels" not in overrides:
        patch = int(overrides["patch"])
        channels = pixels // max(patch**2, 1)
    else:
        channels = int(overrides.get("channels", DEFAULT_CHANNELS))
        patch = int(overrides.get("patch", math.isqrt(pixels // max(channels, 1))))
    if channels * patch**2 != pixels:
        raise CheckpointError(
            f"{channels} channels and patches of {patch}×{patch} do not make the {pixels} values that a patch has: say "
            "which, as in arguments={'channels': 1}"
        )
    return channels, patch


def _image_size(tensors: State, patch: int, tokens: int, overrides: Mapping[str, Any]) -> Any:
    if overrides.get("image_size") is not None:
        return overrides["image_size"]
    cells = int(tensors["pos_embed"].shape[1]) - tokens
    side = math.isqrt(cells)
    if side * side != cells:
        raise CheckpointError(
            f"{cells} positions are no square, so the keys do not tell the image's sides: say them, as in "
            "arguments={'image_size': [224, 160]}"
        )
    return side * patch
