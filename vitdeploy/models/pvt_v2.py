"""PVT v2 (Wang et al. 2022, arXiv:2106.13797) and PVT v2 Linear, with the parameter names of their checkpoints.

Against v1: patches overlap, a depthwise convolution in each MLP takes the place of position embeddings, and the mean of
the last tokens is classified. Linear attention pools keys and values to a grid of fixed size (section 3.1).

B batch, C channels, H W grid of tokens, N = H·W tokens, P side of the pooled grid, D width, F width inside an MLP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdeploy.models.arguments import (
    check_classes,
    check_heads,
    check_input,
    check_one_of,
    check_positive,
    check_rate,
    pair,
)
from vitdeploy.models.layers import drop_path_rates, make_head
from vitdeploy.models.pvt import (
    Block,
    Grid,
    PatchEmbed,
    ReducedAttention,
    as_map,
    as_tokens,
    check_reduction,
    check_stages,
    layer_groups,
)
from vitdeploy.models.vit import Initialisation, initialise_linear


class PooledAttention(ReducedAttention):
    """Linear attention: keys and values come from a grid averaged to P×P, whatever N is (section 3.1).

    After the average a 1×1 convolution, a LayerNorm and GELU follow.
    """

    def __init__(
        self, width: int, heads: int, grid: Grid, *, pool: int = 7, qkv_bias: bool = True, eps: float = 1e-5
    ) -> None:
        super().__init__(width, heads, grid, qkv_bias=qkv_bias)
        self.pool = AdaptivePool(grid, pool)
        self.sr = nn.Conv2d(width, width, kernel_size=1)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.act = nn.GELU()

    def reduce(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, P², D]."""
        assert self.sr is not None
        assert self.norm is not None
        return self.act(self.norm(as_tokens(self.sr(self.pool(x)))))


class AdaptivePool(nn.Module):
    """``AdaptiveAvgPool2d`` for one grid, fixed at construction: an average pooling where it divides, else a matrix.

    Row i of the matrix averages the cells from ⌊iH/P⌋ to ⌈(i+1)H/P⌉ − 1. TensorRT has no adaptive pooling.
    """

    def __init__(self, grid: Grid, side: int) -> None:
        super().__init__()
        self.grid = grid
        self.side = side
        self.kernel = tuple(length // side for length in grid) if all(length % side == 0 for length in grid) else None
        matrix = None
        if self.kernel is None:
            matrix = torch.kron(_averages(grid[0], side), _averages(grid[1], side))
        self.matrix: Tensor | None
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, N, D] to a feature map [B, D, P, P]."""
        if self.matrix is not None:
            return as_map(self.matrix.to(x) @ x, (self.side, self.side))
        assert self.kernel is not None
        cells = as_map(x, self.grid)
        return cells if self.kernel == (1, 1) else F.avg_pool2d(cells, self.kernel)


def _averages(length: int, side: int) -> Tensor:
    """Return the matrix [P, H] that averages one axis."""
    at, row = torch.arange(length, device="cpu"), torch.arange(side, device="cpu")[:, None]
    inside = (at >= row * length // side) & (at < -(-(row + 1) * length // side))
    return inside / inside.sum(dim=1, keepdim=True)


class DepthwiseConv(nn.Module):
    """A 3×3 depthwise convolution over the grid; its zero padding tells tokens where they are."""

    def __init__(self, width: int, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.dwconv = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, F] to [B, N, F]."""
        return as_tokens(self.dwconv(as_map(x, self.grid)))


