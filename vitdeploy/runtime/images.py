"""Whatever an application has for images, one by one: files, folders, Pillow's images, arrays, and iterators."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.datasets import images_below
from vitdeploy.errors import DataError
from vitdeploy.preprocess import open_image, plain_image, to_pixels
from vitdeploy.records import Preprocess
from vitdeploy.text import name_text, one_line

ImageLike: TypeAlias = (
    "Path | str | bytes | bytearray | memoryview | BinaryIO | Mapping[str, Any] | Image.Image | NDArray[np.uint8]"
)
"""A file, by its path, its bytes, open, or as datasets of Hugging Face keep it, {"bytes": …, "path": …}; a folder (all
images in it); an image of Pillow; or an array: [H, W], [H, W, C], [N, H, W, C]."""

Images: TypeAlias = "ImageLike | Iterable[ImageLike]"


@dataclass(frozen=True)
class NamedImage:
    """One image that is not decoded yet; ``name`` is its path (``name_text``), or its number in the order given.

    ``source`` is a file, its bytes, an image of Pillow, an array, what was given in place of one, or why there is none.
    """

    name: str
    source: Any

    def pixels(self, spec: Preprocess) -> NDArray[np.uint8]:
        """Return the image decoded, resized and cropped as ``spec`` says, [H, W, C].

        Raises:
            DataError: It cannot be read, or cannot become an input.
        """
        image = self._decoded()
        try:
            return to_pixels(image, spec)
        except DataError as error:
            raise DataError(f"'{self.name}': {error}") from error

    def _decoded(self) -> Image.Image:
        if isinstance(self.source, Path | bytes):
            return open_image(self.source, self.name)
        if isinstance(self.source, np.ndarray):
            if not _is_image(self.source):
                raise DataError(
                    f"an array of {self.source.dtype} and shape {list(self.source.shape)} is no image: expected uint8, "
                    "[H, W], [H, W, C] or [N, H, W, C] with 1 or 3 channels, red first"
                )
            return Image.fromarray(self.source[..., 0] if self.source.shape[2:] == (1,) else self.source)
        if isinstance(self.source, DataError):
            raise self.source
        if not isinstance(self.source, Image.Image):
            raise DataError(_no_image(self.source))
        try:
            return plain_image(self.source, self.name)
        except DataError:
            raise
        except Exception as error:  # Pillow decodes only now, and raises whatever its decoders do
            raise DataError(f"'{self.name}' cannot be decoded ({one_line(error)})") from error


def is_single(images: Images) -> bool:
    """Return whether this is one image: a file, an image of Pillow, or an array of one."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4 and not _holds_objects(images)
    if isinstance(images, str | Path):
        return not Path(images).is_dir()
    return isinstance(images, Image.Image | bytes | bytearray | memoryview | Mapping) or hasattr(images, "read")


def each_image(images: Images) -> Iterator[NamedImage]:
    """Yield every image, in order; nothing is decoded, and of an iterator nothing is taken before it is asked for.

    What is of no kind that an image has, such as the None that a camera gives for a frame it lost, is one that cannot
    be decoded, and so is, among others, a folder that has no images or cannot be listed. An open file is read as it is
    taken, so whoever gives it may close it before the next.

    Raises:
        DataError: ``images`` are one such folder, or nothing that images come from; the line says what it is.
    """
    is_array = isinstance(images, np.ndarray) and not _holds_objects(images)
    several: Any = [images] if is_array or isinstance(images, str | Path) or is_single(images) else images
    number = 0
    try:
        ordered = iter(several)
    except TypeError as error:
        raise DataError(_no_image(several)) from error
    for item in ordered:
        one = _contents(item, f"image {number}")
        if isinstance(one, str | Path):
            path = Path(one)
            try:
                files = _files(one)
            except DataError as error:
                if item is images:
                    raise
                yield NamedImage(name_text(path), error)
                number += 1
                continue
            yield from (NamedImage(name_text(file), file) for file in files)
            number += len(files)
            continue
        for part in _images_of(one) if isinstance(one, np.ndarray) else [one]:
            yield NamedImage(f"image {number}", part)
            number += 1


def _files(item: Path | str) -> list[Path]:
    if item == "":
        raise DataError("the name of an image is empty")  # as a path it would be the working folder
    path = Path(item)
    if not path.is_dir():
        return [path]
    found = [path / name for name in images_below(path)]
    if not found:
        raise DataError(f"folder {str(path)!r} holds no images")
    return found


def _holds_objects(array: NDArray[Any]) -> bool:
    """Return whether an array has no pixels but several names, files or the like, as a column of a table has."""
    return array.ndim > 0 and array.dtype.kind in "OSU"


def _contents(item: Any, name: str) -> Any:
    """Return what is in a wrapper: a value of Arrow, a row of Hugging Face's, an open file, and whatever has bytes.

    Anything else comes back as it is; in place of an open file that cannot be read, the DataError that says why.
    """
    value = item.as_py() if hasattr(item, "as_py") else item
    if isinstance(value, Mapping) and {"bytes", "path"} >= value.keys():
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    return _read(value, name) if hasattr(value, "read") else value


def _read(file: Any, name: str) -> bytes | DataError:
    file_label = f"'{name}', an open file ({type(file).__name__}),"
    try:
        data = file.read()
    except Exception as error:  # of whatever library: closed, gone, a broken connection
        return DataError(f"{file_label} cannot be read: {one_line(error)}")
    if inspect.iscoroutine(data):
        data.close()
        return DataError(f"{file_label} is read with await: give what that returns")
    if not isinstance(data, bytes):
        return DataError(f"{file_label} gives {type(data).__name__}, expected bytes: open it in mode 'rb'")
    if not data:
        return DataError(f"{file_label} has nothing left to be read: seek(0) goes to its beginning")
    return data


def _images_of(array: NDArray[np.uint8]) -> Iterable[NDArray[np.uint8]]:
    """Return the images of a batch, [N, H, W, C]; else the array, of which reading it says whether it is an image."""
    return array if array.ndim == 4 and array.size and _is_image(array[0]) else [array]


def _is_image(array: NDArray[np.uint8]) -> bool:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3))
    return array.dtype == np.uint8 and shaped and array.size > 0


def _no_image(value: object) -> str:
    kind = type(value).__name__
    return f"{kind} is no image: expected a path, a file's bytes, an image of Pillow, an array of uint8, or several"
