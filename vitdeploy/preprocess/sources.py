"""``preprocess_from``: a preprocessing that somebody names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.artifacts import load_ir, manifest_in_graph, open_artifact, sidecar_of
from vitdeploy.errors import DataError
from vitdeploy.preprocess.huggingface import preprocess_from_hf
from vitdeploy.preprocess.record import DIGITS_PREPROCESS, make_record
from vitdeploy.preprocess.timm_configuration import preprocess_from_timm, preprocess_from_timm_config
from vitdeploy.reading import is_safetensors, read_json
from vitdeploy.records import Preprocess

PREPROCESSOR = "preprocessor_config.json"
CONFIG = "config.json"
SOURCES = "timm:NAME, hf:DIR or FILE.json"

_FIELDS = frozenset(Preprocess.model_fields)
_OF_PROCESSORS = frozenset(
    ("image_processor_type", "feature_extractor_type", "image_mean", "do_normalize", "do_resize", "crop_pct")
)


def preprocess_from(source: str) -> Preprocess:
    """Return the preprocessing that ``source`` names.

    Args:
        source: ``digits``; ``timm:NAME`` (timm's configuration of that model); ``hf:DIR`` or a folder (with Hugging
            Face's ``preprocessor_config.json``, or timm's ``config.json``); a JSON file, in one of those forms or a
            ``Preprocess`` record; or a checkpoint, an ONNX model or an engine of vitdeploy, whose own it is. An ONNX
            model may have been edited since.
    Raises:
        DataError: The source says nothing that this package can carry out exactly; the message names the key.
        ArtifactError: The file cannot be read.
    """
    if source == "digits":
        return DIGITS_PREPROCESS
    if source.startswith("timm:"):
        return preprocess_from_timm(source)
    path = Path(source.removeprefix("hf:"))
    if source.startswith("hf:") or path.is_dir():
        if not path.is_dir():
            raise DataError(f"there is no folder {str(path)!r} with a {PREPROCESSOR}: download the model first")
        return preprocess_of_folder(path)
    if path.suffix == ".onnx" or is_safetensors(path) or sidecar_of(path).is_file():
        return _of_artifact(path)
    raw = _object(path)
    title = f"{path.name} of {path.resolve().parent.name!r}"
    if isinstance(raw.get("pretrained_cfg"), Mapping):
        return preprocess_from_timm_config(raw["pretrained_cfg"], title)
    if raw.keys() & _OF_PROCESSORS:
        return preprocess_from_hf(raw, title, _model_type(path.parent))
    if unknown := sorted(raw.keys() - _FIELDS):
        raise DataError(f"{str(path)!r} has the unknown key {unknown[0]!r}, expected {', '.join(sorted(_FIELDS))}")
    return make_record({"source": path.name, **raw}, str(path))


def _of_artifact(path: Path) -> Preprocess:
    """Return the preprocessing that an artifact states."""
    manifest = manifest_in_graph(load_ir(path), path) if path.suffix == ".onnx" else open_artifact(path).manifest
    if manifest is None or manifest.preprocess is None:
        raise DataError(f"{str(path)!r} states no preprocessing: name the file that it was made from, or {SOURCES}")
    return manifest.preprocess


def preprocess_of_folder(folder: Path) -> Preprocess:
    """Return the preprocessing of a model's folder: Hugging Face's, else timm's.

    Raises:
        DataError: It has neither, or it cannot be carried out.
        ArtifactError: A file cannot be read.
    """
    file, config = folder / PREPROCESSOR, folder / CONFIG
    if not file.exists() and config.exists() and isinstance(_object(config).get("pretrained_cfg"), Mapping):
        return preprocess_from_timm_config(_object(config)["pretrained_cfg"], f"{CONFIG} of {folder.resolve().name!r}")
    return preprocess_from_hf(_object(file), f"{file.name} of {folder.resolve().name!r}", _model_type(folder))


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json`` of a model's folder, empty where there is none.

    Raises:
        ArtifactError, DataError: It cannot be read, or is no JSON object.
    """
    config = folder / CONFIG
    return _object(config) if config.is_file() else {}


def _model_type(folder: Path) -> str:
    return str(read_config(folder).get("model_type") or "")


def _object(path: Path) -> dict[str, Any]:
    raw = read_json(path, "a Preprocess record or a preprocessor_config.json")
    if not isinstance(raw, dict):
        raise DataError(f"{str(path)!r} holds no JSON object, expected a Preprocess record or a {PREPROCESSOR}")
    return raw
