"""Google's JAX ViTs, of vision_transformer and of big_vision: from flax's names and axes to timm's, which are ours.

Kernels are [in, out] there, heads an axis of their own, and big_vision may stack all blocks along a first axis.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import CheckpointError

State = Mapping[str, NDArray[Any]]
Tensors = dict[str, NDArray[Any]]

PATCHES = "embedding/kernel"
_STACKED = "Transformer/encoderblock/"
_POSITIONS, _POSITIONS_BEFORE_TOKEN = "Transformer/posembed_input/pos_embedding", "pos_embedding"


def root_of(names: Iterable[str]) -> str | None:
    """Return the place below which the ViT's names begin (``opt/target/``, ``params/img/``), None without one."""
    places = [name.removesuffix(PATCHES) for name in names if re.fullmatch(rf"(.*/)?{PATCHES}", name)]
    return min(places, key=lambda place: (place.count("/"), place), default=None)


def below(state: State, root: str) -> tuple[Tensors, str]:
    """Return what stands below a place, under the rest of its names, and in words what stands beside it."""
    inside = {name[len(root) :]: value for name, value in state.items() if name.startswith(root)}
    beside = [name for name in state if not name.startswith(root)]
    if not root:  # optimizers are kept beside the weights, whether or not these have a place of their own
        beside = [name for name in inside if name.startswith(("opt/", "opt_state/"))]
        inside = {name: value for name, value in inside.items() if name not in beside}
    return inside, " and ".join([*beside[:1], *([f"{len(beside) - 1} more"] if beside[1:] else [])])


def heads_of(state: State) -> int:
    """Return the number of heads, which JAX keeps as an axis of the kernels."""
    kernel = next(value for name, value in state.items() if re.search(r"encoderblock.*/query/kernel$", name))
    return int(kernel.shape[-2])


def has_token_position(state: State) -> bool:
    """Return whether the class token has a position: vision_transformer adds it before the positions."""
    return _POSITIONS in state and "cls" in state


def to_timm(state: State) -> Tensors:
    """Return the weights of a ViT under timm's names; what is no part of one keeps its own name.

    Args:
        state: The weights below their place.
    Raises:
        CheckpointError: A part is missing, or patches are cut otherwise.
    """
    return _Conversion(_unstacked(state)).tensors()


