"""Which of the tables in a file are models, and in which order they are tried.

Wrappers (``module.``, Lightning's ``model.``) and nests (``state_dict_ema``) are alike here: a place in the file below
which the names are those of a dialect. Averages come before what they are averages of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from vitdeploy.checkpoints.dialects import DIALECTS, Dialect
from vitdeploy.checkpoints.files import OpenedFile, WeightFile, open_weights
from vitdeploy.errors import CheckpointError
from vitdeploy.wording import adoption

T = TypeVar("T")

AVERAGES = re.compile(
    r"(.*_)?(ema|swa|averaged?|avg|polyak|shadow)(_?(model|params|weights|state|state_dict|net|dict))*"
)
TEACHER, STUDENT = "teacher", "student"
ORDER = (
    *("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "weights"),
    *("model_weights", "params", "backbone", "encoder"),
)
"""Places that hold the model itself, the usual ones first; an unknown one comes after them."""

HEADS = ("head", "classifier", "fc", "heads", "linear", "cls_head", "classification_head", "linear_head", "head_cls")
"""What people call a classifier that they put beside a backbone."""

FEWEST_TENSORS = 6


@dataclass(frozen=True, eq=False)
class Candidate:
    """Weights whose names are those of a dialect, and why."""

    file: WeightFile
    dialect: Dialect
    reason: str


def read_weights(path: Path) -> WeightFile:
    """Read the weights of a file or folder: those that are tried first, else all of its tensors.

    Raises:
        ArtifactError, CheckpointError: As ``open_weights``.
    """
    opened = open_weights(path)
    found = find_candidates(opened)
    file = found[0].file if found else opened.below(common_root(opened))
    assert file.tensors  # damaged ones are refused now
    return file


def detect(file: WeightFile) -> tuple[Dialect, str]:
    """Return the dialect of weights and why it is that one.

    Raises:
        CheckpointError: No dialect fits; the message shows the first keys.
    """
    found = _dialect_of(list(file.leaves))
    if found is None:
        raise unknown(file)
    return found


OTHERS = (
    (
        r"(.*\.)?lora_[AB]\.",
        "a model with adapters beside its weights, which model.merge_and_unload() of peft puts into them",
    ),
    (r"(.*\.)?transformer\.resblocks\.\d+\.attn\.in_proj_weight", "a CLIP of open_clip or OpenAI, which is not built"),
    (r"(.*\.)?trunk\.blocks\.\d+\.", "an image tower of open_clip around a timm model, which is not built"),
    (r"(.*\.)?vision_model\.encoder\.layers\.\d+\.self_attn", "a CLIP or SigLIP of Hugging Face, which is not built"),
    (
        r"(.*\.)?blocks\.\d+\.attn\.(q_bias|relative_position_bias_table)",
        "a BEiT, which timm builds ('timm:NAME' with weights=)",
    ),
    (
        r"(.*\.)?blocks\.\d+\.attn\.(qkv|q_proj)\.weight",
        "a transformer without tables of positions or with parts of its own, which timm may build ('timm:NAME' with "
        "weights=)",
    ),
    (r"(.*\.)?stages\.\d+\.blocks\.\d+\.attn\.w_msa\.", "a Swin of mmpretrain, which is not read"),
    (r"(.*\.)?layer4\.\d+\.conv\d+\.weight", "a ResNet, which torchvision or timm builds ('timm:NAME' with weights=)"),
)
"""Keys that give away models which no family here is, and what these are."""


def unknown(file: WeightFile) -> CheckpointError:
    """Return the error for names that are of no dialect."""
    names, kind = list(file.leaves), file.config.get("model_type")
    if isinstance(kind, str) and "architecture" not in file.config:
        return CheckpointError(
            f"{str(file.path)!r} is a model of type {kind!r} of Hugging Face, which vitdeploy does not build: "
            "torch.onnx.export(transformers.AutoModelForImageClassification.from_pretrained("
            f"{str(file.path)!r}).eval(), (torch.zeros(1, 3, 224, 224),), 'model.onnx') in Python writes it (with its "
            "own image size; dynamo=False where that fails), and "
            f"{adoption('model.onnx', f'hf:{file.path}')} adopts that"
        )
    found = (origin for pattern, origin in OTHERS if any(re.match(pattern, name) for name in names))
    origin = next(found, "of no dialect that is known")
    return CheckpointError(
        f"the weights in {str(file.path)!r} are {origin}: {len(names)} tensors, such as "
        f"{', '.join(map(repr, names[:4]))}; what builds the model can write it with torch.onnx.export, and "
        f"{adoption('MODEL.onnx')} adopts that"
    )


def find_candidates(opened: OpenedFile) -> list[Candidate]:
    """Return the models in a file, in the order in which they are tried."""
    found = []
    for root, (dialect, reason) in roots(opened, _dialect_of):
        file = replace(opened.below(root), normalization=_normalization_beside(opened, root))
        found.append(Candidate(_with_head_beside(opened, file, root, dialect), dialect, reason))
    return found


def roots(opened: OpenedFile, accept: Callable[[Sequence[str]], T | None]) -> list[tuple[str, T]]:
    """Return the places below which ``accept`` takes the names, with what it made of them, in order of preference.

    Below a place that is taken no further one is sought.
    """
    below: dict[str, list[str]] = {"": list(opened.leaves)}
    for name in opened.leaves:
        for end in (found.end() for found in re.finditer(r"\.", name)):
            below.setdefault(name[:end], []).append(name[end:])
    taken: list[tuple[str, T]] = []
    for root in sorted(below, key=lambda root: root.count(".")):
        if len(below[root]) >= FEWEST_TENSORS and not any(root.startswith(outer) for outer, _ in taken):
            accepted = accept(below[root])
            if accepted is not None:
                taken.append((root, accepted))
    places = list(below)
    shapes = {root: _shapes(opened, root) for root, _ in taken}
    return sorted(taken, key=lambda one: (*_rank(one[0], shapes), places.index(one[0])))


def _rank(root: str, shapes: dict[str, dict[str, tuple[int, ...]]]) -> tuple[int, int]:
    parts = root.split(".")[:-1]
    known = [ORDER.index(part) for part in parts if part in ORDER]
    second = known[0] if known else len(ORDER)
    if any(AVERAGES.fullmatch(part) for part in parts):
        return 0, second
    if TEACHER in parts:
        # DINO's teacher is the average of its student; a distilled student's teacher is another model.
        students = [other for other in shapes if STUDENT in other.split(".")]
        return (0 if all(shapes[other] == shapes[root] for other in students) else 2), second
    return 1, second if STUDENT not in parts else len(ORDER) + 1


def _shapes(opened: OpenedFile, root: str) -> dict[str, tuple[int, ...]]:
    return {name[len(root) :]: tuple(leaf.shape) for name, leaf in opened.leaves.items() if name.startswith(root)}


def same_shapes(one: Candidate, other: Candidate) -> bool:
    """Return whether two tables are of the same model, tensor by tensor."""
    return one.file.shapes == other.file.shapes


def common_root(opened: OpenedFile) -> str:
    """Return the place of the largest table, below the wrappers that all of its names have in common."""
    tables = list(dict.fromkeys(opened.places.values()))
    counts = {place: sum(other == place for other in opened.places.values()) for place in tables}
    place = max(tables, key=lambda one: (counts[one], -tables.index(one)))
    root = f"{place}." if place else ""
    names = [name[len(root) :] for name in opened.leaves if name.startswith(root)]
    while (parts := {name.partition(".")[0] for name in names}) and len(parts) == 1:
        (part,) = parts
        if part not in (*ORDER, STUDENT, TEACHER) or any("." not in name for name in names):
            break
        root, names = f"{root}{part}.", [name.partition(".")[2] for name in names]
    return root


def _dialect_of(names: Iterable[str]) -> tuple[Dialect, str] | None:
    names = list(names)
    for dialect in DIALECTS:
        reason = dialect.reason(names)
        if reason is not None:
            return dialect, reason
    return None


def _with_head_beside(opened: OpenedFile, file: WeightFile, root: str, dialect: Dialect) -> WeightFile:
    """Return the weights with the linear that stands beside them as their head, where they have none of their own."""
    own = [name for name in file.leaves if name.startswith(f"{dialect.head_root}.")]
    if own or not dialect.head_root:
        return file
    heads = _linears_beside(opened, root) or _only_linear_beside(opened, file)
    if len(heads) != 1:
        return file
    (place, names), *_ = heads.items()
    renamed = {f"{dialect.head_root}.{rest}": opened.leaves[f"{place}{rest}"] for rest in names}
    return replace(
        file,
        leaves={**file.leaves, **renamed},
        left_out=tuple(name for name in file.left_out if not name.startswith(place)),
        head_beside=place.removesuffix("."),
    )


def _linears_beside(opened: OpenedFile, root: str) -> dict[str, list[str]]:
    """Return what is called as a classifier next to the model or around it, nearest first: place → names in it."""
    found: dict[str, list[str]] = {}
    parent = root
    while parent:
        parent = f"{parent[:-1].rpartition('.')[0]}.".removeprefix(".")
        for word in HEADS:
            place = f"{parent}{word}."
            names = [name[len(place) :] for name in opened.leaves if name.startswith(place)]
            matrices = [name for name in names if len(opened.leaves[f"{place}{name}"].shape) == 2]
            if len(matrices) == 1:
                found[place] = names
        if found:
            return found
    return found


# What people train beside a backbone and do not call a classifier.
_NO_HEAD = re.compile(
    r"proj|predict|decod|criterion|loss|cent(er|re)|prototype|queue|memory|teacher|student", re.IGNORECASE
)


def _only_linear_beside(opened: OpenedFile, file: WeightFile) -> dict[str, list[str]]:
    """Return the linear beside the model where it is all that stands there and reads the model's width."""
    outside = [name for name in file.left_out if re.search(r"(^|\.)(mean|std)$", name) is None]
    places = {name.rpartition(".")[0] for name in outside}
    if len(places) != 1 or {name.rpartition(".")[2] for name in outside} != {"weight", "bias"}:
        return {}
    (place,) = places
    shape = tuple(opened.leaves[f"{place}.weight"].shape)
    widths = {tuple(leaf.shape) for leaf in file.leaves.values()}
    if len(shape) != 2 or (shape[1],) not in widths or _NO_HEAD.search(place):
        return {}
    return {f"{place}.": ["weight", "bias"]}


def _normalization_beside(opened: OpenedFile, root: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and standard deviation of the one layer outside the model that normalizes its images, if any."""
    found = []
    for name in opened.leaves:
        ending = re.fullmatch(r"((?:.*\.)?(?:.*_)?)mean", name)
        if ending is None or name.startswith(root) or f"{ending[1]}std" not in opened.leaves:
            continue
        pair = [opened.leaves[f"{ending[1]}{key}"].array().astype(float).reshape(-1) for key in ("mean", "std")]
        if pair[0].size == pair[1].size and pair[0].size in (1, 3) and (pair[1] > 0).all():
            scale = 255.0 if (pair[1] > 1).all() else 1.0
            found.append(tuple(tuple(float(value) / scale for value in values) for values in pair))
    return (found[0][0], found[0][1]) if len(found) == 1 and root else None
