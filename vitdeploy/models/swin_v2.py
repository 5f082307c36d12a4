"""Swin Transformer V2 (Liu et al. 2022, arXiv:2111.09883), with the parameter names of its authors' checkpoints.

Against v1: norms follow attention and MLP instead of preceding them, attention compares directions (cosine) with a
learned temperature per head, and the position bias comes from a small network over log-spaced distances, so that it
carries over to other windows (sections 3.2 and 3.3). Windows and the order of tokens are those of ``swin``.

B batch, n windows, w window side, N = w² tokens of a window, L = nN tokens, D width, H heads, d = D / H.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdeploy.errors import ModelError
from vitdeploy.models.arguments import check_classes, check_one_of, check_positive, pair, patch_grid
from vitdeploy.models.derived import DerivedConstants
from vitdeploy.models.layers import DropPath, Mlp, make_head
from vitdeploy.models.swin import (
    Reorder,
    StagePlan,
    Stem,
    Windows,
    WindowTransformer,
    add_mask,
    join_groups,
    merge_windows,
    plan_stages,
    split_windows,
)
from vitdeploy.models.vit import Initialisation, initialise_linear

LENGTH_FLOOR = 1e-6
"""Shortest length that a q or k is divided by. The authors' 1e-12 is 0 in FP16: 0 / 0 for a vector of zeros."""


