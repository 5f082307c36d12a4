"""``export``: a PyTorch model becomes an ONNX file, checked against PyTorch; a foreign ONNX file is adopted."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitdeploy import environment
from vitdeploy.artifacts import Artifact, Golden, OnnxModel, read_onnx, write_onnx
from vitdeploy.artifacts.digest import onnx_digest
from vitdeploy.artifacts.naming import output_beside
from vitdeploy.artifacts.outputs import refuse_unwritable
from vitdeploy.artifacts.reference import reference_beside, reference_path
from vitdeploy.datasets import Dataset, DataSource, load_pixels, open_dataset
from vitdeploy.datasets.check_images import CHECKED_BATCH, check_dataset, golden_count, smooth_random_pixels
from vitdeploy.errors import UsageError, require_one_of
from vitdeploy.exporting.adoption import AdoptionOptions, adopt, adoption_key, is_onnx
from vitdeploy.exporting.checking import GATE, compare, describe_graph, staged
from vitdeploy.exporting.fusing import (
    RESIZED,
    Fusion,
    Samples,
    frame_samples,
    fuse,
    fusing_key,
    require_frame,
)
from vitdeploy.exporting.logits import reference_logits, torch_logits
from vitdeploy.graph.lower_opset import NEWEST, OLDEST
from vitdeploy.preprocess import normalize
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import Check, Manifest, Preprocess, stage_key
from vitdeploy.records.preprocess import Frame
from vitdeploy.sources.source import Source, SourceOptions, open_source, place_of
from vitdeploy.terminal_progress import AUTO, shown

CHECKPOINT_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ExportOptions(SourceOptions):
    """How a model is loaded (see ``SourceOptions``) and exported.

    opset: 17 to 20.
    reference: A dataset whose logits under PyTorch are stored beside the ONNX file, for machines without torch.
    golden: A dataset from which the samples come that travel with the model; default ``reference``, else made ones.
    output_name: Which output of a foreign ONNX file are the logits.
    fuse_preprocess: The graph takes pixels as bytes, [N, H, W, C] or [N, C, H, W], and normalises them itself.
    fuse_resize: It takes whole images, of this (height, width) or ``any``, and resizes and crops them too; the layout
        is that of ``fuse_preprocess``, ``nhwc`` where it is None. Such a graph is not quantized any more, and of one
        for ``any`` size no engine is built.
    """

    opset: int = 20
    reference: DataSource | None = None
    golden: DataSource | None = None
    output_name: str | None = None
    fuse_preprocess: Literal["nhwc", "nchw"] | None = None
    fuse_resize: Frame | None = None


DEFAULTS = ExportOptions()


def export(
    source: Artifact | Path | str,
    output: Path | str | None = None,
    *,
    options: ExportOptions = DEFAULTS,
    progress: Progress | None = AUTO,
) -> OnnxModel:
    """Write ``source`` as an ONNX model and return it.

    The graph is compared with PyTorch under ONNX Runtime at batch 1, at the traced batch and at another one; if logits
    differ by more than ``checking.GATE`` of their range, nothing is written. An ``.onnx`` as source is adopted:
    cleaned the same way, compared with itself as it was, and given a manifest; with ``fuse_preprocess`` or
    ``fuse_resize``, one of vitdeploy, of any precision, gets the preprocessing inside.

    Args:
        source: A checkpoint, or what else ``load_source`` takes; or an ONNX file.
        output: The ``.onnx`` to write; None for one beside the source, or of the model's name in the current folder.
        options: See ``ExportOptions``.
        progress: Shows loading, tracing and comparing.
    Raises:
        UsageError: Options contradict each other.
        ModelError, CheckpointError, ArtifactError, DataError: The source or the data cannot be loaded.
        GraphError: The graph is not what PyTorch computes, or cannot be expressed in ``options.opset``.
    """
    return ExportRequest.open(source, output, options=options).run(shown(progress))


@dataclass(frozen=True)
class ExportRequest:
    """An export that is ready to run: the model found, the data open; ``source`` is a path for an ONNX file.

    ``golden`` are the few images that the graph is checked with and that travel with it.
    """

    source: Source | Path
    output: Path
    options: ExportOptions
    reference: Dataset | None
    golden: Dataset | None

    @classmethod
    def open(
        cls,
        source: Source | Artifact | Path | str,
        output: Path | str | None = None,
        *,
        options: ExportOptions = DEFAULTS,
    ) -> ExportRequest:
        """Find the model and open the data; nothing is loaded, and torch is not needed.

        Raises:
            VitdeployError: As ``export``, where source or options are unfit or the output cannot be written.
        """
        require_one_of("fuse_preprocess", options.fuse_preprocess, (None, "nhwc", "nchw"))
        require_frame(options.fuse_resize)
        output = Path(output) if output is not None else output_beside(place_of(source), ".onnx")
        if not OLDEST <= options.opset <= NEWEST:
            raise UsageError(f"opset {options.opset!r} is not offered, expected {OLDEST} to {NEWEST}")
        if output.suffix == CHECKPOINT_SUFFIX:
            raise UsageError(
                f"{str(output)!r} is the name of a checkpoint, and export writes ONNX: vd.convert() writes those"
            )
        refuse_unwritable(
            output,
            "an ONNX file",
            inputs=(source, options.preprocess, options.weights, options.labels),
            beside=(reference_path(output),) if options.reference is not None else (),
        )
        if isinstance(source, OnnxModel):
            source = source.path
        found: Source | Path
        if isinstance(source, str | Path) and is_onnx(Path(source)):
            found = Path(source)
            _refuse_options_of_weights(found, options)
        else:
            if options.output_name is not None:
                raise UsageError("output_name= is for ONNX files, and the source is none: leave it out")
            found = open_source(source, options)
        reference = None if options.reference is None else open_dataset(options.reference)
        if options.golden is not None and options.fuse_resize is not None:
            raise UsageError("golden= has no place with fuse_resize=, whose samples are made: leave it out")
        golden = options.golden if options.golden is not None else reference
        few = None if golden is None else check_dataset(golden, seed=options.seed)
        return cls(found, output, options, reference, few)

    @property
    def parents(self) -> dict[str, str]:
        """Role → digest of what is exported; of weights that vitdeploy did not write, that of their file or name."""
        return {"checkpoint": self.source.digest} if isinstance(self.source, Source) else {}

    @property
    def values(self) -> dict[str, Any]:
        """The options that decide the result, as JSON values; data by its digest."""
        options = self.options
        return {
            **(self.source.values if isinstance(self.source, Source) else {}),
            "opset": options.opset,
            "seed": options.seed,
            "reference": None if self.reference is None else self.reference.digest,
            "golden": None if self.golden is None else self.golden.digest,
            **({} if options.fuse_preprocess is None else {"fuse_preprocess": options.fuse_preprocess}),
            **({} if options.fuse_resize is None else {"fuse_resize": options.fuse_resize}),
        }

    @property
    def key(self) -> str:
        """The freshness key of the result."""
        if isinstance(self.source, Path):
            if (fusion := self._fusion) is not None:
                return fusing_key(read_onnx(self.source), fusion)
            return adoption_key(self.source, self._adoption())
        return stage_key("export", self.values, self.parents)

    def run(self, progress: Progress = SILENT) -> OnnxModel:
        """Export or adopt, check, and write the graph.

        Raises:
            VitdeployError: As ``export``.
        """
        from vitdeploy.exporting.tracing import TRACED_BATCH, trace
        from vitdeploy.graph.fuse_preprocess import fuse_preprocess
        from vitdeploy.sources.load import load

        if isinstance(self.source, Path):
            if (fusion := self._fusion) is not None:
                source = read_onnx(self.source)
                return fuse(source, self.output, fusion, self.golden, self.options.seed, progress)
            return adopt(self.source, self.output, self._adoption(), progress)
        with progress.task("export", total=4) as task:
            task.describe("loading")
            loaded = load(self.source, progress)
            spec = loaded.preprocess
            manifest = Manifest(
                kind="onnx",
                key=self.key,
                model=loaded.spec,
                preprocess=spec,
                trained_on=loaded.trained_on,
                parents={"checkpoint": loaded.digest},
                options=self.values,
                producer="vitdeploy export",
                versions=environment.versions(),
                environment=environment.current(),
            )
            task.advance()
            task.describe("running PyTorch")
            samples = list(self._samples(spec))
            expected = [torch_logits(loaded, one.pixels) for one in samples]
            reference = None if self.reference is None else reference_logits(loaded, self.reference, progress)
            task.advance()
            task.describe("tracing")
            pixels = samples[0].pixels
            images = normalize(np.resize(pixels, (TRACED_BATCH, *pixels.shape[1:])), spec)
            holder = [trace(loaded.module, images, loaded.origin, opset=self.options.opset)]
            if (fusion := self._fusion) is not None:
                spec = fuse_preprocess(holder[0], spec, fusion.form, fusion.frame)
                manifest = manifest.model_copy(update={"preprocess": spec})
            del loaded  # a large model's weights go to disk now, and ONNX Runtime gets the memory
            gc.collect()
            with staged(holder, self.output) as (model, session):
                task.advance()
                task.describe("comparing with PyTorch")
                checks: tuple[Check, ...] = ()
                for one, logits in zip(samples, expected, strict=True):
                    limit = GATE if spec.frame is None else RESIZED
                    found, outputs = compare(session, spec, one.taken, logits, f"PyTorch{one.subject}", limit)
                    checks += found
                session.close()
                gc.collect()
                task.describe("writing")
                manifest = manifest.model_copy(update={"checks": checks, "metrics": describe_graph(model, progress)})
                taken = samples[-1].taken
                count = golden_count(spec, len(taken))
                golden = Golden(taken[:count], expected[-1][:count], outputs[:count])
                beside: AbstractContextManager[object] = nullcontext()
                if reference is not None:
                    info, logits = reference
                    info = info.model_copy(update={"onnx_sha256": manifest.sealed(onnx_digest(model)).identity})
                    beside = reference_beside(self.output, info, logits)
                with beside:
                    written = write_onnx(self.output, model, manifest, golden)
                task.advance()
        return written

    @property
    def _fusion(self) -> Fusion | None:
        """What goes into the graph; None where it takes normalised images."""
        layout, frame = self.options.fuse_preprocess, self.options.fuse_resize
        if layout is None and frame is None:
            return None
        return Fusion("uint8-nchw" if layout == "nchw" else "uint8-nhwc", frame)

    def _samples(self, spec: Preprocess) -> Iterator[Samples]:
        """Yield what the graph is checked with, once it is as it will be."""
        if (fusion := self._fusion) is not None and fusion.frame is not None:
            yield from frame_samples(spec, fusion, self.options.seed)
            return
        if self.golden is None:
            pixels = smooth_random_pixels(spec, CHECKED_BATCH, self.options.seed)
        else:
            pixels = load_pixels(self.golden, spec)
        yield Samples(pixels, pixels)

    def _adoption(self) -> AdoptionOptions:
        options = self.options
        labels = None if options.labels is None else Path(options.labels)
        return AdoptionOptions(
            preprocess=options.named_preprocess,
            labels=labels,
            task=options.task,
            output_name=options.output_name,
            opset=options.opset,
            golden=self.golden,
            seed=options.seed,
        )


def _refuse_options_of_weights(path: Path, options: ExportOptions) -> None:
    if options.weights is not None or options.random_weights or options.arguments:
        raise UsageError(
            f"{str(path)!r} brings its own weights: weights=, random_weights=True and arguments= have no place"
        )
    if options.reference is not None:
        raise UsageError(f"reference= stores PyTorch's logits, and {str(path)!r} has no PyTorch model: leave it out")
