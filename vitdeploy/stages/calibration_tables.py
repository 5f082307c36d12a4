"""Calibration tables on their own: observe a graph over images, or over one shard of them, and merge shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from vitdeploy import environment
from vitdeploy.artifacts import Artifact, CalibrationTable, open_onnx, read_calibration_table, write_calibration_table
from vitdeploy.artifacts.calibration_table import SUFFIX
from vitdeploy.artifacts.outputs import refuse_unwritable
from vitdeploy.datasets import DataSource, open_dataset
from vitdeploy.datasets.base import Subset
from vitdeploy.datasets.opening import calibration_split
from vitdeploy.errors import CalibrationError, GraphError, UsageError, VitdeployError, require_one_of
from vitdeploy.progress import Progress
from vitdeploy.quantization.calibration import Calibration
from vitdeploy.quantization.observers import MANY_ROWS
from vitdeploy.quantization.plan import Intent, Profile, make_plan
from vitdeploy.quantization.request import refuse_resizing
from vitdeploy.quantization.saved_observations import SavedObservations
from vitdeploy.quantization.table import observers_of, ranges_of
from vitdeploy.records import CalibrationInfo, Manifest, Rounding, SampleSet, sha256_of, stage_key
from vitdeploy.terminal_progress import AUTO, shown
from vitdeploy.wording import adoption


@dataclass(frozen=True)
class ObserveOptions:
    """What is observed, over which images.

    profile: ``mha`` observes the factors of attention as well.
    rounding: ``gptq`` keeps as many rows of the inputs of linears as rounding weights together wants.
    shard: (i, n): every n-th image from the i-th on, counted from 1; None: all.
    samples: Take that many of the images, stratified, by ``seed``, before they are divided into shards.
    threads: CPU threads, 0 for all.
    """

    profile: Profile = "linear"
    rounding: Rounding = "nearest"
    shard: tuple[int, int] | None = None
    samples: int | None = None
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        require_one_of("profile", self.profile, ("linear", "mha"))
        require_one_of("rounding", self.rounding, get_args(Rounding))
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise UsageError(f"shard {self.shard[0]}/{self.shard[1]} is out of range, expected I/N with 1 ≤ I ≤ N")


def observe_calibration(
    model: Artifact | Path | str,
    data: DataSource,
    output: Path | str,
    *,
    options: ObserveOptions = ObserveOptions(),
    progress: Progress | None = AUTO,
) -> CalibrationTable:
    """Run a graph over images and keep what was observed; ``quantize`` takes the table in place of images.

    A run that was killed goes on when the same is asked again. Tables of all shards merge
    (``merge_calibration_tables``) into the table of one pass.

    Args:
        model: An FP32 OnnxModel, or the file of one.
        data: Images; labels are not needed. Without a split it means the training split where there is one.
        output: The table to write, ``NAME.calib.json``; its arrays go beside it.
        options: See ``ObserveOptions``.
        progress: Shows the pass.

    Raises:
        CalibrationError: There are no images, the data is a test split, or an activation is NaN or infinite.
        GraphError: The graph is quantized already, or has nothing to quantize.
        UsageError: The output is not called ``NAME.calib.json``.
        ArtifactError, DataError: A file cannot be read or written.
    """
    from vitdeploy.backends.onnxruntime import cpu_opener
    from vitdeploy.quantization.prepared import Prepared

    source, output = open_onnx(model), _table_path(output)
    preprocess = source.manifest.preprocess
    if source.manifest.precision != "fp32":
        raise GraphError(f"{str(source.path)!r} is {source.manifest.precision} already: calibrate the FP32 graph")
    refuse_resizing(source)
    if preprocess is None:
        raise CalibrationError(
            f"{str(source.path)!r} has no preprocessing in its manifest, so no image can be prepared for it: "
            f"{adoption(source.path)} adds it"
        )
    dataset = open_dataset(data, split=calibration_split(data), samples=options.samples, seed=options.seed)
    if options.shard is not None:
        first, step = options.shard
        dataset = Subset(dataset, np.arange(first - 1, len(dataset), step))
    if not len(dataset):
        raise CalibrationError("there are no images to calibrate with, expected at least one")
    prepared = Prepared.of(source.load())
    plan = make_plan(prepared.linears, prepared.attentions, Intent("int8", "openvino", options.profile))
    if options.rounding == "gptq":
        plan = plan.model_copy(update={"sampled_rows": MANY_ROWS})
    calibration = Calibration(prepared, plan, preprocess, cpu_opener(options.threads), None)
    if not calibration.tensors:
        raise GraphError(
            f"{str(source.path)!r} has no node to quantize, expected linears of at least 16 features between patch "
            f"embedding and head"
        )
    parents = {"onnx": source.digest, "calibration": dataset.digest}
    decided = {"profile": options.profile, **({} if options.rounding == "nearest" else {"rounding": options.rounding})}
    key = stage_key("observe", decided, parents)
    saved = SavedObservations(output, key)
    try:
        with calibration.collector() as collector:
            observers = calibration.observe(collector, "all", dataset, shown(progress), saved)
    except VitdeployError:
        saved.remove()
        raise
    versions = environment.versions()
    manifest = Manifest(
        kind="calibration-table",
        key=key,
        model=source.manifest.model,
        preprocess=preprocess,
        calibration=CalibrationInfo(
            data=dataset.uri,
            graph_sha256=source.manifest.payload_sha256,
            set_sha256=dataset.digest,
            samples=len(dataset),
            method="observed",
            images=SampleSet.of(dataset.sample_ids),
        ),
        parents=parents,
        options=decided,
        producer=f"vitdeploy {versions.get('vitdeploy', '')}".strip(),
        versions=versions,
        environment=environment.current(),
    )
    table = write_calibration_table(output, ranges_of(observers), manifest)
    saved.remove()
    return table


def merge_calibration_tables(tables: Sequence[CalibrationTable | Path | str], output: Path | str) -> CalibrationTable:
    """Write the table of all images of ``tables`` together: what one pass over them would have observed.

    Raises:
        CalibrationError: They are of other graphs, preprocessing or tensors, or one occurs twice.
        UsageError: There are fewer than two, or the output is one of them or not called ``NAME.calib.json``.
        ArtifactError: One cannot be read, or the output cannot be written.
    """
    if len(tables) < 2:
        raise UsageError(f"{len(tables)} calibration table(s) were named, expected at least two to merge")
    opened = [table if isinstance(table, CalibrationTable) else read_calibration_table(Path(table)) for table in tables]
    output = _table_path(output)
    first = opened[0]
    merged = observers_of(first.ranges)
    for other in opened[1:]:
        other.require_fit(first.graph_sha256, first.manifest.preprocess)
        if set(other.ranges) != set(first.ranges):
            odd = sorted(set(other.ranges) ^ set(first.ranges))[0]
            raise CalibrationError(
                f"{str(other.path)!r} and {str(first.path)!r} observed different tensors ({odd!r} is in one only): "
                f"observe all shards with the same profile and plan"
            )
        if _most_rows(other) != _most_rows(first):
            raise CalibrationError(
                f"{str(other.path)!r} and {str(first.path)!r} keep up to {_most_rows(other)} and {_most_rows(first)} "
                "rows of an image: observe all shards with the same rounding"
            )
    digests = [table.digest for table in opened]
    if len(set(digests)) < len(digests):
        twice = next(table.path for index, table in enumerate(opened) if table.digest in digests[:index])
        raise CalibrationError(f"{str(twice)!r} occurs twice among the tables to merge: its images would count double")
    for other in opened[1:]:
        for name, observer in observers_of(other.ranges).items():
            merged[name].merge(observer)
    infos = [table.manifest.calibration for table in opened if table.manifest.calibration is not None]
    info = CalibrationInfo(
        graph_sha256=first.graph_sha256,
        data=" + ".join(dict.fromkeys(info.data for info in infos)),
        set_sha256=sha256_of({"sets": sorted(info.set_sha256 for info in infos)}),
        samples=sum(info.samples for info in infos),
        method="observed",
        images=SampleSet.union([info.images for info in infos if info.images is not None]),
    )
    parents = {"onnx": first.manifest.parents.get("onnx", ""), "calibration": info.set_sha256}
    manifest = first.manifest.model_copy(
        update={"calibration": info, "parents": parents, "key": stage_key("merge", {}, parents)}
    )
    return write_calibration_table(output, ranges_of(merged), manifest)


def _most_rows(table: CalibrationTable) -> int:
    return max((one.most_rows for one in table.ranges.values()), default=0)


def _table_path(output: Path | str) -> Path:
    path = Path(output)
    if not path.name.endswith(SUFFIX):
        raise UsageError(f"the calibration table {str(path)!r} must be called NAME{SUFFIX}")
    refuse_unwritable(path, "a calibration table")
    return path
