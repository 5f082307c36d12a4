"""Adopting an ONNX file from elsewhere: it gets preprocessing, a manifest, and the names that later stages rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy import environment
from vitdeploy.artifacts import Golden, OnnxModel, load_ir, manifest_in_graph, read_onnx, write_onnx
from vitdeploy.artifacts.digest import onnx_digest
from vitdeploy.artifacts.onnx_model import METADATA_KEY
from vitdeploy.datasets import Dataset, load_pixels
from vitdeploy.datasets.check_images import CHECKED_BATCH, golden_count, smooth_random_pixels
from vitdeploy.errors import ArtifactError, GraphError, UsageError
from vitdeploy.exporting.checking import CPU, TOLERANCES, Expected, compare, describe_graph, staged
from vitdeploy.exporting.interface import choose_output, fit_input, fit_output
from vitdeploy.graph.bounds import refuse_large, refuse_unbounded
from vitdeploy.graph.output_activation import output_activation
from vitdeploy.graph.precisions import graph_precision
from vitdeploy.graph.training_mode import refuse_training_mode
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.preprocess import CONFIG, PREPROCESSOR, normalize, preprocess_of_folder, read_config
from vitdeploy.progress import Progress
from vitdeploy.reading import sha256_of_file
from vitdeploy.records import Manifest, ModelSpec, Preprocess, Task, stage_key
from vitdeploy.sources.head import Head, HeadEvidence, decide_head

if TYPE_CHECKING:
    import onnx_ir as ir

_OF_CONFIG = ("architectures", "id2label", "label2id", "label_names", "model_type", "problem_type")
"""Keys of a ``config.json`` beside the file that say what the outputs mean."""
_OF_CLASSIFIERS = ("logits", "probs", "probabilities", "probability", "scores", "class_logits")


@dataclass(frozen=True)
class AdoptionOptions:
    """The part of ``ExportOptions`` that a foreign ONNX file needs."""

    preprocess: Preprocess | None
    labels: Path | None
    task: Task | None
    output_name: str | None
    opset: int
    golden: Dataset | None
    seed: int


def is_onnx(path: Path) -> bool:
    """Return whether a source is an ONNX file: one that is called so."""
    return path.suffix == ".onnx"


def adopt(path: Path, output: Path, options: AdoptionOptions, progress: Progress) -> OnnxModel:
    """Write a foreign graph, cleaned and with a manifest; its outputs before are the reference for those after.

    Before and after are compared at the same batches, to the tolerance of the graph's own precision. A ``config.json``
    and a ``preprocessor_config.json`` beside the file count, as optimum writes them. A graph of ours that was edited
    since keeps its class names and its task, and what its weights were trained on.

    Raises:
        UsageError: ``preprocess`` is missing, or the file is a model of ours already.
        ArtifactError, DataError: The file, the preprocessing or the labels cannot be read.
        GraphError: The graph is no image classifier, does not fit the preprocessing, or cannot be cleaned unchanged.
    """
    from vitdeploy.graph.clean import clean
    from vitdeploy.graph.name_nodes import complete_names

    with progress.task("adopt", total=3) as task:
        task.describe("reading")
        model, where = load_ir(path), repr(str(path))
        refuse_unbounded(model, where)
        named = _preprocess(path, model, options.preprocess, progress)
        original = onnx_digest(model)
        stated, damage = _stated(model, path)
        complete_names(model.graph)  # ONNX Runtime refuses a graph with two nodes of one name
        precision = graph_precision(model)
        notes = choose_output(model, options.output_name, where)
        if options.task == "features":
            notes = (*notes, *_without_head(model, path))
        refuse_training_mode(model, where)
        spec, more = fit_input(model, named, where)
        refuse_large(model, where, batch=CHECKED_BATCH, memory=environment.memory_bytes())
        if options.golden is None:
            pixels = smooth_random_pixels(spec, CHECKED_BATCH, options.seed)
        else:
            pixels = load_pixels(options.golden, spec)
        count, expected, others = _run(model, normalize(pixels, spec), where)
        for note in (*notes, *more, *others):
            progress.note(note)
        activation = output_activation(model.graph, expected.last)
        if activation != "none":
            progress.note(f"its outputs have a {activation} applied: they are taken as probabilities")
        own, more = _stated_model(stated, count)
        head = _head(path, options, count, activation, own)
        for note in (*damage, *more, *head.notes):
            progress.note(note)
        task.advance()
        task.describe("cleaning")
        model.metadata_props.pop(METADATA_KEY, None)
        holder = [clean(model, options.opset)]
        del model
        with staged(holder, output) as (graph, session):
            against = f"{path.name} as it was"
            checks, outputs = compare(session, spec, pixels, expected, against, TOLERANCES[precision])
            session.close()
            task.advance()
            task.describe("writing")
            recorded = _recorded(path, options, named, stated)
            manifest = Manifest(
                kind="onnx",
                key=stage_key("adopt", recorded, {"onnx": original}),
                model=ModelSpec(
                    family="onnx",
                    name=path.stem,
                    arguments={"num_classes": count},
                    classes=head.classes,
                    task=head.task,
                    activation=activation,
                ),
                preprocess=spec,
                trained_on=() if stated is None else stated.trained_on,
                precision=precision,
                checks=checks,
                metrics=describe_graph(graph, progress),
                parents={"onnx": original},
                options=recorded,
                producer="vitdeploy export",
                versions=environment.versions(),
                environment=environment.current(),
            )
            kept = golden_count(spec, len(pixels))
            golden = Golden(pixels[:kept], expected.last[:kept], outputs[:kept])
            written = write_onnx(output, graph, manifest, golden)
            task.advance()
    return written


def adoption_key(path: Path, options: AdoptionOptions) -> str:
    """Return the freshness key that the adopted graph would have.

    Raises:
        VitdeployError: As ``adopt``, where file, preprocessing or labels are unfit.
    """
    model = load_ir(path)
    stated, _ = _stated(model, path)
    recorded = _recorded(path, options, _preprocess(path, model, options.preprocess), stated)
    return stage_key("adopt", recorded, {"onnx": onnx_digest(model)})


def _preprocess(path: Path, model: ir.Model, named: Preprocess | None, progress: Progress | None = None) -> Preprocess:
    """Return the preprocessing that was named, else that of a file beside the graph."""
    if named is not None:
        return named
    if METADATA_KEY in model.metadata_props:
        read_onnx(path)  # says so if it was edited
        raise UsageError(f"{str(path)!r} is a model of vitdeploy already: quantize, build or bench it as it is")
    for folder in _folders(path):
        if (folder / PREPROCESSOR).is_file() or "pretrained_cfg" in read_config(folder):
            found = preprocess_of_folder(folder)
            if progress is not None:
                progress.note(f"preprocessing of {found.source}, which lies beside {path.name!r}")
            return found
    raise UsageError(f"{str(path)!r} carries no preprocessing: pass preprocess='timm:NAME|hf:DIR|FILE' to adopt it")


def _folders(path: Path) -> tuple[Path, ...]:
    """Return where files of the model may lie: beside the graph, or above a folder that is called onnx."""
    folder = path.resolve().parent
    return (folder, folder.parent) if folder.name == "onnx" else (folder,)


def _without_head(model: ir.Model, path: Path) -> tuple[str, ...]:
    """Let a classifier's graph give what its head reads, in place; one that gives features already stays as it is.

    It is a classifier where its output is called so, ends in probabilities, or has names in a ``config.json``.

    Raises:
        GraphError: Its logits are not those of one linear layer.
    """
    from vitdeploy.graph.head_input import find_head_input

    config, where = _config(path)
    output = model.graph.outputs[0]
    producer = output.producer()
    ends = producer is not None and producer.op_type in ("Softmax", "Sigmoid")
    classifies = any("Classification" in str(kind) for kind in config.get("architectures") or ())
    if not (ends or classifies or output.name in _OF_CLASSIFIERS or {"label_names", "label2id"} & config.keys()):
        return (f"output {output.name!r} is taken for the features as it is",)
    model.graph.outputs[:] = [find_head_input(model)]
    evidence = f"{where} names classes" if classifies else f"output {output.name!r} is a classifier's"
    return (f"{evidence}: the head is left out, and the outputs are the features that it reads",)


def _config(path: Path) -> tuple[dict[str, Any], str]:
    """Return what a ``config.json`` beside the graph says of its outputs, and what it is called."""
    for folder in _folders(path):
        config = read_config(folder)
        found = {key: config[key] for key in _OF_CONFIG if key in config}
        names = config.get("pretrained_cfg")
        if isinstance(names, Mapping) and "label_names" in names:
            found.setdefault("label_names", names["label_names"])
        if found:
            return found, f"{CONFIG} of {folder.name!r}"
    return {}, CONFIG


def _head(path: Path, options: AdoptionOptions, count: int, activation: Any, stated: ModelSpec | None) -> Head:
    config, where = _config(path)
    return decide_head(
        HeadEvidence(
            outputs=count,
            activation=activation,
            config=config if stated is None else None,
            where=where,
            task=options.task or (None if stated is None else stated.task),
            labels=options.labels,
            known=() if stated is None else stated.classes,
        )
    )


def _stated(model: ir.Model, path: Path) -> tuple[Manifest | None, tuple[str, ...]]:
    """Return the manifest that a graph of ours carries though it was edited, or a note that it is damaged."""
    try:
        return manifest_in_graph(model, path), ()
    except ArtifactError:
        return None, ("its manifest of vitdeploy is damaged: class names and what it was trained on are left out",)


def _stated_model(stated: Manifest | None, count: int) -> tuple[ModelSpec | None, tuple[str, ...]]:
    """Return the model of that manifest if it fits the number of outputs, and a note."""
    if stated is None:
        return None, ()
    before = stated.model.arguments.get("num_classes")
    if stated.model.task != "features" and before != count:
        return None, (
            f"its manifest of vitdeploy is of {before} outputs and it has {count}: class names and task are left out",
        )
    return stated.model, ("class names, task and trainings are those of the manifest of vitdeploy that it carries",)


def _recorded(path: Path, options: AdoptionOptions, spec: Preprocess, stated: Manifest | None) -> dict[str, Any]:
    found = {
        "opset": options.opset,
        "seed": options.seed,
        "preprocess": spec.model_dump(mode="json"),
        "labels": None if options.labels is None else sha256_of_file(options.labels),
        "config": _config(path)[0],
        "task": options.task,
        "output_name": options.output_name,
        "golden": None if options.golden is None else options.golden.digest,
    }
    return found if stated is None else found | {"manifest": stated.identity}


def _run(model: ir.Model, images: NDArray[np.float32], where: str) -> tuple[int, Expected, tuple[str, ...]]:
    """Fit the output, and return how many numbers it has per image, and what it gives for the images at each batch.

    Raises:
        GraphError: ONNX Runtime refuses the graph, or its output is no row of numbers per image.
    """
    from vitdeploy.backends.custom_operators import LIBRARIES, unknown_operators
    from vitdeploy.backends.onnxruntime import open_graph
    from vitdeploy.errors import BackendError

    try:
        with open_graph(model, CPU) as session:
            spec = next(iter(session.inputs.values()))
            batch = spec.shape[0] or min(2, len(images))
            repeated = np.resize(images, (batch, *images.shape[1:]))
            probe = next(iter(session.run({spec.name: repeated}).values()))
        count, notes = fit_output(model, probe.shape, batch, where)
        with open_graph(model, CPU) as session:
            fixed = next(iter(session.inputs.values())).shape[0]
            sizes = [1, 2, CHECKED_BATCH] if fixed is None else [fixed]
            expected = Expected({size: run_batch(session, images, (size, size)) for size in sizes})
    except BackendError as error:
        if (unknown := unknown_operators(model)) is not None:
            raise GraphError(
                f"{where} has operators that ONNX Runtime does not know: {unknown}: if a library registers them, name "
                f"its file in the environment variable {LIBRARIES}, else export the model without them"
            ) from error
        raise GraphError(f"{where} cannot be run as it is: {error}") from error
    if not np.isfinite(expected.last).all():
        raise GraphError(f"{where} gives outputs that are NaN or infinite as it is: its weights or its FP16 overflow")
    return count, expected, notes
