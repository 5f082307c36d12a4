"""Files of ``torch.save`` of every age, and plain pickles, read without torch and without running what is in them.

Three containers: a zip archive since PyTorch 1.6, a row of pickles and raw numbers before, a tar archive before 0.1.12.
"""

from __future__ import annotations

import io
import pickle
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from vitdeploy.checkpoints.pickles import (
    STORAGES,
    InertUnpickler,
    Name,
    Storage,
    StoredTensor,
    number_size,
    read_number,
)
from vitdeploy.errors import CheckpointError
from vitdeploy.reading import check_zip, open_regular

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
SHOWN_NAMES = 3
_ERRORS = (
    *(pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError),
    *(AssertionError, OverflowError, RecursionError, NotImplementedError, zlib.error),
    *(zipfile.BadZipFile, tarfile.TarError),
)


def read_torch_file(path: Path, head: bytes) -> Any:
    """Return what was saved: tables, lists and scalars, tensors as ``StoredTensor``, all else as ``Inert``.

    Args:
        path: A file of ``torch.save`` or ``pickle.dump``.
        head: Its first 512 bytes.
    Raises:
        ArtifactError: It cannot be read, or is an archive that claims to unpack to far more than weights do.
        CheckpointError: It is damaged, is a program of TorchScript or torch.export, or names what could run code.
    """
    refused: list[str] = []
    if head[:2] == b"PK":
        _refuse_programs(path, [member.filename for member in check_zip(path)])
    if head[257:262] == b"ustar":
        _refuse_other_archives(path)
    try:
        with open_regular(path) as stream:
            value = _read(stream, refused, head)
    except MemoryError as error:
        raise CheckpointError(
            f"{str(path)!r} asks for more memory than there is: it is damaged, or too large for this machine"
        ) from error
    except _ERRORS as error:
        if refused:
            raise _refusal(path, refused) from error
        raise CheckpointError(f"{str(path)!r} is a truncated or damaged PyTorch file") from error
    if refused:
        raise _refusal(path, refused)
    return value


_OTHER_NUMBERS = re.compile(
    r"torch\.(float8_\w+|q?u?int\d+x?\d*|per_\w+|Q\w+Storage|sparse_\w+|serialization\._get_layout|Float8\w*Storage"
    r"|_utils\._rebuild_(qtensor|sparse_\w*tensor))"
)
"""What torch stores tensors as that are no plain numbers: quantized, sparse, in 8-bit floating point."""


def _refusal(path: Path, names: list[str]) -> CheckpointError:
    shown = ", ".join(repr(name) for name in names[:SHOWN_NAMES])
    shown += f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    if any(name.startswith("torch.nn.modules.") for name in names):
        return CheckpointError(
            f"{str(path)!r} is a whole pickled module and holds {shown}, which is code and not weights: refused; in "
            "the code that made it, torch.save(model.state_dict(), 'weights.pth') writes the weights alone"
        )
    if all(_OTHER_NUMBERS.fullmatch(name) for name in names):
        return CheckpointError(
            f"{str(path)!r} stores tensors in a form that is not read ({shown}): in the code that made it, save them "
            "as plain numbers, with value.dequantize(), value.to_dense() or value.float() for each"
        )
    return CheckpointError(
        f"{str(path)!r} holds {shown}, which is not weights and could run code: refused; in the code that made it, "
        "torch.save(model.state_dict(), 'weights.pth') writes the weights alone"
    )


def _refuse_programs(path: Path, members: list[str]) -> None:
    """Tell archives that are programs with weights inside from archives of weights.

    Raises:
        CheckpointError: It is a program, or no archive of ``torch.save`` at all; the message has the way out.
    """
    inside = [name.partition("/")[2] for name in members]
    if any(name == "constants.pkl" or name.startswith("code/") for name in inside):
        raise CheckpointError(
            f"{str(path)!r} is a TorchScript program, whose code is not run here: "
            f"torch.save(torch.jit.load({str(path)!r}, map_location='cpu').state_dict(), 'weights.pth') in Python "
            "writes its weights, which are read"
        )
    if any(name in ("models/model.json", "serialized_exported_program.json") for name in (*inside, *members)):
        raise CheckpointError(
            f"{str(path)!r} is a program of torch.export, whose graph is not run here: "
            f"torch.save(dict(torch.export.load({str(path)!r}).state_dict), 'weights.pth') in Python writes its "
            "weights, which are read"
        )
    if "data.pkl" not in inside:
        names = ", ".join(repr(name) for name in members[:SHOWN_NAMES]) or "nothing"
        raise CheckpointError(
            f"{str(path)!r} is a zip archive with {names} in it, and no file of torch.save: unpack it and name the "
            "weights"
        )


def _refuse_other_archives(path: Path) -> None:
    with suppress(tarfile.TarError, OSError), tarfile.open(path, mode="r:") as archive:
        names = archive.getnames()
        if not {"storages", "tensors", "pickle"} <= set(names):
            shown = ", ".join(map(repr, names[:SHOWN_NAMES])) or "nothing"
            raise CheckpointError(
                f"{str(path)!r} is a tar archive with {shown} in it, and no file of torch.save: unpack it and name the "
                "weights"
            )


