"""Records: what is stored in artifacts and reports, as immutable validated values. They know no framework."""

from vitdeploy.records.base import Record, canonical_json, printable_record, sha256_of
from vitdeploy.records.budget import Front, FrontCandidate
from vitdeploy.records.bundle import BundledFile, BundledGraph, BundleManifest
from vitdeploy.records.census import FloatProduct, OperatorCensus
from vitdeploy.records.error_profile import DepthPoint, ErrorProfile, RoundedTensor
from vitdeploy.records.layer_profile import LayerCost, LayerProfile
from vitdeploy.records.manifest import (
    BuildInfo,
    Check,
    Environment,
    Examination,
    Kind,
    Lowering,
    Manifest,
    stage_key,
)
from vitdeploy.records.model import Activation, ModelSpec, Task
from vitdeploy.records.precision import (
    CalibrationInfo,
    CpuIntegers,
    NodePrecision,
    PairedSpeed,
    PlanEntry,
    Precision,
    PrecisionPlan,
    RangeMethod,
    Rotated,
    Rounding,
    Target,
    Treatment,
    Trial,
)
from vitdeploy.records.preprocess import Interpolation, Preprocess
from vitdeploy.records.report import Baseline, Conditions, Interval, Report, Row, Timing
from vitdeploy.records.samples import SampleSet, TrainingData
from vitdeploy.records.sensitivity import Effect, PartSensitivity, Sensitivity

__all__ = [
    "Activation",
    "Baseline",
    "BuildInfo",
    "BundleManifest",
    "BundledFile",
    "BundledGraph",
    "CalibrationInfo",
    "Check",
    "Conditions",
    "CpuIntegers",
    "DepthPoint",
    "Effect",
    "Environment",
    "ErrorProfile",
    "Examination",
    "FloatProduct",
    "Front",
    "FrontCandidate",
    "Interpolation",
    "Interval",
    "Kind",
    "LayerCost",
    "LayerProfile",
    "Lowering",
    "Manifest",
    "ModelSpec",
    "NodePrecision",
    "OperatorCensus",
    "PairedSpeed",
    "PartSensitivity",
    "PlanEntry",
    "Precision",
    "PrecisionPlan",
    "Preprocess",
    "RangeMethod",
    "Record",
    "Report",
    "Rotated",
    "RoundedTensor",
    "Rounding",
    "Row",
    "SampleSet",
    "Sensitivity",
    "Target",
    "Task",
    "Timing",
    "TrainingData",
    "Treatment",
    "Trial",
    "canonical_json",
    "printable_record",
    "sha256_of",
    "stage_key",
]
