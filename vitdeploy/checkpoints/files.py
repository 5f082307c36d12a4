"""Weight files of any container as named tensors, without executing anything that is in them.

``.safetensors``, files of ``torch.save`` of any age, plain pickles, Google's ``.npz``, and folders as Hugging Face,
timm and their trainers write them. The container is detected by the content, never from the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitdeploy.checkpoints.folding import Leaf, folded
from vitdeploy.checkpoints.pickles import Inert, NumPyArray, StoredTensor, plain
from vitdeploy.checkpoints.torch_files import read_torch_file
from vitdeploy.errors import CheckpointError
from vitdeploy.reading import (
    check_zip,
    is_safetensors,
    missing,
    read_head,
    read_json,
    read_npz,
    safetensors_layout,
    stands_for_a_file,
)
from vitdeploy.wording import adoption

Tensors = dict[str, NDArray[Any]]
Shape = tuple[int, ...]
T = TypeVar("T")

# Entries of training scripts that hold tensors and are no models.
NO_WEIGHTS = re.compile(
    r"(.*_)?(optim(izer)?s?|(lr_)?schedulers?|(grad_|loss_)?scaler|callbacks|loops|amp|apex|rng|random|sampler"
    r"|criterion|loss|args?|config|cfg|hparams|hyper_parameters|meta(data)?|datamodule_hyper_parameters|metrics?"
    r"|history|stats|logs?|buffers_ema|collected_params)(_states?|_state_dicts?|s)?",
    re.IGNORECASE,
)
SETTINGS = re.compile(r"(.*_)?(args?|config|cfg|hparams|hyper_parameters|opt(ions)?|settings|meta)", re.IGNORECASE)
# Segments that wrappers put anywhere into a name: torch.compile, FSDP, activation checkpointing.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
# What profilers (thop) and averaging leave among the weights.
COUNTERS = re.compile(r"(?:.*\.)?(total_ops|total_params|n_averaged|num_updates|num_batches_tracked|initted)")
DEEPEST_NEST = 8

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
SAVED = (".pth", ".pt", ".pth.tar", ".ckpt", ".bin", ".npz")
MOST_NAMED = 8


@dataclass(frozen=True, eq=False)
class ArrayLeaf:
    """A tensor that is in memory already."""

    values: NDArray[Any]

    @property
    def shape(self) -> Shape:
        """Its sizes."""
        return self.values.shape

    def array(self) -> NDArray[Any]:
        """Return its values."""
        return self.values


@dataclass(frozen=True, eq=False)
class WeightFile:
    """The weights of one model in a file: tensors by name, and what the file says about them.

    ``entry`` is where in the file they stood (``state_dict_ema``), empty for the top level; ``prefix`` what was taken
    off their names (``module.``). ``left_out`` names tensors beside them, ``head_beside`` is where a linear stood
    that was taken for their head, ``normalization`` mean and standard deviation of a layer in front of the model, for
    pixels in 0…1. ``config`` and ``preprocessor`` are a folder's
    two JSON files, ``beside`` what a training script saved with the weights, as plain data; empty where there is none.
    """

    path: Path
    container: str
    leaves: Mapping[str, Leaf]
    entry: str = ""
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    head_beside: str = ""
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, Shape]:
        """The tensors' sizes by name."""
        return {name: tuple(leaf.shape) for name, leaf in self.leaves.items()}

    @cached_property
    def tensors(self) -> Tensors:
        """The tensors, floating-point ones as float32.

        Raises:
            CheckpointError: One is damaged, or holds NaN or infinity.
        """
        tensors = {}
        for name, leaf in self.leaves.items():
            try:
                array = leaf.array()
            except (ValueError, TypeError) as error:
                raise CheckpointError(f"tensor {name!r} in {str(self.path)!r} cannot be read: {error}") from error
            array = _float32(array)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise CheckpointError(
                    f"tensor {name!r} in {str(self.path)!r} holds NaN or infinity: the training diverged"
                )
            tensors[name] = array
        return tensors


