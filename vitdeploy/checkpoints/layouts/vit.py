"""ViT and DeiT: from every dialect to timm's names, which are ours.

``attn.qkv`` has all rows of q, then k, then v, head-major within each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from vitdeploy.checkpoints.layouts.rename import Rules, joined, renamed
from vitdeploy.errors import CheckpointError

State = Mapping[str, NDArray[Any]]
Tensors = dict[str, NDArray[Any]]

TORCHVISION: Rules = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
    (r"^heads\.head\.", "head."),
    (r"^heads\.pre_logits\.", "pre_logits.fc."),
)

# Files hold the names of transformers 4; state_dict() of transformers 5 gives the second spelling.
HUGGING_FACE: Rules = (
    (r"^(?:vit|deit)\.embeddings\.cls_token$", "cls_token"),
    (r"^(?:vit|deit)\.embeddings\.distillation_token$", "dist_token"),
    (r"^(?:vit|deit)\.embeddings\.position_embeddings$", "pos_embed"),
    (r"^(?:vit|deit)\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:vit|deit)\.(?:encoder\.layer|layers)\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"^(?:vit|deit)\.(?:encoder\.layer|layers)\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"^(?:vit|deit)\.encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.", r"blocks.\1.attn.\2."),
    (r"^(?:vit|deit)\.encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^(?:vit|deit)\.encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"^(?:vit|deit)\.encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"^(?:vit|deit)\.layers\.(\d+)\.attention\.q_proj\.", r"blocks.\1.attn.query."),
    (r"^(?:vit|deit)\.layers\.(\d+)\.attention\.k_proj\.", r"blocks.\1.attn.key."),
    (r"^(?:vit|deit)\.layers\.(\d+)\.attention\.v_proj\.", r"blocks.\1.attn.value."),
    (r"^(?:vit|deit)\.layers\.(\d+)\.attention\.o_proj\.", r"blocks.\1.attn.proj."),
    (r"^(?:vit|deit)\.layers\.(\d+)\.mlp\.(fc[12])\.", r"blocks.\1.mlp.\2."),
    (r"^(?:vit|deit)\.layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)

MMPRETRAIN: Rules = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
    (r"^layers\.(\d+)\.attn\.", r"blocks.\1.attn."),
    (r"^layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"^layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"^ln1\.", "norm."),
    (r"^head\.layers\.head\.", "head."),
)

DEIT3: Rules = (
    (r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),
    (r"^patch_embed\.proj\.", "patch_embed.proj."),
)

# Two branches side by side, as the original code numbers them: norm1, attn, gamma_1 and norm11, attn1, gamma_1_1.
DEIT3_PARALLEL: Rules = (
    (r"^(blocks\.\d+)\.norm1\.", r"\1.attns.0.norm."),
    (r"^(blocks\.\d+)\.norm11\.", r"\1.attns.1.norm."),
    (r"^(blocks\.\d+)\.attn\.", r"\1.attns.0.attn."),
    (r"^(blocks\.\d+)\.attn1\.", r"\1.attns.1.attn."),
    (r"^(blocks\.\d+)\.gamma_1$", r"\1.attns.0.ls.gamma"),
    (r"^(blocks\.\d+)\.gamma_1_1$", r"\1.attns.1.ls.gamma"),
    (r"^(blocks\.\d+)\.norm2\.", r"\1.ffns.0.norm."),
    (r"^(blocks\.\d+)\.norm21\.", r"\1.ffns.1.norm."),
    (r"^(blocks\.\d+)\.mlp\.", r"\1.ffns.0.mlp."),
    (r"^(blocks\.\d+)\.mlp1\.", r"\1.ffns.1.mlp."),
    (r"^(blocks\.\d+)\.gamma_2$", r"\1.ffns.0.ls.gamma"),
    (r"^(blocks\.\d+)\.gamma_2_1$", r"\1.ffns.1.ls.gamma"),
)


_OTHER_PARTS = re.compile(
    r"reg_token|norm_pre\..*|attn_pool\..*|blocks\.\d+\.(attn\.([qk]_norm|norm)|mlp\.(norm|w12|fc1_[gx]))\..*"
)
_OTHER_THAN_DEIT = re.compile(r"fc_norm\..*|blocks\.\d+\.ls[12]\..*")


def refuse_other_parts(state: State, where: str) -> None:
    """Refuse timm's ViTs with parts that ours has not, before anything is asked of them.

    Raises:
        CheckpointError: There are registers, norms of queries and keys, a pooling by attention, or their like.
    """
    patterns = [_OTHER_PARTS, *([_OTHER_THAN_DEIT] if "dist_token" in state else [])]
    others = [name for name in state if any(pattern.fullmatch(name) for pattern in patterns)]
    if others:
        shown = ", ".join(others[:4]) + (", …" if others[4:] else "")
        raise CheckpointError(f"{where} does not fit the model: {len(others)} left over ({shown}); {OTHER_BUILDER}")


OTHER_BUILDER = (
    "timm builds models with other parts: the source 'timm:NAME' with weights='FILE' takes such weights under timm's "
    "name of the model"
)


def without_pretraining(state: State) -> tuple[Tensors, tuple[str, ...]]:
    """Return the encoder, and what MAE and DINO train beside it: mask token and decoder, in words."""
    others = [name for name in state if re.match(r"mask_token$|decoder_", name)]
    kept = {name: value for name, value in state.items() if name not in others}
    more = f"{others[0]} and {len(others) - 1} more" if len(others) > 1 else "".join(others)
    return kept, (more,) if more else ()


def refuse_oblong_patches(state: State, where: str) -> None:
    """Refuse patches that are no squares, before the image's size is asked for.

    Raises:
        CheckpointError: They are not.
    """
    height, width = state["patch_embed.proj.weight"].shape[2:]
    if height != width:
        raise CheckpointError(f"{where} has patches of {height}×{width} pixels, here all are squares; {OTHER_BUILDER}")


def from_timm(state: State) -> Tensors:
    """Return timm's weights; the norm after mean pooling, ``fc_norm``, is our ``norm``."""
    return renamed(state, ((r"^fc_norm\.", "norm."),))


