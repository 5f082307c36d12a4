"""timm's configurations become records that give timm's pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy.errors import DataError
from vitdeploy.preprocess import IMAGENET_MEAN, normalize, preprocess_from, preprocess_from_timm_config, to_pixels


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_small_patch16_224", {"size": (224, 224), "resize": "shortest", "resize_size": 248, "mean": (0.5,) * 3}),
        ("swin_base_patch4_window7_224", {"resize_size": 248, "mean": IMAGENET_MEAN}),
        ("deit3_base_patch16_384", {"size": (384, 384), "resize_size": 384, "crop": "center"}),
    ],
)
def test_timms_configuration_becomes_a_record(name: str, expected: dict[str, Any]) -> None:
    spec = preprocess_from(f"timm:{name}")
    assert {key: getattr(spec, key) for key in expected} == expected
    assert spec.source == f"timm:{name}"


SIZES = [(100, 70), (47, 48), (49, 33), (90, 5), (5, 90), (300, 211)]


@pytest.mark.parametrize(
    "options",
    [
        {"crop_pct": 0.875, "crop_mode": "squash"},
        {"crop_pct": 1.0, "crop_mode": "squash"},
        {"crop_pct": 0.95},
        {"crop_pct": 0.9, "crop_mode": "center", "input_size": (3, 48, 64)},
        {"crop_pct": 0.9, "crop_mode": "squash", "input_size": (3, 48, 64)},
        {"crop_pct": 1.0, "crop_mode": "border", "mean": IMAGENET_MEAN},
        {"crop_pct": 0.9, "crop_mode": "border", "input_size": (3, 64, 48)},
        {"crop_pct": 1.2},
        {"crop_pct": None, "interpolation": "lanczos"},
        {"interpolation": "box"},
    ],
)
def test_timms_crop_modes_are_reproduced_at_every_image_size(options: dict[str, Any]) -> None:
    from timm.data import create_transform

    config = {"input_size": (3, 48, 48), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.2,) * 3, **options}
    spec = preprocess_from_timm_config(config, "test")
    transform = create_transform(**config)
    for width, height in SIZES:
        image = noise(width, height)
        ours = normalize(to_pixels(image, spec)[None], spec)[0]
        assert np.array_equal(ours, transform(image).numpy()), (width, height)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_mode": "random"}, "crop_mode 'random' is not known, expected 'center', 'squash' or 'border'"),
        ({"interpolation": "random"}, "interpolation 'random' is none for evaluation"),
        ({"input_size": (3, None, None)}, r"input_size is \(3, None, None\), expected channels, height and width"),
        ({"mean": (0.5, 0.5)}, r"mean is \(0.5, 0.5\), expected 3 numbers"),
        ({"crop_pct": -1.0}, "crop_pct -1.0 must be positive"),
    ],
)
def test_what_timm_does_not_evaluate_with_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        preprocess_from_timm_config({"input_size": (3, 48, 48), **changes}, "timm:x")


def test_one_mean_for_all_channels_and_grey_images() -> None:
    spec = preprocess_from_timm_config({"input_size": (1, 28, 28), "mean": [0.13], "std": [0.31]}, "timm:x")
    assert (spec.channels, spec.mean, spec.std) == (1, (0.13,), (0.31,))