@dataclass(frozen=True, eq=False)
class OpenedFile:
    """Everything that a file holds: all tensors by their full place in it, and what stands beside them.

    ``places`` maps each full name to the table of the file that the tensor stands in.
    """

    path: Path
    container: str
    leaves: Mapping[str, Leaf]
    places: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)

    def below(self, root: str) -> WeightFile:
        """Return what stands below a place, such as ``state_dict_ema.module.``, under the rest of its names."""
        inside = {name[len(root) :]: leaf for name, leaf in self.leaves.items() if name.startswith(root)}
        outside = tuple(name for name in self.leaves if not name.startswith(root))
        first = next((name for name in self.leaves if name.startswith(root)), "")
        entry = self.places.get(first, "")
        while entry and not root.startswith(f"{entry}."):  # the root lies higher than the innermost table
            entry = entry.rpartition(".")[0]
        prefix = root[len(entry) + 1 :] if entry else root
        return WeightFile(
            self.path,
            self.container,
            inside,
            entry,
            prefix,
            outside,
            config=self.config,
            preprocessor=self.preprocessor,
            beside=self.beside,
        )


def open_weights(path: Path) -> OpenedFile:
    """Read what a weight file or a model's folder holds.

    Raises:
        ArtifactError: It is missing, no regular file, or an archive that is damaged, claims to unpack to far more than
            weights do, or holds objects.
        CheckpointError: It is damaged, holds no weights, or holds something besides inert data (the line names it).
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    head = read_head(path, 512)
    if head[8:9] == b"{" and is_safetensors(path):
        return _of_tables(path, "safetensors", _read_safetensors(path))
    if head[:2] == b"PK" and _is_npz(path):
        return _of_tables(path, "npz", {name: ArrayLeaf(array) for name, array in read_npz(path).items()})
    if _looks_pickled(head):
        return _of_tables(path, "pickle", read_torch_file(path, head))
    raise CheckpointError(f"{str(path)!r} {_foreign_text(head)}")


def _looks_pickled(head: bytes) -> bool:
    return head[:2] == b"PK" or head[:1] == b"\x80" or head[257:262] == b"ustar" or head[:2] in (b"(d", b"cc", b"cO")


def _foreign_text(head: bytes) -> str:
    """Return what a file is that is none of weights, and what would be read."""
    expected = "expected .safetensors, .pth, JAX's .npz, or a model's folder"
    if not head:
        return f"is empty, so it is not a weight file: {expected}"
    if (found := stands_for_a_file(head)) is not None:
        return f"is not a weight file but {found[0]}: {found[1]}"
    if head.lstrip()[:1] == b"<":
        return f"is not a weight file but a web page, as a failed download leaves behind: {expected}"
    if head.startswith(b"\x89HDF"):
        return (
            "is not a weight file but HDF5, as Keras writes it: export the model in its own code as ONNX, and "
            f"{adoption('MODEL.onnx')} adopts that"
        )
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"(\xb5/\xfd")):
        return f"is not a weight file but a compressed one: unpack it; {expected}"
    return f"is not a weight file: {expected}"


def _of_tables(path: Path, container: str, content: Any) -> OpenedFile:
    leaves: dict[str, Leaf] = {}
    places: dict[str, str] = {}
    for place, name, leaf in _walk(content, "", DEEPEST_NEST):
        full = WRAPPERS.sub("", f"{place}.{name}" if place else name)
        place = WRAPPERS.sub("", f"{place}.").removesuffix(".")
        if COUNTERS.fullmatch(name) is None or leaf.shape not in ((), (1,)):
            leaves[full], places[full] = leaf, place
    leaves, places = _without_chunks(leaves), _without_chunks(places)
    _fold(leaves, places)
    if not leaves:
        if not isinstance(content, Mapping | list | tuple):
            kind = str(content.name) if isinstance(content, Inert) else type(content).__name__
            raise CheckpointError(f"{str(path)!r} holds a {kind}, expected a table of tensors")
        keys = ", ".join(repr(str(key)) for key in list(content)[:6]) if isinstance(content, Mapping) else "a list"
        raise CheckpointError(f"{str(path)!r} holds no tensors" + (f"; it has {keys}" if content else ""))
    return OpenedFile(path, container, leaves, places, _beside(content))


def _without_chunks(table: dict[str, T]) -> dict[str, T]:
    """Return names without the chunks in which DINOv2's training keeps its blocks: ``blocks.1.7.`` is block 7."""
    chunked = re.compile(r"(?<=blocks)\.\d+(?=\.\d+\.)")
    if not any(re.search(r"(?:^|\.)blocks\.\d+\.\d+\.attn\.qkv\.weight$", name) for name in table):
        return table
    renamed = {chunked.sub("", name): value for name, value in table.items()}
    return renamed if len(renamed) == len(table) else table


