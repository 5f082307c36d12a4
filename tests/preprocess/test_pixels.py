from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from vitdeploy.errors import DataError
from vitdeploy.preprocess import (
    DIGITS_PREPROCESS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    denormalized,
    normalize,
    open_image,
    to_pixels,
)
from vitdeploy.records import Preprocess

SHORTEST = Preprocess(size=(224, 224), resize_size=248, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def theirs(image: Image.Image, *steps: Any) -> np.ndarray:
    from torchvision.transforms import Compose

    return np.asarray(Compose(steps)(image))


@settings(deadline=None, max_examples=40)
@given(st.integers(20, 90), st.integers(20, 90), st.integers(20, 40), st.integers(1, 40), st.sampled_from(range(4)))
def test_resize_and_crop_equal_torchvision_byte_for_byte(
    width: int, height: int, resize: int, crop: int, which: int
) -> None:
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    name, mode = [
        ("nearest", InterpolationMode.NEAREST),
        ("bilinear", InterpolationMode.BILINEAR),
        ("bicubic", InterpolationMode.BICUBIC),
        ("lanczos", InterpolationMode.LANCZOS),
    ][which]
    crop = min(crop, resize)
    image = noise(width, height)
    spec = SHORTEST.model_copy(update={"size": (crop, crop), "resize_size": resize, "interpolation": name})
    assert np.array_equal(to_pixels(image, spec), theirs(image, Resize(resize, mode), CenterCrop(crop)))


def test_squash_equals_torchvision_with_and_without_a_crop() -> None:
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    image = noise(61, 40)
    squash = Preprocess(size=(24, 32), resize="squash", crop="none", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert np.array_equal(to_pixels(image, squash), theirs(image, Resize((24, 32), InterpolationMode.BICUBIC)))
    cropped = Preprocess(size=(24, 24), resize="squash", resize_size=30, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    expected = theirs(image, Resize((30, 30), InterpolationMode.BICUBIC), CenterCrop(24))
    assert np.array_equal(to_pixels(image, cropped), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.5,)}, "mean .* and std .* need 3 entries each"),
        ({"std": (1.0, 0.0, 1.0)}, "std .* must be positive"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "must be finite"),
        ({"scale": 0.0}, "scale 0.0 must be positive"),
        ({"resize_size": (8, 9)}, "must be one number with resize 'shortest'"),
        ({"resize_size": None}, "must be one number with resize 'shortest'"),
        ({"resize": "squash", "resize_size": 30, "crop": "none"}, r"never give the size \(24, 24\)"),
        ({"size": (10**9, 24)}, "a side of 1000000000 pixels is out of range, expected 1 to 16384"),
        ({"size": (16384, 16384)}, "is out of range, expected at most 16777216 pixels"),
        ({"resize_size": 0}, "a side of 0 pixels is out of range"),
        ({"fill": (1, 2)}, "fill .* must be 3 numbers from 0 to 255"),
        ({"channels": 1, "mean": (0.5,), "std": (0.5,), "channel_order": "bgr"}, "'bgr' needs 3 channels"),
    ],
)
def test_a_record_that_cannot_be_carried_out_cannot_be_made(changes: dict[str, Any], message: str) -> None:
    values = {"size": (24, 24), "resize": "shortest", "resize_size": 24, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    with pytest.raises(ValidationError, match=message):
        Preprocess.model_validate({**values, **changes})


def test_a_record_is_stored_without_the_steps_that_it_has_not() -> None:
    """Digests of artifacts from before a step existed stay what they were."""
    assert set(SHORTEST.model_dump(mode="json")) == {
        "size", "channels", "resize", "resize_size", "crop", "interpolation", "mean", "std", "source",
    }  # fmt: skip
    spec = SHORTEST.model_copy(update={"crop_offset": "floor", "fill": (1, 2, 3), "scale": 1.0, "offset": -1.0})
    stored = spec.model_copy(update={"channel_order": "bgr"}).model_dump(mode="json")
    assert Preprocess.model_validate(stored).model_dump(mode="json") == stored
    assert stored["channel_order"] == "bgr"
    assert stored["scale"] == 1.0


@pytest.mark.parametrize(("width", "height"), [(40, 30), (9, 30), (30, 9), (7, 7), (1, 1), (24, 25)])
def test_a_crop_larger_than_the_image_pads_as_torchvision_does(width: int, height: int) -> None:
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    image = noise(width, height)
    spec = Preprocess(size=(24, 21), resize="none", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert np.array_equal(to_pixels(image, spec), theirs(image, CenterCrop((24, 21))))
    small = SHORTEST.model_copy(update={"size": (24, 24), "resize_size": 20})
    expected = theirs(image, Resize(20, InterpolationMode.BICUBIC), CenterCrop(24))
    assert np.array_equal(to_pixels(image, small), expected)


def test_an_image_that_cannot_be_resized_is_refused_in_one_line() -> None:
    huge = SHORTEST.model_copy(update={"size": (4096, 4096), "resize_size": 4096})
    with pytest.raises(
        DataError, match=r"an image of 1×100 pixels would be resized to 4096×409600, which does not fit"
    ):
        to_pixels(noise(1, 100), huge)
    inside = SHORTEST.model_copy(update={"size": (8, 8), "resize": "contain", "resize_size": None})
    with pytest.raises(DataError, match=r"an image of 1×100 pixels would be resized to 0×8"):
        to_pixels(noise(1, 100), inside)


@pytest.mark.parametrize(("width", "height"), [(300, 231), (231, 300), (248, 248), (500, 100)])
def test_the_whole_way_equals_timms_evaluation_transform(width: int, height: int) -> None:
    from timm.data import create_transform

    image = noise(width, height)
    transform = create_transform(
        (3, 224, 224), interpolation="bicubic", crop_pct=0.9, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    ours = normalize(to_pixels(image, SHORTEST)[None], SHORTEST)[0]
    assert np.array_equal(ours, transform(image).numpy())


def test_normalize_is_the_formula_for_every_byte_and_channel() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    spec = SHORTEST.model_copy(update={"size": (16, 16)})
    output = normalize(pixels, spec)
    assert (output.shape, output.dtype) == ((1, 3, 16, 16), np.float32)
    for channel in range(3):
        expected = (np.arange(256) / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        assert np.abs(output[0, channel].ravel() - expected).max() < 1e-6


def test_scale_offset_and_channel_order_are_the_formula() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    spec = Preprocess(
        size=(3, 4), resize="none", scale=1 / 127.5, offset=-1.0, channel_order="bgr",
        mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7),
    )  # fmt: skip
    expected = ((pixels / 127.5 - 1.0 - np.array(spec.mean)) / np.array(spec.std))[..., ::-1].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(normalize(pixels, spec), expected, atol=1e-6)
    unit = (pixels / 255 - np.array(spec.unit_mean)) / np.array(spec.unit_std)
    np.testing.assert_allclose(unit[..., ::-1].transpose(0, 3, 1, 2), expected, atol=1e-9)
    colour = tuple(pixels[0, 0, 0] / 255)
    np.testing.assert_allclose(denormalized(colour, spec), expected[0, :, 0, 0], atol=1e-9)


def test_a_network_that_takes_bytes_gets_bytes() -> None:
    spec = Preprocess(size=(16, 16), resize="none", channels=1, scale=1.0, mean=(0.0,), std=(1.0,))
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(normalize(pixels, spec).ravel(), np.arange(256))


def test_normalize_refuses_another_layout() -> None:
    with pytest.raises(DataError, match=r"pixels of shape \(1, 3, 8, 8\) were given, expected \[n, H, W, 3\]"):
        normalize(np.zeros((1, 3, 8, 8), np.uint8), SHORTEST)


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def test_greyscale_palette_and_transparent_files_become_rgb() -> None:
    rgb = np.repeat(GREY[:, :, None], 3, axis=2)
    spec = Preprocess(size=(8, 8), resize="none", crop="none", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    grey = Image.fromarray(GREY)
    with_alpha = Image.fromarray(rgb).convert("RGBA")
    with_alpha.putalpha(Image.fromarray(255 - GREY))
    palette = grey.convert("P")
    palette.info["transparency"] = bytes(range(64))
    for image, form in (
        (grey, "PNG"), (grey.convert("LA"), "PNG"), (with_alpha, "PNG"), (palette, "PNG"), (grey, "GIF"),
        (Image.fromarray(rgb), "TIFF"), (Image.fromarray(rgb), "WEBP"),
    ):  # fmt: skip
        options = {"lossless": True, "exact": True} if form == "WEBP" else {}
        assert np.array_equal(to_pixels(open_image(encoded(image, form, **options)), spec), rgb), (image.mode, form)


def test_sixteen_bit_greyscale_is_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 257, 32896, 65535]], np.uint16)
    for form in ("PNG", "TIFF"):
        image = open_image(encoded(Image.fromarray(values), form))
        assert np.asarray(image).tolist() == [[0, 0, 1, 128, 255]]


def test_one_bit_and_cmyk_files_are_read() -> None:
    bits = Image.fromarray((GREY > 100).astype(np.uint8) * 255).convert("1")
    assert np.array_equal(np.asarray(open_image(encoded(bits, "PNG"))), (GREY > 100) * 255)
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixel = open_image(encoded(cmyk, "JPEG", quality=100)).getpixel((8, 8))
    assert pixel[0] > 240
    assert max(pixel[1:]) < 15


@pytest.mark.parametrize(("orientation", "turned"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation_is_undone(orientation: int, turned: int) -> None:
    upright = noise(12, 7)
    stored = Image.fromarray(np.rot90(np.asarray(upright), -turned).copy())
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(open_image(encoded(stored, "PNG", exif=exif))), np.asarray(upright))


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(data))[0, 0].max() == 10


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_a_truncated_file_is_refused_by_name_wherever_it_is_cut(form: str) -> None:
    whole = encoded(noise(32, 32), form)
    for part in (0.0, 0.1, 0.5, 0.9):
        with pytest.raises(DataError, match=r"'cat\.jpg'.*remove or replace it") as caught:
            open_image(whole[: int(len(whole) * part)], "cat.jpg")
        assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF"]), st.binary(max_size=40), st.integers(0, 2000))
def test_damage_gives_an_image_or_one_line_never_another_exception(form: str, damage: bytes, place: int) -> None:
    data = bytearray(encoded(noise(16, 16), form))
    data[place : place + len(damage)] = damage
    refusal = None
    try:
        assert open_image(bytes(data), "x").mode in {"L", "RGB"}
    except DataError as error:
        refusal = str(error)
    assert refusal is None or ("'x'" in refusal and "\n" not in refusal)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "a video of MP4 or QuickTime"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"<?xml version='1.0'?><SVG xmlns=", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"\x93NUMPY\1\0", "an array of NumPy"),
    ],
)
def test_a_file_of_another_format_is_called_that_whatever_its_name(tmp_path: Path, head: bytes, said: str) -> None:
    """A phone's photographs in HEIC go by names that end in .jpg."""
    (tmp_path / "IMG_2342.jpg").write_bytes(head + bytes(300))
    with pytest.raises(DataError, match=rf"IMG_2342\.jpg' is {said}, which is not read: convert it to JPEG or PNG"):
        open_image(tmp_path / "IMG_2342.jpg")


