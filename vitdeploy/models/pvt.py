"""Pyramid Vision Transformer, PVT v1 (Wang et al. 2021, arXiv:2102.12122), with the parameter names of its checkpoints.

Stages on ever coarser grids of tokens; in the finer ones keys and values come from a grid reduced by a strided
convolution (section 3.3). A class token joins in the last stage only.

B batch, C channels, H W grid of tokens, N = H·W tokens, M tokens after reduction, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.errors import ModelError
from vitdeploy.models.arguments import (
    check_classes,
    check_heads,
    check_input,
    check_one_of,
    check_positive,
    check_rate,
    pair,
    patch_grid,
)
from vitdeploy.models.layers import (
    DropPath,
    Mlp,
    attend,
    drop_path_rates,
    make_head,
    merge_heads,
    prepend_tokens,
    split_heads,
)
from vitdeploy.models.vit import Initialisation, initialise_linear

Grid = tuple[int, int]


def as_map(x: Tensor, grid: Grid) -> Tensor:
    """Lay tokens [B, N, D] out as a feature map [B, D, H, W], whose memory is channels-last and not copied."""
    return x.reshape(-1, *grid, x.shape[2]).permute(0, 3, 1, 2)


def as_tokens(x: Tensor) -> Tensor:
    """List a feature map [B, D, H, W] as tokens [B, N, D], row by row."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[2] * x.shape[3], x.shape[1])


