"""``inspect``: what a file is, of any kind and make."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from vitdeploy.artifacts import Artifact, CalibrationTable, Checkpoint, OnnxModel, load_ir, open_artifact
from vitdeploy.artifacts.checkpoint import METADATA_KEY as CHECKPOINT_KEY
from vitdeploy.artifacts.onnx_model import METADATA_KEY as ONNX_KEY
from vitdeploy.artifacts.reference import METADATA_KEY as REFERENCE_KEY
from vitdeploy.artifacts.reference import read_reference
from vitdeploy.errors import ArtifactError, CheckpointError
from vitdeploy.reading import is_safetensors, missing, read_head, safetensors_metadata
from vitdeploy.records import Manifest, Record

if TYPE_CHECKING:
    import onnx_ir as ir

InspectedKind = Literal["checkpoint", "onnx", "calibration-table", "engine", "weights"]


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
    """What a file is. ``manifest`` is None for a file that is not ours; ``remedy`` then says how to make use of it."""

    path: str
    kind: InspectedKind
    size_bytes: int
    payload_sha256: str | None = None
    manifest: Manifest | None = None
    graph: GraphInfo | None = None
    weights: WeightsInfo | None = None
    golden_samples: int = 0
    remedy: str = ""


def inspect(file: Artifact | Path | str) -> Inspection:
    """Read a file and return what it is; files of ours are verified on the way.

    Raises:
        ArtifactError, CheckpointError: There is no such file, it is of no kind that is known, or it is damaged.
    """
    path = file.path if isinstance(file, Artifact) else Path(file)
    if not path.exists():
        raise missing(path, FileNotFoundError())
    if path.is_file() and is_safetensors(path) and REFERENCE_KEY in safetensors_metadata(path):
        read_reference(path)  # raises where it was damaged
    if path.is_dir() or _is_foreign_weights(path):
        return _inspect_weights(path)
    if _is_foreign_onnx(path):
        return _inspect_foreign_onnx(path)
    return _inspect_artifact(open_artifact(path))


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
        samples = 0 if artifact.golden is None else len(artifact.golden.pixels)
        update = {"graph": graph_info(load_ir(artifact.path)), "golden_samples": samples}
        return found.model_copy(update=update)
    return found


def _size(artifact: Artifact) -> int:
    files = [artifact.path]
    if isinstance(artifact, OnnxModel):
        files += artifact.external_data()
    if isinstance(artifact, CalibrationTable):
        files += artifact.path.parent.glob(f"{artifact.path.stem}.safetensors")
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
    remedy = f"'vitdeploy export NAME --weights {path} -o model.onnx' makes a model of it"
    try:
        dialect, reason = detect(file)
        info = info.model_copy(update={"dialect": f"{dialect.name} {dialect.family}", "reason": reason})
    except CheckpointError as error:
        info = info.model_copy(update={"reason": str(error)})
        remedy = ""
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
        remedy=f"'vitdeploy export {path} --preprocess timm:NAME|hf:DIR|FILE.json -o adopted.onnx' adopts it",
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
