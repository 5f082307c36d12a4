from __future__ import annotations

import io
import struct
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from vitdeploy.errors import DataError
from vitdeploy.preprocess import images, open_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
LARGE = b"x" * (PngImagePlugin.MAX_TEXT_CHUNK * 3)
TURNED = b'<x:xmpmeta tiff:Orientation="6"/>'
JUNK_EXIF = b"neither byte order"


def encoded(form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def png(*chunks: bytes, at: int = 33) -> bytes:
    """A PNG with further chunks, after its header or before its last chunk (-12)."""
    data = encoded("PNG")
    return data[:at] + b"".join(chunks) + data[at:]


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    data = encoded("JPEG", quality=95)
    further = b"".join(bytes((0xFF, marker)) + struct.pack(">H", len(text) + 2) + text for marker, text in segments)
    return data[:2] + further + data[2:]


def webp(name: bytes, content: bytes) -> bytes:
    data = encoded("WEBP", lossless=True, exif=Image.Exif().tobytes() + b"\0\0", xmp=b"<x/>")
    at, parts = 12, []
    while at < len(data):
        (length,) = struct.unpack("<I", data[at + 4 : at + 8])
        kind, own = data[at : at + 4], data[at + 8 : at + 8 + length]
        own = content if kind == name else own
        parts.append(kind + struct.pack("<I", len(own)) + own + b"\0" * (len(own) % 2))
        at += 8 + length + length % 2
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "data",
    {
        "a compressed text": png(chunk(b"zTXt", b"prompt\0\0" + zlib.compress(LARGE))),
        "a compressed international text": png(chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LARGE))),
        "a text behind the pixels": png(chunk(b"zTXt", b"prompt\0\0" + zlib.compress(LARGE)), at=-12),
        "many texts": png(*[chunk(b"zTXt", b"prompt\0\0" + zlib.compress(LARGE[:1_000_000]))] * 70),
        "a large profile": png(chunk(b"iCCP", b"CMYK\0\0" + zlib.compress(LARGE))),
        "a profile of unknown compression": png(chunk(b"iCCP", b"sRGB\0\1")),
        "an empty profile": png(chunk(b"iCCP", b"")),
        "a short gamma": png(chunk(b"gAMA", b"\0")),
        "short transparency": png(chunk(b"tRNS", b"\0")),
        "a short animation": png(chunk(b"acTL", b"\0")),
        "a comment's checksum": png(chunk(b"tEXt", b"Comment\0x", crc=1)),
        "a private chunk's checksum": png(chunk(b"prVt", b"x", crc=1)),
        "EXIF of no byte order": png(chunk(b"eXIf", JUNK_EXIF)),
        "EXIF as text": png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzz\n")),
        "WebP with EXIF of no byte order": webp(b"EXIF", JUNK_EXIF),
        "WebP with a large text": webp(b"XMP ", LARGE),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_no_pixel_follows_from_refuses_no_image(data: tuple[str, bytes]) -> None:
    assert np.array_equal(np.asarray(open_image(data[1])), PIXELS)


@pytest.mark.parametrize(
    ("marker", "text"),
    [
        (0xE0, b"JFIF\0"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xEE, b"Adobe\0"),
        (0xE1, b"Exif\0\0" + JUNK_EXIF),
        (0xE2, b"MPF\0MM"),
    ],
)
def test_a_broken_segment_of_a_jpeg_changes_no_pixel(marker: int, text: bytes) -> None:
    assert np.array_equal(np.asarray(open_image(jpeg((marker, text)))), np.asarray(open_image(jpeg())))


def test_how_colours_are_coded_is_kept_beside_a_broken_segment() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red; inverted in the file, as its Adobe segment says
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=100)
    data = buffer.getvalue()
    broken = b"\xff\xe2" + struct.pack(">H", 14) + b"ICC_PROFILE\0"
    pixel = open_image(data[:2] + broken + data[2:]).getpixel((8, 8))
    assert pixel == open_image(data).getpixel((8, 8))
    assert pixel[0] > 240


@pytest.mark.parametrize(
    "stated",
    [
        chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(TURNED + LARGE)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURNED),
    ],
    ids=["EXIF", "large XMP", "XMP"],
)
def test_the_orientation_is_read_where_something_else_is_too_large(stated: bytes) -> None:
    data = png(stated, chunk(b"zTXt", b"prompt\0\0" + zlib.compress(LARGE)))
    assert np.array_equal(np.asarray(open_image(data)), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"PLTE"])
def test_what_pixels_follow_from_is_not_passed_over(kind: bytes) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[..., 0]).convert("P").save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[data.index(kind) + 6] ^= 0xFF
    with pytest.raises(DataError, match="remove or replace it"):
        open_image(bytes(data))


def test_a_chunk_of_a_gigabyte_is_not_held(tmp_path: Path) -> None:
    path, data, length = tmp_path / "a.png", encoded("PNG"), 1 << 30
    with path.open("wb") as file:  # a file with a hole
        file.write(data[:33] + struct.pack(">I", length) + b"prVt")
        file.seek(length + 4, io.SEEK_CUR)
        file.write(data[33:])
    tracemalloc.start()
    try:
        assert np.array_equal(np.asarray(open_image(path)), PIXELS)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_large_file_has_the_pixels_of_a_small_one() -> None:
    palette = Image.fromarray(PIXELS).quantize(16)
    for image, options in ((palette, {"transparency": 3}), (Image.fromarray(PIXELS).convert("RGBA"), {})):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)
        small = buffer.getvalue()
        large = small[:33] + chunk(b"prVt", bytes(17 << 20)) + small[33:]
        assert np.array_equal(np.asarray(open_image(large)), np.asarray(open_image(small)))


def test_threads_that_decode_leave_limits_and_warnings_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins while the first decodes, and ends after it."""
    limits = PngImagePlugin.MAX_TEXT_CHUNK, ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    before, both_inside, first_ended = list(warnings.filters), threading.Barrier(2, timeout=30), threading.Event()
    decoded = images._decoded

    def in_turn(stream: Any, name: str) -> Image.Image:
        both_inside.wait()
        if name == "second":
            first_ended.wait(30)
        return decoded(stream, name)

    def first() -> None:
        open_image(png(), "first")
        first_ended.set()

    monkeypatch.setattr(images, "_decoded", in_turn)
    threads = [threading.Thread(target=first), threading.Thread(target=open_image, args=(png(), "second"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert first_ended.is_set()
    assert warnings.filters == before
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)


def test_warnings_of_pillow_alone_are_not_shown() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with images._QUIET:
            warnings.warn_explicit("odd", UserWarning, "Image.py", 1, module="PIL.Image")
            warnings.warn_explicit("ours", UserWarning, "x.py", 1, module="vitdeploy.datasets.folder")
    assert [str(one.message) for one in shown] == ["ours"]
