"""From an image file to a network input, with Pillow and NumPy alone: the same code trains, calibrates and runs.

Resizing and cropping give, byte for byte, what torchvision's ``Resize`` and ``CenterCrop`` give on a Pillow image (and
so timm's evaluation transform); ``normalize`` gives the float32 values of ``ToTensor`` and ``Normalize``.
"""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import ValidationError

from vitdeploy.artifacts import read_bytes
from vitdeploy.errors import DataError
from vitdeploy.records import Interpolation, Preprocess

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

DIGITS_PREPROCESS = Preprocess(
    size=(8, 8),
    channels=1,
    resize="none",
    crop="none",
    interpolation="bilinear",
    mean=(0.30603,),
    std=(0.376196,),
    source="digits: mean and standard deviation of the training split",
)

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_SIXTEEN_BIT = {"I", "I;16", "I;16L", "I;16B", "I;16N"}


def open_image(source: Path | bytes, name: str = "") -> Image.Image:
    """Decode an image file completely and return it upright, as mode ``L`` or ``RGB``.

    The EXIF orientation is applied. 16-bit greyscale is scaled to 0…255 (Pillow's own conversion would clip it).
    Transparency is dropped without blending, as torchvision and timm do, so that accuracies compare. Of an animation
    the first frame is taken.

    Args:
        source: A file, or the bytes of one.
        name: What an error calls the image; the path where empty.
    Raises:
        DataError: There is no such file, it is not an image, or it is truncated or otherwise damaged.
    """
    name = name or (str(source) if isinstance(source, Path) else "image")
    try:
        # Pillow warns of oddities in EXIF data and of very large images; neither changes the pixels.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
                plain = _as_grey_or_rgb(upright, name)
                plain.info.clear()  # a transparent colour left in here would steer later conversions
                return plain
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"there is no image {name!r}") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name!r} is not an image that can be read (another format, or damaged): remove or replace it"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"image {name!r} is too large to be decoded safely: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise DataError(f"image {name!r} cannot be read: {error.strerror}") from error
        raise DataError(_damaged(name, error)) from error
    except Exception as error:  # decoders answer damaged files with SyntaxError, ValueError, struct.error and more
        raise DataError(_damaged(name, error)) from error


def _damaged(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"image {name!r} is truncated or damaged ({reason}): remove or replace it"


def _as_grey_or_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in {"L", "RGB"}:
        return image.copy()
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"image {name!r} has integer pixels outside 0…65535, expected 8 or 16 bits per channel")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise DataError(f"image {name!r} has floating-point pixels, expected 8 or 16 bits per channel")
    if image.mode in {"1", "LA"}:
        return image.convert("L")
    if image.mode in {"P", "PA"}:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def to_pixels(image: Image.Image, spec: Preprocess) -> NDArray[np.uint8]:
    """Return the image resized and cropped as ``spec`` says, [H, W, C] in 0…255.

    ``shortest``: shorter side r = ``resize_size``, longer side int(r · long / short). Centre crop: offset
    round((side - crop) / 2), half to even. Both are torchvision's rules.

    Raises:
        DataError: ``resize`` is ``none`` and the image has another size than ``size``.
    """
    image = image.convert("L" if spec.channels == 1 else "RGB")
    height, width = spec.size
    if spec.resize == "shortest":
        image = _resized(image, _shortest(image.size, spec.resize_size or max(spec.size)), spec)
    elif spec.resize == "squash":
        side = spec.resize_size
        image = _resized(image, (width, height) if side is None else (side, side), spec)
    if spec.crop == "center" and image.size != (width, height):
        image = _center_crop(image, height, width)
    if image.size != (width, height):
        raise DataError(
            f"an image of {image.width}×{image.height} pixels does not fit the input of {width}×{height}, and the "
            f"preprocessing neither resizes nor crops it: resize the image, or give a Preprocess that does"
        )
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels.reshape(height, width, spec.channels)


def _shortest(size: tuple[int, int], short: int) -> tuple[int, int]:
    width, height = size
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _resized(image: Image.Image, size: tuple[int, int], spec: Preprocess) -> Image.Image:
    return image if image.size == size else image.resize(size, _RESAMPLING[spec.interpolation])


def _center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.width < width or image.height < height:
        raise DataError(f"an image of {image.width}×{image.height} pixels is smaller than the crop {width}×{height}")
    top = round((image.height - height) / 2.0)
    left = round((image.width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))


