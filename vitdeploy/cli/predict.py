"""``vitdeploy predict``: the classes of some images."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitdeploy.cli.options import CpuFallback, Device, Json, Threads
from vitdeploy.cli.output import print_line

if TYPE_CHECKING:
    from vitdeploy.runtime.prediction import Prediction

LISTED = 5
"""Numbers that are shown of a model that gives numbers."""

ROWS_AT_A_TIME = 8192


def predict(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="A bundle, an ONNX model, an engine or a checkpoint.")
    ],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Number of most likely classes of each image.")] = 5,
    device: Device = "auto",
    cpu_fallback: CpuFallback = False,
    threads: Threads = 0,
    pinning: Annotated[
        bool | None,
        typer.Option(help="Keep each CPU thread on a core of its own, or do not.", show_default="the runtime's choice"),
    ] = None,
    spinning: Annotated[
        bool | None,
        typer.Option(help="Let CPU threads spin while they wait, or do not.", show_default="the runtime's choice"),
    ] = None,
    as_json: Json = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV on stdout: a line for each image and class, or number.")
    ] = False,
    parquet: Annotated[
        Path | None, typer.Option("--parquet", metavar="FILE", help="Write the lines of --csv as a Parquet file.")
    ] = None,
) -> None:
    """Print the most likely classes of each image with their probabilities, or what else the model gives.

    Images that cannot be read are left out and listed at the end; the exit code is then 1.
    """
    from vitdeploy import SessionOptions, load
    from vitdeploy.cli.output import make_progress, print_json
    from vitdeploy.datasets.layout import count_left_out
    from vitdeploy.errors import DataError, UsageError
    from vitdeploy.text import name_text

    if as_json + as_csv + (parquet is not None) > 1:
        raise UsageError("--json, --csv and --parquet exclude each other: choose one")
    write_parquet = None if parquet is None else _parquet_writer(parquet)
    progress = make_progress()
    failures: list[DataError] = []
    count = 0

    def counted(found: Iterable[Prediction]) -> Iterator[Prediction]:
        nonlocal count
        with progress.task("predicting") as task:
            for one in found:
                count += 1
                task.advance()
                yield one

    for name in images:
        if name and Path(name).is_dir() and (others := count_left_out(Path(name))):
            listed = ", ".join(f"{number} {ending}" for ending, number in others.most_common())
            progress.note(f"'{name_text(Path(name))}': left out are {listed}, which are not read as images")
    options = SessionOptions(threads, device, cpu_fallback=cpu_fallback, pinning=pinning, spinning=spinning)
    with load(artifact, options=options) as model:
        start = time.perf_counter()
        found = model.stream(list(images), top=top, on_error=lambda _, error: failures.append(error))
        if as_json:
            printed = list(counted(found))
            if printed or not failures:
                print_json(printed)
        elif as_csv:
            _print_csv(_lines(counted(found)))
        elif write_parquet is not None:
            write_parquet(_lines(counted(found)))
        else:
            for prediction in found:
                count += 1
                print_line(f"{prediction.image}: {_prediction_text(prediction)}")
        seconds = time.perf_counter() - start
    if count > 1 and (as_json or as_csv or parquet is not None):
        progress.note(f"{count} images, {count / seconds:.0f} images/s")
    if len(failures) == 1 and not count:
        raise failures[0]
    for failure in failures:
        progress.note(f"left out: {failure}")
    if failures:
        raise DataError(f"{len(failures)} of {len(failures) + count} images cannot be read and were left out")


Line = dict[str, Any]


def _lines(found: Iterable[Prediction]) -> Iterator[Line]:
    """Yield a line for each image and class, or for each image and number of a model without classes."""
    from vitdeploy.text import printable

    for one in found:
        image = printable(one.image)
        for rank, entry in enumerate(one.classes, start=1):
            named = {"index": entry.index, "name": printable(entry.name), "probability": entry.probability}
            yield {"image": image, "rank": rank, **named}
        for index, value in enumerate(one.values):
            yield {"image": image, "index": index, "value": value}


def _print_csv(lines: Iterable[Line]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for number, line in enumerate(lines):
        if number == 0:
            writer.writerow(line)
        writer.writerow(line.values())


def _parquet_writer(path: Path) -> Any:
    """Return a function that writes lines to a Parquet file; what stands against it is found before the work.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
        ArtifactError: The file could not be written.
    """
    import pyarrow
    import pyarrow.parquet

    from vitdeploy import __version__
    from vitdeploy.artifacts import atomic_path
    from vitdeploy.artifacts.outputs import refuse_unwritable
    from vitdeploy.artifacts.ownership import MARK

    refuse_unwritable(path, "a Parquet file")

    def write(lines: Iterator[Line]) -> None:
        first = list(islice(lines, ROWS_AT_A_TIME))
        if not first:
            return
        schema = pyarrow.Table.from_pylist(first[:1]).schema.with_metadata({MARK: __version__})
        with atomic_path(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
            part = first
            while part:
                writer.write_table(pyarrow.Table.from_pylist(part, schema))
                part = list(islice(lines, ROWS_AT_A_TIME))

    return write


def _prediction_text(prediction: Prediction) -> str:
    if prediction.task not in ("regression", "features"):
        return ", ".join(f"{entry.name} {100 * entry.probability:.1f} %" for entry in prediction.classes)
    shown = ", ".join(f"{value:.4g}" for value in prediction.values[:LISTED])
    more = ", …" if len(prediction.values) > LISTED else ""
    prefix = "" if prediction.task == "regression" else f"{len(prediction.values)} features: "
    return f"{prefix}{shown}{more}"
