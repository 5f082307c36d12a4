"""Reading weight files of any make into plain arrays, without executing anything that is in them.

``.safetensors``, ``.pth``/``.pt``/``.bin``/``.pth.tar`` (``torch.load(weights_only=True)``), Google's ``.npz`` and
Hugging Face folders. The container is told from the content, never from the name.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import CheckpointError
from vitdeploy.reading import check_zip, read_head, read_json, read_npz

Tensors = dict[str, NDArray[Any]]

# Where training scripts keep the weights, the averaged ones first.
NESTS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "model_state_dict", "module")
PREFIXES = ("module.", "_orig_mod.")
HUGGING_FACE_FILES = (
    *("model.safetensors.index.json", "model.safetensors"),
    *("pytorch_model.bin.index.json", "pytorch_model.bin"),
)


@dataclass(frozen=True)
class WeightFile:
    """What a file holds: arrays by name, and what it says about itself.

    ``entry`` is where in the file the weights stood (``state_dict_ema``), empty for the top level. ``config`` and
    ``preprocessor`` are a Hugging Face folder's two JSON files, else empty.
    """

    path: Path
    container: str
    tensors: Tensors
    entry: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)


def read_weights(path: Path) -> WeightFile:
    """Read a weight file or a Hugging Face folder.

    Floating-point tensors of lower precision become float32.

    Raises:
        ArtifactError: It is missing, no regular file, or an archive that is damaged, claims to unpack to far more than
            weights do, or holds objects.
        CheckpointError: It is damaged, holds no weights, or holds something besides inert data (the line names it).
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    head = read_head(path, 16)
    if head[8:9] == b"{":
        return _checked(WeightFile(path, "safetensors", _read_safetensors(path)))
    if head[:2] == b"PK" and _is_npz(path):
        return _checked(WeightFile(path, "npz", {name: _float32(array) for name, array in read_npz(path).items()}))
    if head[:2] == b"PK" or head[:1] == b"\x80" or head[257:262] == b"ustar":
        tensors, entry = _select(_load_pickle(path), path)
        return _checked(WeightFile(path, "pickle", tensors, entry))
    raise CheckpointError(
        f"{str(path)!r} is not a weight file: expected .safetensors, .pth, JAX's .npz, or a Hugging Face folder"
    )


def _checked(file: WeightFile) -> WeightFile:
    if not file.tensors:
        raise CheckpointError(f"{str(file.path)!r} holds no tensors")
    for name, array in file.tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(f"tensor {name!r} in {str(file.path)!r} holds NaN or infinity: training had diverged")
    return file


def _read_safetensors(path: Path) -> Tensors:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: _array(tensor, torch) for name, tensor in load_file(path).items()}
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{str(path)!r} is not a whole safetensors file: {error}") from error


def _is_npz(path: Path) -> bool:
    names = [member.filename for member in check_zip(path)]
    return bool(names) and all(name.endswith(".npy") for name in names)


def _load_pickle(path: Path) -> Any:
    import torch

    try:
        with _inert_types():
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error)) or re.search(
            r"Unsupported (?:global|operand)\S* (\S+)", str(error)
        )
        if found:
            raise CheckpointError(
                f"{str(path)!r} holds {found.group(1)!r}, which is not weights and could run code: refused; "
                "save the state_dict alone and load that"
            ) from error
        raise CheckpointError(f"{str(path)!r} is a pickle that is not weights") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{str(path)!r} is a truncated or damaged PyTorch file") from error


@contextmanager
def _inert_types() -> Iterator[None]:
    """Allow, for one load, what training scripts leave beside the weights and what cannot run code."""
    import argparse

    import torch
    from numpy.dtypes import BoolDType, Float32DType, Float64DType, Int32DType, Int64DType

    try:
        from numpy._core.multiarray import scalar  # type: ignore[attr-defined, unused-ignore]
    except ImportError:  # NumPy 1.26
        from numpy.core.multiarray import scalar  # type: ignore[attr-defined, no-redef, unused-ignore]

    allowed: list[Any] = [
        argparse.Namespace,
        np.dtype,
        *(Float32DType, Float64DType, Int32DType, Int64DType, BoolDType),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (OrderedDict, "yacs.config.CfgNode"),  # a dictionary that Swin's and T2T's scripts save
    ]
    with torch.serialization.safe_globals(allowed):
        yield


def _select(loaded: Any, path: Path) -> tuple[Tensors, str]:
    """Return the weights inside what was unpickled, the averaged ones where there are two, and where they stood."""
    import torch

    if isinstance(loaded, torch.nn.Module):
        raise CheckpointError(f"{str(path)!r} is a pickled module: save its state_dict and load that")
    entry: list[str] = []
    while isinstance(loaded, Mapping) and not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        nest = next((name for name in NESTS if isinstance(loaded.get(name), Mapping)), None)
        if nest is None:
            break
        entry.append(nest)
        loaded = loaded[nest]
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{str(path)!r} holds a {type(loaded).__name__}, expected a table of tensors")
    tensors = {str(name): _array(value, torch) for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(loaded)[:6]))
        raise CheckpointError(f"{str(path)!r} holds no table of tensors under any known name; it has {keys}")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name[len(prefix) :]: value for name, value in tensors.items()}
    return tensors, ".".join(entry)


def _array(tensor: Any, torch: Any) -> NDArray[Any]:
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.dtype != torch.float32:
        tensor = tensor.float()
    return np.asarray(tensor.cpu().numpy(), order="C")  # ascontiguousarray makes a list of a scalar


def _float32(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bfloat16 as NumPy reads it
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _read_folder(folder: Path) -> WeightFile:
    """Read a Hugging Face folder: config.json, weights whole or in shards, preprocessor_config.json if there."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{str(folder)!r} has no config.json: it is not a Hugging Face model folder")
    config = _read_json(folder / "config.json")
    preprocessor_file = folder / "preprocessor_config.json"
    preprocessor = _read_json(preprocessor_file) if preprocessor_file.is_file() else {}
    name = next((name for name in HUGGING_FACE_FILES if (folder / name).is_file()), None)
    if name is None:
        raise CheckpointError(
            f"{str(folder)!r} has no weights: expected one of {', '.join(HUGGING_FACE_FILES[1::2])} beside config.json"
        )
    tensors: Tensors = {}
    for part in _shards(folder, name):
        if not part.is_file():
            raise CheckpointError(f"{str(folder)!r} lacks the shard {part.name!r} that its index names")
        tensors.update(read_weights(part).tensors)
    return _checked(WeightFile(folder, "huggingface", tensors, config=config, preprocessor=preprocessor))


def _shards(folder: Path, name: str) -> list[Path]:
    if not name.endswith(".index.json"):
        return [folder / name]
    table = _read_json(folder / name).get("weight_map")
    if not isinstance(table, dict):
        raise CheckpointError(f"{str(folder / name)!r} has no weight_map")
    # The index of a folder may not lead out of it.
    return [folder / Path(shard).name for shard in sorted(set(table.values()))]


def _read_json(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{str(path)!r} is not a JSON table")
    return value
