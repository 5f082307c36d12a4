"""``write_triton_repository``: a model repository that Triton Inference Server serves as it is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.artifacts import Artifact, Engine, OnnxModel, atomic_folder, load_ir, open_artifact
from vitdeploy.artifacts.outputs import refuse_unwritable_folder
from vitdeploy.backends.lowered import refuse_to_ship
from vitdeploy.errors import ArtifactError, UsageError, warn
from vitdeploy.preprocess import to_input
from vitdeploy.records import Manifest, Preprocess
from vitdeploy.records.report import backend_title
from vitdeploy.sessions import batch_range
from vitdeploy.text import printable

LARGEST_GRAPH_BATCH = 32
"""The batch up to which Triton collects requests for a graph that takes any."""
DELAY_US = 500
"""How long a request may wait for others of its batch, in microseconds."""
INSTANCES = 2
"""With one, the thread of Triton 2.51 that collects requests left some for half a second, whatever the delay."""
QUEUED_BATCHES = 16
"""Batches that may wait; what comes when so many do is turned away, so that overload costs requests and not memory."""
WARMUP = "golden"
_ADVICE = {
    "tensorrt": "vd.build(..., backend='tensorrt') makes an engine of it, which Triton serves",
    "openvino": "vd.quantize(..., target='onnxruntime') makes one for that",
}


@dataclass(frozen=True)
class TritonOptions:
    """How models are served: the largest batch for graphs, instances of each model, and where KServe finds the folder.

    ``storage_uri`` is the place that the folder is copied to (``s3://models``, ``pvc://claim/models``); with it a
    KServe manifest is written beside the models.
    """

    largest_batch: int = LARGEST_GRAPH_BATCH
    instances: int = INSTANCES
    storage_uri: str | None = None


def write_triton_repository(
    artifacts: Sequence[Artifact | Path | str], output: Path | str, *, options: TritonOptions = TritonOptions()
) -> Path:
    """Write a model repository for Triton: a folder for each artifact, with its configuration, labels and a warm-up.

    Requests are batched dynamically, up to the largest batch of an engine or ``options.largest_batch`` for a graph; a
    full queue turns requests away. The warm-up runs a golden sample before a model counts as ready. Triton preprocesses
    nothing: a model takes what ``preprocess`` of its manifest gives, or pixels as bytes where a graph normalises them
    itself (``ExportOptions.fuse_preprocess``), or whole images where it resizes them too (``fuse_resize``).

    Args:
        artifacts: ONNX models, which Triton's ONNX Runtime serves, and engines of TensorRT (not of TensorRT-RTX).
        output: A folder that is not there yet, or empty.
        options: See ``TritonOptions``.
    Raises:
        UsageError: An artifact is none that Triton serves, two have one name, or ``output`` holds something.
        ArtifactError: A file is missing or damaged, or the output cannot be written.
    """
    output = Path(output)
    batch_range(options.largest_batch)
    if options.instances < 1:
        raise UsageError(f"instances is {options.instances}, expected at least 1")
    refuse_unwritable_folder(output)
    if output.is_dir() and any(output.iterdir()):
        raise UsageError(f"{str(output)!r} is not empty: name a new folder, in which Triton finds these models alone")
    models = [_Model.of(open_artifact(one), options) for one in artifacts]
    if not models:
        raise UsageError("no artifact was named, expected an ONNX model or an engine")
    names = [model.name.lower() for model in models]
    for model in models:
        if names.count(model.name.lower()) > 1:
            raise UsageError(f"two artifacts would be the model {model.name!r} of Triton: rename a file")
    with atomic_folder(output) as folder:
        for model in models:
            model.write(folder / model.name)
        if options.storage_uri is not None:
            (folder / "kserve.yaml").write_text(_kserve(models, options.storage_uri), encoding="utf8")
    return output


@dataclass(frozen=True)
class _Model:
    """One artifact as Triton has it; ``largest_batch`` 0 where the graph itself fixes its batch, ``fixed_batch``."""

    name: str
    artifact: OnnxModel | Engine
    preprocess: Preprocess
    outputs: int
    largest_batch: int
    fixed_batch: int | None
    instances: int

    @classmethod
    def of(cls, artifact: Artifact, options: TritonOptions) -> _Model:
        where, manifest = repr(str(artifact.path)), artifact.manifest
        if not isinstance(artifact, OnnxModel | Engine):
            raise UsageError(f"{where} is a {manifest.kind}, expected ONNX models and engines")
        if isinstance(artifact, OnnxModel):
            refuse_to_ship(artifact)
            if manifest.target not in (None, "onnxruntime"):
                warn(
                    f"{where} is made for {backend_title(manifest.target)}, and Triton serves graphs by ONNX Runtime, "
                    f"where it may be slow: {_ADVICE[manifest.target]}"
                )
        if manifest.preprocess is None:
            raise ArtifactError(f"{where} carries no preprocessing, so what it takes is not known")
        largest, fixed = options.largest_batch, None
        if isinstance(artifact, Engine):
            largest = _largest_batch(where, manifest)
        else:
            batch = next(iter(_shapes(artifact)[0]), None)
            largest, fixed = (0, batch) if isinstance(batch, int) else (largest, None)
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", artifact.path.stem)
        return cls(name, artifact, manifest.preprocess, _outputs(artifact), largest, fixed, options.instances)

    def write(self, folder: Path) -> None:
        (folder / "1").mkdir(parents=True)
        is_engine = isinstance(self.artifact, Engine)
        shutil.copyfile(self.artifact.path, folder / "1" / ("model.plan" if is_engine else "model.onnx"))
        if isinstance(self.artifact, OnnxModel):
            for file in self.artifact.external_data():
                shutil.copyfile(file, folder / "1" / file.name)
        classes = self.artifact.manifest.model.classes
        if classes:
            (folder / "labels.txt").write_text("".join(f"{printable(one)}\n" for one in classes), encoding="utf8")
        golden = self.artifact.golden
        if golden is not None:
            (folder / "warmup").mkdir()
            sample = to_input(golden.pixels[:1], self.preprocess)
            (folder / "warmup" / WARMUP).write_bytes(sample.tobytes() * (self.fixed_batch or 1))
        (folder / "config.pbtxt").write_text(self.config(golden is not None, bool(classes)), encoding="utf8")

    def config(self, has_golden: bool, has_labels: bool) -> str:
        """Return the model's configuration in protobuf's text format."""
        spec, is_engine = self.preprocess, isinstance(self.artifact, Engine)
        dtype = "TYPE_UINT8" if spec.is_fused else "TYPE_FP32"
        sides = spec.pixel_size or (-1, -1)
        image = [*sides, spec.channels] if spec.input == "uint8-nhwc" else [spec.channels, *sides]
        front = [] if self.fixed_batch is None else [self.fixed_batch]
        labels = ', label_filename: "labels.txt"' if has_labels else ""
        lines = [
            f"name: {_text(self.name)}",
            f"platform: {_text('tensorrt_plan' if is_engine else 'onnxruntime_onnx')}",
            f"max_batch_size: {self.largest_batch}",
            f'input [{{ name: "input", data_type: {dtype}, dims: {[*front, *image]} }}]',
            f'output [{{ name: "logits", data_type: TYPE_FP32, dims: {[*front, self.outputs]}{labels} }}]',
            f"instance_group [{{ count: {self.instances}, kind: {self._kind()} }}]",
        ]
        if self.largest_batch > 1:
            queue = f"timeout_action: REJECT, max_queue_size: {QUEUED_BATCHES * self.largest_batch}"
            lines.append(
                f"dynamic_batching {{ max_queue_delay_microseconds: {DELAY_US}, default_queue_policy {{ {queue} }} }}"
            )
        if has_golden:
            assert self.artifact.golden is not None
            sample = to_input(self.artifact.golden.pixels[:1], spec).shape[1:]  # images of any size have one here
            value = f'data_type: {dtype}, dims: {[*front, *sample]}, input_data_file: "{WARMUP}"'
            size = 0 if self.fixed_batch is not None else 1
            lines.append(
                f'model_warmup [{{ name: "golden sample", batch_size: {size}, '
                f'inputs {{ key: "input", value {{ {value} }} }} }}]'
            )
        return "\n".join(lines) + "\n"

    def _kind(self) -> str:
        if not isinstance(self.artifact, Engine):
            return "KIND_AUTO"
        build = self.artifact.manifest.build
        assert build is not None
        if len(build.profiles) < 2:
            return "KIND_GPU"
        chosen = [(low, high) for low, _, high in build.profiles].index(build.batch_limits)
        return f'KIND_GPU, profile: ["{chosen}"]'


def _largest_batch(where: str, manifest: Manifest) -> int:
    build = manifest.build
    if build is None or build.backend != "tensorrt":
        builder = "an unknown builder" if build is None else build.backend
        raise UsageError(
            f"{where} is a plan of {builder}, and Triton runs those of tensorrt alone: name its ONNX model, or "
            "build it with vd.build(..., backend='tensorrt')"
        )
    low, high = build.batch_limits
    if low > 1:
        raise UsageError(
            f"{where} takes batches of {low} to {high}, and Triton sends smaller ones: build it with "
            f"vd.build(..., target=vd.BuildTarget(batch={(1, low, high)}))"
        )
    if build.stripped:
        raise UsageError(
            f"{where} has no weights, which Triton does not add: build it again with vd.build('MODEL.onnx')"
        )
    return high


def _shapes(model: OnnxModel) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Return the shapes of the one input and the one output."""
    graph = load_ir(model.path).graph
    if [value.name for value in graph.inputs] != ["input"] or [value.name for value in graph.outputs] != ["logits"]:
        raise UsageError(f"{str(model.path)!r} has other inputs and outputs than 'input' and 'logits': export it anew")
    image, logits = graph.inputs[0].shape, graph.outputs[0].shape
    return tuple(image or ()), tuple(logits or ())


def _outputs(artifact: OnnxModel | Engine) -> int:
    """Return how many outputs each image has."""
    if artifact.golden is not None:
        return int(artifact.golden.outputs.shape[1])
    last = _shapes(artifact)[1][-1:] if isinstance(artifact, OnnxModel) else [artifact.manifest.model.class_count]
    if not last or not isinstance(last[0], int):
        raise ArtifactError(f"{str(artifact.path)!r} does not say how many outputs it has")
    return last[0]


def _text(value: str) -> str:
    return json.dumps(value)


def _kserve(models: Sequence[_Model], storage_uri: str) -> str:
    """Return a KServe manifest that serves the repository by Triton over the V2 protocol."""
    name = re.sub(r"[^a-z0-9]+", "-", models[0].artifact.manifest.model.name.lower()).strip("-")[:50] or "model"
    on_gpu = any(isinstance(model.artifact, Engine) for model in models)
    resources = '      resources:\n        limits:\n          nvidia.com/gpu: "1"\n' if on_gpu else ""
    return (
        "apiVersion: serving.kserve.io/v1beta1\n"
        "kind: InferenceService\n"
        "metadata:\n"
        f"  name: {json.dumps(name)}\n"
        "spec:\n"
        "  predictor:\n"
        "    model:\n"
        "      modelFormat:\n"
        "        name: triton\n"
        "      protocolVersion: v2\n"
        f"      storageUri: {json.dumps(storage_uri)}\n"
        f"{resources}"
    )
