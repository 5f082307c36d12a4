"""Pickles without running them: tensors become arrays, and every other object a record of what it was.

A pickle names functions and classes to be called. Here none is ever imported or called: names stay names, what they
would make becomes an ``Inert``, and tensors are rebuilt by this module's own code, held against the bytes that the file
has. Names outside of ``HARMLESS`` are collected, so that the caller can refuse the file by them.
"""

from __future__ import annotations

import _compat_pickle
import enum
import math
import pickle
import re
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

BFLOAT16 = "bfloat16"
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
    "UntypedStorage": "u1",
}
DTYPES = {
    "float64": "f8",
    "double": "f8",
    "float32": "f4",
    "float": "f4",
    "float16": "f2",
    "half": "f2",
    "bfloat16": BFLOAT16,
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint8": "u1",
    "uint16": "u2",
    "uint32": "u4",
    "uint64": "u8",
    "bool": "?",
    "complex64": "c8",
    "complex128": "c16",
}

# Data that training scripts keep beside the weights. None of these is called either: the list is what is no reason to
# refuse a file.
HARMLESS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path|datetime\.\w+"
    r"|zoneinfo\.ZoneInfo(\._unpickle)?|decimal\.Decimal|fractions\.Fraction|uuid\.(UUID|SafeUUID)|ipaddress\.\w+"
    r"|collections\.(OrderedDict|defaultdict|Counter|deque|UserDict|ChainMap)"
    r"|builtins\.(set|frozenset|dict|list|tuple|int|float|complex|bool|str|bytes|bytearray|slice|range|object)"
    r"|builtins\.(Ellipsis|NotImplemented|NoneType)|typing\.\w+|enum\.\w+|copyreg\.(_reconstructor|__newobj__(ex)?)"
    r"|_codecs\.encode"
    r"|numpy\.(ndarray|dtype|bool_?|[a-z]+\d*_?)|numpy\.dtypes\.\w+|numpy\.random\.\w+(\.\w+)*"
    r"|numpy\.(_core|core)\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)"
    r"|omegaconf\.\w+(\.\w+)*|(yacs|fvcore\.common|detectron2\.config)\.config\.(config\.)?CfgNode|easydict\.EasyDict"
    r"|addict(\.addict)?\.Dict|mm(cv\.utils|engine\.config)\.config\.Config(Dict)?|box(\.\w+)?\.(Box|ConfigBox|BoxList)"
    r"|ml_collections\.config_dict\.config_dict\.\w+|munch\.\w+|attrdict(\.\w+)*\.AttrDict"
    r"|(pytorch_lightning|lightning\.pytorch|lightning\.fabric|lightning_fabric)\.(\w+\.)*"
    r"(AttributeDict|Namespace|RunningStage|TrainerFn|TrainerStatus|LightningEnum|StrEnum)"
    r"|lightning_utilities\.core\.enums\.StrEnum|torchvision\.transforms\.functional\.InterpolationMode"
    r"|transformers\.(trainer_utils|training_args|debug_utils|utils\.generic)\.\w+"
    r"|torch\.(Size|device|Tensor|layout|strided|per_\w+|contiguous_format|preserve_format|Generator)"
    rf"|torch\.({'|'.join(DTYPES)})|torch\.nn\.parameter\.(Parameter|Buffer)|torch\.nn\.(Parameter|Buffer)"
    rf"|torch(\.\w+)?\.({'|'.join(STORAGES)}|TypedStorage)|torch\.storage\._load_from_bytes"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
    r"|torch\._tensor\._rebuild_from_type(_v2)?|torch\.serialization\._get_layout"
)


