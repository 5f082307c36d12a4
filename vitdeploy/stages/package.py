"""``package``: graphs, engines and all that belongs to them as one bundle, which a device can check and run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitdeploy import __version__
from vitdeploy.artifacts import Artifact, Engine, OnnxModel, atomic_folder, open_artifact, sidecar_of
from vitdeploy.artifacts.bundle import (
    GOLDEN,
    ZIP_SUFFIX,
    Bundle,
    golden_tensors,
    is_bundle,
    read_bundle,
    seal_bundle,
    write_zip,
)
from vitdeploy.artifacts.files import save_tensors, write_error
from vitdeploy.artifacts.outputs import refuse_unwritable, refuse_unwritable_folder
from vitdeploy.artifacts.pages import other_pages
from vitdeploy.artifacts.report_json import pages_beside, read_report_alone
from vitdeploy.artifacts.signature import read_private_key
from vitdeploy.backends.lowered import refuse_to_ship
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.preprocess import to_input
from vitdeploy.records import BundledGraph, BundleManifest, Preprocess, Report
from vitdeploy.records.report import REPORT
from vitdeploy.text import printable, size_text
from vitdeploy.wording import ms_text, percent_text

_OTHER_ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
REPORT_FILES = (REPORT, "report.html", "report.md")


@dataclass(frozen=True)
class Provenance:
    """Where the weights come from and on what terms; empty where their owner does not state it."""

    licence: str = ""
    source: str = ""


def package(
    artifacts: Sequence[Artifact | Path | str],
    output: Path | str,
    *,
    report: Path | str | None = None,
    provenance: Provenance = Provenance(),
    sign: Path | str | None = None,
) -> Bundle:
    """Write a bundle: graphs, engines, labels, preprocessing, plans, golden samples, report, manifest and README.

    The same inputs give the same bytes, wherever and whenever it is made. An earlier bundle at ``output`` is replaced
    when the new one is complete.

    Args:
        artifacts: ONNX models and engines of one model, in the order of preference: a device takes the first engine
            that it can run, else the first graph. The graph of every engine is among them.
        output: A folder (by custom ``NAME.bundle``), or an archive where it ends in ``.zip``.
        report: A report of ``bench`` on some of these artifacts, a folder or its ``report.json``.
        provenance: Licence and source of the weights.
        sign: The owner's private key (Ed25519, PEM), with which the manifest is signed.
    Raises:
        UsageError: There is no ONNX model, something is neither graph nor engine, they are not of one model, the graph
            of an engine is not among them, two files have one name, the report is of other artifacts, or ``output``
            is something else than a bundle, or ``sign`` is no such key.
        ArtifactError: A file is missing or damaged, or the output cannot be written.
    """
    output = Path(output)
    opened = [open_artifact(one) for one in artifacts]
    graphs = tuple(one for one in opened if isinstance(one, OnnxModel))
    engines = tuple(one for one in opened if isinstance(one, Engine))
    preprocess = _refuse_unfit(opened, graphs, engines)
    signer = None if sign is None else read_private_key(sign).sign
    measured = None if report is None else _report_of(report, opened)
    _refuse_output(output)
    files = [file for graph in graphs for file in (graph.path, *graph.external_data())]
    files += [file for engine in engines for file in (engine.path, sidecar_of(engine.path))]
    if report is not None:
        folder = Path(report) if Path(report).is_dir() else Path(report).parent
        files += [folder / name for name in REPORT_FILES if (folder / name).is_file()]
    _refuse_same_names(files)
    manifest = BundleManifest(
        model=graphs[0].manifest.model,
        preprocess=preprocess,
        graphs=tuple(BundledGraph(name=graph.path.name, manifest=graph.manifest) for graph in graphs),
        engines=tuple(engine.path.name for engine in engines),
        licence=provenance.licence,
        source=provenance.source,
        trained_on=graphs[0].manifest.trained_on,
        producer=f"vitdeploy {__version__}",
    )

    def fill(folder: Path) -> None:
        for file in files:
            shutil.copyfile(file, folder / file.name)
        _write_parts(folder, manifest, graphs)
        (folder / "README.md").write_text(_readme(manifest, [*engines, *graphs], measured), encoding="utf8")
        seal_bundle(folder, manifest, signer)

    try:
        if output.suffix == ZIP_SUFFIX:
            output.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".vitdeploy-", dir=output.absolute().parent) as temporary:
                fill(Path(temporary))
                write_zip(Path(temporary), output)
        else:
            with atomic_folder(output) as folder:
                fill(folder)
    except OSError as error:
        raise write_error(output, error) from error
    return read_bundle(output)


def _refuse_unfit(opened: Sequence[Artifact], graphs: Sequence[OnnxModel], engines: Sequence[Engine]) -> Preprocess:
    if not graphs:
        raise UsageError("a bundle needs an ONNX model, from which an engine can be built anew: name one")
    for one in opened:
        if not isinstance(one, OnnxModel | Engine):
            raise UsageError(
                f"{str(one.path)!r} is a {one.manifest.kind}, expected ONNX models and engines: vd.export() "
                "makes a graph of a checkpoint"
            )
    for graph in graphs:
        refuse_to_ship(graph)
    first = graphs[0]
    if first.manifest.preprocess is None:
        raise ArtifactError(f"{str(first.path)!r} carries no preprocessing, so an image cannot become its input")
    for one in opened:
        for subject, ours, theirs in (
            ("model", first.manifest.model, one.manifest.model),
            ("preprocessing", first.manifest.preprocess, one.manifest.preprocess),
        ):
            if ours != theirs:
                raise UsageError(
                    f"{one.path.name!r} has another {subject} than {first.path.name!r}: a bundle holds one model"
                )
    for engine in engines:
        if engine.manifest.parents.get("onnx") not in {graph.digest for graph in graphs}:
            raise UsageError(f"the graph that {engine.path.name!r} was built from is not among the artifacts: name it")
    samples = [(graph.path.name, graph.golden.pixels) for graph in graphs if graph.golden is not None]
    for name, pixels in samples:
        if not np.array_equal(pixels, samples[0][1]):
            raise UsageError(f"{name!r} and {samples[0][0]!r} carry different golden samples: quantize one export")
    return first.manifest.preprocess


def _report_of(report: Path | str, opened: Sequence[Artifact]) -> Report:
    found = read_report_alone(report)
    place = Path(report) / REPORT if Path(report).is_dir() else Path(report)
    if others := other_pages(place, pages_beside(place)):
        raise ArtifactError(
            f"{str(others[0])!r} shows another report than {place.name} beside it, since writing was interrupted: "
            "bench again, or write_report(read_report(FOLDER), FOLDER) in Python"
        )
    if not {row.payload_sha256 for row in found.rows} & {one.digest for one in opened}:
        raise UsageError(f"the report {str(report)!r} measured none of these artifacts: bench them, or leave it out")
    return found


def _refuse_output(output: Path) -> None:
    if output.suffix.lower() in _OTHER_ARCHIVES:
        raise UsageError(f"{str(output)!r} is the name of another archive, expected one with .zip, or a folder's")
    if output.suffix == ZIP_SUFFIX:
        refuse_unwritable(output, "a bundle")
    elif output.is_file():
        raise UsageError(f"{str(output)!r} is a file, expected a folder such as 'vit.bundle', or a name with .zip")
    else:
        refuse_unwritable_folder(output)
    if output.exists() and not is_bundle(output) and (output.is_file() or any(output.iterdir())):
        raise UsageError(f"{str(output)!r} exists and is no bundle: choose another name, or remove it")


def _refuse_same_names(files: Sequence[Path]) -> None:
    names = [file.name.lower() for file in files]
    for file in files:
        if names.count(file.name.lower()) > 1:
            raise UsageError(f"two files are called {file.name!r}, and a bundle has no folders: rename one")


def _write_parts(folder: Path, manifest: BundleManifest, graphs: tuple[OnnxModel, ...]) -> None:
    """Write what is in the graphs' manifests as files of its own, for whoever reads them without vitdeploy."""
    (folder / "preprocess.json").write_text(manifest.preprocess.model_dump_json(indent=2) + "\n", encoding="utf8")
    if manifest.model.classes:
        (folder / "labels.txt").write_text(
            "".join(f"{printable(name)}\n" for name in manifest.model.classes), encoding="utf8"
        )
    for graph in graphs:
        if graph.manifest.plan is not None:
            text = graph.manifest.plan.model_dump_json(indent=2) + "\n"
            (folder / f"{graph.path.stem}.plan.json").write_text(text, encoding="utf8")
    sampled = tuple(graph for graph in graphs if graph.golden is not None)
    if sampled:
        assert sampled[0].golden is not None
        inputs = to_input(sampled[0].golden.pixels, manifest.preprocess)
        save_tensors(folder / GOLDEN, golden_tensors(sampled, inputs))