def normalize(pixels: NDArray[np.uint8], spec: Preprocess) -> NDArray[np.float32]:
    """Return (pixels / 255 - mean) / std, [n, H, W, C] uint8 → [n, C, H, W] float32, owned by the caller.

    A byte has 256 values, so each channel is one table look-up; the table is computed in float32 in the order of
    torchvision's ``ToTensor`` and ``Normalize`` and therefore has their bits.
    """
    if pixels.ndim != 4 or pixels.shape[3] != spec.channels:
        raise DataError(f"pixels of shape {pixels.shape} were given, expected [n, H, W, {spec.channels}]")
    count, height, width, channels = pixels.shape
    unit = np.arange(256, dtype=np.float32) / np.float32(255)
    output = np.empty((count, channels, height, width), np.float32)
    for channel in range(channels):
        table = (unit - np.float32(spec.mean[channel])) / np.float32(spec.std[channel])
        np.take(table, pixels[..., channel], out=output[:, channel], mode="clip")
    return output


_FIELDS = frozenset(Preprocess.model_fields)
_PIL_INTERPOLATION: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_HALF = (0.5, 0.5, 0.5)
# What a processor's class of Hugging Face takes for keys that preprocessor_config.json leaves out.
_HF_HALF: dict[str, Any] = {"resample": 3, "image_mean": _HALF, "image_std": _HALF}
_HF_CLIP: dict[str, Any] = {
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "resample": 3,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_HF_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {**_HF_HALF, "size": 224, "resample": 2},
    "DeiT": {**_HF_HALF, "size": 256, "crop_size": 224},
    "Beit": {**_HF_HALF, "size": 224, "crop_size": 224, "do_center_crop": False},
    "Pvt": {"size": 224, "resample": 3, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    "ConvNext": {**_HF_HALF, "size": {"shortest_edge": 384}, "crop_pct": 224 / 256},
    "Bit": _HF_CLIP,
    "CLIP": _HF_CLIP,
}


def preprocess_from(source: str) -> Preprocess:
    """Return the preprocessing that ``source`` names, to adopt a graph that carries none.

    Args:
        source: ``digits``; ``timm:NAME`` (timm's configuration of that model); ``hf:DIR`` (a folder with Hugging Face's
            ``preprocessor_config.json``); or a JSON file, in that form or a ``Preprocess`` record.
    Raises:
        DataError: The source says nothing that this package can carry out exactly; the message names the key.
        ArtifactError: The file cannot be read.
    """
    if source == "digits":
        return DIGITS_PREPROCESS
    if source.startswith("timm:"):
        return _preprocess_from_timm(source)
    path = Path(source.removeprefix("hf:"))
    if source.startswith("hf:") or path.is_dir():
        if not path.is_dir():
            raise DataError(
                f"there is no folder {str(path)!r} with a preprocessor_config.json: download the model first"
            )
        path = path / "preprocessor_config.json"
    try:
        raw = json.loads(read_bytes(path))
    except ValueError as error:
        raise DataError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise DataError(
            f"{str(path)!r} holds no JSON object, expected a Preprocess record or a preprocessor_config.json"
        )
    if raw.keys() & {"image_processor_type", "feature_extractor_type", "image_mean", "do_normalize"}:
        return preprocess_from_hf(raw, source=f"{path.name} of {path.resolve().parent.name!r}")
    if unknown := sorted(raw.keys() - _FIELDS):
        raise DataError(f"{str(path)!r} has the unknown key {unknown[0]!r}, expected {', '.join(sorted(_FIELDS))}")
    return _record({"source": path.name, **raw}, str(path))


def preprocess_from_hf(config: Mapping[str, Any], source: str) -> Preprocess:
    """Return what Hugging Face's image processor does with ``preprocessor_config.json``.

    Bare sizes and keys that are left out mean what the processor's class takes them for; of an unknown class every key
    must be there. A square ``size`` squashes, ``shortest_edge`` keeps the aspect ratio. ConvNext below 384 pixels
    scales to size / ``crop_pct`` and crops.

    Raises:
        DataError: A key is missing, or asks for something a ``Preprocess`` cannot say (padding, another scale).
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    family = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", kind)
    merged = {**_HF_DEFAULTS.get(family, {}), **{key: value for key, value in config.items() if value is not None}}
    if merged.get("do_pad"):
        raise DataError(
            f"{source}: do_pad asks for padding, which a Preprocess cannot say; give a JSON file of your own"
        )
    if merged.get("do_rescale", True) is not True or abs(float(merged.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-6:
        raise DataError(
            f"{source}: rescale_factor {merged.get('rescale_factor')!r} is not 1/255, which is what is carried out"
        )
    normal = merged.get("do_normalize", True)
    mean = tuple(_needed(merged, "image_mean", source)) if normal else (0.0, 0.0, 0.0)
    std = tuple(_needed(merged, "image_std", source)) if normal else (1.0, 1.0, 1.0)
    geometry = _hf_geometry(merged, family, source)
    values = {"channels": len(mean), "mean": mean, "std": std, "source": source, **geometry}
    return _record(values, source)


def _hf_geometry(config: Mapping[str, Any], family: str, source: str) -> dict[str, Any]:
    crop = _hf_size(config.get("crop_size"), source) if config.get("do_center_crop", "crop_size" in config) else None
    if not config.get("do_resize", True):
        if crop is None:
            raise DataError(f"{source}: do_resize is false and nothing is cropped, so the input size is not known")
        return {"size": crop, "resize": "none", "crop": "center"}
    code = _needed(config, "resample", source)
    if code not in _PIL_INTERPOLATION:
        raise DataError(f"{source}: resample {code!r} is none of {_PIL_INTERPOLATION}")
    common = {"interpolation": _PIL_INTERPOLATION[code]}
    size = _needed(config, "size", source)
    if isinstance(size, int) and family in {"ConvNext", "Bit", "CLIP"}:
        size = {"shortest_edge": size}
    if isinstance(size, Mapping) and "shortest_edge" in size:
        short = int(size["shortest_edge"])
        if family == "ConvNext":
            if short >= 384:
                return {"size": (short, short), "resize": "squash", "crop": "none", **common}
            wide = int(short / float(_needed(config, "crop_pct", source)))
            return {"size": (short, short), "resize": "shortest", "resize_size": wide, "crop": "center", **common}
        if crop is None:
            raise DataError(f"{source}: shortest_edge without a crop gives inputs of varying size")
        return {"size": crop, "resize": "shortest", "resize_size": short, "crop": "center", **common}
    squashed = _hf_size(size, source)
    if crop is None or crop == squashed:
        return {"size": squashed, "resize": "squash", "crop": "none", **common}
    if squashed[0] != squashed[1]:
        raise DataError(f"{source}: size {size!r} is not square and is cropped, which a Preprocess cannot say")
    return {"size": crop, "resize": "squash", "resize_size": squashed[0], "crop": "center", **common}


def _hf_size(size: Any, source: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    raise DataError(f"{source}: the size {size!r} is not understood, expected a number, or height and width")


def _needed(config: Mapping[str, Any], key: str, source: str) -> Any:
    if key not in config:
        raise DataError(f"{source} lacks {key!r}, which its processor has no known default for")
    return config[key]


def _preprocess_from_timm(source: str) -> Preprocess:
    name = source.removeprefix("timm:")
    try:
        import timm
    except ImportError as error:
        raise DataError(f"timm is not installed, which {source!r} needs: pip install 'vitdeploy[torch]'") from error
    if not timm.is_model(name.partition(".")[0]):
        raise DataError(f"timm has no model {name.partition('.')[0]!r}: 'timm.list_models()' names them")
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise DataError(f"timm knows no configuration {name!r}: {' '.join(str(error).split())}") from error
    return preprocess_from_timm_config(config.to_dict(), source)


def preprocess_from_timm_config(config: Mapping[str, Any], source: str) -> Preprocess:
    """Return what timm's evaluation transform does for a model's ``pretrained_cfg``.

    Raises:
        DataError: ``crop_mode`` is ``border``, or a centre crop is not square, which timm scales by another rule.
    """
    channels, height, width = config.get("input_size", (3, 224, 224))
    part, mode = float(config.get("crop_pct") or 0.875), config.get("crop_mode") or "center"
    values = {
        "size": (height, width),
        "channels": channels,
        "interpolation": config.get("interpolation") or "bicubic",
        "mean": tuple(config.get("mean") or IMAGENET_MEAN),
        "std": tuple(config.get("std") or IMAGENET_STD),
        "source": source,
    }
    scaled = math.floor(height / part)
    if mode == "squash" and part == 1.0:
        return _record({**values, "resize": "squash", "crop": "none"}, source)
    if mode not in {"center", "squash"} or height != width:
        raise DataError(f"{source}: crop mode {mode!r} at {height}×{width} is not one that a Preprocess can say")
    resize = "shortest" if mode == "center" else "squash"
    return _record({**values, "resize": resize, "resize_size": scaled, "crop": "center"}, source)


def _record(values: Mapping[str, Any], source: str) -> Preprocess:
    try:
        return Preprocess.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        where = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
        raise DataError(f"{source!r} is not a valid Preprocess: {where}{message}") from error
