"""``export``: a PyTorch model becomes an ONNX file, checked against PyTorch; a foreign ONNX file is adopted."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy import environment
from vitdeploy.artifacts import Golden, OnnxModel, write_onnx
from vitdeploy.artifacts.digest import onnx_digest
from vitdeploy.artifacts.files import refuse_unwritable
from vitdeploy.artifacts.reference import ReferenceInfo, write_reference
from vitdeploy.datasets.check_images import check_dataset, check_pixels, golden_count
from vitdeploy.datasets.labels import read_labels
from vitdeploy.errors import ModelError, UsageError
from vitdeploy.exporting.adoption import AdoptionOptions, adopt, is_onnx
from vitdeploy.exporting.checking import CPU, Logits, compare, describe_graph, staged
from vitdeploy.graph.lower_opset import NEWEST, OLDEST
from vitdeploy.preprocess import normalize
from vitdeploy.progress import SILENT, Progress
from vitdeploy.reading import sha256_of_file
from vitdeploy.records import Manifest, stage_key
from vitdeploy.sources.loaded import IMAGENET_CLASSES

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.sources.load import LoadedModel

REFERENCE_BATCH = 32
CHECKPOINT_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ExportOptions:
    """What ``export`` may be told.

    opset: 17 to 20.
    weights, random_weights, arguments, reset_head, seed: For a source that is a name; see ``load_source``.
    reference: A dataset whose logits under PyTorch are stored beside the ONNX file, for machines without torch.
    golden: A dataset from which the samples come that travel with the model; default ``reference``, else made ones.
    preprocess: To adopt a foreign ONNX file: ``timm:NAME``, ``hf:DIR`` or a JSON file.
    labels: Class names, one per line, for a file or weights that do not name them.
    """

    opset: int = 20
    weights: Path | None = None
    random_weights: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reset_head: bool = False
    seed: int = 0
    reference: str | None = None
    golden: str | None = None
    preprocess: str | None = None
    labels: Path | None = None


def export(
    source: str | Path, output: Path | str, *, options: ExportOptions = ExportOptions(), progress: Progress = SILENT
) -> OnnxModel:
    """Write ``source`` as an ONNX model and return it.

    The graph is compared with PyTorch under ONNX Runtime at batch 1, at the traced batch and at another one; if logits
    differ by more than ``comparison.GATE`` of their range, nothing is written. An ``.onnx`` as source is adopted:
    cleaned the same way, compared with itself as it was, and given a manifest.

    Raises:
        UsageError: Options contradict each other.
        ModelError, CheckpointError, ArtifactError, DataError: The source or the data cannot be loaded.
        GraphError: The graph is not what PyTorch computes, or cannot be expressed in ``options.opset``.
    """
    path, output = Path(source), Path(output)
    if not OLDEST <= options.opset <= NEWEST:
        raise UsageError(f"opset {options.opset!r} is not offered, expected {OLDEST} to {NEWEST}")
    if output.suffix == CHECKPOINT_SUFFIX:
        raise UsageError(f"{str(output)!r} is the name of a checkpoint, and export writes ONNX: 'convert' writes those")
    refuse_unwritable(output, "an ONNX file")
    if is_onnx(path):
        return adopt(path, output, _adoption_options(path, options), progress)
    if options.preprocess is not None:
        raise UsageError(f"--preprocess is for adopting an ONNX file, and {str(source)!r} is none: leave it out")
    return _export_model(str(source), output, options, progress)


def export_key(source_digest: str, options: ExportOptions = ExportOptions()) -> str:
    """Return the freshness key of exporting weights with this digest: no paths, data by its content."""
    return stage_key("export", recorded_options(options), {"checkpoint": source_digest})


def recorded_options(options: ExportOptions) -> dict[str, Any]:
    """Return what of the options decides the result; datasets by their digest, of golden ones only the samples used."""
    from vitdeploy.datasets import open_dataset

    golden = options.golden or options.reference
    labels = {} if options.labels is None else {"labels": sha256_of_file(options.labels)}
    return {
        **labels,
        "opset": options.opset,
        "seed": options.seed,
        "reference": None if options.reference is None else open_dataset(options.reference).digest,
        "golden": None if golden is None else check_dataset(golden, seed=options.seed).digest,
    }


def _adoption_options(path: Path, options: ExportOptions) -> AdoptionOptions:
    if options.weights is not None or options.random_weights or options.arguments:
        raise UsageError(
            f"{str(path)!r} brings its own weights: --weights, --random-weights and arguments have no place"
        )
    if options.reference is not None:
        raise UsageError(f"--reference stores PyTorch's logits, and {str(path)!r} has no PyTorch model: leave it out")
    return AdoptionOptions(options.preprocess, options.labels, options.opset, options.golden, options.seed)


def _export_model(source: str, output: Path, options: ExportOptions, progress: Progress) -> OnnxModel:
    with progress.task("export", total=4) as task:
        task.describe("loading")
        loaded = load(source, options, progress)
        manifest, spec = _manifest(loaded, options), loaded.preprocess
        task.advance()
        task.describe("running PyTorch")
        pixels = check_pixels(spec, options.golden or options.reference, seed=options.seed)
        expected = torch_logits(loaded, pixels)
        reference = _reference_logits(loaded, options.reference, progress)
        task.advance()
        task.describe("tracing")
        holder = [_trace(loaded, pixels, options.opset)]
        del loaded  # a large model's weights go to disk now, and ONNX Runtime gets the memory
        gc.collect()
        with staged(holder, output) as (model, session):
            task.advance()
            task.describe("comparing with PyTorch")
            checks, outputs = compare(session, spec, pixels, expected, "PyTorch")
            session.close()
            gc.collect()
            task.describe("writing")
            manifest = manifest.model_copy(update={"checks": checks, "metrics": describe_graph(model, progress)})
            count = golden_count(spec, len(pixels))
            golden = Golden(pixels[:count], expected[:count], outputs[:count])
            if reference is not None:
                info, logits = reference
                write_reference(output, info.model_copy(update={"onnx_sha256": onnx_digest(model)}), logits)
            written = write_onnx(output, model, manifest, golden)
            task.advance()
    return written


def load(source: str, options: ExportOptions, progress: Progress = SILENT) -> LoadedModel:
    """Load a source with the options that concern it, and note what was decided on the way."""
    from vitdeploy.sources.load import load_source

    loaded = load_source(
        source,
        weights=options.weights,
        random_weights=options.random_weights,
        arguments=options.arguments,
        reset_head=options.reset_head,
        seed=options.seed,
    )
    for note in loaded.notes:
        progress.note(note)
    if options.labels is None:
        return loaded
    names = read_labels(options.labels, int(loaded.spec.arguments.get("num_classes", IMAGENET_CLASSES)))
    return replace(loaded, spec=loaded.spec.model_copy(update={"classes": names}))


def _trace(loaded: LoadedModel, pixels: NDArray[np.uint8], opset: int) -> ir.Model:
    from vitdeploy.exporting.tracing import TRACED_BATCH, trace

    images = normalize(np.resize(pixels, (TRACED_BATCH, *pixels.shape[1:])), loaded.preprocess)
    return trace(loaded.module, images, loaded.origin, opset=opset)


def _manifest(loaded: LoadedModel, options: ExportOptions) -> Manifest:
    recorded = recorded_options(options)
    parents = {"checkpoint": loaded.digest}
    return Manifest(
        kind="onnx",
        key=stage_key("export", recorded, parents),
        model=loaded.spec,
        preprocess=loaded.preprocess,
        parents=parents,
        options=recorded,
        producer="vitdeploy export",
        versions=environment.versions(),
        environment=environment.current(),
    )


def torch_logits(loaded: LoadedModel, pixels: NDArray[np.uint8]) -> Logits:
    """Return PyTorch's logits [n, classes] of pixels [n, H, W, C], on the CPU in float32.

    Raises:
        ModelError: They are no numbers, or no rows of logits.
    """
    from vitdeploy.backends.pytorch import open_module

    spec = loaded.preprocess
    session = open_module(loaded.module, (None, spec.channels, *spec.size), options=CPU)
    parts = [session.run({"input": normalize(pixels[i : i + 1], spec)})["logits"] for i in range(len(pixels))]
    logits = np.concatenate(parts)
    if logits.ndim != 2:
        raise ModelError(f"{loaded.origin} gives outputs of shape {logits.shape}, expected [n, classes]")
    if not np.isfinite(logits).all():
        raise ModelError(
            f"{loaded.origin} gives logits that are NaN or infinite under PyTorch: its weights are damaged"
        )
    return logits


def _reference_logits(loaded: LoadedModel, data: str | None, progress: Progress) -> tuple[ReferenceInfo, Logits] | None:
    """Return PyTorch's logits of a whole dataset, with what identifies both."""
    if data is None:
        return None
    from vitdeploy.backends.pytorch import open_module
    from vitdeploy.datasets import batches, open_dataset

    dataset, spec = open_dataset(data), loaded.preprocess
    session = open_module(loaded.module, (None, spec.channels, *spec.size), options=CPU)
    parts = []
    with progress.task("reference logits", total=len(dataset)) as task:
        for images in batches(dataset, spec, REFERENCE_BATCH):
            parts.append(session.run({"input": images})["logits"])
            task.advance(len(images))
    info = ReferenceInfo(
        data_sha256=dataset.digest,
        sample_ids=dataset.sample_ids,
        origin=loaded.origin,
        versions=environment.versions(),
    )
    return info, np.concatenate(parts)
