"""Whatever an application has for images, one by one: files, folders, Pillow's images, arrays, and iterators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.datasets import images_below
from vitdeploy.errors import DataError
from vitdeploy.preprocess import open_image, plain_image, to_pixels
from vitdeploy.records import Preprocess
from vitdeploy.text import name_text, one_line

ImageLike: TypeAlias = "Path | str | bytes | Image.Image | NDArray[np.uint8]"
"""A file, its bytes, a folder (all images in it), an image of Pillow, or an array: [H, W], [H, W, C], [N, H, W, C]."""

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
        return images.ndim < 4
    return isinstance(images, Image.Image | bytes) or (isinstance(images, str | Path) and not Path(images).is_dir())


def each_image(images: Images) -> Iterator[NamedImage]:
    """Yield every image, in order; nothing is decoded, and of an iterator nothing is taken before it is asked for.

    What is of no kind that an image has, such as the None that a camera gives for a frame it lost, is one that cannot
    be decoded, and so is, among others, a folder that has no images or cannot be listed.

    Raises:
        DataError: ``images`` are one such folder, or nothing that images come from; the line says what it is.
    """
    several = [images] if isinstance(images, str | Path | bytes | Image.Image | np.ndarray) else images
    number = 0
    try:
        ordered = iter(several)
    except TypeError as error:
        raise DataError(_no_image(several)) from error
    for one in ordered:
        if isinstance(one, str | Path):
            path = Path(one)
            try:
                files = _below(path) if path.is_dir() else [path]
            except DataError as error:
                if one is images:
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


def _below(folder: Path) -> list[Path]:
    found = [folder / name for name in images_below(folder)]
    if not found:
        raise DataError(f"folder {str(folder)!r} holds no images")
    return found


def _images_of(array: NDArray[np.uint8]) -> Iterable[NDArray[np.uint8]]:
    """Return the images of a batch, [N, H, W, C]; else the array, of which reading it says whether it is an image."""
    return array if array.ndim == 4 and array.size and _is_image(array[0]) else [array]


def _is_image(array: NDArray[np.uint8]) -> bool:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3))
    return array.dtype == np.uint8 and shaped and array.size > 0


def _no_image(value: object) -> str:
    kind = type(value).__name__
    return f"{kind} is no image: expected a path, a file's bytes, an image of Pillow, an array of uint8, or several"
