"""The standard ViT: Google's sizes as timm names them, and the three that only torchvision publishes for ImageNet-1k.

Parameters and GMACs are those of 1000 classes. Top-1 is that of the checkpoint named first, as its publisher reports it
(timm's results-imagenet.csv, torchvision's model page); the other checkpoints load into the same variant and may bring
another preprocessing.
"""

from __future__ import annotations

from vitdeploy.catalog.variant import Variant
from vitdeploy.records import Preprocess

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TIMM = "timm results-imagenet.csv"
TORCHVISION = "torchvision 0.28"

# name → width, depth, heads
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


def google(image_size: int) -> Preprocess:
    """Return the evaluation preprocessing of timm's ports of Google's weights: mean and std 0.5."""
    return Preprocess(
        size=(image_size, image_size),
        resize_size=int(image_size / 0.9) if image_size == 224 else image_size,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        source="timm, Google ViT",
    )


def swag(image_size: int) -> Preprocess:
    """Return the evaluation preprocessing of torchvision's SWAG weights: no margin around the crop."""
    return Preprocess(
        size=(image_size, image_size),
        resize_size=image_size,
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        source="torchvision, SWAG",
    )


def torchvision_v1(image_size: int) -> Preprocess:
    """Return the evaluation preprocessing of torchvision's own training: resize to 256, bilinear."""
    return Preprocess(
        size=(image_size, image_size),
        resize_size=256,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        source="torchvision, IMAGENET1K_V1",
    )


def _variant(
    shape: str, preprocess: Preprocess, cost: tuple[int, float], top1: float, source: str, checkpoints: tuple[str, ...]
) -> Variant:
    """Return the variant of ``shape``, such as ``tiny_patch16_224``; ``cost`` is (parameters, GMACs)."""
    size, patch, image_size = shape.split("_")
    width, depth, heads = SIZES[size]
    arguments = {
        "image_size": int(image_size),
        "patch": int(patch.removeprefix("patch")),
        "width": width,
        "depth": depth,
        "heads": heads,
    }
    return Variant(
        name=f"vit_{shape}",
        family="vit",
        arguments=arguments,
        preprocess=preprocess,
        parameters=cost[0],
        gmacs=cost[1],
        top1=top1,
        source=source,
        checkpoints=checkpoints,
    )


def _timm(
    shape: str, parameters: int, gmacs: float, top1: float, tags: tuple[str, ...], others: tuple[str, ...] = ()
) -> Variant:
    checkpoints = tuple(f"timm:vit_{shape}.{tag}" for tag in tags)
    preprocess = google(int(shape.rsplit("_", 1)[1]))
    return _variant(shape, preprocess, (parameters, gmacs), top1, f"{TIMM}, {tags[0]}", checkpoints + others)


VARIANTS = (
    _timm("tiny_patch16_224", 5_717_416, 1.254, 0.7545, ("augreg_in21k_ft_in1k",)),
    _timm("tiny_patch16_384", 5_790_376, 4.682, 0.7844, ("augreg_in21k_ft_in1k",)),
    _timm("small_patch32_224", 22_878_952, 1.143, 0.7601, ("augreg_in21k_ft_in1k",)),
    _timm("small_patch32_384", 22_915_432, 3.443, 0.8048, ("augreg_in21k_ft_in1k",)),
    _timm("small_patch16_224", 22_050_664, 4.599, 0.8140, ("augreg_in21k_ft_in1k", "augreg_in1k")),
    _timm("small_patch16_384", 22_196_584, 15.490, 0.8381, ("augreg_in21k_ft_in1k", "augreg_in1k")),
    _timm(
        "base_patch32_224",
        88_224_232,
        4.409,
        0.8073,
        ("augreg_in21k_ft_in1k", "augreg_in1k", "sam_in1k"),
        ("torchvision:vit_b_32.IMAGENET1K_V1",),
    ),
    _timm("base_patch32_384", 88_297_192, 13.044, 0.8336, ("augreg_in21k_ft_in1k", "augreg_in1k")),
    _timm(
        "base_patch16_224",
        86_567_656,
        17.564,
        0.8453,
        ("augreg_in21k_ft_in1k", "augreg2_in21k_ft_in1k", "orig_in21k_ft_in1k", "augreg_in1k", "sam_in1k"),
        ("torchvision:vit_b_16.IMAGENET1K_V1", "torchvision:vit_b_16.IMAGENET1K_SWAG_LINEAR_V1"),
    ),
    _timm(
        "base_patch16_384",
        86_859_496,
        55.484,
        0.8601,
        ("augreg_in21k_ft_in1k", "orig_in21k_ft_in1k", "augreg_in1k"),
        ("torchvision:vit_b_16.IMAGENET1K_SWAG_E2E_V1",),
    ),
    _timm("base_patch8_224", 86_576_872, 78.148, 0.8584, ("augreg_in21k_ft_in1k", "augreg2_in21k_ft_in1k")),
    _timm("large_patch32_384", 306_632_680, 45.276, 0.8151, ("orig_in21k_ft_in1k",)),
    _timm(
        "large_patch16_224",
        304_326_632,
        61.555,
        0.8586,
        ("augreg_in21k_ft_in1k",),
        ("torchvision:vit_l_16.IMAGENET1K_V1", "torchvision:vit_l_16.IMAGENET1K_SWAG_LINEAR_V1"),
    ),
    _timm("large_patch16_384", 304_715_752, 191.066, 0.8710, ("augreg_in21k_ft_in1k",)),
    _variant(
        "large_patch32_224",
        torchvision_v1(224),
        (306_535_400, 15.378),
        0.76972,
        f"{TORCHVISION}, IMAGENET1K_V1",
        ("torchvision:vit_l_32.IMAGENET1K_V1",),
    ),
    _variant(
        "large_patch16_512",
        swag(512),
        (305_174_504, 361.986),
        0.88064,
        f"{TORCHVISION}, IMAGENET1K_SWAG_E2E_V1",
        ("torchvision:vit_l_16.IMAGENET1K_SWAG_E2E_V1",),
    ),
    _variant(
        "huge_patch14_224",
        swag(224),
        (632_045_800, 167.295),
        0.85708,
        f"{TORCHVISION}, IMAGENET1K_SWAG_LINEAR_V1",
        ("torchvision:vit_h_14.IMAGENET1K_SWAG_LINEAR_V1", "timm:vit_huge_patch14_224.orig_in21k"),
    ),
    _variant(
        "huge_patch14_518",
        swag(518),
        (633_470_440, 1016.717),
        0.88552,
        f"{TORCHVISION}, IMAGENET1K_SWAG_E2E_V1",
        ("torchvision:vit_h_14.IMAGENET1K_SWAG_E2E_V1",),
    ),
)
