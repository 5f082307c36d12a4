"""Images that were seen before they judge: those of the training, the choice of its best epoch, and the calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitdeploy.benching.measuring import Entry
from vitdeploy.datasets import Dataset, open_dataset, overlap_text
from vitdeploy.datasets.uri import parse_uri
from vitdeploy.errors import DataError
from vitdeploy.records import Manifest


def note_seen_images(entries: Sequence[Entry], dataset: Dataset) -> tuple[str, ...]:
    """Add a note to each entry whose artifact has seen images of ``dataset``, on which it looks better than it is.

    Returns:
        Sentences for the verdict, each once. Where no artifact states what it has seen, splits of the same folder are
        compared with each other.
    """
    found: list[str] = []
    for entry in entries:
        artifact = entry.candidate.artifact
        for text in () if artifact is None else seen_images(artifact.manifest, dataset):
            entry.notes.append(f"{text}: its top-1 here is better than on new images")
            found.append(
                f"{text}, so this top-1 says little about new images: name data that was kept out, such as a test split"
            )
    return tuple(dict.fromkeys(found)) or shared_between_splits(dataset)


def seen_images(manifest: Manifest, dataset: Dataset) -> list[str]:
    """Return in words how many images of ``dataset`` the artifact's weights and ranges come from."""
    ids, whole = dataset.sample_ids, len(dataset)
    counts: list[tuple[int, str]] = []
    for training in manifest.trained_on:
        counts.append((training.train.shared_with(ids), "were trained on"))
        if training.validation is not None:
            counts.append((training.validation.shared_with(ids), "chose the best epoch of the training"))
    if (calibration := manifest.calibration) is not None:
        same = whole if calibration.set_sha256 == dataset.digest else 0
        shared = same if calibration.images is None else calibration.images.shared_with(ids)
        counts.append((shared, "were calibrated on"))
    return [f"{count} of the {whole} images of {dataset.uri!r} {relation}" for count, relation in counts if count]


def shared_between_splits(dataset: Dataset) -> tuple[str, ...]:
    """Return sentences where images of a split are in what the same folder is trained with too."""
    parsed = parse_uri(dataset.uri)
    if parsed.split not in ("validation", "test") or dataset.file(0) is None:
        return ()
    sentences = []
    for split in ("train", "validation"):
        try:
            other = open_dataset(replace(parsed, split=split).text) if split != parsed.split else None
        except DataError:
            continue  # there is none
        if other is not None and (text := overlap_text(dataset, other)):
            sentences.append(f"{text}, so a model that was trained there has seen them")
    return tuple(sentences)
