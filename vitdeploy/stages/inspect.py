"""``inspect``: what a file is, of any kind and make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydantic import ValidationError

from vitdeploy.artifacts import Artifact, CalibrationTable, Checkpoint, OnnxModel, load_ir, open_artifact, read_engine
from vitdeploy.artifacts.bundle import is_bundle, read_bundle
from vitdeploy.artifacts.calibration_table import SUFFIX as CALIBRATION_TABLE
from vitdeploy.artifacts.calibration_table import arrays_of
from vitdeploy.artifacts.checkpoint import METADATA_KEY as CHECKPOINT_KEY
from vitdeploy.artifacts.lineage import artifacts_in
from vitdeploy.artifacts.onnx_model import METADATA_KEY as ONNX_KEY
from vitdeploy.artifacts.other_files import is_weights_folder, not_an_artifact
from vitdeploy.artifacts.pages import warn_of_other_pages
from vitdeploy.artifacts.reference import METADATA_KEY as REFERENCE_KEY
from vitdeploy.artifacts.reference import read_reference, reference_path
from vitdeploy.artifacts.report_json import read_report
from vitdeploy.artifacts.run_record import RUN, read_run_record
from vitdeploy.datasets.calibration_set import MANIFEST_NAME as CALIBRATION_SET
from vitdeploy.datasets.calibration_set import check_files, is_calibration_set, read_calibration_manifest
from vitdeploy.errors import ArtifactError, BackendError, CheckpointError, UsageError, require_one_of
from vitdeploy.reading import (
    first_problem,
    is_safetensors,
    missing,
    parse_json,
    read_bytes,
    read_head,
    read_json,
    safetensors_metadata,
)
from vitdeploy.records import Front, Manifest, ModelSpec, OperatorCensus, PrecisionPlan, Record, Sensitivity
from vitdeploy.records.budget import FRONT
from vitdeploy.records.report import DIGEST_KEY, REPORT
from vitdeploy.text import size_text
from vitdeploy.wording import adoption, decibel_text, percent_text

if TYPE_CHECKING:
    import onnx_ir as ir

InspectedKind = Literal[
    "checkpoint",
    "onnx",
    "calibration-table",
    "engine",
    "weights",
    "reference",
    "report",
    "run",
    "calibration-set",
    "training-metrics",
    "bundle",
    "sensitivity",
    "front",
    "plan",
]
Runtime = Literal["onnxruntime", "openvino"]
Fact = tuple[str, str]
_MOST_PARTS = 5


class TensorInfo(Record):
    """An input or output of a graph; a dynamic dimension is its name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class GraphInfo(Record):
    """What an ONNX graph consists of. ``precisions`` counts computing nodes, ``findings`` says what is not legal."""

    ir_version: int
    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    nodes: int
    operators: dict[str, int]
    precisions: dict[str, int]
    findings: tuple[str, ...] = ()


class WeightsInfo(Record):
    """What a weight file consists of; ``dialect`` and ``reason`` for one that is not ours."""

    tensors: int
    parameters: int
    dtypes: dict[str, int]
    dialect: str | None = None
    reason: str = ""


class Inspection(Record):
    """What a file or folder is.

    ``manifest`` is None for what carries none; ``remedy`` says how to make use of a file that is not ours. ``facts``
    are names and texts of what a report, a run, a plan, a search, a calibration set or stored logits hold. ``census``
    is filled where ``runtime`` names one, for a quantized graph.
    """

    path: str
    kind: InspectedKind
    size_bytes: int
    payload_sha256: str | None = None
    manifest: Manifest | None = None
    graph: GraphInfo | None = None
    weights: WeightsInfo | None = None
    census: OperatorCensus | None = None
    golden_samples: int = 0
    facts: tuple[Fact, ...] = ()
    remedy: str = ""


def inspect(file: Artifact | Path | str, *, runtime: Runtime | None = None) -> Inspection:
    """Read a file, or a folder of a run, a report, a search, a calibration set or weights, and return what it is.

    What vitdeploy wrote is verified on the way: digests, and every artifact of a run's folder.

    Args:
        file: The file or folder.
        runtime: Opens a quantized ONNX graph, of any make, and counts which of its products run in integers there.

    Raises:
        ArtifactError, CheckpointError: There is no such file, it is of no kind that is known, or it is damaged.
        UsageError: ``runtime`` is given for something that is no ONNX graph with 8-bit products.
        BackendError: The runtime is not installed, or refuses the graph.
    """
    path = file.path if isinstance(file, Artifact) else Path(file)
    found = _inspect(path)
    return found if runtime is None else found.model_copy(update={"census": _census(found, path, runtime)})


