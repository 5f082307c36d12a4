"""Files that a training leaves beside its output NAME.safetensors."""

from __future__ import annotations

from pathlib import Path


def state_path(output: Path) -> Path:
    """Return the file with the state of an unfinished training; it is removed when the training is done."""
    return output.with_suffix(".state.pt")


def metrics_path(output: Path) -> Path:
    """Return the file with one JSON line of metrics per epoch."""
    return output.with_suffix(".metrics.jsonl")


def tensorboard_path(output: Path) -> Path:
    """Return the folder for TensorBoard."""
    return output.with_suffix(".tensorboard")


def last_path(output: Path) -> Path:
    """Return the file of the last weights, beside the best."""
    return output.with_suffix(".last.safetensors")