class CosineWindowAttention(DerivedConstants):
    """Attention inside each window by the angle between q and k: softmax(τ cos(q, k) + bias) v.

    τ = min(exp(logit_scale), 100) for each head, and bias = 16 σ(cpb_mlp(log-spaced offset)). ``pretrained_window`` is
    the side that the offsets are measured in: that of the window which ``cpb_mlp`` was trained with, 0 for this one.
    Keys have no bias.
    """

    def __init__(
        self, width: int, heads: int, windows: Windows, *, qkv_bias: bool = True, pretrained_window: int = 0
    ) -> None:
        super().__init__()
        self.heads = heads
        self.windows = windows
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.proj = nn.Linear(width, width)
        self.offsets: Tensor
        self.relative_positions: Tensor
        self.mask: Tensor | None
        self.register_buffer("offsets", log_offsets(windows.side, pretrained_window), persistent=False)
        self.register_buffer("relative_positions", windows.relative_positions(), persistent=False)
        self.register_buffer("mask", windows.mask(), persistent=False)

    def derive(self) -> tuple[Tensor, ...]:
        """Return bias plus mask [H, N, N], τ [H, 1, 1], both with n·H for shifted windows, and the bias of qkv [3D]."""
        scale = self.logit_scale.clamp(max=math.log(100)).exp()
        table = 16 * self.cpb_mlp(self.offsets.to(scale)).sigmoid()
        bias = table[self.relative_positions.to(table.device)].view(self.windows.side**2, self.windows.side**2, -1)
        bias = add_mask(bias.permute(2, 0, 1), self.mask)
        scale = scale.repeat(bias.shape[0] // self.heads, 1, 1)
        if self.q_bias is None or self.v_bias is None:
            return bias, scale
        return bias, scale, torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        bias, scale, *qkv_bias = self.derived()
        q, k, v = F.linear(x, self.qkv.weight, *qkv_bias).chunk(3, dim=-1)
        q, k_t, v = split_windows(q, k, v, heads=self.heads, windows=self.windows)
        scores = (directions(q, -1) * scale) @ directions(k_t, -2) + bias
        return self.proj(merge_windows(scores.softmax(dim=-1) @ v, heads=self.heads, windows=self.windows))


def log_offsets(side: int, pretrained: int) -> Tensor:
    """Return the log-spaced offset (Δy, Δx) of each row of a bias table, [(2w − 1)², 2] (equation 4).

    An offset of ``pretrained`` − 1 tokens, or of side − 1, becomes 8 and then sign(x) log₂(1 + |x|) / log₂ 8.
    """
    reach = torch.arange(1 - side, side, dtype=torch.float32, device="cpu")
    reach = reach / max((pretrained or side) - 1, 1) * 8
    spaced = reach.sign() * (reach.abs() + 1).log2() / 3
    return torch.cartesian_prod(spaced, spaced)


def directions(x: Tensor, dim: int) -> Tensor:
    """Divide each vector along ``dim`` by its length."""
    return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(LENGTH_FLOOR)


class PostNormBlock(nn.Module):
    """``x + norm attention(x)``, then ``x + norm mlp(x)``; the norms start at 0, and a fresh block is the identity."""

    def __init__(self, width: int, attention: nn.Module, *, mlp_ratio: float, eps: float, drop_path: float) -> None:
        super().__init__()
        self.attn = attention
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        x = x + self.drop_path(self.norm1(self.attn(x)))
        return x + self.drop_path(self.norm2(self.mlp(x)))


class PatchMerging(nn.Module):
    """Join the four tokens of each 2×2 group, project 4D to 2D, and normalise."""

    def __init__(self, width: int, reorder: Reorder, *, eps: float) -> None:
        super().__init__()
        self.reorder = reorder
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2 * width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, L, D] to [B, L/4, 2D]."""
        return self.norm(self.reduction(join_groups(self.reorder(x))))


class SwinTransformerV2(WindowTransformer):
    """Swin Transformer V2.

    Args:
        image_size: Pixels, one number or [height, width]; each stage's tokens must divide by the window.
        width: Of the first stage; each further one has twice as much, on half the grid.
        depths, heads: One entry per stage.
        window: Side of a window in tokens; a stage that is no larger has one window.
        pretrained_windows: For each stage the window that the position biases were trained with, 0 for ``window``.
        absolute_position: Add a learned position to each patch, which none of the published models does.
        eps: Of every LayerNorm.
        drop_path: Stochastic depth of the last block; it grows linearly from 0.
        init: ``"trunc_normal"`` (std 0.02), or ``"xavier"`` for tiny models, which at std 0.02 underfit.

    Raises:
        ModelError: The values do not fit each other; the message names both.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 256,
        patch: int = 4,
        channels: int = 3,
        num_classes: int = 1000,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 8,
        pretrained_windows: Sequence[int] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        absolute_position: bool = False,
        eps: float = 1e-5,
        drop_path: float = 0.0,
        init: Initialisation = "trunc_normal",
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        check_positive(channels=channels, mlp_ratio=mlp_ratio, eps=eps)
        check_one_of("init", init, ("trunc_normal", "xavier"))
        self.image_size = pair(image_size)
        grid = patch_grid(self.image_size, patch)
        plans = plan_stages(grid, width, depths, heads, window=window, drop_path=drop_path)
        trained = [0] * len(plans) if pretrained_windows is None else list(pretrained_windows)
        if len(trained) != len(plans) or any(side < 0 for side in trained):
            raise ModelError(
                f"pretrained_windows is {trained!r}, expected a number of tokens for each of {len(plans)} stages"
            )

        def block(plan: StagePlan, windows: Windows, rate: float) -> nn.Module:
            attention = CosineWindowAttention(
                plan.width, plan.heads, windows, qkv_bias=qkv_bias, pretrained_window=trained[plan.index]
            )
            return PostNormBlock(plan.width, attention, mlp_ratio=mlp_ratio, eps=eps, drop_path=rate)

        def merging(plan: StagePlan, reorder: Reorder) -> nn.Module:
            return PatchMerging(plan.width, reorder, eps=eps)

        self.patch_embed = Stem(channels, width, patch, eps=eps)
        self.assemble(grid, plans, block, merging, absolute_position=absolute_position)
        self.norm = nn.LayerNorm(plans[-1].width, eps=eps)
        self.head = make_head(plans[-1].width, num_classes)
        self.initialise(init)

    def initialise(self, init: Initialisation) -> None:
        """Draw fresh weights: linears by ``init`` (``cpb_mlp``: always std 0.02), biases and the norms of blocks 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise_linear(module, init)
        for module in self.modules():
            if isinstance(module, CosineWindowAttention):
                for linear in module.cpb_mlp:
                    if isinstance(linear, nn.Linear):
                        initialise_linear(linear, "trunc_normal")
            elif isinstance(module, PostNormBlock):
                for norm in (module.norm1, module.norm2):
                    nn.init.zeros_(norm.weight)
                    nn.init.zeros_(norm.bias)
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters, besides biases and norms, that are not decayed."""
        parts = ("cpb_mlp", "logit_scale", "absolute_pos_embed")
        return {name for name, _ in self.named_parameters() if any(part in name for part in parts)}