class ConvolutionalMlp(nn.Module):
    """Linear, depthwise convolution, GELU, linear (section 3.2); the Linear variant has a ReLU after the first."""

    def __init__(self, width: int, hidden: int, grid: Grid, *, linear: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.relu = nn.ReLU() if linear else nn.Identity()
        self.dwconv = DepthwiseConv(hidden, grid)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        return self.fc2(self.act(self.dwconv(self.relu(self.fc1(x)))))


class PVTv2(nn.Module):
    """PVT v2; every sequence has one entry per stage.

    Args:
        image_size: Pixels, one number or [height, width]; any size that leaves a token for each reduction.
        patches, strides: Of the overlapping patch projections, which pad by ⌊patch / 2⌋.
        sr_ratios: By how much keys and values are coarser; without effect in the Linear variant.
        linear: Linear attention over a grid of ``pool``×``pool``.
        eps: Of the LayerNorms of blocks and stages.
        inner_eps: Of those after patch projections and reductions; 1e-5 in the original, 1e-6 in Hugging Face's port.
        drop_path: Stochastic depth of the last block; it grows linearly from 0.
        init: ``"trunc_normal"`` (std 0.02), or ``"xavier"`` for tiny models, which at std 0.02 underfit.

    Raises:
        ModelError: The values do not fit each other; the message names both.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        patches: Sequence[int] = (7, 3, 3, 3),
        strides: Sequence[int] = (4, 2, 2, 2),
        channels: int = 3,
        num_classes: int = 1000,
        widths: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        linear: bool = False,
        pool: int = 7,
        qkv_bias: bool = True,
        eps: float = 1e-6,
        inner_eps: float = 1e-5,
        drop_path: float = 0.0,
        init: Initialisation = "trunc_normal",
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        check_positive(channels=channels, pool=pool, eps=eps, inner_eps=inner_eps)
        check_one_of("init", init, ("trunc_normal", "xavier"))
        check_stages(
            widths=widths,
            depths=depths,
            heads=heads,
            mlp_ratios=mlp_ratios,
            sr_ratios=sr_ratios,
            patches=patches,
            strides=strides,
        )
        check_rate("drop_path", drop_path)
        self.image_size = pair(image_size)
        self.grids: list[Grid] = []
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        before, width_before = self.image_size, channels

        def attention(index: int, grid: Grid) -> ReducedAttention:
            width = widths[index]
            if linear:
                return PooledAttention(width, heads[index], grid, pool=pool, qkv_bias=qkv_bias, eps=inner_eps)
            check_reduction(index, grid, sr_ratios[index])
            reduction = sr_ratios[index]
            return ReducedAttention(width, heads[index], grid, reduction=reduction, qkv_bias=qkv_bias, eps=inner_eps)

        def block(index: int, grid: Grid) -> Block:
            mlp = ConvolutionalMlp(widths[index], int(widths[index] * mlp_ratios[index]), grid, linear=linear)
            return Block(widths[index], attention(index, grid), mlp, eps=eps, drop_path=next(rates))

        for index, width in enumerate(widths):
            check_heads(width, heads[index], None)
            patch, stride = patches[index], strides[index]
            grid = overlapping_grid(before, patch, stride)
            embed = PatchEmbed(width_before, width, patch, stride, padding=patch // 2, eps=inner_eps)
            self.add_module(f"patch_embed{index + 1}", embed)
            self.add_module(f"block{index + 1}", nn.Sequential(*(block(index, grid) for _ in range(depths[index]))))
            self.add_module(f"norm{index + 1}", nn.LayerNorm(width, eps=eps))
            self.grids.append(grid)
            before, width_before = grid, width
        self.head = make_head(widths[-1], num_classes)
        self.initialise(init)

    def initialise(self, init: Initialisation) -> None:
        """Draw fresh weights: linears by ``init``, convolutions normal with std √(2 / fan-out), biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise_linear(module, init)
            elif isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, num_classes].

        Raises:
            ModelError: The images are not of the size that the model was built for.
        """
        check_input(x, self.image_size)
        for index, grid in enumerate(self.grids, start=1):
            tokens = getattr(self, f"block{index}")(getattr(self, f"patch_embed{index}")(x))
            tokens = getattr(self, f"norm{index}")(tokens)
            if index < len(self.grids):
                x = as_map(tokens, grid)
        return self.head(tokens.mean(dim=1))

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters, besides biases and norms, that are not decayed: none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that sort parameters into layers, from the stem up; the rest is the head."""
        return layer_groups(len(self.grids), coarse=coarse)


def overlapping_grid(before: Grid, patch: int, stride: int) -> Grid:
    """Return the grid that a convolution padded by ⌊patch / 2⌋ makes of another; at least one token is left."""
    height, width = ((length + 2 * (patch // 2) - patch) // stride + 1 for length in before)
    return height, width