def _census(found: Inspection, path: Path, runtime: Runtime) -> OperatorCensus:
    from vitdeploy.backends import get_backend
    from vitdeploy.backends.opening import census_of
    from vitdeploy.sessions import SessionOptions

    require_one_of("runtime", runtime, get_args(Runtime))
    if found.graph is None:
        raise UsageError(
            f"{str(path)!r} is no ONNX graph, so no runtime can be asked what it makes of it: leave it out"
        )
    manifest = found.manifest or Manifest(
        kind="onnx", model=ModelSpec(family="onnx", name=path.stem), payload_sha256=found.payload_sha256 or ""
    )
    backend = get_backend(runtime)
    if (missing := backend.unavailable()) is not None:
        raise BackendError(missing)
    model = OnnxModel(path, manifest)
    with backend.open(model, SessionOptions(device="cpu")) as session:
        census = census_of(model, runtime, session)
    if census is None:
        raise UsageError(f"{str(path)!r} has no 8-bit products, so there is nothing to count: name a quantized graph")
    return census


def _inspect(path: Path) -> Inspection:
    if not path.exists():
        raise missing(path, FileNotFoundError())
    if is_bundle(path):
        return _inspect_bundle(path)
    if path.name.endswith(".metrics.jsonl"):
        return _inspect_metrics(path)
    if path.is_dir() or path.suffix == ".json":
        found = _inspect_record(path)
        if found is not None:
            return found
    if path.name.endswith((".engine.json", ".plan.json")):
        return _inspect_artifact(read_engine(path.with_suffix("")))
    if path.is_file() and is_safetensors(path) and REFERENCE_KEY in safetensors_metadata(path):
        return _inspect_reference(path)
    if path.is_dir() and not is_weights_folder(path) and (refusal := not_an_artifact(path)) is not None:
        raise refusal
    if path.is_dir() or _is_foreign_weights(path):
        return _inspect_weights(path)
    if _is_foreign_onnx(path):
        return _inspect_foreign_onnx(path)
    return _inspect_artifact(open_artifact(path))


def _inspect_record(path: Path) -> Inspection | None:
    """Return what a folder or a JSON file of ours is; None for what its name and content do not tell."""
    if path.is_dir() and (path / FRONT).is_file():
        path /= FRONT
    folder, name = (path, "") if path.is_dir() else (path.parent, path.name)
    content: Any = {} if not name or name.endswith(CALIBRATION_TABLE) else read_json(path)
    keys = content.keys() if isinstance(content, dict) else set()
    for kind, (known, record, facts_of) in _RECORDS.items():
        if keys >= known:
            try:
                facts = facts_of(record.model_validate(content))
            except ValidationError as error:
                problem = first_problem(error)
                raise ArtifactError(f"{str(path)!r} is damaged, or from another version: {problem}") from error
            warn_of_other_pages(path, [path.with_suffix(".html")], "make it again with the same command")
            return Inspection(path=str(path), kind=kind, size_bytes=path.stat().st_size, facts=tuple(facts))
    if name == RUN or (not name and (folder / RUN).is_file()):
        return _inspect_run(folder)
    if name in ("", CALIBRATION_SET) and is_calibration_set(folder):
        return _inspect_calibration_set(folder)
    if not name:
        return _inspect_report(folder / REPORT) if (folder / REPORT).is_file() else None
    return _inspect_report(path) if name == REPORT or DIGEST_KEY in keys else None


def _facts_of_sensitivity(found: Sensitivity) -> list[Fact]:
    return [
        ("model", found.model),
        ("precision", f"{found.precision} for {found.target}"),
        ("calibration", f"{found.calibration_images} images of {found.calibration}"),
        ("data", f"{found.data}, {found.images} images{'' if found.labelled else ' without labels'}"),
        ("all of it", decibel_text(found.all.logits_sqnr_db, found.all.logits_identical)),
        *(
            ("part", f"{part.name}: {percent_text(part.share, 1)} of the error")
            for part in (found.groups or found.kinds)[:_MOST_PARTS]
            if part.share is not None
        ),
    ]


def _facts_of_front(found: Front) -> list[Fact]:
    return [
        ("model", f"{found.model}, for {found.target}"),
        ("timed on", f"{found.runtime}, batch {found.batch}"),
        ("data", f"{found.data}, {found.images} images"),
        ("candidates", f"{len(found.candidates)}, {sum(one.certified for one in found.candidates)} of them certified"),
        *(("verdict", sentence) for sentence in found.verdict),
    ]


def _facts_of_plan(found: PrecisionPlan) -> list[Fact]:
    counts = Counter(entry.precision for entry in found.entries)
    treated = [entry.treatment for entry in found.entries if entry.treatment is not None]
    return [
        ("profile", f"{found.profile}, beside {found.remainder}"),
        *(("groups", f"{count} in {precision}") for precision, count in counts.most_common()),
        ("treatments", f"{len(treated)} of {len(found.entries)} groups have one"),
        *(("rotated", what) for what in found.rotated),
    ]


