"""Variation of single photographs by timm's transforms, with every draw within what Pillow accepts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment
from timm.data.auto_augment import posterize as timm_posterize
from timm.data.transforms import RandomResizedCropAndInterpolation

from vitdeploy.errors import UsageError
from vitdeploy.records import Preprocess
from vitdeploy.training.options import Augmentation

_GEOMETRIC = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
"""What Pillow resamples with when it turns or shears."""


def photograph_transform(options: Augmentation, preprocess: Preprocess) -> Any:
    """Return timm's training transform from an RGB image to a normalised tensor [3, H, W], its channels still RGB.

    timm draws some values that Pillow refuses: posterizing to 0 bits or fewer, a crop without pixels, a rotation with
    Lanczos, box or Hamming resampling. They become black, one pixel, and bicubic.

    Raises:
        UsageError: timm cannot build the policy.
    """
    mean, std = preprocess.unit_mean, preprocess.unit_std
    if preprocess.channels == 1:
        mean, std = mean * 3, std * 3
    try:
        chain = create_transform(
            (3, *preprocess.size),
            is_training=True,
            scale=options.crop_area,
            hflip=options.flip,
            color_jitter=options.colour_jitter,
            auto_augment=options.policy,
            interpolation=preprocess.interpolation,
            mean=mean,
            std=std,
            re_prob=options.erase,
            re_mode="pixel",
        )
    except (AssertionError, ValueError) as error:
        raise UsageError(f"augmentation.policy {options.policy!r} is refused by timm: {error}") from error
    steps = chain.transforms
    for number, step in enumerate(steps):
        if isinstance(step, RandomResizedCropAndInterpolation):
            steps[number] = _Crop(step.size, step.scale, step.ratio, preprocess.interpolation)
        for operation in _operations(step):
            _keep_within_pillow(operation)
        if isinstance(step, RandAugment) and step.choice_weights is not None and step.num_layers > len(step.ops):
            raise UsageError(
                f"augmentation.policy {options.policy!r} draws {step.num_layers} different operations, and its set has "
                f"{len(step.ops)}: lower n"
            )
    return chain


class _Crop(RandomResizedCropAndInterpolation):  # type: ignore[misc]
    """timm's random crop that holds at least one pixel of an image of a few pixels."""

    @staticmethod
    def get_params(img: Image.Image, scale: Any, ratio: Any) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of a crop."""
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(img, scale, ratio)
        height, width = max(height, 1), max(width, 1)
        return min(top, img.height - height), min(left, img.width - width), height, width


def _operations(step: Any) -> Iterator[AugmentOp]:
    """Yield the operations among which a policy draws."""
    if isinstance(step, RandAugment | AugMixAugment):
        yield from step.ops
    elif isinstance(step, AutoAugment):
        for operations in step.policy:
            yield from operations


def _keep_within_pillow(operation: AugmentOp) -> None:
    if operation.aug_fn is timm_posterize:
        operation.aug_fn = _posterize
    if isinstance(operation.kwargs["resample"], Image.Resampling) and operation.kwargs["resample"] not in _GEOMETRIC:
        operation.kwargs["resample"] = Image.Resampling.BICUBIC


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """Keep the highest bits of each channel; with none the image is black, as Pillow gave before version 13."""
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return image if bits_to_keep >= 8 else ImageOps.posterize(image, bits_to_keep)
