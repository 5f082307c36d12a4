"""What the image processors of Hugging Face do, read from ``preprocessor_config.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vitdeploy.errors import DataError
from vitdeploy.preprocess.record import IMAGENET_MEAN, IMAGENET_STD, make_record
from vitdeploy.preprocess.timm_configuration import preprocess_from_timm_config
from vitdeploy.records import Interpolation, Preprocess

_RESAMPLE: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
"""Pillow's numbers of its filters."""

_HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_IMAGENET = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}

_Steps = Literal["plain", "uncropped", "convnext", "levit", "poolformer", "mobilevit", "efficientnet"]


@dataclass(frozen=True)
class _Processor:
    """What a class of transformers does: its variant of the steps, and the keys that a file may leave out.

    own: keys that this class has and others have not.
    square: whether a bare number for ``size`` means both sides; else it means the shorter one.
    """

    defaults: Mapping[str, Any]
    steps: _Steps = "plain"
    own: frozenset[str] = field(default=frozenset())
    square: bool = True


_EDGE_224 = {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "resample": 3}
_CLIP_LIKE = _Processor({**_CLIP, **_EDGE_224}, square=False)
_MOBILENET = _Processor(
    {**_HALF, "size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True, "resample": 2}, square=False
)
_PROCESSORS: dict[str, _Processor] = {
    "ViT": _Processor({**_HALF, "size": 224, "resample": 2}),
    "DeiT": _Processor({**_HALF, "size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3}),
    "Beit": _Processor({**_HALF, "size": 224, "crop_size": 224, "resample": 3}),
    "Bit": _CLIP_LIKE,
    "CLIP": _CLIP_LIKE,
    "ChineseCLIP": _CLIP_LIKE,
    "ViTHybrid": _CLIP_LIKE,
    "Blip": _Processor({**_CLIP, "size": 384, "resample": 3}),
    "Siglip": _Processor({**_HALF, "size": {"height": 224, "width": 224}, "resample": 3}, square=False),
    "Pvt": _Processor({**_IMAGENET, "size": 224, "resample": 3}),
    "Segformer": _Processor({**_IMAGENET, "size": 512, "resample": 2}, "uncropped"),
    "ConvNext": _Processor(
        {**_HALF, "size": {"shortest_edge": 384}, "resample": 3, "crop_pct": 224 / 256},
        "convnext",
        own=frozenset({"crop_pct"}),
        square=False,
    ),
    "Levit": _Processor({**_IMAGENET, **_EDGE_224}, "levit", square=False),
    "PoolFormer": _Processor(
        {**_IMAGENET, **_EDGE_224, "crop_pct": 0.9}, "poolformer", own=frozenset({"crop_pct"}), square=False
    ),
    "MobileNetV1": _MOBILENET,
    "MobileNetV2": _MOBILENET,
    "MobileViT": _Processor(
        {**_EDGE_224, "crop_size": 256, "do_flip_channel_order": True},
        "mobilevit",
        own=frozenset({"do_flip_channel_order"}),
        square=False,
    ),
    "EfficientNet": _Processor(
        {**_HALF, "size": 346, "crop_size": 289, "resample": 3, "include_top": True},
        "efficientnet",
        own=frozenset({"rescale_offset", "include_top"}),
    ),
}
"""The processors of image classifiers, with the defaults of transformers 5."""

_OF_MODEL_TYPE: dict[str, str] = {
    **dict.fromkeys(
        ("vit", "vit_msn", "vit_mae", "swin", "swinv2", "dinat", "ijepa", "clipseg", "efficientformer"), "ViT"
    ),
    **dict.fromkeys(("deit",), "DeiT"),
    **dict.fromkeys(("beit", "data2vec-vision"), "Beit"),
    **dict.fromkeys(("bit", "dinov2", "dinov2_with_registers", "focalnet", "hiera"), "Bit"),
    **dict.fromkeys(("clip", "clip_vision_model", "metaclip_2"), "CLIP"),
    **dict.fromkeys(("siglip", "siglip_vision_model"), "Siglip"),
    **dict.fromkeys(("pvt", "pvt_v2"), "Pvt"),
    **dict.fromkeys(("convnext", "convnextv2", "cvt", "regnet", "resnet", "van"), "ConvNext"),
    **dict.fromkeys(("mobilevit", "mobilevitv2"), "MobileViT"),
    "vit_hybrid": "ViTHybrid",
    "segformer": "Segformer",
    "levit": "Levit",
    "poolformer": "PoolFormer",
    "mobilenet_v1": "MobileNetV1",
    "mobilenet_v2": "MobileNetV2",
    "efficientnet": "EfficientNet",
}
"""The processor that transformers takes for a ``model_type`` where the file names none."""

_COMMON = frozenset(
    ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
     "image_mean", "image_std", "do_pad", "pad_size", "default_to_square", "data_format")
)  # fmt: skip
_WITHOUT_EFFECT = frozenset(
    ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "model_input_names",
     "_valid_processor_keys", "_processor_class", "return_tensors", "device", "disable_grouping", "input_data_format",
     "do_convert_rgb", "do_reduce_labels", "reduce_labels", "ignore_index", "num_labels", "use_fast", "name_or_path",
     "_name_or_path", "transformers_version", "backend")
)  # fmt: skip
"""Keys that change no pixel of an RGB image: about saving, label maps of segmentation, and kinds of tensors."""

_CONVNEXT_WARPS_FROM = 384
_LEVIT_MARGIN = 256 / 224


def preprocess_from_hf(config: Mapping[str, Any], source: str, model_type: str = "") -> Preprocess:
    """Return what Hugging Face's Pillow processor does with ``preprocessor_config.json``.

    Keys that are left out mean what the processor's class takes them for. A file without a class means the class of
    ``model_type``; without that every key must be there.

    Args:
        config: The file's content; of timm's wrapper the ``pretrained_cfg`` in it counts.
        source: What errors call the file.
        model_type: Of the ``config.json`` beside it, empty where there is none.
    Raises:
        DataError: The class is none of an image classifier's, a key is missing or not known, or asks for something
            that a ``Preprocess`` cannot say (padding, varying sizes); the line names it.
    """
    if isinstance(config.get("pretrained_cfg"), Mapping):
        return preprocess_from_timm_config(config["pretrained_cfg"], source)
    processor, title = _processor_of(config, source, model_type)
    stated = {key: value for key, value in config.items() if value is not None}
    _refuse_unknown(stated, processor, title, source)
    merged = {**processor.defaults, **stated}
    if merged.get("data_format") not in (None, "channels_first", "FIRST"):
        raise DataError(f"{source}: data_format {merged['data_format']!r} is not supported, expected 'channels_first'")
    values = {**_geometry(merged, processor, source), **_numbers(merged, processor.steps, source), "source": source}
    record = make_record({"crop_offset": "floor", **values}, source)
    _refuse_padding(merged, record, source)
    return record


def _processor_of(config: Mapping[str, Any], source: str, model_type: str) -> tuple[_Processor, str]:
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    family = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", kind) or _OF_MODEL_TYPE.get(model_type, "")
    if family in _PROCESSORS:
        return _PROCESSORS[family], f"{family}ImageProcessor"
    if kind:
        raise DataError(
            f"{source}: what {kind!r} does is not known, expected the processor of an image classifier "
            f"({', '.join(_PROCESSORS)}): write a Preprocess as a JSON file"
        )
    return _Processor({}), "a processor without a class"


def _refuse_unknown(stated: Mapping[str, Any], processor: _Processor, title: str, source: str) -> None:
    for key in sorted(stated.keys() - _COMMON - _WITHOUT_EFFECT - processor.own):
        if stated[key] is not False:
            raise DataError(
                f"{source}: {title} has no {key!r}, so what {stated[key]!r} means is not known: remove the key, or "
                f"write a Preprocess as a JSON file"
            )


def _refuse_padding(config: Mapping[str, Any], record: Preprocess, source: str) -> None:
    """Accept padding only where it says that it adds nothing."""
    wanted = config.get("pad_size")
    if config.get("do_pad") and (wanted is None or _size(wanted, "pad_size", source) != record.size):
        raise DataError(
            f"{source}: do_pad asks for padding, which a Preprocess cannot say; give a JSON file of your own"
        )


def _numbers(config: Mapping[str, Any], steps: _Steps, source: str) -> dict[str, Any]:
    """Return channels, scale, offset, mean, std and channel order."""
    rescaled = config.get("do_rescale", True)
    values: dict[str, Any] = {"scale": float(config.get("rescale_factor", 1 / 255)) if rescaled else 1.0}
    if steps == "mobilevit":
        if config.get("do_normalize"):
            raise DataError(f"{source}: MobileViTImageProcessor never normalizes, so do_normalize has no meaning")
        order = "bgr" if config["do_flip_channel_order"] else "rgb"
        return {**values, "channels": 3, "mean": (0.0,) * 3, "std": (1.0,) * 3, "channel_order": order}
    normalized = config.get("do_normalize", True)
    mean = _channels(config, "image_mean", source) if normalized else (0.0, 0.0, 0.0)
    std = _channels(config, "image_std", source) if normalized else (1.0,) * len(mean)
    if steps == "efficientnet":
        if config.get("rescale_offset") and rescaled:
            values["offset"] = -1.0
        if config["include_top"]:  # divides by std once more
            std = tuple(a * b for a, b in zip(std, _channels(config, "image_std", source), strict=True))
    return {**values, "channels": len(mean), "mean": mean, "std": std}


def _channels(config: Mapping[str, Any], key: str, source: str) -> tuple[float, ...]:
    value = _needed(config, key, source)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (float(value),) * 3
    if isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value) and len(value) in (1, 3):
        return tuple(float(v) for v in value)
    raise DataError(f"{source}: {key} is {value!r}, expected a number for each channel")