_RECORDS: dict[InspectedKind, tuple[set[str], type[Record], Callable[[Any], list[Fact]]]] = {
    "sensitivity": ({"groups", "kinds", "trials"}, Sensitivity, _facts_of_sensitivity),
    "front": ({"candidates", "max_drop_pp"}, Front, _facts_of_front),
    "plan": ({"entries", "remainder"}, PrecisionPlan, _facts_of_plan),
}
"""JSON files without a name of their own: the keys by which each is known, its record, and what it states."""


def _inspect_report(path: Path) -> Inspection:
    report = read_report(path)
    conditions = report.conditions
    facts = [
        ("model", report.model),
        ("data", f"{conditions.data}, {conditions.n_samples} images"),
        ("measured", f"{report.created} on {report.environment.cpu}, by {report.producer}"),
        ("baseline", report.baseline.accuracy_against),
        *(("row", f"{row.name}: {row.precision}, {row.status}") for row in report.rows),
        *(("verdict", sentence) for sentence in report.verdict),
    ]
    return Inspection(path=str(path), kind="report", size_bytes=path.stat().st_size, facts=tuple(facts))


def _inspect_run(folder: Path) -> Inspection:
    facts = [("stage", name) for name in read_run_record(folder / RUN)]
    size = 0
    for file in artifacts_in(folder):
        found = inspect(file)
        size += found.size_bytes
        precision = "" if found.manifest is None else f", {found.manifest.precision}"
        facts.append((found.kind, f"{file.name}{precision}, {size_text(found.size_bytes)}"))
    if (folder / REPORT).is_file():
        facts += [("verdict", sentence) for sentence in read_report(folder / REPORT).verdict]
    return Inspection(path=str(folder), kind="run", size_bytes=size, facts=tuple(facts))


def _inspect_calibration_set(folder: Path) -> Inspection:
    manifest = read_calibration_manifest(folder)
    checks = check_files(folder, manifest)
    failed = [check for check in checks if check.status == "failed"]
    if failed:
        raise ArtifactError(f"{str(folder)!r} is a damaged calibration set: {failed[0].name}: {failed[0].detail}")
    facts = (
        ("images", f"{manifest.samples} of {manifest.data}, seed {manifest.seed}"),
        ("classes", ", ".join(manifest.classes[:10]) + (" …" if len(manifest.classes) > 10 else "")),
        ("source", f"{manifest.source}; {manifest.licence}"),
        ("made by", manifest.producer),
    )
    size = sum((folder / entry.path).stat().st_size for entry in manifest.entries)
    digest = manifest.set_sha256
    return Inspection(path=str(folder), kind="calibration-set", size_bytes=size, payload_sha256=digest, facts=facts)


def _inspect_bundle(path: Path) -> Inspection:
    bundle = read_bundle(path)
    manifest = bundle.manifest
    facts = [
        ("model", f"{manifest.model.name}, {len(manifest.model.classes)} classes"),
        *(("engine", f"{one.path.name}, {one.manifest.precision}") for one in bundle.engines()),
        *(("graph", f"{one.path.name}, {one.manifest.precision}") for one in bundle.graphs()),
        *(("file", f"{file.name}, {size_text(file.bytes)}") for file in manifest.files),
        ("licence", manifest.licence or "not stated"),
        ("source", manifest.source or "not stated"),
        *(("trained on", data.data) for data in manifest.trained_on),
        ("signature", "signed; vd.verify(..., public_key='KEY') checks it" if bundle.is_signed else "none"),
        ("made by", manifest.producer),
    ]
    return Inspection(
        path=str(path),
        kind="bundle",
        size_bytes=sum(file.bytes for file in manifest.files),
        payload_sha256=manifest.manifest_sha256,
        facts=tuple(facts),
    )


def _inspect_metrics(path: Path) -> Inspection:
    lines = read_bytes(path).splitlines()
    try:
        epochs = [parse_json(line) for line in lines]
    except ValueError as error:
        raise ArtifactError(f"{str(path)!r} is not a training's metrics: a line is not JSON ({error})") from error
    last = epochs[-1] if epochs and isinstance(epochs[-1], dict) else {}
    facts = (("lines", str(len(epochs))), *((f"last {name}", str(value)) for name, value in last.items()))
    return Inspection(path=str(path), kind="training-metrics", size_bytes=path.stat().st_size, facts=facts)


def _inspect_reference(path: Path) -> Inspection:
    read_reference(path)
    facts = (("logits", "of PyTorch, by the samples' digests; vd.bench() compares with them"),)
    return Inspection(path=str(path), kind="reference", size_bytes=path.stat().st_size, facts=facts)


