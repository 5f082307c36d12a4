"""Distilled DeiT: a ViT with a second token that learns from a teacher (Touvron et al. 2021, arXiv:2012.12877, §4).

Plain DeiT and DeiT-III are arguments of ``models.vit``; only the distilled model needs a module of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.models.arguments import check_input
from vitdeploy.models.layers import make_head, prepend_tokens
from vitdeploy.models.vit import Initialisation, VisionTransformer, initialise_linear


class DistilledViT(VisionTransformer):
    """ViT with the tokens class, distillation, patches in this order, and a head for each of the first two.

    In training ``forward`` returns the pair (class logits, distillation logits), which the loss treats apart; at
    inference it returns their mean, as the original does. Without ``distillation_head`` the class token alone is
    read, as Hugging Face's ``DeiTForImageClassification`` does. Takes the arguments of ``VisionTransformer`` that
    concern the encoder; both tokens have positions.
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
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        drop_path: float = 0.0,
        distillation_head: bool = True,
        init: Initialisation = "trunc_normal",
        position_std: float = 0.02,
    ) -> None:
        super().__init__(
            image_size=image_size,
            patch=patch,
            channels=channels,
            num_classes=num_classes,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            eps=eps,
            drop_path=drop_path,
            init=init,
            position_std=position_std,
        )
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        tokens, grid = self.position_grids["pos_embed"]
        self.position_grids = {"pos_embed": (tokens + 1, grid)}
        positions = self.pos_embed.shape[1] + 1
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
        self.head_dist = make_head(width, num_classes) if distillation_head else None
        nn.init.trunc_normal_(self.pos_embed, std=position_std, a=-2 * position_std, b=2 * position_std)
        nn.init.trunc_normal_(self.dist_token, std=0.02)
        if isinstance(self.head_dist, nn.Linear):
            initialise_linear(self.head_dist, init)

    def embed(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to tokens [B, 2 + N, D]."""
        assert self.cls_token is not None
        check_input(x, self.image_size)
        tokens = torch.cat([self.cls_token, self.dist_token], dim=1)
        return prepend_tokens(self.patch_embed(x), tokens, self.pos_embed)

    def forward(self, x: Tensor) -> Any:
        """Map [B, C, H, W] to logits [B, classes], in training to the pair (class logits, distillation logits)."""
        x = self.blocks(self.embed(x))
        if self.head_dist is None:
            return self.head(self.norm(x[:, 0]))
        x = self.norm(x[:, :2])
        logits, distilled = self.head(x[:, 0]), self.head_dist(x[:, 1])
        if self.training:
            return logits, distilled
        return (logits + distilled) / 2

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay."""
        return {"cls_token", "dist_token", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how parameters order into layers, in timm's form."""
        return {**super().group_matcher(coarse), "stem": r"^cls_token|^dist_token|^pos_embed|^patch_embed"}
