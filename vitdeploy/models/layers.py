"""Layers that several families share, written so that they export to few ONNX nodes.

B batch, N tokens, D width, H heads, d = D / H; the batch is always the -1 of a reshape and every other size a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def make_head(width: int, num_classes: int) -> nn.Module:
    """Return the linear from features [B, D] to logits [B, num_classes]; of 0 classes, the features as they are."""
    return nn.Linear(width, num_classes) if num_classes else nn.Identity()


class Attention(nn.Module):
    """Multi-head self-attention over tokens, ``softmax(scale · q kᵀ) v`` (Vaswani et al. 2017, section 3.2.2).

    One projection makes q, k and v; the scale multiplies q before the first product, because TensorRT fuses attention
    only in that form. ``head_width`` defaults to ``width // heads`` and ``scale`` to ``head_width ** -0.5``.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        head_width: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = head_width if head_width is not None else width // heads
        self.scale = scale if scale is not None else self.head_width**-0.5
        inner = heads * self.head_width
        self.qkv = nn.Linear(width, 3 * inner, bias=qkv_bias)
        self.proj = nn.Linear(inner, width, bias=proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(merge_heads(attend(*split_heads(q, k, v, heads=self.heads), scale=self.scale)))


def split_heads(q: Tensor, k: Tensor, v: Tensor, *, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split [B, N, H·d] into q [B, H, N, d], k transposed [B, H, d, N] and v [B, H, N, d]; N may differ in q."""
    q = q.reshape(-1, q.shape[1], heads, q.shape[-1] // heads).permute(0, 2, 1, 3)
    k = k.reshape(-1, k.shape[1], heads, k.shape[-1] // heads).permute(0, 2, 3, 1)
    v = v.reshape(-1, v.shape[1], heads, v.shape[-1] // heads).permute(0, 2, 1, 3)
    return q, k, v


def attend(q: Tensor, k_t: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
    """Return softmax(scale · q kᵀ + bias) v, [B, H, N, d]; ``bias`` broadcasts to [B, H, N, M].

    PyTorch runs its fused kernel, which is faster and holds no [N, M]; an export gets the plain operators, of which
    runtimes make their own fused kernel.
    """
    if not torch.compiler.is_exporting():
        mask = None if bias is None else bias.to(q.dtype)
        return nn.functional.scaled_dot_product_attention(q, k_t.transpose(-1, -2), v, attn_mask=mask, scale=scale)
    scores = (q * scale) @ k_t
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1) @ v


def merge_heads(x: Tensor) -> Tensor:
    """Join [B, H, N, d] to [B, N, H·d]."""
    return x.permute(0, 2, 1, 3).reshape(-1, x.shape[2], x.shape[1] * x.shape[3])


class Mlp(nn.Module):
    """Two linears with an exact (erf) GELU between."""

    def __init__(self, width: int, hidden: int, *, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=bias)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return self.fc2(self.act(self.fc1(x)))


class LayerScale(nn.Module):
    """A learnable factor per channel on a residual branch (Touvron et al. 2021, arXiv:2103.17239, section 2)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply [..., D] by gamma."""
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: in training a whole residual branch is dropped per sample (Huang et al. 2016)."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return x, or in training x with samples zeroed at ``rate`` and the rest scaled by 1 / (1 − rate)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * mask / keep


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each: a convolution whose stride is its kernel."""

    def __init__(self, channels: int, width: int, patch: int, *, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to tokens [B, (H/p)·(W/p), D]."""
        return self.proj(x).flatten(2).transpose(1, 2)


def prepend_tokens(x: Tensor, tokens: Tensor, position: Tensor) -> Tensor:
    """Put learnable tokens before the patches and add positions, without a batch-sized ``expand``.

    x: [B, N, D]; tokens: [1, T, D]; position: [1, T + N, D], or [1, N, D] where the tokens have no position.
    Zero rows are padded in front and one constant [1, T + N, D] is added, so that the graph has Pad + Add and no
    Shape or Expand.
    """
    count = tokens.shape[1]
    padded = nn.functional.pad(x, (0, 0, count, 0))
    if position.shape[1] == x.shape[1]:
        return padded + torch.cat([tokens, position], dim=1)
    return padded + torch.cat([tokens + position[:, :count], position[:, count:]], dim=1)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Return the rate of each block: linear from 0 to ``rate``."""
    return [rate * index / max(depth - 1, 1) for index in range(depth)]
