"""Calibration sets: make one, show it, check it.

A calibration set is a folder of image files with a manifest (``vitdeploy.datasets.calibration_set``). Files of an image
folder are copied byte for byte; images that are no files (the digits, timm's datasets) are written as PNG, which keeps
every pixel.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ConfigDict, Field

from vitdeploy import __version__
from vitdeploy.artifacts import atomic_folder
from vitdeploy.datasets import (
    CalibrationFiles,
    CalibrationSet,
    Dataset,
    Split,
    is_calibration_set,
    open_dataset,
    refuse_output_in_data,
)
from vitdeploy.datasets.calibration_set import (
    MANIFEST_NAME,
    CalibrationEntry,
    check_files,
    open_calibration_set,
    read_calibration_manifest,
)
from vitdeploy.datasets.opening import calibration_split, evaluation_split
from vitdeploy.datasets.uri import parse_uri
from vitdeploy.errors import ArtifactError, DataError, RecipeError, UsageError
from vitdeploy.preprocess import preprocess_from, to_pixels
from vitdeploy.progress import Progress
from vitdeploy.quantization.division import warn_of_few_images
from vitdeploy.reading import first_problem, read_yaml, sha256_of_file
from vitdeploy.records import Check, Preprocess, Record
from vitdeploy.terminal_progress import AUTO, shown

RECOMMENDED_SAMPLES = 128
_FEW = "ranges may be too narrow, compare with a larger set"


class CalibrationRecipe(Record):
    """What ``make_from_recipe`` carries out; ``data`` may be left to its caller.

    ``preprocess`` is a source as ``preprocess_from`` takes it. ``source`` and ``licence`` are written into the manifest
    where the dataset does not say them itself.
    """

    model_config = ConfigDict(extra="forbid")

    description: str = ""
    data: str | None = None
    samples: int = Field(ge=1)
    seed: int = 0
    preprocess: str | None = None
    source: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Origin:
    """Where the images come from and on what terms, for data that does not say it itself."""

    source: str = ""
    licence: str = ""


def make_calibration_set(
    data: str,
    output: Path | str,
    *,
    samples: int,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    origin: Origin = Origin(),
    progress: Progress | None = AUTO,
) -> CalibrationFiles:
    """Choose at most ``samples`` images, stratified and seeded, and write them to ``output`` with a manifest.

    ``data`` is what ``open_dataset`` takes, unlabelled folders included; without a split it means the training split
    where it has one, else all of it. ``preprocess`` (the dataset's own where None) is kept in the manifest, and every
    image is put through it, so that one which does not fit is found now. A folder that already holds the same set is
    left as it is, and another calibration set is replaced, as a whole, when the new one is complete. The set is
    returned as an open dataset, for ``calibration=`` of ``quantize`` and ``sensitivity``, with its ``manifest``.

    Raises:
        CalibrationError: ``data`` is a test split.
        DataError: There are no images, or one cannot be read; nothing is written.
        UsageError: ``output`` is something else than a calibration set, or lies inside the data.
        ArtifactError: The folder cannot be written, or the disk is full.
    """
    output, progress = Path(output), shown(progress)
    split = calibration_split(data)
    dataset = open_dataset(data, split=split, samples=samples, seed=seed)
    _refuse_output(output, data)
    for note in _notes(dataset, samples):
        progress.note(note)
    warn_of_few_images(dataset)
    preprocess = preprocess or dataset.preprocess
    if (there := _same_set(output, dataset, preprocess)) is not None:
        progress.note(f"{output} already holds this set")
        return CalibrationFiles(output, there)
    with atomic_folder(output) as folder:
        count = len(dataset)
        with progress.task(f"writing {count} calibration images", total=count) as task:
            entries = []
            for index in range(count):
                entries.append(_write_image(dataset, index, folder, preprocess))
                task.advance()
        manifest = CalibrationSet(
            data=_name_of(data, split),
            samples=count,
            seed=seed,
            classes=dataset.classes,
            source=dataset.source or origin.source,
            licence=dataset.licence or origin.licence,
            preprocess=preprocess,
            producer=f"vitdeploy {__version__}",
            entries=tuple(entries),
            set_sha256=dataset.digest,
        ).sealed()
        (folder / MANIFEST_NAME).write_text(manifest.text(), encoding="utf8")
    return CalibrationFiles(output, manifest)


def make_from_recipe(
    recipe: CalibrationRecipe, output: Path | str, *, data: str | None = None, progress: Progress | None = AUTO
) -> CalibrationFiles:
    """Make the set that a recipe describes; ``data`` here takes the place of the recipe's.

    Raises:
        UsageError: Neither names any data.
    """
    data = data or recipe.data
    if data is None:
        raise UsageError("the recipe names no data: pass data='DATA'")
    return make_calibration_set(
        data,
        output,
        samples=recipe.samples,
        seed=recipe.seed,
        preprocess=None if recipe.preprocess is None else preprocess_from(recipe.preprocess),
        origin=Origin(recipe.source, recipe.licence),
        progress=progress,
    )


def read_calibration_recipe(path: Path) -> CalibrationRecipe:
    """Read a YAML recipe.

    Raises:
        RecipeError: It is not YAML, or a key or value is not allowed.
        ArtifactError: The file cannot be read.
    """
    from pydantic import ValidationError

    try:
        raw = read_yaml(path)
    except ValueError as error:
        raise RecipeError(f"the recipe {str(path)!r} is not YAML: {error}") from error
    try:
        return CalibrationRecipe.model_validate(raw)
    except ValidationError as error:
        known = ", ".join(CalibrationRecipe.model_fields)
        raise RecipeError(f"the recipe {str(path)!r} is not valid: {first_problem(error)}; keys are {known}") from error


def show_calibration_set(path: Path | str) -> CalibrationSet:
    """Return the manifest of a calibration set, verified against itself but not against the images.

    Raises:
        ArtifactError: There is no manifest, or it is damaged or edited.
    """
    return read_calibration_manifest(_existing(path))


def check_calibration_set(path: Path | str, *, against: str | None = None) -> tuple[Check, ...]:
    """Check a calibration set: files, ids, labels, duplicates, size, and that none of it is in a test set.

    ``against`` is a dataset that must share no image with the set, such as ``digits:test``; where it names no split,
    its test images (see ``evaluation_split``). Images are compared by content, so a copy under another name is found
    and a re-encoded one is not.

    Raises:
        ArtifactError: The folder is no calibration set, or its manifest is damaged or edited.
        DataError: ``against`` cannot be opened.
    """
    root = _existing(path)
    manifest = read_calibration_manifest(root)
    checks = [*check_files(root, manifest), _labels_check(manifest), _duplicates_check(manifest)]
    checks += [_size_check(manifest), _origin_check(manifest)]
    if against is None:
        detail = "no test set was named to compare with"
        return (*checks, Check(name="overlap", status="unchecked", detail=detail))
    return (*checks, _overlap_check(manifest, open_dataset(against, split=evaluation_split(against))))


def _notes(dataset: Dataset, samples: int) -> list[str]:
    count = len(dataset)
    notes = [*dataset.notes]
    if count < samples:
        notes.append(f"{dataset.uri!r} has {count} images, fewer than the {samples} asked for: all are taken")
    return notes


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not is_calibration_set(path):
        raise ArtifactError(
            f"{str(path)!r} is not a calibration set (it has no {MANIFEST_NAME} of one): make one with "
            f"vd.make_calibration_set('DATA', {str(path)!r}, samples=512)"
        )
    return path


def _refuse_output(output: Path, data: str) -> None:
    refuse_output_in_data(output, data)
    if output.is_dir() and (not any(output.iterdir()) or is_calibration_set(output)):
        return
    if output.exists():
        raise UsageError(f"{str(output)!r} exists and is no calibration set: choose another folder, or remove it")


def _same_set(output: Path, dataset: Dataset, preprocess: Preprocess | None) -> CalibrationSet | None:
    """Return the manifest of the set at ``output`` if it is intact and holds the same samples for the same use."""
    if not is_calibration_set(output):
        return None
    try:
        manifest = read_calibration_manifest(output)
        open_calibration_set(output)
    except (ArtifactError, DataError):
        return None
    same = manifest.set_sha256 == dataset.digest and manifest.preprocess == preprocess
    return manifest if same else None


def _write_image(dataset: Dataset, index: int, folder: Path, preprocess: Preprocess | None) -> CalibrationEntry:
    image = dataset.image(index)
    if preprocess is not None:
        try:
            to_pixels(image, preprocess)
        except DataError as error:
            raise DataError(f"'{dataset.name(index)}': {error}") from error
    original = dataset.file(index)
    path = folder / f"{index:05d}{'.png' if original is None else original.suffix.lower()}"
    if original is None:
        image.save(path, optimize=True)
    else:
        shutil.copyfile(original, path)
    label = None if dataset.labels is None else dataset.classes[int(dataset.labels[index])]
    return CalibrationEntry(
        path=path.name,
        sha256=sha256_of_file(path),
        sample_id=dataset.sample_id(index),
        label=label,
        original=dataset.name(index),
    )


def _name_of(data: str, split: Split | None) -> str:
    """Return the text of a dataset, its split included, without the place of its folder on this machine."""
    parsed = parse_uri(data, split)
    folder = Path(parsed.where)
    return replace(parsed, where=folder.resolve().name).text if folder.is_dir() else parsed.text


def _labels_check(manifest: CalibrationSet) -> Check:
    if not manifest.classes:
        return Check(name="labels", status="unchecked", detail="the set is unlabelled, which is enough for calibration")
    counts = Counter(entry.label for entry in manifest.entries)
    absent = [name for name in manifest.classes if name not in counts]
    if absent and manifest.samples >= len(manifest.classes):
        listed = ", ".join(map(repr, absent[:5]))
        return Check(name="labels", status="failed", detail=f"{len(absent)} classes have no image: {listed}")
    spread = f"{min(counts.values())} to {max(counts.values())} images in each"
    return Check(name="labels", status="passed", value=len(counts), unit="classes", detail=spread)


def _duplicates_check(manifest: CalibrationSet) -> Check:
    counts = Counter(entry.sample_id for entry in manifest.entries)
    extra = manifest.samples - len(counts)
    if extra:
        twice = next(entry.original for entry in manifest.entries if counts[entry.sample_id] > 1)
        return Check(
            name="duplicates", status="failed", value=extra, unit="repeated images", detail=f"such as {twice!r}"
        )
    return Check(name="duplicates", status="passed", value=0, unit="repeated images")


def _size_check(manifest: CalibrationSet) -> Check:
    enough = manifest.samples >= RECOMMENDED_SAMPLES
    return Check(
        name="size",
        status="passed" if enough else "unchecked",
        value=manifest.samples,
        limit=RECOMMENDED_SAMPLES,
        unit="images",
        detail="" if enough else _FEW,
    )


def _origin_check(manifest: CalibrationSet) -> Check:
    missing = [name for name in ("source", "licence") if not getattr(manifest, name)]
    if missing:
        return Check(
            name="origin", status="unchecked", detail=f"{' and '.join(missing)} not stated: a recipe can state it"
        )
    return Check(name="origin", status="passed", detail=f"{manifest.source}; {manifest.licence}")


def _overlap_check(manifest: CalibrationSet, test: Dataset) -> Check:
    ids = set(test.sample_ids)
    shared = [entry.original for entry in manifest.entries if entry.sample_id in ids]
    detail = f"which are also in {test.uri!r}"
    if shared:
        detail += ": " + ", ".join(map(repr, shared[:5]))
    return Check(
        name="overlap",
        status="failed" if shared else "passed",
        value=len(shared),
        limit=0,
        unit="images",
        detail=detail,
    )