def from_deit3(state: State) -> Tensors:
    """Return the original DeiT-III's weights, with one or two branches per block."""
    return renamed(state, DEIT3_PARALLEL if "blocks.0.norm11.weight" in state else DEIT3)


def from_mmpretrain(state: State) -> Tensors:
    """Return the weights of mmpretrain, and of mmcls before it."""
    return renamed(state, MMPRETRAIN)


def from_torchvision(state: State) -> Tensors:
    """Return torchvision's weights, those of before 0.13 too."""
    return renamed(state, TORCHVISION)


def from_huggingface(state: State) -> Tensors:
    """Return a Hugging Face ViT's or DeiT's weights; query, key and value become one ``qkv``."""
    return joined(renamed(state, HUGGING_FACE), ("query", "key", "value"), "qkv")


def is_grid_with_token(state: State, image_size: Any) -> bool:
    """Return whether the positions are those of a class token and the patches of an image of [height, width]."""
    if not isinstance(image_size, list | tuple) or len(image_size) != 2 or "dist_token" in state:
        return False
    patch = int(state["patch_embed.proj.weight"].shape[2])
    return bool(state["pos_embed"].shape[1] == 1 + (image_size[0] // patch) * (image_size[1] // patch))


def describe(tensors: State, *, token_position: bool | None = None) -> dict[str, Any]:
    """Read the constructor arguments of ``models.vit`` off tensors in our names; heads cannot be told from them.

    ``token_position`` says whether the class token has a position, where the code base knows; else it has none where
    the positions are a square without it.

    Raises:
        CheckpointError: The tensors are not those of a ViT.
    """
    if "patch_embed.proj.weight" not in tensors or "pos_embed" not in tensors:
        raise CheckpointError("there is no patch_embed.proj.weight or no pos_embed: these are not a ViT's weights")
    width, channels, patch = tensors["patch_embed.proj.weight"].shape[:3]
    blocks = {int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))}
    branch = "blocks.0.ffns.0.mlp" if "blocks.0.ffns.0.norm.weight" in tensors else "blocks.0.mlp"
    parallel = {int(found[1]) for name in tensors if (found := re.match(r"blocks\.0\.attns\.(\d+)\.", name))}
    rows = tensors["pos_embed"].shape[1]
    arguments: dict[str, Any] = {
        "width": int(width),
        "channels": int(channels),
        "patch": int(patch),
        "depth": len(blocks),
        "pool": "cls" if "cls_token" in tensors else "mean",
        "qkv_bias": any(name.endswith("attn.qkv.bias") for name in tensors),
    }
    if f"{branch}.fc1.weight" in tensors:
        arguments["mlp_ratio"] = tensors[f"{branch}.fc1.weight"].shape[0] / width
    if "head.weight" in tensors:
        arguments["num_classes"] = int(tensors["head.weight"].shape[0])
    if "pre_logits.fc.weight" in tensors:
        arguments["representation_size"] = int(tensors["pre_logits.fc.weight"].shape[0])
    if any(".ls1.gamma" in name or ".ls.gamma" in name for name in tensors):
        arguments["layer_scale"] = 1e-6
    if parallel:
        arguments["parallel"] = len(parallel)
    extra = int("cls_token" in tensors) + int("dist_token" in tensors)
    if token_position is None:
        token_position = math.isqrt(rows) ** 2 != rows
    if "cls_token" in tensors and not token_position:
        arguments["class_token_position"] = False
        extra = 0
    side = math.isqrt(max(rows - extra, 0))
    if side * side == rows - extra:  # else the image is no square, and its sides are unknown
        arguments["image_size"] = side * int(patch)
    if "dist_token" in tensors:
        for name in ("pool", "qkv_bias"):
            del arguments[name]
    return arguments
