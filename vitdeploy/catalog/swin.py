"""Swin Transformer v1 and v2: Microsoft's sizes, and torchvision's trainings of six of them.

Top-1 is that of the checkpoint named first, as its publisher reports it. Parameters and GMACs are those of 1000
classes; the GMACs of v2 include the small network behind its position biases, which an export turns into constants, and
which the README of the original leaves out (21.8 and not 21.97 for base with window 16).
"""

from __future__ import annotations

from typing import Any

from vitdeploy.catalog.presets import IMAGENET_MEAN, IMAGENET_STD, cropped, squashed
from vitdeploy.catalog.variant import Variant
from vitdeploy.records import Preprocess

README = "Swin Transformer README"
TORCHVISION = "torchvision 0.28"

# name → width, depths, heads
SIZES = {
    "tiny": (96, [2, 2, 6, 2], [3, 6, 12, 24]),
    "small": (96, [2, 2, 18, 2], [3, 6, 12, 24]),
    "base": (128, [2, 2, 18, 2], [4, 8, 16, 32]),
    "large": (192, [2, 2, 18, 2], [6, 12, 24, 48]),
}


def microsoft(image_size: int) -> Preprocess:
    """Return the evaluation preprocessing of the original repository: a crop of 224 / 256, none at 384."""
    if image_size == 384:
        return squashed(384, "Swin evaluation, TEST.CROP False")
    return cropped(image_size, 224 / 256, "Swin evaluation, crop 224 / 256")


def torchvision(image_size: int, resize_size: int) -> Preprocess:
    """Return the evaluation preprocessing of torchvision's own weights."""
    return Preprocess(
        size=(image_size, image_size),
        resize_size=resize_size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        source="torchvision, IMAGENET1K_V1",
    )


def _arguments(size: str, image_size: int, window: int) -> dict[str, Any]:
    width, depths, heads = SIZES[size]
    return {"image_size": image_size, "width": width, "depths": depths, "heads": heads, "window": window}


def _v1(shape: str, parameters: int, gmacs: float, top1: float, top1_from_22k: float) -> Variant:
    """Return the variant of ``shape``, such as ``tiny_7_224``; without a top-1 of its own the one from 22k counts."""
    size, window, image_size = shape.split("_")
    name = f"swin_{size}_patch4_window{window}_{image_size}"
    fine_tuned = "22kto1k_finetune" if size in ("tiny", "small") else "22kto1k"
    files = {"ms_in1k": f"{name}.pth", "ms_in22k_ft_in1k": f"{name}_{fine_tuned}.pth"}
    source = f"{README}; {100 * top1_from_22k:.1f} % if pre-trained on ImageNet-22k"
    if not top1:
        del files["ms_in1k"]
        source = f"{README}, pre-trained on ImageNet-22k"
    return Variant(
        name=name,
        family="swin",
        arguments=_arguments(size, int(image_size), int(window)),
        preprocess=microsoft(int(image_size)),
        parameters=parameters,
        gmacs=gmacs,
        top1=top1 or top1_from_22k,
        source=source,
        checkpoints=(
            *files.values(),
            *(f"timm:{name}.{tag}" for tag in files),
            f"hf:microsoft/{name.replace('_', '-')}",
        ),
    )


def _v2(shape: str, parameters: int, gmacs: float, top1: float) -> Variant:
    """Return the variant of ``shape``, such as ``tiny_8_256``, or ``base_12to16_256`` with another window before."""
    size, window, image_size = shape.split("_")
    before, _, after = window.rpartition("to")
    arguments = _arguments(size, int(image_size), int(after))
    source, file = README, f"swinv2_{size}_patch4_window{window}_{image_size}"
    timm = f"swinv2_{size}_window{window}_{image_size}.ms_in1k"
    if before:
        # Trained at 192 pixels, where the last stage had 6×6 tokens and so windows of half the side.
        arguments["pretrained_windows"] = [int(before)] * 3 + [int(before) // 2]
        source, file = (
            f"{README}, pre-trained on ImageNet-22k",
            file.replace(f"_{image_size}", f"_192to{image_size}_22kto1k_ft"),
        )
        timm = f"swinv2_{size}_window{window}_192to{image_size}.ms_in22k_ft_in1k"
    return Variant(
        name=f"swinv2_{size}_patch4_window{window}_{image_size}",
        family="swin_v2",
        arguments=arguments,
        preprocess=microsoft(int(image_size)),
        parameters=parameters,
        gmacs=gmacs,
        top1=top1,
        source=source,
        checkpoints=(f"{file}.pth", f"timm:{timm}", f"hf:microsoft/{file.replace('_', '-')}"),
    )


def _torchvision(name: str, like: Variant, top1: float, resize_size: int) -> Variant:
    """Return the architecture ``like`` as torchvision trained it."""
    return Variant(
        name=name,
        family=like.family,
        arguments=like.arguments,
        preprocess=torchvision(like.preprocess.size[0], resize_size),
        parameters=like.parameters,
        gmacs=like.gmacs,
        top1=top1,
        source=TORCHVISION,
        checkpoints=(f"torchvision:{name}.IMAGENET1K_V1",),
    )


V1 = (
    _v1("tiny_7_224", 28_288_354, 4.491, 0.812, 0.809),
    _v1("small_7_224", 49_606_258, 8.741, 0.832, 0.832),
    _v1("base_7_224", 87_768_224, 15.431, 0.835, 0.852),
    _v1("base_12_384", 87_903_584, 47.083, 0.845, 0.864),
    _v1("large_7_224", 196_532_476, 34.476, 0, 0.863),
    _v1("large_12_384", 196_735_516, 103.919, 0, 0.873),
)
V2 = (
    _v2("tiny_8_256", 28_347_154, 5.940, 0.818),
    _v2("tiny_16_256", 28_347_154, 6.661, 0.828),
    _v2("small_8_256", 49_728_418, 11.546, 0.837),
    _v2("small_16_256", 49_728_418, 12.783, 0.841),
    _v2("base_8_256", 87_918_816, 20.325, 0.842),
    _v2("base_16_256", 87_918_816, 21.969, 0.846),
    _v2("base_12to16_256", 87_918_816, 21.969, 0.862),
    _v2("base_12to24_384", 87_918_816, 55.148, 0.871),
    _v2("large_12to16_256", 196_739_932, 47.740, 0.869),
    _v2("large_12to24_384", 196_739_932, 115.991, 0.876),
)
VARIANTS = (
    *V1,
    *V2,
    _torchvision("swin_t", V1[0], 0.81474, 232),
    _torchvision("swin_s", V1[1], 0.83196, 246),
    _torchvision("swin_b", V1[2], 0.83582, 238),
    _torchvision("swin_v2_t", V2[0], 0.82072, 260),
    _torchvision("swin_v2_s", V2[2], 0.83712, 260),
    _torchvision("swin_v2_b", V2[4], 0.84112, 272),
)