def _fold(leaves: dict[str, Leaf], places: dict[str, str]) -> None:
    """Put weights in place of the factors that torch stores, in place."""
    for weight, (leaf, factors) in folded(leaves).items():
        leaves[weight], places[weight] = leaf, places[factors[0]]
        for factor in factors:
            del leaves[factor], places[factor]


def _walk(content: Any, place: str, depth: int) -> Iterator[tuple[str, str, Leaf]]:
    """Yield the place of each table, the name in it, and the tensor; tables of optimizers and settings are left out."""
    if isinstance(content, Inert) and content.entries:
        content = content.entries  # a dictionary of another class
    if isinstance(content, list | tuple):
        content = {str(index): value for index, value in enumerate(content) if not isinstance(value, StoredTensor)}
    if not isinstance(content, Mapping) or depth == 0:
        return
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, NumPyArray):
            try:
                yield place, key, ArrayLeaf(value.array())
            except (ValueError, TypeError):
                continue  # texts, dates and objects beside the weights
        elif isinstance(value, StoredTensor | ArrayLeaf | _SafetensorsLeaf):
            yield place, key, value
        elif NO_WEIGHTS.fullmatch(key) is None:
            yield from _walk(value, f"{place}.{key}" if place else key, depth - 1)


def _beside(content: Any) -> dict[str, Any]:
    """Return what stands beside the weights, as plain data: settings, the architecture's name."""
    if isinstance(content, Inert):
        content = content.entries
    if not isinstance(content, Mapping):
        return {}
    found = {
        str(key): plain(value)
        for key, value in content.items()
        if isinstance(value, bool | int | float | str) or SETTINGS.fullmatch(str(key)) is not None
    }
    return {key: value for key, value in found.items() if value is not None}


class _SafetensorsFile:
    """An open file, mapped into memory for as long as one of its tensors is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _file(self) -> Any:
        from safetensors import safe_open

        opened: Any = safe_open(self.path, framework="pt")
        return opened.__enter__()

    def read(self, name: str) -> NDArray[Any]:
        from safetensors import SafetensorError

        try:
            tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{str(self.path)!r} is not a whole safetensors file: {error}") from error
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())


@dataclass(frozen=True, eq=False)
class _SafetensorsLeaf:
    file: _SafetensorsFile
    name: str
    shape: Shape

    def array(self) -> NDArray[Any]:
        return self.file.read(self.name)


def _read_safetensors(path: Path) -> dict[str, _SafetensorsLeaf]:
    file = _SafetensorsFile(path)
    return {name: _SafetensorsLeaf(file, name, shape) for name, (_, shape) in safetensors_layout(path).items()}


def _is_npz(path: Path) -> bool:
    names = [member.filename for member in check_zip(path)]
    return bool(names) and all(name.endswith(".npy") for name in names)


def _float32(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bfloat16 as NumPy reads it
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(array, np.float32 if array.dtype.kind == "f" else None, order="C")


def _open_folder(folder: Path) -> OpenedFile:
    """Read a model's folder: weights whole or in shards, config.json and preprocessor_config.json if there."""
    name = _weights_name(folder)
    if not (folder / "config.json").is_file() and not name.startswith((SAFETENSORS, PICKLED)) and INDEX not in name:
        return open_weights(folder / name)  # it goes by the file's own name: nothing else says that it was meant
    config = _read_table(folder / "config.json") if (folder / "config.json").is_file() else {}
    preprocessor_file = folder / "preprocessor_config.json"
    preprocessor = _read_table(preprocessor_file) if preprocessor_file.is_file() else {}
    leaves: dict[str, Leaf] = {}
    places: dict[str, str] = {}
    beside: dict[str, Any] = {}
    for part, names in _shards(folder, name).items():
        if not part.is_file():
            raise CheckpointError(f"{str(folder)!r} lacks the shard {part.name!r} that its index names")
        if names and (absent := sorted(names - _names_in(part))):
            raise CheckpointError(
                f"{str(part)!r} lacks {absent[0]!r}, which the index of its folder says is in it"
                f"{f' ({len(absent)} such)' if absent[1:] else ''}: it is damaged, or another model's; fetch it again"
            )
        opened = open_weights(part)
        leaves.update(opened.leaves)
        places.update(opened.places)
        beside.update(opened.beside)
    _fold(leaves, places)  # factors may lie in several shards
    return OpenedFile(folder, "folder", leaves, places, beside, config, preprocessor)


