"""vitdeploy: train or load a vision transformer, export it to ONNX, quantize it, build an engine, prove what it kept.

The public names below are loaded when they are first used, so ``import vitdeploy`` costs milliseconds and needs neither
torch nor onnxruntime. One function per stage; what they return are artifacts and records:

    import vitdeploy as vd
    checkpoint = vd.train("digits", "vit.safetensors")
    model = vd.export(checkpoint.path, "vit.onnx")
    int8 = vd.quantize(model, "vit.int8.onnx", precision="int8", calibration="digits")
    engine = vd.build(int8, "vit.engine")
    report = vd.bench([model.path, int8.path, engine.path], "digits")
    vd.write_report(report, "report")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitdeploy.artifacts import Artifact, CalibrationTable, Checkpoint, Engine, OnnxModel, open_artifact
    from vitdeploy.backends import register_backend
    from vitdeploy.catalog import Variant
    from vitdeploy.catalog import find as list_models
    from vitdeploy.datasets import CalibrationSet, Dataset, open_dataset
    from vitdeploy.errors import (
        ArtifactError,
        BackendError,
        BuildError,
        CalibrationError,
        CheckpointError,
        DataError,
        GateError,
        GraphError,
        ModelError,
        RecipeError,
        TrainingError,
        UsageError,
        VitdeployError,
    )
    from vitdeploy.models.registry import create_model, register_family
    from vitdeploy.pipeline import Recipe, RunResult, read_recipe, run
    from vitdeploy.progress import Progress
    from vitdeploy.records import (
        Check,
        Conditions,
        Environment,
        Manifest,
        ModelSpec,
        PrecisionPlan,
        Preprocess,
        Report,
        Row,
        Timing,
    )
    from vitdeploy.report import Comparison, compare, read_report, write_report
    from vitdeploy.sessions import BuildTarget, SessionOptions
    from vitdeploy.sources.load import LoadedModel, load_source
    from vitdeploy.sources.source import SourceOptions
    from vitdeploy.stages.bench import BenchOptions, bench
    from vitdeploy.stages.build import build
    from vitdeploy.stages.calibration_sets import check_calibration_set, make_calibration_set, show_calibration_set
    from vitdeploy.stages.calibration_tables import ObserveOptions, merge_calibration_tables, observe_calibration
    from vitdeploy.stages.convert import convert
    from vitdeploy.stages.doctor import Finding, doctor
    from vitdeploy.stages.export import ExportOptions, export
    from vitdeploy.stages.inspect import Inspection, inspect
    from vitdeploy.stages.predict import Prediction, predict
    from vitdeploy.stages.quantize import QuantizeOptions, quantize
    from vitdeploy.stages.train import train
    from vitdeploy.stages.verify import Verification, verify
    from vitdeploy.training.options import Augmentation, Distillation, Hardware, TrainOptions

__version__ = "0.1.0"

# module → the names that it gives; ``name=original`` where they differ
_PLACES = {
    "artifacts": "Artifact CalibrationTable Checkpoint Engine OnnxModel open_artifact",
    "catalog": "Variant list_models=find",
    "datasets": "CalibrationSet Dataset open_dataset",
    "errors": "ArtifactError BackendError BuildError CalibrationError CheckpointError DataError GateError GraphError "
    "ModelError RecipeError TrainingError UsageError VitdeployError",
    "models.registry": "create_model register_family",
    "backends": "register_backend",
    "pipeline": "Recipe RunResult read_recipe run",
    "progress": "Progress",
    "records": "Check Conditions Environment Manifest ModelSpec PrecisionPlan Preprocess Report Row Timing",
    "report": "Comparison compare read_report write_report",
    "sessions": "BuildTarget SessionOptions",
    "stages.bench": "BenchOptions bench",
    "stages.build": "build",
    "stages.calibration_sets": "check_calibration_set make_calibration_set show_calibration_set",
    "stages.calibration_tables": "ObserveOptions merge_calibration_tables observe_calibration",
    "stages.convert": "convert",
    "stages.doctor": "Finding doctor",
    "stages.export": "ExportOptions export",
    "stages.inspect": "Inspection inspect",
    "stages.predict": "Prediction predict",
    "stages.quantize": "QuantizeOptions quantize",
    "sources.load": "LoadedModel load_source",
    "sources.source": "SourceOptions",
    "stages.train": "train",
    "stages.verify": "Verification verify",
    "training.options": "Augmentation Distillation Hardware TrainOptions",
}

_ORIGINS = {
    name: (f"{__name__}.{module}", original or name)
    for module, names in _PLACES.items()
    for name, _, original in (entry.partition("=") for entry in names.split())
}

__all__ = [
    "Artifact",
    "ArtifactError",
    "Augmentation",
    "BackendError",
    "BenchOptions",
    "BuildError",
    "BuildTarget",
    "CalibrationError",
    "CalibrationSet",
    "CalibrationTable",
    "Check",
    "Checkpoint",
    "CheckpointError",
    "Comparison",
    "Conditions",
    "DataError",
    "Dataset",
    "Distillation",
    "Engine",
    "Environment",
    "ExportOptions",
    "Finding",
    "GateError",
    "GraphError",
    "Hardware",
    "Inspection",
    "LoadedModel",
    "Manifest",
    "ModelError",
    "ModelSpec",
    "ObserveOptions",
    "OnnxModel",
    "PrecisionPlan",
    "Prediction",
    "Preprocess",
    "Progress",
    "QuantizeOptions",
    "Recipe",
    "RecipeError",
    "Report",
    "Row",
    "RunResult",
    "SessionOptions",
    "SourceOptions",
    "Timing",
    "TrainOptions",
    "TrainingError",
    "UsageError",
    "Variant",
    "Verification",
    "VitdeployError",
    "__version__",
    "bench",
    "build",
    "check_calibration_set",
    "compare",
    "convert",
    "create_model",
    "doctor",
    "export",
    "inspect",
    "list_models",
    "load_source",
    "make_calibration_set",
    "merge_calibration_tables",
    "observe_calibration",
    "open_artifact",
    "open_dataset",
    "predict",
    "quantize",
    "read_recipe",
    "read_report",
    "register_backend",
    "register_family",
    "run",
    "show_calibration_set",
    "train",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _ORIGINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, original = _ORIGINS[name]
    value = getattr(importlib.import_module(module), original)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ORIGINS})
