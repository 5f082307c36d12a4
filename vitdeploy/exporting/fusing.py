"""A graph of ours with the normalisation inside: any precision, compared with what it was."""

from __future__ import annotations

from pathlib import Path

from vitdeploy import environment
from vitdeploy.artifacts import Golden, OnnxModel, write_onnx
from vitdeploy.datasets import Dataset, load_pixels
from vitdeploy.datasets.check_images import CHECKED_BATCH, golden_count, smooth_random_pixels
from vitdeploy.errors import ArtifactError
from vitdeploy.exporting.checking import TOLERANCES, Expected, compare, describe_graph, staged
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.preprocess import to_input
from vitdeploy.progress import Progress
from vitdeploy.records import stage_key
from vitdeploy.records.preprocess import InputForm


def fusing_key(source: OnnxModel, form: InputForm) -> str:
    """Return the freshness key of a graph with the normalisation inside."""
    return stage_key("fuse-preprocess", {"input": form}, {"onnx": source.digest})


def fuse(
    source: OnnxModel, output: Path, form: InputForm, golden: Dataset | None, seed: int, progress: Progress
) -> OnnxModel:
    """Write a graph that takes bytes and computes what ``source`` computes of the normalised pixels.

    Both are compared under ONNX Runtime at batch 1, 2 and 5. The samples that travel along stay those of ``source``
    where it has some.

    Raises:
        ArtifactError: The source has no preprocessing.
        GraphError: It takes bytes already, or the logits differ by more than its precision allows.
    """
    from vitdeploy.graph.fuse_preprocess import fuse_preprocess

    spec = source.manifest.preprocess
    if spec is None:
        raise ArtifactError(f"{str(source.path)!r} carries no preprocessing, so there is none to put into the graph")
    with progress.task("fuse", total=3) as task:
        task.describe("running the graph as it was")
        samples = source.golden if golden is None else None
        if samples is not None:
            pixels = samples.pixels
        elif golden is not None:
            pixels = load_pixels(golden, spec)
        else:
            pixels = smooth_random_pixels(spec, CHECKED_BATCH, seed)
        images = to_input(pixels, spec)
        with staged([source.load()], output) as (_, session):
            fixed = next(iter(session.inputs.values())).shape[0]
            sizes = [1, 2, CHECKED_BATCH] if fixed is None else [fixed]
            expected = Expected({size: run_batch(session, images, (size, size)) for size in sizes})
        task.advance()
        task.describe("comparing")
        model = source.load()
        fused = fuse_preprocess(model, spec, form)
        with staged([model], output) as (graph, session):
            limit = TOLERANCES[source.manifest.precision]
            checks, outputs = compare(session, fused, pixels, expected, f"{source.path.name} as it was", limit)
            task.advance()
            task.describe("writing")
            manifest = source.manifest.model_copy(
                update={
                    "key": fusing_key(source, form),
                    "preprocess": fused,
                    "checks": checks,
                    "metrics": {**source.manifest.metrics, **describe_graph(graph, progress)},
                    "parents": {"onnx": source.digest},
                    "options": {"input": form},
                    "producer": "vitdeploy export",
                    "versions": environment.versions(),
                    "environment": environment.current(),
                }
            )
            count = golden_count(fused, len(pixels))
            reference = expected.last if samples is None else samples.reference
            written = write_onnx(output, graph, manifest, Golden(pixels[:count], reference[:count], outputs[:count]))
            task.advance()
    return written
