"""The public names: what type checkers read, and what ``__init__.py`` loads when a name is first used."""

from vitdeploy.artifacts import (
    Artifact as Artifact,
    CalibrationTable as CalibrationTable,
    Checkpoint as Checkpoint,
    Engine as Engine,
    OnnxModel as OnnxModel,
    open_artifact as open_artifact,
)
from vitdeploy.artifacts.bundle import Bundle as Bundle, read_bundle as read_bundle
from vitdeploy.artifacts.files import FilesTogether as FilesTogether
from vitdeploy.backends import register_backend as register_backend
from vitdeploy.catalog import Variant as Variant, list_models as list_models
from vitdeploy.datasets import (
    CalibrationFiles as CalibrationFiles,
    CalibrationSet as CalibrationSet,
    Dataset as Dataset,
    open_dataset as open_dataset,
)
from vitdeploy.errors import (
    ArtifactError as ArtifactError,
    BackendError as BackendError,
    BudgetError as BudgetError,
    BuildError as BuildError,
    CalibrationError as CalibrationError,
    CalibrationWarning as CalibrationWarning,
    CheckpointError as CheckpointError,
    DataError as DataError,
    FidelityWarning as FidelityWarning,
    GateError as GateError,
    GraphError as GraphError,
    ModelError as ModelError,
    RecipeError as RecipeError,
    RemoteError as RemoteError,
    SeenDataWarning as SeenDataWarning,
    TrainingError as TrainingError,
    UsageError as UsageError,
    VitdeployError as VitdeployError,
)
from vitdeploy.models.registry import create_model as create_model, register_family as register_family
from vitdeploy.pipeline import Recipe as Recipe, RunResult as RunResult, read_recipe as read_recipe, run as run
from vitdeploy.progress import Progress as Progress
from vitdeploy.records import (
    Check as Check,
    Conditions as Conditions,
    Environment as Environment,
    Front as Front,
    Manifest as Manifest,
    ModelSpec as ModelSpec,
    PrecisionPlan as PrecisionPlan,
    Preprocess as Preprocess,
    Report as Report,
    Row as Row,
    Sensitivity as Sensitivity,
    Timing as Timing,
)
from vitdeploy.remote.host import Remote as Remote
from vitdeploy.report import (
    Comparison as Comparison,
    History as History,
    compare as compare,
    history as history,
    log_to_mlflow as log_to_mlflow,
    read_front as read_front,
    read_report as read_report,
    write_front_page as write_front_page,
    write_history as write_history,
    write_report as write_report,
    write_sensitivity as write_sensitivity,
)
from vitdeploy.runtime.batch import BatchPredictor as BatchPredictor, batch_predictor as batch_predictor
from vitdeploy.runtime.newest import NewestFrames as NewestFrames
from vitdeploy.runtime.prediction import ClassProbability as ClassProbability, Prediction as Prediction
from vitdeploy.runtime.predictor import Predictor as Predictor, load as load
from vitdeploy.sessions import BuildTarget as BuildTarget, SessionOptions as SessionOptions
from vitdeploy.sources.load import LoadedModel as LoadedModel, load_source as load_source
from vitdeploy.sources.source import SourceOptions as SourceOptions
from vitdeploy.stages.bench import BenchOptions as BenchOptions, BenchRequest as BenchRequest, bench as bench
from vitdeploy.stages.build import BuildRequest as BuildRequest, build as build
from vitdeploy.stages.calibration_sets import (
    check_calibration_set as check_calibration_set,
    make_calibration_set as make_calibration_set,
    show_calibration_set as show_calibration_set,
)
from vitdeploy.stages.calibration_tables import (
    ObserveOptions as ObserveOptions,
    merge_calibration_tables as merge_calibration_tables,
    observe_calibration as observe_calibration,
)
from vitdeploy.stages.convert import ConvertRequest as ConvertRequest, convert as convert
from vitdeploy.stages.diff import Diff as Diff, TensorDifference as TensorDifference, diff as diff
from vitdeploy.stages.doctor import Finding as Finding, doctor as doctor
from vitdeploy.stages.export import ExportOptions as ExportOptions, ExportRequest as ExportRequest, export as export
from vitdeploy.stages.inspect import Inspection as Inspection, inspect as inspect
from vitdeploy.stages.package import Provenance as Provenance, package as package
from vitdeploy.stages.predict import predict as predict
from vitdeploy.stages.quantize import (
    QuantizeOptions as QuantizeOptions,
    QuantizeRequest as QuantizeRequest,
    quantize as quantize,
)
from vitdeploy.stages.sensitivity import SensitivityRequest as SensitivityRequest, sensitivity as sensitivity
from vitdeploy.stages.triton import (
    TritonOptions as TritonOptions,
    write_triton_repository as write_triton_repository,
)
from vitdeploy.stages.train import TrainRequest as TrainRequest, train as train
from vitdeploy.stages.verify import Verification as Verification, verify as verify
from vitdeploy.terminal_progress import TerminalProgress as TerminalProgress
from vitdeploy.training.options import (
    Augmentation as Augmentation,
    Distillation as Distillation,
    Hardware as Hardware,
    TrainOptions as TrainOptions,
)

__version__: str
