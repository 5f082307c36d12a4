"""PatchConvNet: a convolutional trunk without pooling, and one attention block that gathers it into the class token.

Touvron et al. 2021, "Augmenting convolutional networks with attention-based aggregation" (arXiv:2112.13692, section 3).
Parameter names are those of the original checkpoints, but for the multi-class-token heads, which are stacked here.

B batch, C channels, H W height and width of the feature map, N = H · W, D width, T class tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.errors import ModelError
from vitdeploy.models.arguments import check_classes, check_heads, check_one_of, check_positive, check_rate, pair
from vitdeploy.models.layers import DropPath, Mlp, attend, make_head, merge_heads, prepend_tokens, split_heads
from vitdeploy.models.vit import Initialisation, initialise_linear


class PatchConvNet(nn.Module):
    """The single- and the multi-class-token model.

    ``multi_token`` gives each class a token of its own and a head of its own (section 3.3 of the paper); attention keys
    then leave the class tokens out. ``stem_strides`` are those of the 3×3 convolutions of the stem; their product must
    divide both sides of the image. Any such size works without interpolation, there is no position embedding. ``init``
    is ``"trunc_normal"`` (std 0.02), or ``"xavier"`` for tiny models, which at std 0.02 underfit.

    Raises:
        ModelError: The image does not divide by the stem's stride, or the width does not divide as the stem needs.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        channels: int = 3,
        num_classes: int = 1000,
        width: int = 384,
        depth: int = 60,
        multi_token: bool = False,
        heads: int = 1,
        token_mlp_ratio: float = 3.0,
        layer_scale: float = 1e-6,
        stem_strides: Sequence[int] = (2, 2, 2, 2),
        eps: float = 1e-6,
        drop_path: float = 0.0,
        init: Initialisation = "trunc_normal",
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        check_positive(channels=channels, width=width, depth=depth, heads=heads, eps=eps)
        check_heads(width, heads, None)
        check_one_of("init", init, ("trunc_normal", "xavier"))
        check_rate("drop_path", drop_path)
        stride, doublings = math.prod(stem_strides), len(stem_strides) - 1
        if any(side % stride for side in pair(image_size)):
            raise ModelError(f"image_size {image_size!r} does not divide by {stride}, the product of stem_strides")
        if doublings < 0 or width % (1 << doublings):
            raise ModelError(f"width {width} does not divide by {1 << doublings}, as {doublings + 1} stem_strides need")
        if multi_token and not num_classes:
            raise ModelError("multi_token=True has a token for each class and none for the image: it gives no features")
        self.multi_token = multi_token
        tokens = num_classes if multi_token else 1
        self.cls_token = nn.Parameter(torch.zeros(1, tokens, width))
        self.patch_embed = ConvStem(channels, width, stem_strides)
        self.blocks = nn.ModuleList(TrunkBlock(width, layer_scale, eps, drop_path) for _ in range(depth))
        self.blocks_token_only = nn.ModuleList(
            [TokenBlock(width, heads, token_mlp_ratio, layer_scale, eps, keys_include_tokens=not multi_token)]
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = make_head(width, num_classes)
        self.initialise(init)

    def initialise(self, init: Initialisation) -> None:
        """Draw fresh weights: linears by ``init``, their biases 0, the class tokens truncated normal."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise_linear(module, init)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to logits [B, classes]."""
        x = self.patch_embed(x).permute(0, 2, 3, 1)  # [B, H, W, D]
        for block in self.blocks:
            x = block(x)
        x = x.reshape(-1, x.shape[1] * x.shape[2], x.shape[3])  # [B, N, D]
        tokens = self.norm(self.blocks_token_only[0](x, self.cls_token))  # [B, T, D]
        if self.multi_token:
            assert isinstance(self.head, nn.Linear)
            return (tokens * self.head.weight).sum(dim=-1) + self.head.bias
        return self.head(tokens[:, 0])

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay."""
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how parameters order into layers, in timm's form."""
        return {
            "stem": r"^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^cls_token|^blocks_token_only|^norm", (99999,))],
        }


class ConvStem(nn.Module):
    """3×3 convolutions without bias or norm, GELU between; the width doubles up to D."""

    def __init__(self, channels: int, width: int, strides: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, stride in enumerate(strides):
            out = width >> (len(strides) - 1 - index)
            layers.append(nn.Sequential(nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)))
            if index < len(strides) - 1:
                layers.append(nn.GELU())
            channels = out
        self.proj = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, D, H/s, W/s]."""
        return self.proj(x)


class SqueezeExcite(nn.Module):
    """A gate per channel from the mean over the map (Hu et al. 2018, arXiv:1709.01507, section 3)."""

    def __init__(self, width: int, ratio: float = 0.25) -> None:
        super().__init__()
        hidden = max(8, int(width * ratio + 4) // 8 * 8)
        self.conv_reduce = nn.Conv2d(width, hidden, 1)
        self.conv_expand = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale [B, D, H, W] by its gate."""
        gate = self.conv_expand(self.conv_reduce(x.mean((2, 3), keepdim=True)).relu())
        return x * gate.sigmoid()


class TrunkMixer(nn.Module):
    """1×1 convolution, GELU, 3×3 depthwise convolution, GELU, squeeze-and-excitation, 1×1 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv_pos = nn.Sequential(
            nn.Conv2d(width, width, 1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.GELU(),
            SqueezeExcite(width),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, D, H, W] to [B, D, H, W]."""
        return self.qkv_pos(x)


class TrunkBlock(nn.Module):
    """x + γ · mixer(norm(x)) on channels-last maps."""

    def __init__(self, width: int, layer_scale: float, eps: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = TrunkMixer(width)
        self.gamma_1 = nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, D] to [B, H, W, D]."""
        mixed = self.attn(self.norm1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(self.gamma_1 * mixed)


class TokenAttention(nn.Module):
    """Attention whose queries are the class tokens only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, keys: Tensor) -> Tensor:
        """Gather keys [B, M, D] into tokens [1 or B, T, D]; returns [B, T, D]."""
        q, k_t, v = split_heads(self.q(tokens), self.k(keys), self.v(keys), heads=self.heads)
        return self.proj(merge_heads(attend(q, k_t, v, scale=self.scale)))


class TokenBlock(nn.Module):
    """The aggregation: attention into the class tokens, then an MLP on them; the map itself is not changed."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, layer_scale: float, eps: float, *, keys_include_tokens: bool
    ) -> None:
        super().__init__()
        self.keys_include_tokens = keys_include_tokens
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = TokenAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.gamma_1 = nn.Parameter(torch.full((width,), layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Aggregate x [B, N, D] into tokens [1, T, D]; returns [B, T, D]."""
        keys = prepend_tokens(x, tokens, torch.zeros_like(x[:1])) if self.keys_include_tokens else x
        keys = self.norm1(keys)
        gathered = tokens + self.gamma_1 * self.attn(self.norm1(tokens), keys)
        return gathered + self.gamma_2 * self.mlp(self.norm2(gathered))
