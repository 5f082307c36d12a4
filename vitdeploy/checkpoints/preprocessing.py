"""The preprocessing of foreign weights: the file's own, else the convention of the code base that wrote them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vitdeploy.catalog import Variant
from vitdeploy.checkpoints.conventions import by_convention
from vitdeploy.checkpoints.converted import Converted
from vitdeploy.checkpoints.evidence import Evidence
from vitdeploy.checkpoints.files import WeightFile
from vitdeploy.errors import CheckpointError
from vitdeploy.records import Preprocess

UNSTATED = "the file does not state its preprocessing"
"""How the note on a convention begins; it has no place where a preprocessing was named."""


def preprocess_of_weights(
    variant: Variant | None,
    converted: Converted,
    evidence: Evidence,
    file: WeightFile,
    arguments: Mapping[str, Any],
    notes: list[str],
) -> Preprocess:
    """Return the file's own preprocessing, else the convention of its code base, fitted to the image's size.

    Mean and standard deviation of a layer that the file has in front of the model count before a convention's.
    """
    image_size = arguments["image_size"]
    size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
    channels = int(arguments.get("channels", 3))
    own = converted.preprocess or evidence.preprocess
    if own is not None:
        return _with_channels(own, channels, notes).at_size(size)
    record, warning = by_convention(converted.convention, variant, size)
    if evidence.changes:
        record = _changed(record, evidence.changes, size)
        notes.append(f"its args set the preprocessing: {', '.join(sorted(evidence.changes))}")
    record = _normalized_as_beside(_with_channels(record, channels, notes), file, notes)
    because = f", as {warning}" if warning else ""
    notes.append(f"{UNSTATED}: took {record.source} ({record.words}){because}; preprocess= sets another")
    return record


def _normalized_as_beside(record: Preprocess, file: WeightFile, notes: list[str]) -> Preprocess:
    """Return the record with the mean and standard deviation of a layer that the file has in front of the model."""
    if file.normalization is None or len(file.normalization[0]) not in (1, record.channels):
        return record
    mean, std = (values * (record.channels // len(values)) for values in file.normalization)
    notes.append("the file has a layer of mean and std in front of the model: took them for the preprocessing")
    return record.model_copy(update={"mean": mean, "std": std, "source": f"{record.source}, mean and std of the file"})


def _changed(record: Preprocess, changes: Mapping[str, Any], size: tuple[int, int]) -> Preprocess:
    """Return a record with the arguments of timm's training script."""
    update = {key: value for key, value in changes.items() if key != "crop_pct"}
    if "crop_pct" in changes and record.resize == "shortest":
        update["resize_size"] = math.floor(min(size) / changes["crop_pct"])
    return record.model_copy(update={**update, "source": f"{record.source}, changed by its args"})


def _with_channels(record: Preprocess, channels: int, notes: list[str]) -> Preprocess:
    """Return the record for greyscale images where the model takes those: the mean of what each colour has."""
    if channels == record.channels:
        return record
    if channels not in (1, 3):
        raise CheckpointError(f"the weights take images of {channels} channels, only 1 and 3 can be read from files")
    mean, std = (sum(values) / len(values) for values in (record.mean, record.std))
    notes.append(f"the model takes {channels} channels: took mean {mean:.4g} and std {std:.4g}")
    update = {"channels": channels, "mean": (mean,) * channels, "std": (std,) * channels, "fill": ()}
    return record.model_copy(update=update)
