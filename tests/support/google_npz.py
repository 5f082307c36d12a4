"""Weights of timm's ViTs as Google's JAX code names and lays them out: kernels are [in, out], heads are an axis."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def google_arrays(
    state: Mapping[str, torch.Tensor],
    heads: int = 3,
    *,
    big_vision: bool = False,
    stacked: bool = False,
    root: str = "",
) -> Arrays:
    """Return a state dict under the names of vision_transformer, or of big_vision, whose blocks may be stacked."""
    attention, second, mlp = (0, 1, 0) if big_vision else (1, 2, 3)
    out: Arrays = {}

    def put(place: str, key: str, value: NDArray[Any]) -> None:
        kind = key.rpartition(".")[2]
        if "norm" in place.lower():
            out[f"{place}/{'scale' if kind == 'weight' else 'bias'}"] = value
        else:
            out[f"{place}/{'kernel' if kind == 'weight' else 'bias'}"] = value.T

    def split(place: str, value: NDArray[Any], names: tuple[str, ...]) -> None:
        for name, part in zip(names, np.split(value, len(names)), strict=True):
            width = len(part)
            shaped = part.T.reshape(-1, heads, width // heads) if part.ndim == 2 else part.reshape(heads, -1)
            out[f"{place}/{name}/{'kernel' if part.ndim == 2 else 'bias'}"] = shaped

    def join(place: str, value: NDArray[Any]) -> None:
        out[f"{place}/out/{'kernel' if value.ndim == 2 else 'bias'}"] = (
            value.T.reshape(heads, -1, len(value)) if value.ndim == 2 else value
        )

    for key, tensor in state.items():
        value = tensor.detach().numpy()
        if found := re.match(r"blocks\.(\d+)\.([\w.]+)\.\w+$", key):
            block, part = f"Transformer/encoderblock_{found[1]}", found[2]
            if part == "attn.qkv":
                split(f"{block}/MultiHeadDotProductAttention_{attention}", value, ("query", "key", "value"))
            elif part == "attn.proj":
                join(f"{block}/MultiHeadDotProductAttention_{attention}", value)
            elif part in ("norm1", "norm2"):
                put(f"{block}/LayerNorm_{0 if part == 'norm1' else second}", key, value)
            else:
                put(f"{block}/MlpBlock_{mlp}/Dense_{int(part[-1]) - 1}", key, value)
        elif key == "attn_pool.latent":
            out["MAPHead_0/probe"] = value
        elif found := re.match(r"attn_pool\.(q|kv)\.", key):
            names = ("query",) if found[1] == "q" else ("key", "value")
            split("MAPHead_0/MultiHeadDotProductAttention_0", value, names)
        elif key.startswith("attn_pool.proj."):
            join("MAPHead_0/MultiHeadDotProductAttention_0", value)
        elif key.startswith("attn_pool.norm."):
            put("MAPHead_0/LayerNorm_0", key, value)
        elif found := re.match(r"attn_pool\.mlp\.fc([12])\.", key):
            put(f"MAPHead_0/MlpBlock_0/Dense_{int(found[1]) - 1}", key, value)
        elif key.startswith("patch_embed.proj."):
            kernel = value.ndim == 4
            out[f"embedding/{'kernel' if kernel else 'bias'}"] = value.transpose(2, 3, 1, 0) if kernel else value
        elif re.match(r"(fc_)?norm\.", key):
            put("Transformer/encoder_norm", key, value)
        elif key.startswith("head."):
            put("head", key, value)
        elif key == "cls_token":
            out["cls"] = value
        elif key == "pos_embed":
            out["pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"] = value
    if stacked:
        depth = len({name.split("/")[1] for name in out if name.startswith("Transformer/encoderblock_")})
        for name in [name for name in out if name.startswith("Transformer/encoderblock_0/")]:
            parts = [out.pop(name.replace("block_0/", f"block_{index}/")) for index in range(depth)]
            out[name.replace("block_0/", "block/")] = np.stack(parts)
    return {f"{root}{name}": np.ascontiguousarray(value) for name, value in out.items()}