class ReducedAttention(nn.Module):
    """Self-attention whose keys and values see a grid that is ``reduction`` times coarser (equations 1 to 3).

    A convolution with kernel = stride = ``reduction`` reduces, then a LayerNorm; 1 leaves both out. A remainder of rows
    or columns takes no part, as in the original.
    """

    def __init__(
        self, width: int, heads: int, grid: Grid, *, reduction: int = 1, qkv_bias: bool = True, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.heads = heads
        self.grid = grid
        self.scale = (width // heads) ** -0.5
        self.q = nn.Linear(width, width, bias=qkv_bias)
        self.kv = nn.Linear(width, 2 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.sr = nn.Conv2d(width, width, kernel_size=reduction, stride=reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(width, eps=eps) if reduction > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        k, v = self.kv(self.reduce(x)).chunk(2, dim=-1)
        return self.proj(merge_heads(attend(*split_heads(self.q(x), k, v, heads=self.heads), scale=self.scale)))

    def reduce(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, M, D]."""
        if self.sr is None or self.norm is None:
            return x
        return self.norm(as_tokens(self.sr(as_map(x, self.grid))))


class Block(nn.Module):
    """``x + attention(norm x)``, then ``x + mlp(norm x)``."""

    def __init__(self, width: int, attention: nn.Module, mlp: nn.Module, *, eps: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Project patches by a strided convolution and normalise them; with ``padding`` they overlap."""

    def __init__(self, channels: int, width: int, patch: int, stride: int, *, padding: int = 0, eps: float) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H·s, W·s] to [B, N, D]."""
        return self.norm(as_tokens(self.proj(x)))


class PVT(nn.Module):
    """PVT v1; every sequence has one entry per stage.

    Args:
        image_size: Pixels, one number or [height, width]; must divide by the product of ``patches``.
        patches: Side of a patch, in pixels for the first stage and in tokens of the stage before for the others.
        sr_ratios: By how much keys and values are coarser; 1 in the last stage, which has the class token.
        eps: Of the LayerNorms of blocks and the last one.
        inner_eps: Of those after patch projections and reductions; 1e-5 in the original, 1e-6 in Hugging Face's port.
        drop_path: Stochastic depth of the last block; it grows linearly from 0.
        init: ``"trunc_normal"`` (std 0.02), or ``"xavier"`` for tiny models, which at std 0.02 underfit.
        position_std: Of the initial position embeddings.

    Raises:
        ModelError: The values do not fit each other; the message names both.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        patches: Sequence[int] = (4, 2, 2, 2),
        channels: int = 3,
        num_classes: int = 1000,
        widths: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        qkv_bias: bool = True,
        eps: float = 1e-6,
        inner_eps: float = 1e-5,
        drop_path: float = 0.0,
        init: Initialisation = "trunc_normal",
        position_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        check_positive(channels=channels, eps=eps, inner_eps=inner_eps)
        check_one_of("init", init, ("trunc_normal", "xavier"))
        check_stages(
            widths=widths, depths=depths, heads=heads, mlp_ratios=mlp_ratios, sr_ratios=sr_ratios, patches=patches
        )
        check_rate("drop_path", drop_path)
        if sr_ratios[-1] != 1:
            raise ModelError(
                f"sr_ratios is {list(sr_ratios)!r}, expected 1 in the last stage, which has the class token"
            )
        self.image_size = pair(image_size)
        self.stages = len(depths)
        self.grids: list[Grid] = []
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        before, width_before = self.image_size, channels
        for index, width in enumerate(widths):
            check_heads(width, heads[index], None)
            grid = patch_grid(before, patches[index])
            check_reduction(index, grid, sr_ratios[index])
            blocks = [
                Block(
                    width,
                    ReducedAttention(
                        width, heads[index], grid, reduction=sr_ratios[index], qkv_bias=qkv_bias, eps=inner_eps
                    ),
                    Mlp(width, int(width * mlp_ratios[index])),
                    eps=eps,
                    drop_path=next(rates),
                )
                for _ in range(depths[index])
            ]
            tokens = math.prod(grid) + (index == self.stages - 1)
            patch = patches[index]
            self.add_module(f"patch_embed{index + 1}", PatchEmbed(width_before, width, patch, patch, eps=inner_eps))
            self.register_parameter(f"pos_embed{index + 1}", nn.Parameter(torch.zeros(1, tokens, width)))
            self.add_module(f"block{index + 1}", nn.Sequential(*blocks))
            self.grids.append(grid)
            before, width_before = grid, width
        self.position_grids = {
            f"pos_embed{index + 1}": (int(index == self.stages - 1), grid) for index, grid in enumerate(self.grids)
        }
        self.cls_token = nn.Parameter(torch.zeros(1, 1, widths[-1]))
        self.norm = nn.LayerNorm(widths[-1], eps=eps)
        self.head = make_head(widths[-1], num_classes)
        self.initialise(init, position_std)

    def initialise(self, init: Initialisation, position_std: float) -> None:
        """Draw fresh weights: linears by ``init``, their biases 0, positions and class token truncated normal."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise_linear(module, init)
        positions = [getattr(self, f"pos_embed{index + 1}") for index in range(self.stages)]
        for position in positions:
            nn.init.trunc_normal_(position, std=position_std, a=-2 * position_std, b=2 * position_std)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, num_classes].

        Raises:
            ModelError: The images are not of the size that the model was built for.
        """
        check_input(x, self.image_size)
        for index, grid in enumerate(self.grids, start=1):
            tokens = getattr(self, f"patch_embed{index}")(x)
            position = getattr(self, f"pos_embed{index}")
            last = index == self.stages
            tokens = prepend_tokens(tokens, self.cls_token, position) if last else tokens + position
            tokens = getattr(self, f"block{index}")(tokens)
            if not last:
                x = as_map(tokens, grid)
        return self.head(self.norm(tokens[:, 0]))

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters, besides biases and norms, that are not decayed."""
        return {"cls_token", *(f"pos_embed{index + 1}" for index in range(self.stages))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that sort parameters into layers, from the stem up; the rest is the head."""
        return layer_groups(self.stages, coarse=coarse)


def layer_groups(stages: int, *, coarse: bool) -> dict[str, Any]:
    """Return the layers of a PVT: per stage if ``coarse``, else per block, patch projection with the block after it."""
    blocks: list[tuple[str, tuple[int, ...] | None]]
    if coarse:
        blocks = [
            (r"^(?:patch_embed|pos_embed|block|norm)(\d+)", None),
            (r"^cls_token", (stages,)),
            (r"^norm", (99999,)),
        ]
    else:
        blocks = [
            (r"^(?:patch_embed|pos_embed)(\d+)", (-1,)),
            (r"^cls_token", (stages, -1)),
            (r"^block(\d+)\.(\d+)", None),
            (r"^norm(\d+)", (99999,)),
            (r"^norm", (99999,)),
        ]
    return {"stem": r"^patch_embed1|^pos_embed1", "blocks": blocks}


def check_stages(**sequences: Sequence[float]) -> None:
    """Refuse sequences of different lengths, or with an entry that is not above 0.

    Raises:
        ModelError: The message names the sequence.
    """
    stages = len(sequences["depths"])
    for name, values in sequences.items():
        if len(values) != stages or not stages:
            raise ModelError(
                f"{name} is {list(values)!r}, expected one entry for each of the {stages} stages in depths"
            )
        for value in values:
            check_positive(**{name: value})


def check_reduction(index: int, grid: Grid, reduction: int) -> None:
    """Refuse a reduction that leaves no key.

    Raises:
        ModelError: The message names stage, grid and ratio.
    """
    if reduction > min(grid):
        raise ModelError(
            f"sr_ratio {reduction} of stage {index + 1} leaves nothing of its {grid[0]}×{grid[1]} tokens: "
            f"take a smaller ratio or a larger image_size"
        )
