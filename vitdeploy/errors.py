"""Every error that a user can meet, as one tree.

    VitdeployError                   exit code 1
    ├── UsageError                   options that contradict each other or do not exist (exit code 2)
    ├── GateError                    a limit such as max_drop_pp= was passed (exit code 3)
    │   └── BudgetError              no graph is within an accuracy budget; says where the best found is
    ├── ArtifactError                a file is missing, of another kind, truncated, changed, or without a manifest
    ├── DataError                    a dataset, an image, or labels that do not fit the model
    ├── CheckpointError              weights of an unknown dialect, of another variant, missing or unexpected tensors
    ├── ModelError                   a model name, argument or input size that the family cannot take
    ├── TrainingError                a loss that is not a number, a state that does not fit the training
    ├── GraphError                   an ONNX graph that a pass cannot treat
    ├── CalibrationError             no calibration data, a NaN range, a table made for another graph
    ├── BackendError                 a runtime that is absent or that refuses the artifact
    │   └── BuildError               an engine could not be built; names node and operator
    ├── RemoteError                  a host that cannot be reached, or cannot do the work
    └── RecipeError                  a recipe that does not validate

A message is one line: what happened, the offending value with ``!r``, what was expected, and the command that fixes it.

What does not stop the work and must not be missed is a warning:

    FidelityWarning                  an artifact may compute something else than its origin, or look better than it is
    ├── CalibrationWarning           too few calibration images, or images unlike those in use
    └── SeenDataWarning              data that the artifact was trained or calibrated on
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path


class VitdeployError(Exception):
    """Root of the tree; ``exit_code`` is what the command line returns for it."""

    exit_code = 1


class UsageError(VitdeployError):
    """Options contradict each other, or a name is not one of those known."""

    exit_code = 2


def require_one_of(name: str, value: object, known: Sequence[object]) -> None:
    """Raise where an option has a value that is not one of the ``known`` ones.

    Raises:
        UsageError: ``value`` is none of them.
    """
    if value not in known:
        raise UsageError(f"{name} is {value!r}, expected one of {', '.join(map(str, known))}")


class GateError(VitdeployError):
    """A measured value passed a limit that the user set."""

    exit_code = 3


class BudgetError(GateError):
    """Nothing that was tried is certain to be within an accuracy budget; ``front`` is the file of what was tried."""

    def __init__(self, message: str, front: Path) -> None:
        super().__init__(message)
        self.front = front


class ArtifactError(VitdeployError):
    """A file is missing, is of another kind, is damaged, or carries no manifest."""


class DataError(VitdeployError):
    """A dataset cannot be read, is too small, or its labels do not fit the model."""


class CheckpointError(VitdeployError):
    """Weights cannot be matched, tensor by tensor, to the model that was asked for."""


class ModelError(VitdeployError):
    """A model name is unknown, or an argument or input size is one that the family cannot take."""


class TrainingError(VitdeployError):
    """A training diverged, or the state of an unfinished one is damaged or belongs to another."""


class GraphError(VitdeployError):
    """An ONNX graph lacks what a pass needs."""


class CalibrationError(VitdeployError):
    """Calibration data is absent, gives no usable range, or belongs to another graph or preprocessing."""


class BackendError(VitdeployError):
    """A runtime is not installed, or refuses the artifact."""


class BuildError(BackendError):
    """A backend could not build an engine; the message names the node and the operator where known."""


class RemoteError(VitdeployError):
    """Another machine cannot be reached over SSH, lacks something, or lost the work that it was handed."""


class RecipeError(VitdeployError):
    """A recipe is not valid YAML, or has a key or value that is not allowed."""


class FidelityWarning(UserWarning):
    """An artifact may compute something else than what it was made from, or numbers may flatter it."""


class CalibrationWarning(FidelityWarning):
    """Ranges come from too few images, or from images unlike those in use."""


class SeenDataWarning(FidelityWarning):
    """An artifact is judged on images that it was trained or calibrated on, so it looks better than it is."""


def warn(text: str, category: type[FidelityWarning] = FidelityWarning) -> None:
    """Give a warning at the line that called vitdeploy."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] == "vitdeploy":
        frame, depth = frame.f_back, depth + 1
    warnings.warn(text, category, stacklevel=depth)