class _Clipped:
    """A stream for an unpickler, which never asks for more bytes than the file still has."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._size = stream, size
        self.readline = stream.readline

    def read(self, count: int = -1) -> bytes:
        left = self._size - self._stream.tell()
        return self._stream.read(left if count < 0 else min(count, left))


def _size_of(stream: IO[bytes]) -> int:
    here = stream.tell()
    size = stream.seek(0, io.SEEK_END)
    stream.seek(here)
    return size


def _unpickle(stream: IO[bytes], refused: list[str], load: Callable[[Any], Any] | None = None) -> Any:
    clipped: Any = _Clipped(stream, _size_of(stream))
    unpickler = InertUnpickler(clipped, refused)
    unpickler.nested = lambda data: _read(io.BytesIO(data), refused, data[:512])
    if load is not None:
        unpickler.persistent_load = load
    return unpickler.load()


def _read(stream: IO[bytes], refused: list[str], head: bytes) -> Any:
    if head[:2] == b"PK":
        return _read_zip(stream, refused)
    if head[257:262] == b"ustar":
        return _read_tar(stream, refused)
    first = _unpickle(stream, refused)
    return _read_legacy(stream, refused) if first == LEGACY_MAGIC else first


def _read_zip(stream: IO[bytes], refused: list[str]) -> Any:
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        for info in members.values():
            if info.CRC == 0:  # torch.serialization.set_crc32_options(False)
                info.CRC = None  # type: ignore[assignment]
        big_endian = "byteorder" in members and archive.read(members["byteorder"]) == b"big"
        storages: dict[str, Storage] = {}

        def load(place: Any) -> Storage:
            _, kind, key, _, numel = place[:5]
            if key not in storages:
                data = archive.read(members[f"data/{key}"])
                storages[key] = _storage(kind, numel, data, big_endian)
            found = storages[key]
            dtype = _storage_dtype(kind)  # one row of bytes may be seen as several types
            return found if found.dtype == dtype else Storage(dtype, numel, found.data, big_endian)

        return _unpickle(io.BytesIO(archive.read(members["data.pkl"])), refused, load)


def _read_legacy(stream: IO[bytes], refused: list[str]) -> Any:
    _unpickle(stream, refused)  # version of the protocol
    info = _unpickle(stream, refused)
    big_endian = isinstance(info, Mapping) and info.get("little_endian") is False
    storages: dict[str, Storage] = {}
    views: dict[str, Storage] = {}

    def load(place: Any) -> Any:
        if place[0] == "module":
            return place[1]
        _, kind, key, _, numel, view = place
        if key not in storages:
            storages[key] = _storage(kind, numel, None, big_endian)
        if view is None:
            return storages[key]
        view_key, offset, length = view
        return views.setdefault(view_key, _View(storages[key], offset, length))

    value = _unpickle(stream, refused, load)
    for key in _unpickle(stream, refused):
        storage = storages[key]
        storage.data = _numbers(stream, storage.dtype, storage.numel)
    return value


def _numbers(stream: IO[bytes], dtype: str, expected: int | None = None) -> bytes:
    """Return the bytes of a storage, which stand behind their number."""
    (numel,) = read_number(stream, "<q")
    left = _size_of(stream) - stream.tell()
    size = numel * number_size(dtype)
    if size < 0 or size > left or expected not in (None, numel):
        raise EOFError
    return stream.read(size)


class _View(Storage):
    """Part of another storage."""

    def __init__(self, whole: Storage, offset: int, length: int) -> None:
        super().__init__(whole.dtype, length, None, whole.big_endian)
        self.whole, self.offset = whole, offset

    def array(self, dtype: str = "") -> Any:
        return self.whole.array(dtype)[self.offset : self.offset + self.numel]


def _read_tar(stream: IO[bytes], refused: list[str]) -> Any:
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        parts = {name: _member(archive, name) for name in ("storages", "tensors", "pickle")}
    storages: dict[int, Storage] = {}
    tensors: dict[int, StoredTensor] = {}
    part = parts["storages"]
    for _ in range(_unpickle(part, refused)):
        key, _, kind = _unpickle(part, refused)
        dtype = _storage_dtype(kind)
        data = _numbers(part, dtype)
        storages[key] = Storage(dtype, len(data) // number_size(dtype), data)
    for key, root, offset, length in _unpickle(part, refused):
        storages[key] = _View(storages[root], offset, length)
    part = parts["tensors"]
    for _ in range(_unpickle(part, refused)):
        key, storage, _ = _unpickle(part, refused)
        (dimensions, _) = read_number(part, "<ii")
        shape, strides = (read_number(part, f"<{dimensions}q") for _ in range(2))
        (offset,) = read_number(part, "<q")
        tensors[key] = StoredTensor(storages[storage], offset, shape, strides, storages[storage].dtype)
    return _unpickle(
        parts["pickle"], refused, lambda place: place[0] if isinstance(place, tuple) else tensors[int(place)]
    )


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    part = archive.extractfile(name)
    if part is None:
        raise tarfile.TarError
    return io.BytesIO(part.read())


def _storage(kind: Any, numel: Any, data: bytes | None, big_endian: bool) -> Storage:
    dtype = _storage_dtype(kind)
    if type(numel) is not int or numel < 0 or (data is not None and len(data) < numel * number_size(dtype)):
        raise ValueError("a storage is shorter than it claims")
    return Storage(dtype, numel, data, big_endian)


def _storage_dtype(kind: Any) -> str:
    if not isinstance(kind, Name) or kind.name not in STORAGES:
        raise pickle.UnpicklingError(f"numbers are of type {kind}, which NumPy does not have")
    return STORAGES[kind.name]
