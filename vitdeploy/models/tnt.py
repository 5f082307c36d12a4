"""TNT, Transformer in Transformer: pixels inside a patch attend to each other before the patches do.

Han et al. 2021 (arXiv:2103.00112, section 3). Parameter names are those of the original checkpoints.

B batch, N patches ("sentences", width D), M pixels per patch ("words", width d).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class TNT(nn.Module):
    """Outer encoder over patches, inner encoder over the words of each patch.

    ``init`` is ``"trunc_normal"`` (std 0.02), or ``"xavier"`` for tiny models, which at std 0.02 underfit;
    ``position_std`` is that of both initial position embeddings.

    Raises:
        ModelError: The image does not divide by the patch, the patch by the inner stride, or a width by its heads.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        patch: int = 16,
        channels: int = 3,
        num_classes: int = 1000,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        inner_width: int = 24,
        inner_heads: int = 4,
        inner_stride: int = 4,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        eps: float = 1e-5,
        drop_path: float = 0.0,
        init: Initialisation = "trunc_normal",
        position_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        check_positive(channels=channels, width=width, depth=depth, heads=heads, eps=eps)
        check_positive(inner_width=inner_width, inner_heads=inner_heads, inner_stride=inner_stride, mlp_ratio=mlp_ratio)
        check_heads(width, heads, None)
        check_heads(inner_width, inner_heads, None)
        check_one_of("init", init, ("trunc_normal", "xavier"))
        check_rate("drop_path", drop_path)
        self.image_size = pair(image_size)
        self.patch, self.grid = patch, patch_grid(self.image_size, patch)
        if patch % inner_stride:
            raise ModelError(f"patch {patch} does not divide by inner_stride {inner_stride}: change one of them")
        patches, words = self.grid[0] * self.grid[1], (patch // inner_stride) ** 2
        self.patch_embed = WordEmbed(channels, inner_width, inner_stride)
        self.inner_pos = nn.Parameter(torch.zeros(1, words, inner_width))
        self.proj_norm1 = nn.LayerNorm(words * inner_width, eps=eps)
        self.proj = nn.Linear(words * inner_width, width)
        self.proj_norm2 = nn.LayerNorm(width, eps=eps)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.outer_pos = nn.Parameter(torch.zeros(1, patches + 1, width))
        self.position_grids = {"outer_pos": (1, self.grid)}
        self.blocks = nn.ModuleList(
            Block(words, (inner_width, inner_heads), (width, heads), mlp_ratio, qkv_bias, eps, rate)
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = make_head(width, num_classes)
        self.initialise(init, position_std)

    def initialise(self, init: Initialisation, position_std: float) -> None:
        """Draw fresh weights: linears by ``init``, their biases 0, positions and class token truncated normal."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise_linear(module, init)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for position in (self.outer_pos, self.inner_pos):
            nn.init.trunc_normal_(position, std=position_std, a=-2 * position_std, b=2 * position_std)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to logits [B, classes]."""
        check_input(x, self.image_size)
        rows, columns = self.grid
        x = x.reshape(-1, x.shape[1], rows, self.patch, columns, self.patch).permute(0, 2, 4, 1, 3, 5)
        inner = self.patch_embed(x.reshape(-1, *x.shape[3:])) + self.inner_pos  # [B·N, M, d]
        flat = inner.reshape(-1, rows * columns, inner.shape[1] * inner.shape[2])  # [B, N, M·d]
        outer = prepend_tokens(self.proj_norm2(self.proj(self.proj_norm1(flat))), self.cls_token, self.outer_pos)
        for block in self.blocks:
            inner, outer = block(inner, outer)
        return self.head(self.norm(outer)[:, 0])

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay."""
        return {"outer_pos", "inner_pos", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how parameters order into layers, in timm's form."""
        return {
            "stem": r"^cls_token|^outer_pos|^inner_pos|^patch_embed|^proj",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


class WordEmbed(nn.Module):
    """A 7×7 convolution within each patch, zero-padded at the patch's own border."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=7, stride=stride, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """Map patches [B·N, C, p, p] to words [B·N, M, d]."""
        return self.proj(x).flatten(2).transpose(1, 2)


class SplitAttention(nn.Module):
    """Self-attention with one projection for q and k and another for v."""

    def __init__(self, width: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qk = nn.Linear(width, 2 * width, bias=qkv_bias)
        self.v = nn.Linear(width, width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        q, k = self.qk(x).chunk(2, dim=-1)
        return self.proj(merge_heads(attend(*split_heads(q, k, self.v(x), heads=self.heads), scale=self.scale)))


class Block(nn.Module):
    """Inner encoder block on the words, their projection added to the patches, outer encoder block on the patches."""

    def __init__(
        self,
        words: int,
        inner: tuple[int, int],
        outer: tuple[int, int],
        mlp_ratio: float,
        qkv_bias: bool,
        eps: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        inner_width, inner_heads = inner
        width, heads = outer
        self.inner_norm1 = nn.LayerNorm(inner_width, eps=eps)
        self.inner_attn = SplitAttention(inner_width, inner_heads, qkv_bias)
        self.inner_norm2 = nn.LayerNorm(inner_width, eps=eps)
        self.inner_mlp = Mlp(inner_width, int(inner_width * mlp_ratio))
        self.proj_norm1 = nn.LayerNorm(words * inner_width, eps=eps)
        self.proj = nn.Linear(words * inner_width, width, bias=False)
        self.proj_norm2 = nn.LayerNorm(width, eps=eps)
        self.outer_norm1 = nn.LayerNorm(width, eps=eps)
        self.outer_attn = SplitAttention(width, heads, qkv_bias)
        self.outer_norm2 = nn.LayerNorm(width, eps=eps)
        self.outer_mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
        """Map words [B·N, M, d] and tokens [B, 1 + N, D] to the same shapes."""
        inner = inner + self.drop_path(self.inner_attn(self.inner_norm1(inner)))
        inner = inner + self.drop_path(self.inner_mlp(self.inner_norm2(inner)))
        flat = inner.reshape(-1, outer.shape[1] - 1, inner.shape[1] * inner.shape[2])
        patches = self.proj_norm2(self.proj(self.proj_norm1(flat)))
        outer = outer + F.pad(patches, (0, 0, 1, 0))  # the class token has no words
        outer = outer + self.drop_path(self.outer_attn(self.outer_norm1(outer)))
        return inner, outer + self.drop_path(self.outer_mlp(self.outer_norm2(outer)))
