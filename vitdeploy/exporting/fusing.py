"""A graph of ours with the preprocessing inside: any precision, compared with what it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy import environment
from vitdeploy.artifacts import Golden, OnnxModel, write_onnx
from vitdeploy.datasets import Dataset, load_pixels
from vitdeploy.datasets.check_images import CHECKED_BATCH, golden_count, smooth_random_pixels
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.exporting.checking import TOLERANCES, Expected, compare, describe_graph, staged
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.preprocess import to_input, to_pixels
from vitdeploy.progress import Progress
from vitdeploy.records import Check, Preprocess, stage_key
from vitdeploy.records.preprocess import LARGEST_SIDE, Frame, InputForm

RESIZED = 1e-2
"""Largest |Δlogit| of a graph that resizes, of their range. Pillow's weights have 22 bits, so that a pixel at ½ may
fall to the other side: 1e-4 on made images. Images that lie one pixel further give 5e-2."""


@dataclass(frozen=True)
class Fusion:
    """What goes into a graph: bytes in this form, and the resizing of images of this size, where there is one."""

    form: InputForm
    frame: Frame | None = None

    @property
    def values(self) -> dict[str, Any]:
        """As options of a manifest."""
        return {"input": self.form, **({} if self.frame is None else {"frame": self.frame})}


@dataclass(frozen=True)
class Samples:
    """What a fused graph takes, [n, H, W, C], and the pixels that Pillow makes of it for the graph as it was."""

    taken: NDArray[np.uint8]
    pixels: NDArray[np.uint8]
    subject: str = ""


def require_frame(frame: object) -> None:
    """Refuse what is no size of images.

    Raises:
        UsageError: It is neither None, ``any``, nor (height, width).
    """
    if frame is None or frame == "any":
        return
    sides = frame if isinstance(frame, tuple | list) else ()
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in sides):
        raise UsageError(
            f"fuse_resize is {frame!r}, expected 'any' or height and width of 1 to {LARGEST_SIDE}, as in (480, 640)"
        )


def frame_samples(spec: Preprocess, fusion: Fusion, seed: int) -> Iterator[Samples]:
    """Yield made images of a graph that resizes: of its size, or for ``any`` lying and standing ones."""
    from vitdeploy.graph.fuse_resize import refuse_resize

    assert fusion.frame is not None
    refuse_resize(spec, fusion.frame)
    height, width = spec.size
    odd = [(2 * height + 1, 3 * width), (3 * height, 2 * width + 1)]
    for frame in odd if fusion.frame == "any" else [fusion.frame]:
        fused = spec.model_copy(update={"input": fusion.form, "frame": frame})
        taken = smooth_random_pixels(fused, CHECKED_BATCH, seed)
        plain = [to_pixels(Image.fromarray(one[..., 0] if spec.channels == 1 else one), spec) for one in taken]
        yield Samples(taken, np.stack(plain), f", images of {frame[1]}×{frame[0]}")


def fusing_key(source: OnnxModel, fusion: Fusion) -> str:
    """Return the freshness key of a graph with the preprocessing inside."""
    return stage_key("fuse-preprocess", fusion.values, {"onnx": source.digest})


def fuse(
    source: OnnxModel, output: Path, fusion: Fusion, golden: Dataset | None, seed: int, progress: Progress
) -> OnnxModel:
    """Write a graph that takes bytes and computes what ``source`` computes of them, resized and normalised by Pillow.

    Both are compared under ONNX Runtime at batch 1, 2 and 5. The samples that travel along stay those of ``source``
    where it has some and images are resized outside.

    Raises:
        ArtifactError: The source has no preprocessing.
        GraphError: It takes bytes already, its images cannot be resized in a graph, or the logits differ by more than
            its precision allows.
    """
    from vitdeploy.graph.fuse_preprocess import fuse_preprocess

    spec = source.manifest.preprocess
    if spec is None:
        raise ArtifactError(f"{str(source.path)!r} carries no preprocessing, so there is none to put into the graph")
    model = source.load()
    fused = fuse_preprocess(model, spec, fusion.form, fusion.frame)
    with progress.task("fuse", total=3) as task:
        task.describe("running the graph as it was")
        own = source.golden if golden is None and fusion.frame is None else None
        if fusion.frame is not None:
            samples = list(frame_samples(spec, fusion, seed))
        else:
            if own is not None:
                pixels = own.pixels
            elif golden is not None:
                pixels = load_pixels(golden, spec)
            else:
                pixels = smooth_random_pixels(spec, CHECKED_BATCH, seed)
            samples = [Samples(pixels, pixels)]
        with staged([source.load()], output) as (_, session):
            fixed = next(iter(session.inputs.values())).shape[0]
            sizes = [1, 2, CHECKED_BATCH] if fixed is None else [fixed]
            expected = [
                Expected({size: run_batch(session, to_input(one.pixels, spec), (size, size)) for size in sizes})
                for one in samples
            ]
        task.advance()
        task.describe("comparing")
        with staged([model], output) as (graph, session):
            limit = TOLERANCES[source.manifest.precision]
            if fusion.frame is not None:
                limit = max(limit, RESIZED)
            checks: tuple[Check, ...] = ()
            for one, logits in zip(samples, expected, strict=True):
                against = f"{source.path.name} as it was{one.subject}"
                found, outputs = compare(session, fused, one.taken, logits, against, limit)
                checks += found
            task.advance()
            task.describe("writing")
            manifest = source.manifest.model_copy(
                update={
                    "key": fusing_key(source, fusion),
                    "preprocess": fused,
                    "checks": checks,
                    "metrics": {**source.manifest.metrics, **describe_graph(graph)},  # resizing computes with sizes
                    "parents": {"onnx": source.digest},
                    "options": fusion.values,
                    "producer": "vitdeploy export",
                    "versions": environment.versions(),
                    "environment": environment.current(),
                }
            )
            taken = samples[-1].taken
            count = golden_count(fused, len(taken))
            reference = expected[-1].last if own is None else own.reference
            written = write_onnx(output, graph, manifest, Golden(taken[:count], reference[:count], outputs[:count]))
            task.advance()
    return written
