"""The pixels of transformers' Pillow processors, at every image size, and every key carried out or refused by name."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy.errors import DataError
from vitdeploy.preprocess import normalize, preprocess_from_hf, to_pixels

SIZES = [(1, 1), (5, 90), (90, 5), (47, 47), (48, 48), (49, 33), (31, 77), (100, 101), (223, 257), (17, 256)]
"""Width and height: odd and even differences to the crop, smaller than it on one side or both."""

EDGE = "shortest_edge"
CASES = [
    ("ViT", {}),
    ("ViT", {"size": 48, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}),
    ("ViT", {"size": {"height": 31, "width": 45}, "resample": 4}),
    ("ViT", {"size": {EDGE: 50}, "do_center_crop": True, "crop_size": 47}),
    ("ViT", {"size": 20, "resample": 5, "do_normalize": False}),
    ("ViT", {"size": 20, "rescale_factor": 1 / 127.5}),
    ("ViT", {"size": 20, "do_rescale": False}),
    ("ViT", {"size": 20, "do_rescale": False, "do_normalize": False}),
    ("ViT", {"size": 20, "image_mean": 0.4, "image_std": 0.3}),
    ("ViT", {"size": 20, "crop_size": 10}),
    ("DeiT", {}),
    ("DeiT", {"size": 30, "crop_size": 41}),
    ("DeiT", {"size": {"height": 52, "width": 60}, "crop_size": {"height": 46, "width": 47}}),
    ("DeiT", {"do_center_crop": False}),
    ("DeiT", {"do_resize": False, "crop_size": 47}),
    ("Beit", {"do_center_crop": True, "size": 61, "crop_size": 48, "do_reduce_labels": True}),
    ("Beit", {"crop_size": 48}),
    ("Bit", {"size": 41, "crop_size": 41}),
    ("Bit", {"size": {EDGE: 41}, "crop_size": 30, "resample": 1, "do_convert_rgb": False}),
    ("CLIP", {}),
    ("CLIP", {"size": 30, "crop_size": 41}),
    ("CLIP", {"size": {"height": 30, "width": 31}, "crop_size": 20}),
    ("ConvNext", {"size": {EDGE: 47}, "crop_pct": 0.9}),
    ("ConvNext", {"size": 64, "crop_pct": 1.0}),
    ("ConvNext", {}),
    ("EfficientNet", {"do_center_crop": True, "size": 60, "crop_size": 47}),
    ("EfficientNet", {"size": 60, "rescale_offset": True, "rescale_factor": 1 / 127.5, "image_std": [0.3, 0.4, 0.5]}),
    ("EfficientNet", {"size": 60, "include_top": False}),
    ("EfficientNet", {"size": 60, "do_normalize": False}),
    ("Pvt", {}),
    ("Levit", {"size": 47, "crop_size": 47}),
    ("Levit", {"size": {"height": 60, "width": 50}, "crop_size": 47}),
    ("MobileViT", {"size": 47, "crop_size": 48}),
    ("MobileViT", {"size": 48, "crop_size": 47, "do_flip_channel_order": False}),
    ("MobileNetV1", {"size": 47, "crop_size": 31}),
    ("MobileNetV2", {"size": 47, "crop_size": 31}),
    ("PoolFormer", {"size": 47, "crop_size": 47, "crop_pct": 0.95}),
    ("PoolFormer", {"size": {"height": 47, "width": 47}, "crop_size": 40}),
    ("PoolFormer", {"size": {"height": 47, "width": 40}, "crop_size": 40}),
    ("Siglip", {"size": {"height": 47, "width": 48}}),
    ("Segformer", {"size": {"height": 47, "width": 47}, "do_center_crop": True, "crop_size": 30}),
    ("Blip", {"size": 47}),
    ("ChineseCLIP", {"size": 47, "crop_size": 48}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_transformers_pixels_are_reproduced(name: str, options: dict[str, Any]) -> None:
    """From the options alone, and from the file that the processor itself saves, with all keys in it."""
    import transformers

    processor = getattr(transformers, f"{name}ImageProcessorPil")(**options)
    sparse = preprocess_from_hf({"image_processor_type": f"{name}ImageProcessor", **options}, "test")
    saved = preprocess_from_hf(json.loads(processor.to_json_string()), "test")
    assert saved == sparse
    for width, height in SIZES:
        image = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))
        expected = np.asarray(processor(image, return_tensors="np")["pixel_values"], np.float32)[0]
        ours = normalize(to_pixels(image, sparse)[None], sparse)[0]
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6, err_msg=f"{width}×{height}")


VIT = {"image_processor_type": "ViTImageProcessor"}
BARE = {"size": 8, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_normalize": True, "image_mean": [0, 0, 0], "size": 8, "resample": 2}, r"lacks 'image_std', which its"),
        ({**BARE, "resample": None}, r"lacks 'resample'"),
        ({**VIT, "do_pad": True}, r"do_pad asks for padding"),
        ({**VIT, "do_pad": True, "pad_size": {"height": 256, "width": 256}}, r"do_pad asks for padding"),
        ({**VIT, "resample": 7}, r"resample 7 is none of Pillow's filters"),
        ({**VIT, "resample": True}, r"resample True is none of"),
        ({**VIT, "size": "big"}, r"the size 'big' is not understood"),
        ({**VIT, "size": {"longest_edge": 8}}, r"gives inputs of varying size or is not understood"),
        ({**VIT, "size": {"shortest_edge": 8, "longest_edge": 16}}, r"gives inputs of varying size"),
        ({**VIT, "size": {"shortest_edge": 8}}, r"shortest_edge without a crop gives inputs of varying size"),
        ({**VIT, "do_center_crop": True}, r"lacks 'crop_size'"),
        ({**VIT, "do_resize": False}, r"do_resize is false and nothing is cropped"),
        ({**VIT, "image_mean": [0.5, 0.5]}, r"image_mean is \[0.5, 0.5\], expected a number for each channel"),
        ({**VIT, "rescale_factor": 0}, r"scale 0.0 must be positive"),
        ({**VIT, "data_format": "channels_last"}, r"data_format 'channels_last' is not supported"),
        ({**VIT, "do_flip_channel_order": True}, r"ViTImageProcessor has no 'do_flip_channel_order'"),
        ({**VIT, "crop_pct": 0.9}, r"ViTImageProcessor has no 'crop_pct', so what 0.9 means is not known"),
        ({**VIT, "size_divisor": 32}, r"has no 'size_divisor'"),
        ({**BARE, "rescale_offset": True}, r"a processor without a class has no 'rescale_offset'"),
        ({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}, r"gives inputs of varying size"),
        ({"image_processor_type": "PerceiverImageProcessor"}, r"what 'PerceiverImageProcessor' does is not known"),
        ({"image_processor_type": "MobileViTImageProcessor", "do_normalize": True}, r"never normalizes"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 8, "width": 8}}, r"takes size as"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True, "size": 32, "crop_size": 24},
            r"crops once more",
        ),
    ],
)
def test_what_is_not_carried_out_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        preprocess_from_hf(config, "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "extra",
    [
        {"do_flip_channel_order": False}, {"do_pad": False}, {"size_divisor": None}, {"use_fast": True},
        {"do_pad": True, "pad_size": {"height": 224, "width": 224}}, {"reduce_labels": True}, {"processor_class": "P"},
    ],
)  # fmt: skip
def test_keys_without_effect_are_no_obstacle(extra: dict[str, Any]) -> None:
    assert preprocess_from_hf({**VIT, **extra}, "test") == preprocess_from_hf(VIT, "test")


def test_names_of_older_and_newer_versions_mean_the_same_processor() -> None:
    expected = preprocess_from_hf(VIT, "test")
    for kind in ("ViTImageProcessorFast", "ViTImageProcessorPil"):
        assert preprocess_from_hf({"image_processor_type": kind}, "test") == expected
    assert preprocess_from_hf({"feature_extractor_type": "ViTFeatureExtractor"}, "test") == expected


def test_timms_wrapper_has_timms_configuration() -> None:
    config = {"image_processor_type": "TimmWrapperImageProcessor", "pretrained_cfg": {"input_size": [3, 48, 48]}}
    spec = preprocess_from_hf(config, "test")
    assert (spec.size, spec.resize_size, spec.interpolation) == ((48, 48), 54, "bicubic")
