"""Adopting an ONNX file from elsewhere: it gets preprocessing, a manifest, and the names that later stages rely on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy import environment
from vitdeploy.artifacts import Golden, OnnxModel, load_ir, read_onnx, write_onnx
from vitdeploy.artifacts.digest import onnx_digest
from vitdeploy.artifacts.onnx_model import METADATA_KEY
from vitdeploy.datasets import DataSource
from vitdeploy.datasets.check_images import check_dataset, check_pixels, golden_count
from vitdeploy.datasets.class_names import read_class_names
from vitdeploy.errors import GraphError, UsageError
from vitdeploy.exporting.checking import CPU, compare, describe_graph, staged
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.preprocess import normalize, preprocess_from
from vitdeploy.progress import Progress
from vitdeploy.records import Manifest, ModelSpec, Preprocess, stage_key

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class AdoptionOptions:
    """The part of ``ExportOptions`` that a foreign ONNX file needs."""

    preprocess: str | None
    labels: Path | None
    opset: int
    golden: DataSource | None
    seed: int


def is_onnx(path: Path) -> bool:
    """Return whether a source is an ONNX file: one that is called so."""
    return path.suffix == ".onnx"


def adopt(path: Path, output: Path, options: AdoptionOptions, progress: Progress) -> OnnxModel:
    """Write a foreign graph, cleaned and with a manifest; its outputs before are the reference for those after.

    Raises:
        UsageError: ``--preprocess`` is missing, or the file is a model of ours already.
        ArtifactError, DataError: The file, the preprocessing or the labels cannot be read.
        GraphError: The graph is no image classifier, does not fit the preprocessing, or cannot be cleaned unchanged.
    """
    from vitdeploy.backends.onnxruntime import open_graph
    from vitdeploy.graph.clean import clean

    with progress.task("adopt", total=3) as task:
        task.describe("reading")
        model = load_ir(path)
        spec = _preprocess(path, model, options.preprocess)
        original = onnx_digest(model)
        classes = check_classifier(model, spec, path)
        names = () if options.labels is None else read_class_names(options.labels, classes)
        pixels = check_pixels(spec, options.golden, seed=options.seed)
        with open_graph(model, CPU) as session:
            fixed = next(iter(session.inputs.values())).shape[0]
            expected = run_batch(session, normalize(pixels, spec), (fixed or 1, fixed or 1))
        task.advance()
        task.describe("cleaning")
        model.metadata_props.pop(METADATA_KEY, None)
        holder = [clean(model, options.opset, (spec.channels, *spec.size))]
        del model
        with staged(holder, output) as (graph, session):
            checks, outputs = compare(session, spec, pixels, expected, f"{path.name} as it was")
            session.close()
            task.advance()
            task.describe("writing")
            recorded = _recorded(options, spec, names)
            manifest = Manifest(
                kind="onnx",
                key=stage_key("adopt", recorded, {"onnx": original}),
                model=ModelSpec(family="onnx", name=path.stem, arguments={"num_classes": classes}, classes=names),
                preprocess=spec,
                checks=checks,
                metrics=describe_graph(graph, progress),
                parents={"onnx": original},
                options=recorded,
                producer="vitdeploy export",
                versions=environment.versions(),
                environment=environment.current(),
            )
            count = golden_count(spec, len(pixels))
            written = write_onnx(output, graph, manifest, Golden(pixels[:count], expected[:count], outputs[:count]))
            task.advance()
    return written


def adoption_key(path: Path, options: AdoptionOptions) -> str:
    """Return the freshness key that the adopted graph would have.

    Raises:
        VitdeployError: As ``adopt``, where file, preprocessing or labels are unfit.
    """
    model = load_ir(path)
    spec = _preprocess(path, model, options.preprocess)
    classes = check_classifier(model, spec, path)
    names = () if options.labels is None else read_class_names(options.labels, classes)
    return stage_key("adopt", _recorded(options, spec, names), {"onnx": onnx_digest(model)})


def _preprocess(path: Path, model: ir.Model, source: str | None) -> Preprocess:
    if source is not None:
        return preprocess_from(source)
    if METADATA_KEY in model.metadata_props:
        read_onnx(path)  # says so if it was edited
        raise UsageError(f"{str(path)!r} is a model of vitdeploy already: quantize, build or bench it as it is")
    raise UsageError(
        f"{str(path)!r} carries no preprocessing: add --preprocess timm:NAME, hf:DIR or FILE.json to adopt it"
    )


def _recorded(options: AdoptionOptions, spec: Preprocess, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "opset": options.opset,
        "seed": options.seed,
        "preprocess": spec.model_dump(mode="json"),
        "labels": list(names),
        "golden": None if options.golden is None else check_dataset(options.golden, seed=options.seed).digest,
    }


def check_classifier(model: ir.Model, spec: Preprocess, path: Path) -> int:
    """Return the number of classes of a graph from one float32 image [N, C, H, W] to one row of logits [N, classes].

    Raises:
        GraphError: It is something else, or its input does not fit the preprocessing.
    """
    import onnx_ir as ir

    where = repr(str(path))
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    if len(inputs) != 1 or len(model.graph.outputs) != 1:
        raise GraphError(
            f"{where} has inputs {[v.name for v in inputs]} and outputs {[v.name for v in model.graph.outputs]}, "
            "expected one image input and one logits output"
        )
    image, logits = inputs[0], model.graph.outputs[0]
    if image.dtype != ir.DataType.FLOAT or image.shape is None or len(image.shape) != 4:
        raise GraphError(f"{where}: input {_text(image)}, expected float32 [N, C, H, W]")
    wanted = (spec.channels, *spec.size)
    for axis, size, right in zip("CHW", list(image.shape)[1:], wanted, strict=True):
        if isinstance(size, int) and size != right:
            raise GraphError(
                f"{where}: input {_text(image)}, but the preprocessing gives {axis} = {right}: name the preprocessing "
                "that belongs to this model"
            )
    if logits.dtype != ir.DataType.FLOAT or logits.shape is None or len(logits.shape) != 2:
        raise GraphError(f"{where}: output {_text(logits)}, expected float32 [N, classes]")
    classes = logits.shape[1]
    if not isinstance(classes, int):
        raise GraphError(f"{where}: output {_text(logits)}, expected a known number of classes")
    return classes


def _text(value: ir.Value) -> str:
    kind = value.dtype.name.lower() if value.dtype is not None else "of unknown type"
    sizes = ", ".join(str(size) for size in value.shape) if value.shape is not None else "unknown shape"
    return f"{value.name!r} is {kind} [{sizes}]"
