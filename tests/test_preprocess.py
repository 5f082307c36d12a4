from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from vitdeploy.errors import ArtifactError, DataError
from vitdeploy.preprocess import (
    DIGITS_PREPROCESS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    normalize,
    open_image,
    preprocess_from,
    preprocess_from_timm_config,
    to_pixels,
)
from vitdeploy.records import Preprocess

SHORTEST = Preprocess(size=(224, 224), resize_size=248, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def theirs(image: Image.Image, *steps) -> np.ndarray:
    from torchvision.transforms import Compose

    return np.asarray(Compose(steps)(image))


@settings(deadline=None, max_examples=40)
@given(st.integers(20, 90), st.integers(20, 90), st.integers(20, 40), st.integers(1, 40), st.sampled_from(range(4)))
def test_resize_and_crop_equal_torchvision_byte_for_byte(width, height, resize, crop, which):
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


def test_squash_equals_torchvision_with_and_without_a_crop():
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    image = noise(61, 40)
    squash = Preprocess(size=(24, 32), resize="squash", crop="none", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert np.array_equal(to_pixels(image, squash), theirs(image, Resize((24, 32), InterpolationMode.BICUBIC)))
    cropped = Preprocess(size=(24, 24), resize="squash", resize_size=30, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    expected = theirs(image, Resize((30, 30), InterpolationMode.BICUBIC), CenterCrop(24))
    assert np.array_equal(to_pixels(image, cropped), expected)


def test_a_record_that_cannot_be_carried_out_cannot_be_made():
    for resize in ("squash", "shortest"):
        with pytest.raises(ValidationError, match=r"resize_size 20 must be at least the input size 24"):
            Preprocess(size=(24, 24), resize=resize, resize_size=20, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.mark.parametrize(("width", "height"), [(300, 231), (231, 300), (248, 248), (500, 100)])
def test_the_whole_way_equals_timms_evaluation_transform(width, height):
    from timm.data import create_transform

    image = noise(width, height)
    transform = create_transform(
        (3, 224, 224), interpolation="bicubic", crop_pct=0.9, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    ours = normalize(to_pixels(image, SHORTEST)[None], SHORTEST)[0]
    assert np.array_equal(ours, transform(image).numpy())


def test_normalize_is_the_formula_for_every_byte_and_channel():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    spec = SHORTEST.model_copy(update={"size": (16, 16)})
    output = normalize(pixels, spec)
    assert (output.shape, output.dtype) == ((1, 3, 16, 16), np.float32)
    for channel in range(3):
        expected = (np.arange(256) / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        assert np.abs(output[0, channel].ravel() - expected).max() < 1e-6


def test_normalize_refuses_another_layout():
    with pytest.raises(DataError, match=r"pixels of shape \(1, 3, 8, 8\) were given, expected \[n, H, W, 3\]"):
        normalize(np.zeros((1, 3, 8, 8), np.uint8), SHORTEST)


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def test_greyscale_palette_and_transparent_files_become_rgb():
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


def test_sixteen_bit_greyscale_is_scaled_not_clipped():
    values = np.array([[0, 128, 257, 32896, 65535]], np.uint16)
    for form in ("PNG", "TIFF"):
        image = open_image(encoded(Image.fromarray(values), form))
        assert np.asarray(image).tolist() == [[0, 0, 1, 128, 255]]


def test_one_bit_and_cmyk_files_are_read():
    bits = Image.fromarray((GREY > 100).astype(np.uint8) * 255).convert("1")
    assert np.array_equal(np.asarray(open_image(encoded(bits, "PNG"))), (GREY > 100) * 255)
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixel = open_image(encoded(cmyk, "JPEG", quality=100)).getpixel((8, 8))
    assert pixel[0] > 240
    assert max(pixel[1:]) < 15


@pytest.mark.parametrize(("orientation", "turned"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation_is_undone(orientation, turned):
    upright = noise(12, 7)
    stored = Image.fromarray(np.rot90(np.asarray(upright), -turned).copy())
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(open_image(encoded(stored, "PNG", exif=exif))), np.asarray(upright))


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(data))[0, 0].max() == 10


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_a_truncated_file_is_refused_by_name_wherever_it_is_cut(form):
    whole = encoded(noise(32, 32), form)
    for part in (0.0, 0.1, 0.5, 0.9):
        with pytest.raises(DataError, match=r"'cat\.jpg'.*remove or replace it") as caught:
            open_image(whole[: int(len(whole) * part)], "cat.jpg")
        assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF"]), st.binary(max_size=40), st.integers(0, 2000))
def test_damage_gives_an_image_or_one_line_never_another_exception(form, damage, place):
    data = bytearray(encoded(noise(16, 16), form))
    data[place : place + len(damage)] = damage
    refusal = None
    try:
        assert open_image(bytes(data), "x").mode in {"L", "RGB"}
    except DataError as error:
        refusal = str(error)
    assert refusal is None or ("'x'" in refusal and "\n" not in refusal)


def test_files_that_are_no_images_are_refused_by_name(tmp_path):
    text = tmp_path / "cat.jpg"
    text.write_text("not an image")
    with pytest.raises(DataError, match=r"'.*cat\.jpg' is not an image that can be read"):
        open_image(text)
    with pytest.raises(DataError, match=r"there is no image '.*dog\.jpg'"):
        open_image(tmp_path / "dog.jpg")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"image '.*folder\.png' cannot be read: Is a directory"):
        open_image(tmp_path / "folder.png")
    floats = encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(DataError, match=r"'f\.tif' has floating-point pixels, expected 8 or 16 bits"):
        open_image(floats, "f.tif")


def test_an_image_of_another_size_is_refused_where_nothing_resizes_it():
    with pytest.raises(DataError, match=r"an image of 9×8 pixels does not fit the input of 8×8"):
        to_pixels(noise(9, 8), DIGITS_PREPROCESS)
    crop = DIGITS_PREPROCESS.model_copy(update={"crop": "center"})
    with pytest.raises(DataError, match=r"an image of 9×7 pixels is smaller than the crop 8×8"):
        to_pixels(noise(9, 7), crop)


def test_a_record_in_a_json_file_is_taken_as_it_is(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(SHORTEST.model_dump(mode="json")))
    assert preprocess_from(str(file)) == SHORTEST
    assert preprocess_from("digits") == DIGITS_PREPROCESS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", r"holds no JSON object, expected a Preprocess record or a preprocessor_config\.json"),
        ("{", r"is not JSON"),
        ('{"sise": [8, 8]}', r"has the unknown key 'sise', expected channels, crop"),
        ('{"size": [8, 8], "mean": [0.5], "std": [0.5]}', r"is not a valid Preprocess: mean .*need 3 entries"),
        ('{"do_normalize": true, "image_mean": [0, 0, 0]}', r"lacks 'image_std', which its processor has no known"),
        ('{"image_processor_type": "ViTImageProcessor", "do_pad": true}', r"do_pad asks for padding"),
        ('{"image_processor_type": "ViTImageProcessor", "rescale_factor": 1.0}', r"rescale_factor 1\.0 is not 1/255"),
        ('{"image_processor_type": "ViTImageProcessor", "resample": 5}', r"resample 5 is none of"),
        ('{"image_processor_type": "ViTImageProcessor", "size": "big"}', r"the size 'big' is not understood"),
        ('{"image_processor_type": "CLIPImageProcessor", "do_center_crop": false}', r"gives inputs of varying size"),
    ],
)
def test_a_file_that_says_no_preprocessing_is_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "p.json"
    file.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        preprocess_from(str(file))
    assert "\n" not in str(caught.value)


def test_missing_sources_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"there is no file '.*x\.json'"):
        preprocess_from(str(tmp_path / "x.json"))
    with pytest.raises(DataError, match=r"there is no folder 'someone/vit' with a preprocessor_config\.json"):
        preprocess_from("hf:someone/vit")
    with pytest.raises(DataError, match=r"timm has no model 'vit_smal_patch16_224'"):
        preprocess_from("timm:vit_smal_patch16_224")
    with pytest.raises(DataError, match=r"timm knows no configuration 'vit_small_patch16_224\.nope'"):
        preprocess_from("timm:vit_small_patch16_224.nope")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ViT", {}),
        ("ViT", {"size": 48, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}),
        ("DeiT", {"size": {"height": 52, "width": 52}, "crop_size": {"height": 46, "width": 46}}),
        ("CLIP", {"size": {"shortest_edge": 40}, "crop_size": 40}),
        ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
        ("ConvNext", {"size": {"shortest_edge": 384}}),
        ("Beit", {"do_center_crop": True, "size": 60, "crop_size": 48}),
        ("Pvt", {}),
    ],
)
def test_hugging_face_processors_are_reproduced(tmp_path, name, options):
    import transformers

    processor = getattr(transformers, f"{name}ImageProcessorPil")(**options)
    config = {"image_processor_type": f"{name}ImageProcessor", **options}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    spec = preprocess_from(f"hf:{tmp_path}")
    assert preprocess_from(str(tmp_path)) == spec
    # 2·k pixels more than the crop on each axis: their crop and torchvision's agree on even margins.
    image = noise(96, 96)
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"])[0]
    assert np.abs(normalize(to_pixels(image, spec)[None], spec)[0] - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_small_patch16_224", {"size": (224, 224), "resize": "shortest", "resize_size": 248, "mean": (0.5,) * 3}),
        ("swin_base_patch4_window7_224", {"resize_size": 248, "mean": IMAGENET_MEAN}),
        ("deit3_base_patch16_384", {"size": (384, 384), "resize_size": 384, "crop": "center"}),
    ],
)
def test_timms_configuration_becomes_a_record(name, expected):
    spec = preprocess_from(f"timm:{name}")
    assert {key: getattr(spec, key) for key in expected} == expected
    assert spec.source == f"timm:{name}"


@pytest.mark.parametrize(
    "options",
    [{"crop_pct": 0.875, "crop_mode": "squash"}, {"crop_pct": 1.0, "crop_mode": "squash"}, {"crop_pct": 0.95}],
)
def test_timms_crop_modes_are_reproduced(options):
    from timm.data import create_transform

    config = {"input_size": (3, 48, 48), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.2,) * 3, **options}
    spec = preprocess_from_timm_config(config, "test")
    image = noise(100, 70)
    assert np.array_equal(normalize(to_pixels(image, spec)[None], spec)[0], create_transform(**config)(image).numpy())


def test_what_timm_does_and_a_record_cannot_say_is_refused():
    with pytest.raises(DataError, match=r"crop mode 'border' at 224×224 is not one that a Preprocess can say"):
        preprocess_from_timm_config({"input_size": (3, 224, 224), "crop_mode": "border"}, "timm:x")
    with pytest.raises(DataError, match=r"crop mode 'center' at 224×448"):
        preprocess_from_timm_config({"input_size": (3, 224, 448)}, "timm:x")
