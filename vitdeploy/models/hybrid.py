"""Hybrid R+ViT (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1): a ResNet's feature map instead of pixels.

The ResNet is BiT's (Kolesnikov et al. 2020, arXiv:1912.11370): group norm and weight-standardised convolutions, padded
as TensorFlow's SAME, but with the activation after the addition. The encoder is ``models.vit``. Layout and key names
are timm's.

B batch, C channels, H and W of a feature map, N tokens, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdeploy.errors import ModelError
from vitdeploy.models.arguments import check_positive, pair
from vitdeploy.models.derived import DerivedConstants
from vitdeploy.models.vit import Initialisation, Pool, VisionTransformer

GROUP_NORM_EPS = 1e-5
STANDARDISATION_EPS = 1e-8
STEM_STRIDE = 4


class StandardisedConv(DerivedConstants):
    """A convolution whose filters are standardised to mean 0 and variance 1 (Qiao et al. 2019, arXiv:1903.10520).

    The raw filters are what is learned and stored; an exported graph holds the standardised ones as a constant.
    """

    def __init__(self, channels: int, filters: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(filters, channels, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def derive(self) -> tuple[Tensor, ...]:
        """Standardise each filter over its inputs and positions; the variance is the biased one."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return ((self.weight - mean) * torch.rsqrt(variance + STANDARDISATION_EPS),)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, filters, ⌈H / stride⌉, ⌈W / stride⌉]."""
        (weight,) = self.derived()
        kernel = self.weight.shape[-1]
        top, bottom = same_padding(x.shape[2], kernel, self.stride)
        left, right = same_padding(x.shape[3], kernel, self.stride)
        if (top, left) == (bottom, right):
            return F.conv2d(x, weight, stride=self.stride, padding=(top, left))
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, stride=self.stride)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's SAME padding of one axis, before and after; an odd one out goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class GroupNorm(nn.GroupNorm):
    """Normalise groups of channels together with all positions (Wu and He 2018, arXiv:1803.08494)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__(groups, width, eps=GROUP_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, H, W].

        An export gets a group as one channel of an instance norm, in shapes that are constants; PyTorch's own export of
        a group norm asks for the shape of its input.
        """
        if not torch.compiler.is_exporting():
            return super().forward(x)
        channels, height, width = x.shape[1:]
        rows = x.reshape(-1, self.num_groups, channels // self.num_groups * height * width)
        x = F.instance_norm(rows, eps=self.eps).reshape(-1, channels, height, width)
        return x * self.weight.reshape(-1, 1, 1) + self.bias.reshape(-1, 1, 1)


class SamePool(nn.Module):
    """3×3 maximum at stride 2, SAME, padded with −∞.

    An even side needs padding after it only, which is what a window that may hang over the end does; an odd one needs
    one on each side. So no pad is a node of its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, ⌈H / 2⌉, ⌈W / 2⌉]."""
        return F.max_pool2d(x, 3, stride=2, padding=(x.shape[2] % 2, x.shape[3] % 2), ceil_mode=True)


class Stem(nn.Sequential):
    """7×7 convolution at stride 2, norm, ReLU, maximum at stride 2: a quarter of the image's sides."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__(
            OrderedDict(
                conv=StandardisedConv(channels, width, 7, stride=2),
                norm=GroupNorm(width, groups),
                act=nn.ReLU(),
                pool=SamePool(),
            )
        )


class Downsample(nn.Module):
    """The shortcut of a stage's first unit: a 1×1 convolution and a norm."""

    def __init__(self, channels: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv = StandardisedConv(channels, width, 1, stride)
        self.norm = GroupNorm(width, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, width, ⌈H / stride⌉, ⌈W / stride⌉]."""
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """``relu(shortcut + norm conv1×1 relu norm conv3×3 relu norm conv1×1)``, a quarter as wide inside as outside."""

    def __init__(self, channels: int, width: int, stride: int, groups: int, *, first: bool) -> None:
        super().__init__()
        inner = width // 4
        self.downsample = Downsample(channels, width, stride, groups) if first else None
        self.conv1 = StandardisedConv(channels, inner, 1)
        self.norm1 = GroupNorm(inner, groups)
        self.conv2 = StandardisedConv(inner, inner, 3, stride)
        self.norm2 = GroupNorm(inner, groups)
        self.conv3 = StandardisedConv(inner, width, 1)
        self.norm3 = GroupNorm(width, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, width, ⌈H / stride⌉, ⌈W / stride⌉]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return F.relu(self.norm3(self.conv3(x)) + shortcut)


class Stage(nn.Module):
    """Units of one width; the first of them changes width and size."""

    def __init__(self, channels: int, width: int, stride: int, units: int, groups: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                Bottleneck(channels if unit == 0 else width, width, stride if unit == 0 else 1, groups, first=unit == 0)
                for unit in range(units)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, width, ⌈H / stride⌉, ⌈W / stride⌉]."""
        return self.blocks(x)


class ResNet(nn.Module):
    """The stem and its stages, each twice as wide as the one before and, but for the first, half as large."""

    def __init__(self, channels: int, stem_width: int, units: Sequence[int], groups: int) -> None:
        super().__init__()
        self.stem = Stem(channels, stem_width, groups)
        widths = [4 * stem_width * 2**index for index in range(len(units))]
        self.stages = nn.Sequential(
            *(
                Stage(before, width, 1 if index == 0 else 2, count, groups)
                for index, (before, width, count) in enumerate(zip([stem_width, *widths], widths, units, strict=False))
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the last stage's feature map."""
        return self.stages(self.stem(x))


class HybridEmbed(nn.Module):
    """Tokens from a backbone's feature map: patches of it (often of one position), projected."""

    def __init__(self, backbone: nn.Module, proj: nn.Conv2d) -> None:
        super().__init__()
        self.backbone = backbone
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to tokens [B, N, D]."""
        return self.proj(self.backbone(x)).flatten(2).transpose(1, 2)


class HybridViT(VisionTransformer):
    """A ViT over the feature map of a ResNet.

    Args:
        image_size: Pixels, one number or [height, width]. The feature map is a quarter of it, halved by every stage
            after the first; sides that do not divide are rounded up.
        units: How many units each stage has; an empty list leaves the stem alone.
        stem_width: Channels after the stem. Stages have 4, 8, 16, … times as many.
        groups: Of every group norm.
        patch: Positions of the feature map, per side, that make a token.
        eps: Of every LayerNorm; group norms have 1e-5.

    Other arguments are those of ``VisionTransformer``.

    Raises:
        ModelError: The values do not fit each other.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        units: Sequence[int] = (3, 4, 9),
        stem_width: int = 64,
        groups: int = 32,
        patch: int = 1,
        channels: int = 3,
        num_classes: int = 1000,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        eps: float = 1e-6,
        pool: Pool = "cls",
        representation_size: int | None = None,
        drop_path: float = 0.0,
        init: Initialisation = "trunc_normal",
        position_std: float = 0.02,
    ) -> None:
        size = pair(image_size)
        check_positive(stem_width=stem_width, groups=groups, patch=patch, channels=channels)
        if not all(isinstance(count, int) and count > 0 for count in units):
            raise ModelError(f"units is {list(units)!r}, expected a number above 0 for each stage")
        if stem_width % groups:
            raise ModelError(f"stem_width {stem_width} does not divide by {groups} groups: change one of them")
        grid = feature_map(size, len(units))
        if grid[0] % patch or grid[1] % patch:
            raise ModelError(
                f"image_size {size[0]}×{size[1]} gives a feature map of {grid[0]}×{grid[1]}, which does not divide by "
                f"patch {patch}: change one of them"
            )
        super().__init__(
            image_size=grid,
            patch=patch,
            channels=stem_width * 4 * 2 ** (len(units) - 1) if units else stem_width,
            num_classes=num_classes,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            eps=eps,
            pool=pool,
            representation_size=representation_size,
            drop_path=drop_path,
            init=init,
            position_std=position_std,
        )
        self.image_size = size
        backbone = ResNet(channels, stem_width, units, groups) if units else Stem(channels, stem_width, groups)
        self.patch_embed = HybridEmbed(backbone, self.patch_embed.proj)  # type: ignore[assignment]


def feature_map(image_size: tuple[int, int], stages: int) -> tuple[int, int]:
    """Return height and width after the stem and ``stages`` stages; SAME padding rounds up."""
    stride = STEM_STRIDE * 2 ** max(stages - 1, 0)
    return -(-image_size[0] // stride), -(-image_size[1] // stride)
