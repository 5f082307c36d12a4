"""The state of an unfinished training, in one file beside its output."""

from __future__ import annotations

import math
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from vitdeploy.artifacts import atomic_path
from vitdeploy.errors import TrainingError
from vitdeploy.training.evaluation import Score
from vitdeploy.training.identity import Identity
from vitdeploy.training.journal import Row

VERSION = 2


@dataclass
class Best:
    """The best evaluation so far and its weights, on the CPU."""

    epoch: int
    top1: float
    loss: float
    weights: dict[str, Tensor]


@dataclass
class State:
    """How far a training is: ``update`` updates are done, ``loss_sum`` adds up the losses since the last whole epoch.

    Order and variation of the images are functions of seed and update, so no generator's state is kept.
    """

    update: int = 0
    loss_sum: float = 0.0
    best: Best | None = None
    history: list[Row] = field(default_factory=list)

    def is_best(self, score: Score) -> bool:
        """Return whether an evaluation of the epoch now done is to be preferred to the best so far.

        Top-1 values within one standard error √(p(1 − p) / n) of the highest cannot be told apart by so few images, so
        among them the lowest loss is the best (the one-standard-error rule of Breiman et al. 1984, section 3.4.3).
        """
        peak = max([row["validation_top1"] for row in self.history] + [score.top1])
        threshold = peak - math.sqrt(peak * (1 - peak) / score.images)
        if score.top1 < threshold:
            return False
        return self.best is None or self.best.top1 < threshold or score.loss < self.best.loss


def write_state(path: Path, identity: Identity, state: State, parts: dict[str, Any]) -> None:
    """Write the state atomically; ``parts`` are state dicts of model, optimizer, scaler and average.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written; the state before is untouched.
    """
    content = {"version": VERSION, "identity": vars(identity), **vars(state), "parts": parts}
    content["best"] = None if state.best is None else vars(state.best)
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def read_state(path: Path, identity: Identity) -> tuple[State, dict[str, Any]]:
    """Return the state and its parts, on the CPU; nothing in the file is executed.

    Raises:
        TrainingError: The file is damaged, or belongs to a training with other data or options.
    """
    again = "train again without resume=True"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
        version = content.pop("version")
        if version != VERSION:
            raise TrainingError(
                f"{str(path)!r} is a state of version {version}, this vitdeploy reads {VERSION}: {again}"
            )
        earlier, parts, best = Identity(**content.pop("identity")), content.pop("parts"), content.pop("best")
        state = State(**content, best=None if best is None else Best(**best))
        difference = identity.difference(earlier) or "other data, model or options"
    except (
        UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise TrainingError(f"the state of the unfinished training, {str(path)!r}, is damaged: {again}") from error
    except OSError as error:
        raise TrainingError(f"there is no state to go on from, {str(path)!r} cannot be read: {again}") from error
    if earlier.key != identity.key:
        raise TrainingError(f"{str(path)!r} belongs to a training with {difference}: {again}")
    return state, parts