@dataclass(frozen=True)
class Name:
    """A function or class that a pickle names: never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Inert:
    """What a pickle would have made by calling ``name``: the arguments and the state that it was given, as data."""

    name: Name
    args: tuple[Any, ...] = ()
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        """Add an element, as the pickle of a list does."""
        self.elements.append(value)

    def extend(self, values: Iterable[Any]) -> None:
        """Add elements."""
        self.elements.extend(values)

    add, update = append, extend


@dataclass(eq=False)
class Storage:
    """Numbers of one type in a row; ``data`` is filled when the file has been read that far."""

    dtype: str
    numel: int
    data: bytes | memoryview | None = None
    big_endian: bool = False

    def array(self, dtype: str = "") -> NDArray[Any]:
        """Return the numbers; bfloat16 as its 16 bits.

        Raises:
            ValueError: The file has none, or fewer than were claimed.
        """
        if self.data is None:
            raise ValueError("the numbers of a tensor are not in the file")
        array = np.frombuffer(self.data, np.dtype(_plain(dtype or self.dtype)))
        return array.byteswap() if self.big_endian else array


@dataclass(eq=False)
class StoredTensor:
    """A tensor of the file; nothing is copied until ``array`` is asked for."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @property
    def is_float(self) -> bool:
        """Return whether its values are real floating-point numbers."""
        return self.dtype == BFLOAT16 or np.dtype(self.dtype).kind == "f"

    def array(self) -> NDArray[Any]:
        """Return a copy, bfloat16 as float32.

        Raises:
            ValueError: Shape and strides lead out of the numbers that the file has.
        """
        row = self.storage.array(self.dtype)
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        count = math.prod(self.shape)
        if count == 0:
            return np.zeros(self.shape, np.float32 if self.dtype == BFLOAT16 else self.dtype)
        if last < len(row) < count and 0 in self.strides:
            raise ValueError(
                f"a view repeats its {len(row)} numbers to the shape {list(self.shape)}; .contiguous() before it is "
                "saved writes them all"
            )
        if last >= len(row) or count > len(row):
            raise ValueError(f"a tensor of shape {list(self.shape)} does not lie within its {len(row)} numbers")
        steps = tuple(stride * row.itemsize for stride in self.strides)
        view = np.lib.stride_tricks.as_strided(row[self.offset :], self.shape, steps, writeable=False)
        if self.dtype == BFLOAT16:
            return np.asarray((view.astype(np.uint32) << 16).view(np.float32).reshape(self.shape))
        return np.array(view, order="C").reshape(self.shape)


def _plain(dtype: str) -> str:
    return "u2" if dtype == BFLOAT16 else dtype


def number_size(dtype: str) -> int:
    """Return the bytes of one number."""
    return np.dtype(_plain(dtype)).itemsize


@dataclass(eq=False)
class NumPyArray:
    """An array of NumPy that the pickle has not yet given its contents."""

    state: Any = None

    def array(self) -> NDArray[Any]:
        """Return a copy.

        Raises:
            ValueError: It is an array of objects, or shape and bytes do not fit each other.
        """
        _, shape, kind, fortran, data = self.state
        row = np.frombuffer(data, dtype_of(kind))
        return np.array(row.reshape(_sizes(shape), order="F" if fortran else "C"))


def dtype_of(kind: Any) -> np.dtype[Any]:
    """Return the type of numbers that a pickled ``numpy.dtype`` names.

    Raises:
        ValueError: It is none of plain numbers.
    """
    code = kind.args[0] if isinstance(kind, Inert) and kind.args else None
    if not isinstance(code, str) or re.fullmatch(r"[<>|=]?[fiub]\d{1,2}", code) is None:
        raise ValueError("an array of NumPy holds other values than numbers")
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "="
    return np.dtype(code).newbyteorder(">" if order == ">" else "=")


_InPython: Any = getattr(pickle, "_Unpickler")  # noqa: B009 - the unpickler in Python, whose steps can be replaced