def _readme(manifest: BundleManifest, artifacts: Sequence[Artifact], report: Report | None) -> str:
    rows = {} if report is None else {row.payload_sha256: row for row in report.rows}
    table = ["| file | precision | size | top-1 | median ms, batch 1 |", "| --- | --- | --- | --- | --- |"]
    for one in artifacts:
        row = rows.get(one.digest)
        latency = next((timing.p50_ms for timing in row.timings if timing.batch == 1), None) if row else None
        cells = [
            printable(one.path.name).replace("|", "\\|"),
            one.manifest.precision,
            size_text(one.path.stat().st_size),
            percent_text(row.top1 if row else None),
            ms_text(latency),
        ]
        table.append(f"| {' | '.join(cells)} |")
    trained = ", ".join(printable(data.data) for data in manifest.trained_on)
    machine = "" if report is None else printable(report.environment.gpu or report.environment.cpu)
    where = f" Measured on {machine}, see report.json." if machine else ""
    return f"""# {printable(manifest.model.name)}

Written by {manifest.producer}. In this folder, with Python 3.10 or newer, and the wheel that `make package` makes in
a clone of vitdeploy (it is on no package index yet):

    pip install {manifest.producer.replace(" ", "-")}-py3-none-any.whl
    vitdeploy verify .
    vitdeploy predict . PHOTO.jpg

`verify` compares every file with its digest in `manifest.json`, checks the golden samples, and says which file of
this table runs on the machine.

{chr(10).join(table)}

A dash is what was not measured.{where}

| | |
| --- | --- |
| licence of the weights | {printable(manifest.licence) or "not stated"} |
| source of the weights | {printable(manifest.source) or "not stated"} |
| trained on | {trained or "not known to vitdeploy"} |

`golden.safetensors` has inputs of the network and the outputs that each graph gave for them; `preprocess.json` says
how an image becomes an input; `labels.txt` has the classes, one a line.
"""