def _geometry(config: Mapping[str, Any], processor: _Processor, source: str) -> dict[str, Any]:
    """Return size, resizing and cropping."""
    crop = None
    if config.get("do_center_crop") and processor.steps != "uncropped":
        crop = _size(_needed(config, "crop_size", source), "crop_size", source)
    if not config.get("do_resize", True):
        if crop is None:
            raise DataError(f"{source}: do_resize is false and nothing is cropped, so the input size is not known")
        return {"size": crop, "resize": "none", "crop": "center"}
    code = _needed(config, "resample", source)
    if code not in _RESAMPLE or isinstance(code, bool):
        raise DataError(f"{source}: resample {code!r} is none of Pillow's filters {_RESAMPLE}")
    square = config.get("default_to_square", processor.square)
    size = _sides(_needed(config, "size", source), square, source)
    return {"interpolation": _RESAMPLE[code], **_resizing(config, processor.steps, size, crop, source)}


def _resizing(
    config: Mapping[str, Any], steps: _Steps, size: int | tuple[int, int], crop: tuple[int, int] | None, source: str
) -> dict[str, Any]:
    """Return what a class does to an image of any size; ``size`` is that of the shorter side, or (height, width)."""
    if steps == "convnext":
        return _convnext(config, size, crop, source)
    if steps == "levit" and isinstance(size, int):
        size = int(_LEVIT_MARGIN * size)
    if steps == "poolformer":
        part = float(config["crop_pct"])
        if isinstance(size, int):
            size = int(size / part)
        elif size[0] == size[1]:
            size = int(size[0] / part)
        else:
            size = (int(size[0] / part), int(size[1] / part))
    if isinstance(size, int):
        if crop is None:
            raise DataError(f"{source}: shortest_edge without a crop gives inputs of varying size")
        return {"size": crop, "resize": "shortest", "resize_size": size, "crop": "center"}
    if crop is None or crop == size:
        return {"size": size, "resize": "squash", "crop": "none"}
    return {"size": crop, "resize": "squash", "resize_size": size, "crop": "center"}