class InertUnpickler(_InPython):  # type: ignore[misc]
    """Unpickle without importing or calling anything.

    ``refused`` collects the names that are not in ``HARMLESS``. ``persistent_load`` is set by whoever knows the
    container.
    """

    dispatch = dict(_InPython.dispatch)

    def __init__(self, stream: IO[bytes], refused: list[str]) -> None:
        super().__init__(stream, encoding="latin1")
        self.refused = refused
        self.nested: Callable[[bytes], Any] | None = None

    def find_class(self, module: str, name: str) -> Name:
        """Return the name as a name; those that are no plain data are collected."""
        if self.proto < 3:
            if (module, name) in _compat_pickle.NAME_MAPPING:
                module, name = _compat_pickle.NAME_MAPPING[(module, name)]
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        found = Name(module, name)
        if HARMLESS.fullmatch(str(found)) is None and not _is_known_enum(found) and str(found) not in self.refused:
            self.refused.append(str(found))
        return found

    def make(self, callee: Any, args: Any) -> Any:
        """Return what stands for the result of calling ``callee``."""
        if not isinstance(callee, Name) or not isinstance(args, tuple):
            raise pickle.UnpicklingError("a call of something that is not a name")
        full = str(callee)
        if full == "torch.storage._load_from_bytes" and self.nested is not None and isinstance(args[0], bytes):
            return self.nested(args[0])
        builder = BUILDERS.get(full)
        return Inert(callee, args) if builder is None else builder(*args)

    def load_reduce(self) -> None:
        """REDUCE: call with arguments."""
        args = self.stack.pop()
        self.stack[-1] = self.make(self.stack[-1], args)

    def load_newobj(self) -> None:
        """NEWOBJ: make an instance of a class."""
        args = self.stack.pop()
        self.stack[-1] = self.make(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        """NEWOBJ_EX: make an instance, with keyword arguments, which no plain data has."""
        self.stack.pop()
        self.load_newobj()

    def load_build(self) -> None:
        """BUILD: give an instance its state."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert | NumPyArray):
            self.stack[-1].state = state

    def load_inst(self) -> None:
        """INST, of protocol 0: make an instance of a class that stands in the line."""
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        self.append(self.make(self.find_class(module, name), tuple(self.pop_mark())))

    def load_obj(self) -> None:
        """OBJ, of protocol 1: make an instance of a class on the stack."""
        callee, *args = self.pop_mark()
        self.append(self.make(callee, tuple(args)))

    def get_extension(self, code: int) -> None:
        """EXT1, EXT2, EXT4: names by numbers that this process has registered; files have none."""
        raise pickle.UnpicklingError(f"extension {code} is not known")

    dispatch.update(
        {
            pickle.REDUCE[0]: load_reduce,
            pickle.NEWOBJ[0]: load_newobj,
            pickle.NEWOBJ_EX[0]: load_newobj_ex,
            pickle.BUILD[0]: load_build,
            pickle.INST[0]: load_inst,
            pickle.OBJ[0]: load_obj,
        }
    )


def _is_known_enum(name: Name) -> bool:
    """Return whether a class is an ``Enum`` of a module that is loaded already; members are values with names."""
    value: Any = sys.modules.get(name.module)
    for part in name.name.split("."):
        value = vars(value).get(part) if hasattr(value, "__dict__") else None
    return isinstance(value, type) and issubclass(value, enum.Enum)


def _sizes(values: Any) -> tuple[int, ...]:
    sizes = values.args[0] if isinstance(values, Inert) else values
    if not isinstance(sizes, tuple | list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise pickle.UnpicklingError("a shape is not a sequence of whole numbers")
    return tuple(sizes)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise pickle.UnpicklingError("a tensor has no storage")
    shape, strides = _sizes(size), _sizes(stride)
    if len(shape) != len(strides):
        raise pickle.UnpicklingError("a tensor's shape and strides differ in length")
    return StoredTensor(storage, offset, shape, strides, storage.dtype)


def _tensor_of_dtype(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    tensor = _tensor(storage, offset, size, stride)
    kind = next((value for value in rest if isinstance(value, Name)), None)
    if kind is None or kind.name not in DTYPES:
        raise pickle.UnpicklingError(f"a tensor is of type {kind}, which NumPy does not have")
    tensor.dtype = DTYPES[kind.name]
    return tensor


def _same_data(data: Any, *_: Any) -> Any:
    return data


def _called(function: Any, _kind: Any, args: Any, *_: Any) -> Any:
    """Return what ``_rebuild_from_type_v2(function, type, args, state)`` makes, without the type's own attributes."""
    builder = BUILDERS.get(str(function)) if isinstance(function, Name) else None
    if builder is None:
        raise pickle.UnpicklingError(f"a tensor is made by {function}, which is not known")
    return builder(*args)


def _bytes_of_text(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes are written in an unknown way")
    return text.encode("latin1")


def _array_of_buffer(data: Any, kind: Any, shape: Any, order: Any = "C") -> NumPyArray:
    return NumPyArray((1, shape, kind, order == "F", data))


def _reconstructed(kind: Any, *_: Any) -> Inert:
    if not isinstance(kind, Name):
        raise pickle.UnpicklingError("an object has no class")
    return Inert(kind)


BUILDERS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _same_data,
    "torch._utils._rebuild_parameter_with_state": _same_data,
    "torch.nn.parameter.Parameter": _same_data,
    "torch._tensor._rebuild_from_type": _called,
    "torch._tensor._rebuild_from_type_v2": _called,
    "collections.OrderedDict": lambda items=(): OrderedDict(items),
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": lambda items=(): dict(items),
    "collections.deque": lambda *_: [],
    "builtins.set": lambda items=(): list(items),
    "builtins.frozenset": lambda items=(): list(items),
    "builtins.bytearray": lambda data=b"", *rest: _bytes_of_text(data, *rest) if isinstance(data, str) else bytes(data),
    "builtins.dict": lambda items=(): dict(items),
    "builtins.list": lambda items=(): list(items),
    "builtins.tuple": lambda items=(): tuple(items),
    "_codecs.encode": _bytes_of_text,
    "numpy.core.multiarray._reconstruct": lambda *_: NumPyArray(),
    "numpy._core.multiarray._reconstruct": lambda *_: NumPyArray(),
    "numpy.core.numeric._frombuffer": _array_of_buffer,
    "numpy._core.numeric._frombuffer": _array_of_buffer,
    "copyreg._reconstructor": _reconstructed,
    "copyreg.__newobj__": _reconstructed,
}


def plain(value: Any, depth: int = 8) -> Any:
    """Return settings of a training script as plain tables, lists and scalars.

    Namespaces, configuration nodes (yacs, addict, OmegaConf) and scalars of NumPy are unpacked; what has no plain form
    becomes None.
    """
    if depth == 0 or value is None or isinstance(value, bool | int | float | str):
        return value if depth else None
    if isinstance(value, Mapping):
        return {str(key): plain(one, depth - 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one, depth - 1) for one in value]
    if not isinstance(value, Inert):
        return None
    kind = str(value.name)
    if kind.startswith("omegaconf.") and isinstance(value.state, Mapping):
        return plain(value.state.get("_content", value.state.get("_val")), depth - 1)
    if kind.startswith("pathlib."):
        return "/".join(map(str, value.args))
    if kind.endswith("multiarray.scalar") and len(value.args) == 2 and isinstance(value.args[1], bytes):
        try:
            return np.frombuffer(value.args[1], dtype_of(value.args[0]))[0].item()
        except (ValueError, IndexError):
            return None
    if value.entries:
        return plain(value.entries, depth - 1)
    if isinstance(value.state, Mapping):
        return plain(value.state, depth - 1)
    if value.elements:
        return plain(value.elements, depth - 1)
    return plain(value.args[0], depth - 1) if len(value.args) == 1 else None


def read_number(stream: IO[bytes], layout: str) -> tuple[int, ...]:
    """Return the numbers of ``struct``'s layout that come next.

    Raises:
        EOFError: The file ends before.
    """
    size = struct.calcsize(layout)
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return struct.unpack(layout, data)
