"""T2T-ViT: tokens are made by two rounds of "unfold overlapping windows, attend", then a narrow, deep ViT.

Yuan et al. 2021, "Tokens-to-Token ViT" (arXiv:2101.11986, section 3); the performer is Choromanski et al. 2021
(arXiv:2009.14794). Parameter names are those of the original checkpoints.

B batch, N tokens, D width of the backbone, C width of the token module (64), k kernel of a soft split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

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
)
from vitdeploy.models.layers import Attention, DropPath, Mlp, drop_path_rates, make_head, prepend_tokens
from vitdeploy.models.vit import Initialisation, initialise_linear

PERFORMER_EPS = 1e-8
PERFORMER_RESCALE = 1e8


class T2TViT(nn.Module):
    """The backbone behind a token module.

    ``qk_scale`` None means head_width ** -0.5, which the released weights were evaluated with; the token transformer
    always scales by the width of its input, (C·k·k) ** -0.5. ``split_kernels`` and ``split_strides`` are those of the
    three soft splits; padding is (k − 1) // 2 for k 3 and 2 for k 7, as in the paper. ``init`` is ``"trunc_normal"``
    (std 0.02), or ``"xavier"`` for tiny models, which at std 0.02 underfit; positions are fixed sinusoids.

    Raises:
        ModelError: Width does not divide by heads, or the image is smaller than a window.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        channels: int = 3,
        num_classes: int = 1000,
        token_module: Literal["performer", "transformer"] = "performer",
        token_width: int = 64,
        width: int = 384,
        depth: int = 14,
        heads: int = 6,
        mlp_ratio: float = 3.0,
        qk_scale: float | None = None,
        split_kernels: Sequence[int] = (7, 3, 3),
        split_strides: Sequence[int] = (4, 2, 2),
        eps: float = 1e-5,
        drop_path: float = 0.0,
        init: Initialisation = "trunc_normal",
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        check_positive(channels=channels, token_width=token_width, width=width, depth=depth)
        check_positive(heads=heads, mlp_ratio=mlp_ratio, eps=eps)
        check_heads(width, heads, None)
        check_one_of("token_module", token_module, ("performer", "transformer"))
        check_one_of("init", init, ("trunc_normal", "xavier"))
        check_rate("drop_path", drop_path)
        self.image_size = pair(image_size)
        self.tokens_to_token = TokensToToken(
            self.image_size, channels, token_module, token_width, width, split_kernels, split_strides, eps
        )
        count = self.tokens_to_token.tokens
        self.position_grids = {"pos_embed": (1, self.tokens_to_token.grid3)}
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sinusoid_table(count + 1, width), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qk_scale, eps, rate) for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = make_head(width, num_classes)
        self.initialise(init)

    def initialise(self, init: Initialisation) -> None:
        """Draw fresh weights: linears by ``init``, their biases 0, the class token truncated normal."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise_linear(module, init)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to logits [B, classes]."""
        check_input(x, self.image_size)
        x = prepend_tokens(self.tokens_to_token(x), self.cls_token, self.pos_embed)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay."""
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how parameters order into layers, in timm's form."""
        return {
            "stem": r"^cls_token|^pos_embed|^tokens_to_token",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


class Block(nn.Module):
    """The pre-norm encoder block, without biases on q, k, v."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, scale: float | None, eps: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qkv_bias=False, scale=scale)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class TokensToToken(nn.Module):
    """Image to tokens: soft split, attention, soft split, attention, soft split fused with the projection."""

    def __init__(
        self,
        size: tuple[int, int],
        channels: int,
        kind: str,
        token_width: int,
        width: int,
        kernels: Sequence[int],
        strides: Sequence[int],
        eps: float,
    ) -> None:
        super().__init__()
        if len(kernels) != 3 or len(strides) != 3:
            raise ModelError(f"split_kernels {kernels!r} and split_strides {strides!r} must have three entries each")
        attention = TokenPerformer if kind == "performer" else TokenTransformer
        self.split0 = SoftSplit(channels, kernels[0], strides[0])
        self.split1 = SoftSplit(token_width, kernels[1], strides[1])
        self.attention1 = attention(channels * kernels[0] ** 2, token_width, eps)
        self.attention2 = attention(token_width * kernels[1] ** 2, token_width, eps)
        self.project = nn.Linear(token_width * kernels[2] ** 2, width)
        self.kernel, self.stride, self.padding = kernels[2], strides[2], _padding(kernels[2])
        self.grid1 = window_grid(size, kernels[0], strides[0])
        self.grid2 = window_grid(self.grid1, kernels[1], strides[1])
        last = window_grid(self.grid2, kernels[2], strides[2])
        self.grid3 = last
        self.tokens = last[0] * last[1]

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, N, D]."""
        x = _as_map(self.attention1(self.split0(x)), self.grid1)
        x = _as_map(self.attention2(self.split1(x)), self.grid2)
        # No norm stands between the last split and ``project``, so the two are one convolution.
        kernel = self.project.weight.view(-1, x.shape[1], self.kernel, self.kernel)
        x = F.conv2d(x, kernel, self.project.bias, self.stride, self.padding)
        return x.flatten(2).transpose(1, 2)


class SoftSplit(nn.Module):
    """Overlapping windows as tokens: ``unfold``, exported as a convolution with a one-hot kernel.

    TensorRT has no Col2Im or Im2Col, and the exporter's own decomposition is a chain of gathers.
    """

    one_hot: Tensor

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, _padding(kernel)
        size = channels * kernel**2
        self.register_buffer("one_hot", torch.eye(size).view(size, channels, kernel, kernel), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to windows [B, N, C·k·k], channel-major."""
        if torch.compiler.is_exporting():
            return F.conv2d(x, self.one_hot, None, self.stride, self.padding).flatten(2).transpose(1, 2)
        return F.unfold(x, self.kernel, padding=self.padding, stride=self.stride).transpose(1, 2)


class TokenTransformer(nn.Module):
    """One-head attention that narrows windows [B, N, C·k·k] to [B, N, C]; the residual is v, not the input."""

    def __init__(self, width_in: int, width: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width_in, eps=eps)
        self.attn = NarrowingAttention(width_in, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, C·k·k] to [B, N, C]."""
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class NarrowingAttention(nn.Module):
    """v + proj(softmax(q kᵀ · width_in ** -0.5) v); the scale is that of the input's width, as released."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.scale = width_in**-0.5
        self.qkv = nn.Linear(width_in, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, C·k·k] to [B, N, C]."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return v + self.proj(((q * self.scale) @ k.transpose(1, 2)).softmax(dim=-1) @ v)


class TokenPerformer(nn.Module):
    """Linear attention with random features: φ(x) = exp(x wᵀ − |x|²/2) / √m, y = φ(q)(φ(k)ᵀ v) / (φ(q) Σ φ(k) + 1e-8).

    ``w`` [m, C] is drawn once, orthogonal and scaled by √m, and belongs to the weights. The rows of ``kqv`` are k, q, v
    in that order. Both sides of the fraction are multiplied by 1e8, because the exporter's optimizer drops an addition
    of 1e-8 as if it were zero.
    """

    def __init__(self, width_in: int, width: int, eps: float) -> None:
        super().__init__()
        self.kqv = nn.Linear(width_in, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width_in, eps=eps)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        features = width // 2
        self.w = nn.Parameter(nn.init.orthogonal_(torch.empty(features, width)) * math.sqrt(features), False)

    def features(self, x: Tensor) -> Tensor:
        """Map [B, N, C] to random features [B, N, m], all positive."""
        half_square = (x * x).sum(dim=-1, keepdim=True) * 0.5
        return (x @ self.w.t() - half_square).exp() * self.w.shape[0] ** -0.5

    def attend(self, x: Tensor) -> Tensor:
        """Map normalised windows [B, N, C·k·k] to [B, N, C]."""
        k, q, v = self.kqv(x).chunk(3, dim=-1)
        k, q = self.features(k), self.features(q)
        norm = q @ k.sum(dim=1, keepdim=True).transpose(1, 2)  # [B, N, 1]
        numerator = q @ (k.transpose(1, 2) @ v)
        return v + self.proj(
            (numerator * PERFORMER_RESCALE) / (norm * PERFORMER_RESCALE + PERFORMER_EPS * PERFORMER_RESCALE)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, C·k·k] to [B, N, C]."""
        x = self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def sinusoid_table(positions: int, width: int) -> Tensor:
    """Return [1, positions, D]: sin on even and cos on odd channels of p / 10000^(2⌊j/2⌋/D).

    Vaswani et al. 2017, section 3.5; row 0 is the class token's.
    """
    position = torch.arange(positions, dtype=torch.float64)[:, None]
    exponent = 2 * (torch.arange(width, dtype=torch.float64) // 2) / width
    angle = position / 10000.0**exponent
    angle[:, 0::2], angle[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
    return angle[None].float()


def window_grid(size: tuple[int, int], kernel: int, stride: int) -> tuple[int, int]:
    """Return how many windows of a soft split fit along each side.

    Raises:
        ModelError: None does.
    """
    rows, columns = ((side + 2 * _padding(kernel) - kernel) // stride + 1 for side in size)
    if rows < 1 or columns < 1:
        raise ModelError(f"an image or map of {size[0]}×{size[1]} is smaller than a window of {kernel}")
    return rows, columns


def _as_map(x: Tensor, grid: tuple[int, int]) -> Tensor:
    return x.transpose(1, 2).reshape(-1, x.shape[2], *grid)


def _padding(kernel: int) -> int:
    return 2 if kernel == 7 else (kernel - 1) // 2