def _convnext(
    config: Mapping[str, Any], size: int | tuple[int, int], crop: tuple[int, int] | None, source: str
) -> dict[str, Any]:
    """Below 384 pixels: shorter side to size / ``crop_pct`` and a crop; from there on both sides to ``size``."""
    if not isinstance(size, int):
        raise DataError(f"{source}: ConvNextImageProcessor takes size as {{'shortest_edge': …}}, not as {size!r}")
    if crop not in (None, (size, size)):
        raise DataError(f"{source}: crop_size {crop!r} crops once more after the crop to {size}, which is not offered")
    if size >= _CONVNEXT_WARPS_FROM:
        return {"size": (size, size), "resize": "squash", "crop": "none"}
    wide = int(size / float(config["crop_pct"]))
    return {"size": (size, size), "resize": "shortest", "resize_size": wide, "crop": "center"}


def _sides(size: Any, square: bool, source: str) -> int | tuple[int, int]:
    """Return the size of the shorter side, or (height, width)."""
    if isinstance(size, int) and not isinstance(size, bool) and not square:
        return size
    if isinstance(size, Mapping):
        wanted = {key: value for key, value in size.items() if value is not None}
        if wanted.keys() == {"shortest_edge"} and isinstance(wanted["shortest_edge"], int):
            return int(wanted["shortest_edge"])
        if wanted.keys() - {"height", "width"}:
            raise DataError(
                f"{source}: the size {size!r} gives inputs of varying size or is not understood, expected "
                f"height and width, or shortest_edge"
            )
        size = wanted
    return _size(size, "size", source)


def _size(size: Any, key: str, source: str) -> tuple[int, int]:
    pair: Any = size
    if isinstance(size, int) and not isinstance(size, bool):
        pair = (size, size)
    elif isinstance(size, Mapping) and {"height", "width"} == {k for k, value in size.items() if value is not None}:
        pair = (size["height"], size["width"])
    if isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(side) is int for side in pair):
        return pair[0], pair[1]
    raise DataError(f"{source}: the {key} {size!r} is not understood, expected a number, or height and width")


def _needed(config: Mapping[str, Any], key: str, source: str) -> Any:
    if config.get(key) is None:
        raise DataError(f"{source} lacks {key!r}, which its processor has no known default for")
    return config[key]