def _inspect_artifact(artifact: Artifact) -> Inspection:
    manifest = artifact.manifest
    found = Inspection(
        path=str(artifact.path),
        kind=manifest.kind,
        size_bytes=_size(artifact),
        payload_sha256=artifact.digest,
        manifest=manifest,
    )
    if isinstance(artifact, Checkpoint):
        tensors = artifact.tensors()
        return found.model_copy(update={"weights": _weights_info({k: (v.shape, v.dtype) for k, v in tensors.items()})})
    if isinstance(artifact, OnnxModel):
        if reference_path(artifact.path).exists():
            read_reference(reference_path(artifact.path))
        samples = 0 if artifact.golden is None else len(artifact.golden.pixels)
        update = {"graph": graph_info(load_ir(artifact.path)), "golden_samples": samples}
        return found.model_copy(update=update)
    return found


def _size(artifact: Artifact) -> int:
    files = [artifact.path]
    if isinstance(artifact, OnnxModel):
        files += artifact.external_data()
    if isinstance(artifact, CalibrationTable):
        files += [arrays_of(artifact.path)]
    return sum(file.stat().st_size for file in files)


def _is_foreign_weights(path: Path) -> bool:
    """Return whether a file looks like weights (safetensors, zip, pickle, tar) and has no manifest of ours."""
    if is_safetensors(path):
        return CHECKPOINT_KEY not in safetensors_metadata(path)
    head = read_head(path, 512)
    return head[:2] == b"PK" or head[:1] == b"\x80" or head[257:262] == b"ustar"


def _is_foreign_onnx(path: Path) -> bool:
    if path.suffix != ".onnx":
        return False
    return ONNX_KEY not in load_ir(path).metadata_props


def _inspect_weights(path: Path) -> Inspection:
    from vitdeploy.checkpoints import detect, read_weights

    file = read_weights(path)
    info = _weights_info({name: (array.shape, array.dtype) for name, array in file.tensors.items()})
    remedy = f"vd.export('NAME', 'model.onnx', options=vd.ExportOptions(weights={str(path)!r})) makes a model of it"
    try:
        dialect, reason = detect(file)
        info = info.model_copy(update={"dialect": f"{dialect.name} {dialect.family}", "reason": reason})
    except CheckpointError as error:
        info = info.model_copy(update={"reason": str(error)})
        remedy = ""
    else:
        if path.is_dir():
            remedy = f"vd.export({str(path)!r}, {f'{path.absolute().name}.onnx'!r}) makes a model of it"
    files = [path] if path.is_file() else [one for one in path.iterdir() if one.is_file()]
    return Inspection(
        path=str(path),
        kind="weights",
        size_bytes=sum(one.stat().st_size for one in files),
        weights=info,
        remedy=remedy,
    )


def _weights_info(tensors: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]) -> WeightsInfo:
    dtypes = Counter(str(dtype) for _, dtype in tensors.values())
    parameters = sum(int(np.prod(shape)) for shape, _ in tensors.values())
    return WeightsInfo(tensors=len(tensors), parameters=parameters, dtypes=dict(sorted(dtypes.items())))


def _inspect_foreign_onnx(path: Path) -> Inspection:
    from vitdeploy.artifacts.digest import onnx_digest

    model = load_ir(path)
    try:
        digest = onnx_digest(model)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ArtifactError(f"{str(path)!r} is not a whole ONNX file: it is damaged") from error
    return Inspection(
        path=str(path),
        kind="onnx",
        size_bytes=sum(file.stat().st_size for file in {path, *_external_files(model)}),
        payload_sha256=digest,
        graph=graph_info(model),
        remedy=f"{adoption(path)} adopts it",
    )


def _external_files(model: ir.Model) -> set[Path]:
    import onnx_ir as ir

    tensors = [value.const_value for value in model.graph.initializers.values()]
    return {Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


def graph_info(model: ir.Model) -> GraphInfo:
    """Return what a graph consists of."""
    from vitdeploy.graph.legality import findings
    from vitdeploy.graph.precisions import count_precisions

    operators = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph)
    return GraphInfo(
        ir_version=model.ir_version,
        opset=model.opset_imports.get("", 0),
        inputs=tuple(_tensor_info(value) for value in model.graph.inputs if not value.is_initializer()),
        outputs=tuple(_tensor_info(value) for value in model.graph.outputs),
        nodes=model.graph.num_nodes(),
        operators=dict(operators.most_common()),
        precisions=count_precisions(model),
        findings=tuple(str(finding) for finding in findings(model)),
    )


def _tensor_info(value: ir.Value) -> TensorInfo:
    shape = () if value.shape is None else value.shape
    return TensorInfo(
        name=str(value.name),
        dtype="unknown" if value.dtype is None else value.dtype.name.lower(),
        shape=tuple(size if isinstance(size, int) else str(size) for size in shape),
    )
