"""Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), in the layout and key names of timm.

Pre-norm encoder over patches of a convolution, with a class token or mean pooling. It also covers what DeiT-III changed
(Touvron et al. 2022, arXiv:2204.07118): LayerScale, a class token without a position, and parallel branches
(Touvron et al. 2022, arXiv:2203.09795).

B batch, C channels, H and W image size, p patch, N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

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
    Attention,
    DropPath,
    LayerScale,
    Mlp,
    PatchEmbed,
    drop_path_rates,
    make_head,
    prepend_tokens,
)

Pool = Literal["cls", "mean"]
Initialisation = Literal["trunc_normal", "xavier"]


class AttentionBranch(nn.Module):
    """Residual branch: norm, attention, LayerScale; the keys of one of timm's parallel attentions."""

    def __init__(self, width: int, attention: nn.Module, *, eps: float, layer_scale: float | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.attn = attention
        self.ls = _scale(width, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        return self.ls(self.attn(self.norm(x)))


class MlpBranch(nn.Module):
    """Residual branch: norm, MLP, LayerScale; the keys of one of timm's parallel MLPs."""

    def __init__(self, width: int, mlp: nn.Module, *, eps: float, layer_scale: float | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mlp = mlp
        self.ls = _scale(width, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        return self.ls(self.mlp(self.norm(x)))


class Block(nn.Module):
    """``x + attention(norm x)``, then ``x + mlp(norm x)``; each branch may be scaled and, in training, dropped."""

    def __init__(
        self,
        width: int,
        attention: nn.Module,
        mlp: nn.Module,
        *,
        eps: float = 1e-6,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = attention
        self.ls1 = _scale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = mlp
        self.ls2 = _scale(width, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class ParallelBlock(nn.Module):
    """Several attentions side by side, then several MLPs: ``x + Σ attn_i(x)``, ``x + Σ mlp_i(x)``."""

    def __init__(
        self, attentions: Sequence[AttentionBranch], mlps: Sequence[MlpBranch], *, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.attns = nn.ModuleList(attentions)
        self.ffns = nn.ModuleList(mlps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        for branches in (self.attns, self.ffns):
            total = x
            for branch in branches:
                total = total + self.drop_path(branch(x))
            x = total
        return x


class PreLogits(nn.Module):
    """Linear and tanh before the head, as ImageNet-21k checkpoints have it; timm's key is ``pre_logits.fc``."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, D] to [B, size]."""
        return self.fc(x).tanh()


class VisionTransformer(nn.Module):
    """The standard ViT.

    Args:
        image_size: Pixels, one number or [height, width].
        head_width: Width of one attention head; by default width / heads.
        eps: Of every LayerNorm; 1e-6 in timm, torchvision and DeiT, 1e-12 in Hugging Face's configs.
        pool: ``"cls"`` classifies by the class token, ``"mean"`` averages the patches after the last norm.
        class_token: Whether there is one; by default with ``pool="cls"`` only. With ``"mean"`` it is not averaged.
        norm_after_pool: With ``pool="mean"``, average first and normalise the mean, as timm's ``fc_norm`` does.
        representation_size: Width of ``pre_logits``; None leaves it out.
        layer_scale: Initial LayerScale of every branch; None leaves it out.
        class_token_position: Whether the class token has a position embedding (not so in DeiT-III).
        parallel: Attentions, and MLPs, side by side in each block.
        drop_path: Stochastic depth of the last block; it grows linearly from 0.
        init: ``"trunc_normal"`` (std 0.02) for widths of 192 and more, ``"xavier"`` for tiny models, which at std 0.02
            underfit.
        position_std: Of the position embedding's initial values.

    Raises:
        ModelError: The values do not fit each other; the message names both.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        patch: int = 16,
        channels: int = 3,
        num_classes: int = 1000,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        head_width: int | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        eps: float = 1e-6,
        pool: Pool = "cls",
        class_token: bool | None = None,
        norm_after_pool: bool = False,
        representation_size: int | None = None,
        layer_scale: float | None = None,
        class_token_position: bool = True,
        parallel: int = 1,
        drop_path: float = 0.0,
        init: Initialisation = "trunc_normal",
        position_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.image_size = pair(image_size)
        grid = patch_grid(self.image_size, patch)
        check_classes(num_classes)
        check_positive(channels=channels, width=width, depth=depth, heads=heads, eps=eps)
        check_positive(parallel=parallel, mlp_ratio=mlp_ratio)
        check_one_of("pool", pool, ("cls", "mean"))
        check_one_of("init", init, ("trunc_normal", "xavier"))
        check_heads(width, heads, head_width)
        check_rate("drop_path", drop_path)
        with_token = pool == "cls" if class_token is None else class_token
        if pool == "cls" and not with_token:
            raise ModelError("pool='cls' reads the class token, which class_token=False leaves out: use pool='mean'")
        if not class_token_position and not with_token:
            raise ModelError("class_token_position=False needs pool='cls' or class_token=True: there is no class token")
        if norm_after_pool and pool == "cls":
            raise ModelError("norm_after_pool=True needs pool='mean': of the class token there is nothing to average")
        self.pool = pool
        self.norm_after_pool = norm_after_pool
        self.initialisation = init
        self.position_std = position_std
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if with_token else None
        self.position_grids = {"pos_embed": (int(with_token and class_token_position), grid)}
        self.pos_embed = nn.Parameter(torch.zeros(1, self.position_grids["pos_embed"][0] + math.prod(grid), width))

        def attention() -> Attention:
            return Attention(width, heads, qkv_bias=qkv_bias, head_width=head_width)

        def mlp() -> Mlp:
            return Mlp(width, int(width * mlp_ratio))

        def block(rate: float) -> nn.Module:
            if parallel == 1:
                return Block(width, attention(), mlp(), eps=eps, layer_scale=layer_scale, drop_path=rate)
            attentions = [
                AttentionBranch(width, attention(), eps=eps, layer_scale=layer_scale) for _ in range(parallel)
            ]
            mlps = [MlpBranch(width, mlp(), eps=eps, layer_scale=layer_scale) for _ in range(parallel)]
            return ParallelBlock(attentions, mlps, drop_path=rate)

        self.blocks = nn.Sequential(*(block(rate) for rate in drop_path_rates(drop_path, depth)))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.pre_logits = PreLogits(width, representation_size) if representation_size is not None else nn.Identity()
        self.head = make_head(representation_size or width, num_classes)
        self.initialise()

    def initialise(self) -> None:
        """Draw fresh weights: linears by ``init``, biases 0, positions normal with ``position_std``."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise_linear(module, self.initialisation)
        nn.init.trunc_normal_(self.pos_embed, std=self.position_std, a=-2 * self.position_std, b=2 * self.position_std)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to logits [B, num_classes]."""
        x = self.blocks(self.embed(x))
        return self.head(self.pre_logits(self.pooled(x)))

    def pooled(self, x: Tensor) -> Tensor:
        """Map tokens [B, N, D] to what the head reads, [B, D]."""
        if self.pool == "cls":
            return self.norm(x[:, 0])  # a LayerNorm sees one token at a time, so this one alone need be normalised
        patches = x if self.cls_token is None else x[:, 1:]
        return self.norm(patches.mean(dim=1)) if self.norm_after_pool else self.norm(patches).mean(dim=1)

    def embed(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to tokens with positions [B, N, D], the class token first.

        Raises:
            ModelError: The images are not of the size that the model was built for.
        """
        check_input(x, self.image_size)
        tokens = self.patch_embed(x)
        if self.cls_token is None:
            return tokens + self.pos_embed
        return prepend_tokens(tokens, self.cls_token, self.pos_embed)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters, besides biases and norms, that are not decayed."""
        return {"cls_token", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that sort parameters into layers, from the stem up; the rest is the head."""
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


def initialise_linear(linear: nn.Linear, init: Initialisation) -> None:
    """Draw a linear's weights, and set its bias to 0."""
    if init == "xavier":
        nn.init.xavier_uniform_(linear.weight)
    else:
        nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _scale(width: int, initial: float | None) -> nn.Module:
    return nn.Identity() if initial is None else LayerScale(width, initial)
