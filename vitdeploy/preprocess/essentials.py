"""PNG and JPEG files without what their pixels do not follow from: comments, profiles, thumbnails, times.

Pillow refuses a whole file for a part of it that no pixel depends on: a text of more than a megabyte, as Photoshop's
XMP and the workflows of image generators are, a profile of another kind, a checksum of a comment.
"""

from __future__ import annotations

import io
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from typing import BinaryIO, TypeAlias

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"
LARGEST_TEXT = 16 << 20
"""Bytes of a text that may state the orientation; what comes after them is left out."""

Part: TypeAlias = "bytes | tuple[int, int]"
"""Bytes, or where in the file they are: offset and length."""

_XMP = b"XML:com.adobe.xmp"
_EXIF_AS_TEXT = b"Raw profile type exif"
_SHORTEST = {0xE0: 14, 0xEE: 12}
"""Marker of JFIF and of Adobe, which say how colours are coded → bytes, with fewer of which it says nothing."""
_START_OF_SCAN = 0xDA


def essential_parts(stream: BinaryIO) -> BinaryIO | None:
    """Return a PNG or JPEG file without what no pixel follows from, None for any other file.

    What remains: the image, its palette, how its colours are coded, and what may state its orientation. Transparency
    goes, as ``open_image`` drops it; of an animation the first frame stays. Nothing is repaired: the checksums of what
    remains are the file's own. The stream is read as the result is read, and must stay open.

    Source: PNG (third edition), sections 5 and 11; ITU-T T.81, B.1.
    """
    stream.seek(0)
    head = stream.read(len(PNG_SIGNATURE))
    if head == PNG_SIGNATURE:
        return io.BufferedReader(_Spliced(stream, [head, *_of_png(stream)]))
    if head.startswith(JPEG_SIGNATURE):
        return io.BufferedReader(_Spliced(stream, [JPEG_SIGNATURE, *_of_jpeg(stream)]))
    return None


def _of_png(stream: BinaryIO) -> Iterator[Part]:
    """Yield the critical chunks as they are, and those that may state the orientation made anew."""
    at, seen = len(PNG_SIGNATURE), set[bytes]()
    while True:
        stream.seek(at)
        header = stream.read(8)
        if len(header) < 8 or not header[4:].isalpha():
            yield at, _size(stream) - at  # no chunk: Pillow says what is wrong
            return
        length, kind = struct.unpack(">I4s", header)
        if kind[:1].isupper():
            yield at, 12 + length
        elif kind in {b"eXIf", b"tEXt", b"zTXt", b"iTXt"} and kind not in seen:
            name, data = _orientation(kind, stream.read(min(length, LARGEST_TEXT)))
            if data:
                seen.add(kind)
                yield struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        if kind == b"IEND":
            return
        at += 12 + length


def _orientation(kind: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Return a chunk that may state the orientation, uncompressed: its kind and data, b"" where it does not."""
    if kind == b"eXIf":
        return kind, data
    keyword, _, rest = data.partition(b"\0")
    if keyword not in {_XMP, _EXIF_AS_TEXT}:
        return kind, b""
    try:
        if kind == b"zTXt":
            return b"tEXt", keyword + b"\0" + _text(rest[1:])
        if kind == b"iTXt":
            language, translated, text = rest[2:].split(b"\0", 2)
            return kind, b"\0".join((keyword, b"\0\0" + language, translated, _text(text) if rest[0] else text))
    except (ValueError, IndexError, zlib.error):
        return kind, b""
    return kind, data


def _text(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, LARGEST_TEXT)


def _of_jpeg(stream: BinaryIO) -> Iterator[Part]:
    """Yield the segments up to the first scan, without those of applications and comments, and then all the rest."""
    at = len(JPEG_SIGNATURE)
    while True:
        stream.seek(at)
        header = stream.read(4)
        if len(header) < 4 or header[0] != 0xFF or header[1] in {0xFF, _START_OF_SCAN}:
            yield at, _size(stream) - at
            return
        marker, length = header[1], struct.unpack(">H", header[2:])[0]
        is_exif = marker == 0xE1
        is_coding = marker in _SHORTEST and length - 2 >= _SHORTEST[marker]
        if is_exif or is_coding or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            yield at, 2 + length
        at += 2 + length


def _size(stream: BinaryIO) -> int:
    return stream.seek(0, io.SEEK_END)


class _Spliced(io.RawIOBase):
    """Parts of a stream, and bytes between them, as one stream."""

    def __init__(self, stream: BinaryIO, parts: list[Part]) -> None:
        self._stream, self._at = stream, 0
        self._parts: list[tuple[int, int, Part]] = []  # begin, end, part; neighbours in the file are one
        end = 0
        for part in parts:
            length = len(part) if isinstance(part, bytes) else part[1]
            if length <= 0:
                continue
            last = self._parts[-1] if self._parts else None
            if last and isinstance(part, tuple) and isinstance(last[2], tuple) and sum(last[2]) == part[0]:
                self._parts[-1] = (last[0], end + length, (last[2][0], last[2][1] + length))
            else:
                self._parts.append((end, end + length, part))
            end += length
        self._end = end

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence])
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        index = bisect_right(self._parts, self._at, key=lambda part: part[0]) - 1
        if index < 0 or self._at >= self._parts[index][1]:
            return 0
        begin, end, part = self._parts[index]
        skipped, wanted = self._at - begin, min(len(buffer), end - self._at)
        if isinstance(part, bytes):
            data = part[skipped : skipped + wanted]
        else:
            self._stream.seek(part[0] + skipped)
            data = self._stream.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
