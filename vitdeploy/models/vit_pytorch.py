"""ViT as vit-pytorch (lucidrains) builds it, in every meaning that its weights have had.

It differs from the standard ViT by norms around the patch projection, a head width that is free of the width,
no bias on q, k and v, and eps 1e-5. Keys are those of ``models.vit``; the checkpoint's layout is mapped onto them, and
what changed without a change of keys is an argument here.

B batch, C channels, p patch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
from vitdeploy.models.layers import Attention, Mlp, PatchEmbed, drop_path_rates, make_head, prepend_tokens
from vitdeploy.models.vit import Block, Pool, VisionTransformer

EPS = 1e-5


class PixelNormEmbed(nn.Module):
    """Norm of a patch's pixels, projection, norm: no convolution can do the first, so patches are cut out."""

    def __init__(self, channels: int, width: int, patch: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.patch = patch
        self.grid = grid
        pixels = channels * patch * patch
        self.norm1 = nn.LayerNorm(pixels, eps=EPS)
        self.proj = nn.Linear(pixels, width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to tokens [B, N, D]; the pixels of a patch are in the order row, column, channel."""
        (rows, columns), p, channels = self.grid, self.patch, x.shape[1]
        x = x.reshape(-1, channels, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1)
        return self.norm2(self.proj(self.norm1(x.reshape(-1, rows * columns, p * p * channels))))


class PixelNormViT(nn.Module):
    """vit-pytorch's ViT; the defaults are those of version 1.16.1 and later.

    Args:
        head_width: Width of one attention head; ``dim_head`` there, 64 by default.
        hidden: Width inside the MLP; ``mlp_dim`` there.
        pixel_norm: Norms around the patch projection (since 1.0.0).
        class_token: Whether there is one; by default with ``pool="cls"`` only (before 1.16.0 always, and then the mean
            counts it).
        norm_after_pool: The last norm sees the pooled token (before 1.4.0).
        scale_by_width: Attention is scaled by D ** -0.5 instead of the head's width (before 0.6.7).
        project_out: An output projection also where a single head is as wide as the model (before 0.7.4).

    Raises:
        ModelError: The values do not fit each other.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 256,
        patch: int = 32,
        channels: int = 3,
        num_classes: int = 1000,
        width: int = 1024,
        depth: int = 6,
        heads: int = 16,
        head_width: int = 64,
        hidden: int = 2048,
        pool: Pool = "cls",
        pixel_norm: bool = True,
        class_token: bool | None = None,
        norm_after_pool: bool = False,
        scale_by_width: bool = False,
        project_out: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.image_size = pair(image_size)
        grid = patch_grid(self.image_size, patch)
        check_classes(num_classes)
        check_positive(channels=channels, width=width, depth=depth, heads=heads, hidden=hidden)
        check_one_of("pool", pool, ("cls", "mean"))
        check_heads(width, heads, head_width)
        check_rate("drop_path", drop_path)
        self.pool = pool
        self.norm_after_pool = norm_after_pool
        self.patch_embed: nn.Module = PatchEmbed(channels, width, patch)
        if pixel_norm:
            self.patch_embed = PixelNormEmbed(channels, width, patch, grid)
        tokens = int(pool == "cls" if class_token is None else class_token)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width)) if tokens else None
        self.position_grids = {"pos_embed": (tokens, grid)}
        self.pos_embed = nn.Parameter(torch.randn(1, tokens + grid[0] * grid[1], width))

        def attention() -> Attention:
            scale = (width if scale_by_width else head_width) ** -0.5
            attention = Attention(width, heads, qkv_bias=False, head_width=head_width, scale=scale)
            if heads == 1 and head_width == width and not project_out:
                attention.proj = nn.Identity()  # type: ignore[assignment]  # as wide in as out, as any projection
            return attention

        self.blocks = nn.Sequential(
            *(
                Block(width, attention(), Mlp(width, hidden), eps=EPS, drop_path=rate)
                for rate in drop_path_rates(drop_path, depth)
            )
        )
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = make_head(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, num_classes]."""
        check_input(x, self.image_size)
        x = self.patch_embed(x)
        x = x + self.pos_embed if self.cls_token is None else prepend_tokens(x, self.cls_token, self.pos_embed)
        x = self.blocks(x)
        if self.pool == "cls":
            return self.head(self.norm(x[:, 0]))
        return self.head(self.norm(x.mean(dim=1)) if self.norm_after_pool else self.norm(x).mean(dim=1))

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters, besides biases and norms, that are not decayed."""
        return {"cls_token", "pos_embed"}

    group_matcher = VisionTransformer.group_matcher