class _Conversion:
    """Takes tensors one by one, so that what is left over is known."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._used: set[str] = set()
        self._ours: Tensors = {}

    def tensors(self) -> Tensors:
        if self._state[PATCHES].ndim != 4:
            raise CheckpointError(
                f"{PATCHES!r} is a matrix: the JAX checkpoint is a NaFlex ViT, which takes images of any aspect ratio "
                "and is not built"
            )
        self._ours["patch_embed.proj.weight"] = np.ascontiguousarray(self._take(PATCHES).transpose(3, 2, 0, 1))
        self._ours["patch_embed.proj.bias"] = self._take("embedding/bias")
        if "cls" in self._state:
            self._ours["cls_token"] = self._take("cls")
        if _POSITIONS not in self._state and _POSITIONS_BEFORE_TOKEN not in self._state:
            raise CheckpointError(
                "the JAX checkpoint has no table of positions: they were sines and cosines, which no file holds, or "
                "the model had none; torch.onnx.export or jax2onnx writes such a model with them"
            )
        old = _POSITIONS in self._state
        self._ours["pos_embed"] = self._take(_POSITIONS if old else _POSITIONS_BEFORE_TOKEN)
        self._norm("norm", "Transformer/encoder_norm")
        blocks = {
            int(found[1]) for name in self._state if (found := re.match(r"Transformer/encoderblock_(\d+)/", name))
        }
        for index in sorted(blocks):
            self._block(f"blocks.{index}", f"Transformer/encoderblock_{index}")
        if "MAPHead_0/probe" in self._state:
            self._pooling("attn_pool", "MAPHead_0")
        for ours, theirs in (("pre_logits.fc", "pre_logits"), ("head", "head")):
            if f"{theirs}/kernel" in self._state:
                self._linear(ours, theirs)
        rest = {name: value for name, value in self._state.items() if name not in self._used}
        return {**self._ours, **rest}

    def _block(self, ours: str, theirs: str) -> None:
        # vision_transformer counts all modules of a block together, big_vision each kind from 0.
        old = f"{theirs}/MultiHeadDotProductAttention_1/query/kernel" in self._state
        attention, second, mlp = (1, 2, 3) if old else (0, 1, 0)
        self._norm(f"{ours}.norm1", f"{theirs}/LayerNorm_0")
        self._norm(f"{ours}.norm2", f"{theirs}/LayerNorm_{second}")
        self._projections(f"{ours}.attn.qkv", f"{theirs}/MultiHeadDotProductAttention_{attention}", "query key value")
        self._out(f"{ours}.attn.proj", f"{theirs}/MultiHeadDotProductAttention_{attention}/out")
        self._mlp(f"{ours}.mlp", f"{theirs}/MlpBlock_{mlp}")

    def _pooling(self, ours: str, theirs: str) -> None:
        attention = f"{theirs}/MultiHeadDotProductAttention_0"
        self._ours[f"{ours}.latent"] = self._take(f"{theirs}/probe")
        self._projections(f"{ours}.q", attention, "query")
        self._projections(f"{ours}.kv", attention, "key value")
        self._out(f"{ours}.proj", f"{attention}/out")
        self._norm(f"{ours}.norm", f"{theirs}/LayerNorm_0")
        self._mlp(f"{ours}.mlp", f"{theirs}/MlpBlock_0")

    def _take(self, name: str) -> NDArray[Any]:
        if name not in self._state:
            raise CheckpointError(f"{name!r} is missing from the JAX checkpoint")
        self._used.add(name)
        return self._state[name]

    def _linear(self, ours: str, theirs: str) -> None:
        self._ours[f"{ours}.weight"] = np.ascontiguousarray(self._take(f"{theirs}/kernel").T)
        self._ours[f"{ours}.bias"] = self._take(f"{theirs}/bias")

    def _norm(self, ours: str, theirs: str) -> None:
        self._ours[f"{ours}.weight"], self._ours[f"{ours}.bias"] = (
            self._take(f"{theirs}/scale"),
            self._take(f"{theirs}/bias"),
        )

    def _mlp(self, ours: str, theirs: str) -> None:
        self._linear(f"{ours}.fc1", f"{theirs}/Dense_0")
        self._linear(f"{ours}.fc2", f"{theirs}/Dense_1")

    def _projections(self, ours: str, theirs: str, parts: str) -> None:
        """Put kernels [D, H, d] and biases [H, d] below each other."""
        kernels = [self._take(f"{theirs}/{part}/kernel") for part in parts.split()]
        biases = [self._take(f"{theirs}/{part}/bias") for part in parts.split()]
        self._ours[f"{ours}.weight"] = np.concatenate([kernel.reshape(len(kernel), -1).T for kernel in kernels])
        self._ours[f"{ours}.bias"] = np.concatenate([bias.reshape(-1) for bias in biases])

    def _out(self, ours: str, theirs: str) -> None:
        kernel = self._take(f"{theirs}/kernel")  # [H, d, D]
        self._ours[f"{ours}.weight"] = np.ascontiguousarray(kernel.reshape(-1, kernel.shape[-1]).T)
        self._ours[f"{ours}.bias"] = self._take(f"{theirs}/bias")


def _unstacked(state: State) -> Tensors:
    """Return blocks that are stacked along the first axis one by one."""
    tensors: Tensors = {}
    for name, value in state.items():
        if not name.startswith(_STACKED):
            tensors[name] = value
            continue
        for index, part in enumerate(value):
            tensors[f"Transformer/encoderblock_{index}/{name.removeprefix(_STACKED)}"] = part
    return tensors
