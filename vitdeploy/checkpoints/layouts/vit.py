"""ViT and DeiT: from every dialect to timm's names, which are ours.

``attn.qkv`` has all rows of q, then k, then v, head-major within each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
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


def refuse_other_parts(state: State, where: str) -> None:
    """Refuse timm's ViTs with parts that ours has not, before anything is asked of them.

    Raises:
        CheckpointError: There are registers, norms of queries and keys, a pooling by attention, or their like.
    """
    others = [name for name in state if _OTHER_PARTS.fullmatch(name)]
    if others:
        shown = ", ".join(others[:4]) + (", …" if others[4:] else "")
        raise CheckpointError(f"{where} does not fit the model: {len(others)} left over ({shown}); {OTHER_BUILDER}")


OTHER_BUILDER = (
    "timm builds ViTs with other parts: the source 'timm:NAME' with weights='FILE' takes such weights under timm's "
    "name of the model"
)


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


def from_google(state: State) -> Tensors:
    """Return the weights of Google's JAX ViT: kernels are transposed, heads are an axis of their own there."""
    state = {_without_prefix(name): value for name, value in state.items()}
    blocks = sorted({int(found[1]) for name in state if (found := re.match(r"Transformer/encoderblock_(\d+)/", name))})
    ours: Tensors = {}
    used: set[str] = set()

    def take(name: str) -> NDArray[Any]:
        if name not in state:
            raise CheckpointError(f"{name!r} is missing from the JAX checkpoint")
        used.add(name)
        return state[name]

    def linear(ours_name: str, name: str) -> None:
        ours[f"{ours_name}.weight"] = np.ascontiguousarray(take(f"{name}/kernel").T)
        ours[f"{ours_name}.bias"] = take(f"{name}/bias")

    def norm(ours_name: str, name: str) -> None:
        ours[f"{ours_name}.weight"], ours[f"{ours_name}.bias"] = take(f"{name}/scale"), take(f"{name}/bias")

    ours["patch_embed.proj.weight"] = np.ascontiguousarray(take("embedding/kernel").transpose(3, 2, 0, 1))
    ours["patch_embed.proj.bias"] = take("embedding/bias")
    ours["cls_token"] = take("cls")
    ours["pos_embed"] = take("Transformer/posembed_input/pos_embedding")
    norm("norm", "Transformer/encoder_norm")
    for index in blocks:
        theirs, block = f"Transformer/encoderblock_{index}", f"blocks.{index}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        norm(f"{block}.norm1", f"{theirs}/LayerNorm_0")
        norm(f"{block}.norm2", f"{theirs}/LayerNorm_2")
        kernels = [take(f"{attention}/{part}/kernel") for part in ("query", "key", "value")]  # [D, H, d] each
        biases = [take(f"{attention}/{part}/bias") for part in ("query", "key", "value")]  # [H, d] each
        ours[f"{block}.attn.qkv.weight"] = np.concatenate([kernel.reshape(len(kernel), -1).T for kernel in kernels])
        ours[f"{block}.attn.qkv.bias"] = np.concatenate([bias.reshape(-1) for bias in biases])
        out = take(f"{attention}/out/kernel")  # [H, d, D]
        ours[f"{block}.attn.proj.weight"] = np.ascontiguousarray(out.reshape(-1, out.shape[-1]).T)
        ours[f"{block}.attn.proj.bias"] = take(f"{attention}/out/bias")
        linear(f"{block}.mlp.fc1", f"{theirs}/MlpBlock_3/Dense_0")
        linear(f"{block}.mlp.fc2", f"{theirs}/MlpBlock_3/Dense_1")
    if "pre_logits/kernel" in state:
        linear("pre_logits.fc", "pre_logits")
    linear("head", "head")
    ours.update({name: value for name, value in state.items() if name not in used})
    return ours


def heads_of_google(state: State) -> int:
    """Return the number of heads, which JAX keeps as an axis of the kernels."""
    kernel = next(value for name, value in state.items() if name.endswith("/query/kernel"))
    return int(kernel.shape[1])


def _without_prefix(name: str) -> str:
    return re.sub(r"^(?:opt/target/|params/)", "", name)


def is_grid_with_token(state: State, image_size: Any) -> bool:
    """Return whether the positions are those of a class token and the patches of an image of [height, width]."""
    if not isinstance(image_size, list | tuple) or len(image_size) != 2 or "dist_token" in state:
        return False
    patch = int(state["patch_embed.proj.weight"].shape[2])
    return bool(state["pos_embed"].shape[1] == 1 + (image_size[0] // patch) * (image_size[1] // patch))


def describe(tensors: State) -> dict[str, Any]:
    """Read the constructor arguments of ``models.vit`` off tensors in our names; heads cannot be told from them.

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
    if "cls_token" in tensors and math.isqrt(rows) ** 2 == rows:
        arguments["class_token_position"] = False
        extra = 0
    side = math.isqrt(max(rows - extra, 0))
    if side * side == rows - extra:  # else the image is no square, and its sides are unknown
        arguments["image_size"] = side * int(patch)
    if "dist_token" in tensors:
        for name in ("pool", "qkv_bias"):
            del arguments[name]
    return arguments
