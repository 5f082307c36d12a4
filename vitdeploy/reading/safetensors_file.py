"""safetensors files: header and tensors through the format's own library, its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vitdeploy.errors import ArtifactError
from vitdeploy.reading.leftovers import refuse_stand_in
from vitdeploy.reading.regular import read_head, require_regular
from vitdeploy.text import one_line, size_text

LARGEST_HEADER = 16 << 20
"""Bytes of JSON that name the tensors: ViT-22B's would be 0.2 MB."""

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor name → dtype as the format calls it (``F32``, ``BF16``), and shape."""


def is_safetensors(path: Path | str) -> bool:
    """Return whether a file begins as safetensors does, with a length and then JSON.

    Raises:
        ArtifactError: It cannot be read.
    """
    head = read_head(path, 9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < 100 << 20


def safetensors_metadata(path: Path | str) -> dict[str, str]:
    """Return the ``__metadata__`` of a safetensors file without reading its tensors.

    Raises:
        ArtifactError: It is missing, or is no whole safetensors file.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


class _Tensors(Mapping[str, NDArray[Any]]):
    """The tensors of an open file, each read when it is asked for, so that no copy of all is held."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._names = tuple(file.keys())

    def __getitem__(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = self._file.get_tensor(name)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class SafetensorsFile:
    """An open file: its metadata, and its tensors by name."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, NDArray[Any]]


@contextmanager
def open_safetensors(path: Path | str) -> Iterator[SafetensorsFile]:
    """Open a file once for metadata and tensors.

    Raises:
        ArtifactError: It is missing, is no whole safetensors file, or has a dtype that NumPy lacks.
    """
    with _opened(path) as file:
        yield SafetensorsFile(dict(file.metadata() or {}), _Tensors(file))


def safetensors_layout(path: Path | str) -> Layout:
    """Return names, dtypes and shapes without reading the tensors; the library has held them against the file's size.

    Raises:
        ArtifactError: It is missing, or is no whole safetensors file.
    """
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
        return {name: (str(one.get_dtype()), tuple(one.get_shape())) for name, one in slices.items()}


def read_tensors(path: Path | str) -> dict[str, NDArray[Any]]:
    """Return all tensors as arrays.

    Raises:
        ArtifactError: It is missing, is no whole safetensors file, or has a dtype that NumPy lacks.
    """
    from safetensors.numpy import load_file

    with _opened(path):
        return load_file(path)


@contextmanager
def _opened(path: Path | str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    require_regular(path)
    length = int.from_bytes(read_head(path, 8), "little")
    if LARGEST_HEADER < length < 100 << 20:
        raise ArtifactError(
            f"the header of {str(path)!r} has {size_text(length)}, expected at most {size_text(LARGEST_HEADER)}"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        refuse_stand_in(path)
        raise ArtifactError(f"{str(path)!r} is not a safetensors file, or is damaged: {one_line(error)}") from error