def test_files_that_are_no_images_are_refused_by_name(tmp_path: Path) -> None:
    text = tmp_path / "cat.jpg"
    text.write_text("not an image")
    with pytest.raises(DataError, match=r"'.*cat\.jpg' is not an image that can be read"):
        open_image(text)
    with pytest.raises(DataError, match=r"there is no image '.*dog\.jpg'"):
        open_image(tmp_path / "dog.jpg")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"'.*folder\.png' is a folder, expected a file"):
        open_image(tmp_path / "folder.png")
    floats = encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(DataError, match=r"'f\.tif' has floating-point pixels, expected 8 or 16 bits"):
        open_image(floats, "f.tif")


def test_an_image_of_another_size_is_refused_where_nothing_resizes_it() -> None:
    with pytest.raises(DataError, match=r"an image of 9×8 pixels does not fit the input of 8×8"):
        to_pixels(noise(9, 8), DIGITS_PREPROCESS)


@pytest.mark.parametrize(("supported", "said"), [(True, "or damaged"), (False, "is AVIF, which is not read")])
def test_a_torn_avif_is_called_damaged_where_pillow_reads_avif(
    monkeypatch: pytest.MonkeyPatch, supported: bool, said: str
) -> None:
    monkeypatch.setattr("PIL.features.get_supported_modules", lambda: ["avif"] if supported else [])
    with pytest.raises(DataError, match=said):
        open_image(b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00avifmif1", "a.avif")