def _weights_name(folder: Path) -> str:
    """Return the weights of a folder: under the names of Hugging Face, else the only file that has such an ending."""
    usual = [f"{name}{index}" for name in (SAFETENSORS, PICKLED) for index in (INDEX, "")]
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise missing(folder, error) from error
    if found := next((name for name in usual if name in names), None):
        return found
    indices = [name for name in names if name.endswith((f".safetensors{INDEX}", f".bin{INDEX}"))]
    others = [name for name in names if name.endswith(".safetensors") or re.fullmatch(r".*model.*\.(bin|pth|pt)", name)]
    if others and "config.json" not in names:  # no model's folder: any file of weights may be the one that is meant
        others = [name for name in names if name.endswith((".safetensors", *SAVED))]
    if len(found_ones := indices or others) == 1:
        return found_ones[0]
    raise CheckpointError(f"{str(folder)!r} {_folder_text(folder, names, found_ones)}")


def _folder_text(folder: Path, names: list[str], several: list[str]) -> str:
    """Return what a folder is in which there are no weights to be found, and what to do."""
    if several:
        listed = f"{', '.join(several[:MOST_NAMED])}{', …' if len(several) > MOST_NAMED else ''}"
        return f"has {len(several)} files of weights ({listed}): name one of them, such as {str(folder / several[0])!r}"
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        return (
            "is a distributed checkpoint of torch: 'python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{folder} weights.pth' writes one file, which is read"
        )
    if "zero_to_fp32.py" in names:
        return f"is a checkpoint of DeepSpeed: 'python {folder}/zero_to_fp32.py {folder} weights' writes what is read"
    if "adapter_config.json" in names:
        return "holds an adapter and not a model: model.merge_and_unload().save_pretrained(…) of peft writes the whole"
    if "saved_model.pb" in names or "tf_model.h5" in names or "flax_model.msgpack" in names:
        return "has weights of TensorFlow or Flax only: save_pretrained of transformers writes model.safetensors"
    saved = [name for name in names if name.endswith(SAVED)]
    if saved and "config.json" not in names:
        return (
            f"is no model's folder (it has no config.json): name one of its files, such as {str(folder / saved[-1])!r}"
        )
    steps = [name for name in names if re.fullmatch(r"checkpoint-\d+", name)]
    if steps:
        newest = max(steps, key=lambda name: int(name.removeprefix("checkpoint-")))
        return f"is the output of a trainer and has no weights itself: name one of its checkpoints, {folder / newest}"
    expected = f"expected one of {SAFETENSORS}, {PICKLED}"
    if "config.json" not in names:
        return f"has no config.json and no weights, so it is not a model's folder: {expected}"
    return f"has no weights: {expected} beside config.json"


def _shards(folder: Path, name: str) -> dict[Path, set[str]]:
    """Return the files of weights, each with the names that an index says are in it; none without an index."""
    if not name.endswith(INDEX):
        return {folder / name: set()}
    table = _read_table(folder / name).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(shard, str) for shard in table.values()):
        raise CheckpointError(f"{str(folder / name)!r} has no weight_map")
    shards: dict[Path, set[str]] = {}
    for tensor, shard in sorted(table.items(), key=lambda one: str(one[1])):
        shards.setdefault(folder / Path(shard).name, set()).add(tensor)  # an index may not lead out of its folder
    return shards


def _names_in(part: Path) -> set[str]:
    """Return the names of a shard's tensors."""
    content = _read_safetensors(part) if is_safetensors(part) else read_torch_file(part, read_head(part, 512))
    if isinstance(content, Inert):
        content = content.entries
    return {str(name) for name in content} if isinstance(content, Mapping) else set()


def _read_table(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{str(path)!r} is not a JSON table")
    return value
