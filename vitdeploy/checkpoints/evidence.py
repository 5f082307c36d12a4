"""What a file states of its model besides tensors: config.json of timm, arguments of training scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitdeploy import catalog
from vitdeploy.catalog import Variant
from vitdeploy.checkpoints.files import WeightFile
from vitdeploy.preprocess.timm_configuration import preprocess_from_timm_config
from vitdeploy.reading import read_json
from vitdeploy.records import Preprocess

ARCHITECTURES = ("architecture", "arch", "model_name", "model", "backbone", "backbone_name", "name", "model_type")
SETTINGS = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt", "options", "model", "meta")


@dataclass(frozen=True)
class Evidence:
    """What a file says: the model's name and where it stands, and the preprocessing; empty if nothing.

    ``elsewhere`` is a name that the catalogue does not know and timm does, and where it stands. ``arguments`` are those
    with which timm built the model, under its own names.
    """

    architecture: str = ""
    where: str = ""
    preprocess: Preprocess | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    elsewhere: tuple[str, str] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def variant(self) -> Variant | None:
        """The catalogue's entry of that name."""
        return catalog.resolve(self.architecture) if self.architecture else None


def evidence_of(file: WeightFile) -> Evidence:
    """Return what stands beside the weights.

    Raises:
        DataError: A configuration of timm says something that cannot be carried out.
    """
    config = file.config
    if is_of_timm(config):
        source = f"config.json of {file.path.name!r}"
        stated = config.get("pretrained_cfg")
        return Evidence(
            str(config.get("architecture") or ""),
            source,
            preprocess_from_timm_config(stated, source) if isinstance(stated, Mapping) else None,
            arguments={**_pool(config.get("global_pool")), **_table(config.get("model_args"))},
        )
    changes, built_with = _changes(file.beside), _built_with(file.beside)
    for where, table in _tables(file.beside):
        for key in ARCHITECTURES:
            name = table.get(key)
            if isinstance(name, str) and catalog.resolve(name) is not None:
                return Evidence(name, f"{where}{key}", changes=changes, arguments=built_with)
    return Evidence(where="args", changes=changes, elsewhere=stated_for_timm(file.beside), arguments=built_with)


def is_of_timm(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is timm's, or that of the wrapper that transformers has around timm's models."""
    return isinstance(config.get("pretrained_cfg"), Mapping) or config.get("model_type") == "timm_wrapper"


def _built_with(beside: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that timm's training script handed to the model."""
    args = _table(beside.get("args"))
    if not {"model", "gp"} <= args.keys():
        return {}
    return {**_pool(args["gp"]), **_table(args.get("model_kwargs"))}


def _pool(name: Any) -> dict[str, Any]:
    return {"global_pool": name} if isinstance(name, str) else {}


def _table(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def stated_for_timm(beside: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the name of a model of timm that arguments of a script state, and where; None without timm."""
    stated = [
        (table[key], f"{where}{key}")
        for where, table in _tables(beside)
        for key in ARCHITECTURES
        if isinstance(table.get(key), str)
    ]
    if not stated:
        return None
    try:
        from timm import is_model
    except ImportError:
        return None
    return next(((name, where) for name, where in stated if is_model(name.partition(".")[0])), None)


def _tables(beside: Mapping[str, Any], place: str = "", depth: int = 3) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield place, beside
    for key, value in beside.items():
        if depth and isinstance(value, Mapping) and (place or key in SETTINGS):
            yield from _tables(value, f"{place}{key}.", depth - 1)


def _changes(beside: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the arguments of timm's training script change of the preprocessing; None means the model's own."""
    args = beside.get("args")
    if not isinstance(args, Mapping) or not {"crop_pct", "interpolation", "mean", "std"} <= args.keys():
        return {}
    changes: dict[str, Any] = {}
    for key in ("mean", "std"):
        if isinstance(args[key], list) and len(args[key]) in (1, 3):
            changes[key] = tuple(float(value) for value in args[key]) * (3 // len(args[key]))
    if args["interpolation"] in ("nearest", "bilinear", "bicubic", "lanczos"):
        changes["interpolation"] = args["interpolation"]
    if isinstance(args["crop_pct"], int | float) and args["crop_pct"] > 0:
        changes["crop_pct"] = float(args["crop_pct"])
    return changes


@dataclass(frozen=True)
class TimmFolder:
    """What timm's config.json says: the model, its arguments, its preprocessing if any; ``config`` is all of it."""

    architecture: str
    arguments: Mapping[str, Any]
    preprocess: Preprocess | None
    config: Mapping[str, Any]


def timm_folder(path: Path) -> TimmFolder | None:
    """Return what the config.json of a folder of timm says, None for anything else.

    Raises:
        ArtifactError: It is no JSON.
        DataError: It says something that cannot be carried out.
    """
    file = path / "config.json"
    config = read_json(file) if file.is_file() else None
    if not isinstance(config, dict) or not is_of_timm(config) or not isinstance(config.get("architecture"), str):
        return None
    source = f"config.json of {path.name!r}"
    arguments = dict(config.get("model_args") or {})
    if isinstance(config.get("num_classes"), int):
        arguments["num_classes"] = config["num_classes"]
    stated = config.get("pretrained_cfg")
    record = preprocess_from_timm_config(stated, source) if isinstance(stated, Mapping) else None
    return TimmFolder(config["architecture"], arguments, record, config)
