"""What a bench compares: each artifact on each runtime and device that it is to be measured on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy import backends, environment
from vitdeploy.artifacts import Artifact, Checkpoint, Engine, OnnxModel
from vitdeploy.backends.onnxruntime import saturates_here
from vitdeploy.backends.opening import engine_backend
from vitdeploy.backends.openvino import Mode
from vitdeploy.backends.threads import thread_settings_of
from vitdeploy.benching.labels import NO_TOP1
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.measure.accuracy import BatchLimits, only_input
from vitdeploy.preprocess import to_input
from vitdeploy.records import Manifest, ModelSpec, Precision, Preprocess, Target
from vitdeploy.records.report import Device, backend_title, executing_target, threads_text
from vitdeploy.sessions import Feed, Session, SessionOptions
from vitdeploy.sources.source import Source

if TYPE_CHECKING:
    from vitdeploy.sources.load import LoadedModel

GPU_RIVALS = ("autocast-fp16", "compile")
GPU_PROVIDERS = ("cuda", "tensorrt")
RTX_INT8 = (
    "TensorRT-RTX documents its INT8 as weight-only: the arithmetic stays in the remainder's precision, so expect "
    "smaller weights, not faster ones"
)


@dataclass(frozen=True)
class Candidate:
    """One row of the report before it is measured: what is opened, by which runtime, on which device.

    Either ``artifact`` is there, or ``loaded`` from a ``source`` (a baseline). ``provider`` is what the runtime is
    asked for, None for its own choice on ``device``; ``pinning`` and ``spinning`` are as ``SessionOptions`` has them;
    ``limits`` are the least and the largest batch of an engine.
    """

    name: str
    backend: str
    device: Device
    model: ModelSpec
    preprocess: Preprocess | None
    digest: str
    precision: Precision = "fp32"
    target: Target | None = None
    provider: str | None = None
    artifact: Artifact | None = None
    source: Source | None = None
    loaded: LoadedModel | None = None
    limits: BatchLimits | None = None
    pinning: bool | None = None
    spinning: bool | None = None

    def open(
        self, *, threads: int = 0, tf32: bool = False, cuda_graph: bool = True, cpu_fallback: bool = False
    ) -> Session:
        """Open a session.

        Raises:
            BackendError: The runtime is absent or refuses the artifact.
        """
        options = SessionOptions(
            threads=threads,
            device=self.device,
            provider=self.provider,
            tf32=tf32,
            cuda_graph=cuda_graph,
            cpu_fallback=cpu_fallback,
            pinning=self.pinning,
            spinning=self.spinning,
        )
        if self.artifact is not None:
            return backends.get_backend(self.backend).open(self.artifact, options)
        assert self.loaded is not None
        from vitdeploy.backends.pytorch import open_module

        preprocess = self.loaded.preprocess
        shape = (None, preprocess.channels, *preprocess.size)
        return open_module(self.loaded.module, shape, self.loaded.spec.arguments.get("num_classes"), options)

    def cannot_run(self) -> str | None:
        """Return why this machine cannot run it, in words; None where it can."""
        backend = backends.get_backend(self.backend)
        return backend.unavailable() or backend.can_run()

    def size_bytes(self) -> int | None:
        """Return the size of the file, and of its external data; None where there is no file."""
        if self.artifact is None:
            weights = None if self.source is None else self.source.file
            return weights.stat().st_size if weights is not None and weights.is_file() else None
        files = [self.artifact.path]
        if isinstance(self.artifact, OnnxModel):
            files.extend(self.artifact.external_data())
        return sum(file.stat().st_size for file in files)

    def notes(self) -> tuple[str, ...]:
        """Return what a reader of this row's numbers has to know."""
        found = [NO_TOP1[self.model.task]] if self.model.task in NO_TOP1 else []
        if self.model.activation != "none":
            found.append(f"its outputs are probabilities ({self.model.activation} at the end), so the SQNR is theirs")
        here = executing_target(self.backend, self.provider)
        if self.target is not None and here != self.target:
            target, runtime = backend_title(self.target), backend_title(self.backend)
            ways = [f"vd.bench(..., options=vd.BenchOptions(runtimes=({self.target!r},))) runs it there"]
            if self.target == "tensorrt":
                ways = ["vd.build(...) makes an engine of it"]
            if here is not None:
                ways.append(f"vd.quantize(..., target={here!r}) makes one for {runtime}")
            way = f"made for {target}, run by {runtime}: its latency is not that of its target"
            found.append(f"{way}; {', '.join(ways)}")
        if self.artifact is not None and self.target != "tensorrt" and saturates_here(self.artifact.manifest):
            found.append(
                "its weights are for CPUs with VNNI, which this one lacks: ONNX Runtime converts them, which is "
                "slower, other runtimes may saturate; vd.quantize(..., options=vd.QuantizeOptions(cpu='any')) makes a "
                "graph for all"
            )
        plan = None if self.artifact is None else self.artifact.manifest.plan
        if plan is not None and plan.cpu == "amx" and environment.cpu_integers() not in ("amx", None):
            found.append("its activations are signed, for CPUs with AMX, which this one has not: they take longer here")
        build = self.artifact.manifest.build if self.artifact is not None else None
        if build is not None:
            found.extend(build.notes)
        if self.backend == "tensorrt-rtx" and self.precision == "int8" and not any("weight-only" in n for n in found):
            found.append(RTX_INT8)
        return tuple(found)


def of_artifact(artifact: Artifact, backend: str, device: Device, provider: str | None = None) -> Candidate:
    """Return an artifact as a candidate."""
    manifest: Manifest = artifact.manifest
    return Candidate(
        name=artifact.path.name,
        backend=backend,
        device=device,
        model=manifest.model,
        preprocess=manifest.preprocess,
        digest=artifact.digest,
        precision=manifest.precision,
        target=manifest.target,
        provider=provider,
        artifact=artifact,
        limits=manifest.batch_limits,
    )


def of_loaded(source: Source, loaded: LoadedModel, device: Device) -> Candidate:
    """Return a model that was loaded from a SOURCE as a candidate, by the name of its weights where they are beside."""
    return Candidate(
        title_of(source), "pytorch", device, loaded.spec, loaded.preprocess, loaded.digest, source=source, loaded=loaded
    )


def title_of(source: Source) -> str:
    """Return what a source's row is called: the file of a checkpoint or of weights beside a model, else its text."""
    if source.checkpoint is not None:
        return source.checkpoint.path.name
    beside = source.options.weights
    path = beside.path if isinstance(beside, Artifact) else beside
    return source.text if path is None else Path(path).name


def list_candidates(
    artifacts: Sequence[Artifact],
    runtimes: Sequence[str],
    device: Device | None,
    pinning: Sequence[bool] = (),
    spinning: Sequence[bool] = (),
) -> list[Candidate]:
    """Return the candidates of all artifacts but checkpoints, whose devices depend on these.

    Args:
        artifacts: Engines go to the backend that built them, ONNX models to every one of ``runtimes``, but those that
            were made for some of them to these alone.
        runtimes: ``onnxruntime`` (the CPU, and CUDA where there is a GPU and a provider for it), one provider of it
            alone, as ``onnxruntime:cuda``; ``openvino``, or that with a ``Mode``, as ``openvino:bf16``. Empty: those of
            ``usual_runtimes``, of which OpenVINO takes no graph that was made for another target.
        device: None for whatever is there.
        pinning: Settings of CPU threads, with each of which an ONNX model is a candidate; empty: the runtime's own.
        spinning: Likewise.
    Raises:
        UsageError: There is no such runtime, none for ``device``, or one that has no such setting of threads.
    """
    usual = usual_runtimes(artifacts)
    places = [place for runtime in runtimes or usual for place in _places(runtime, device)]
    if not places and any(isinstance(artifact, OnnxModel) for artifact in artifacts):
        raise UsageError(f"none of the runtimes {', '.join(runtimes)!r} runs an ONNX model on device {device!r}")
    elsewhere = places if runtimes else _places(usual[0], device)
    found: list[Candidate] = []
    for artifact in artifacts:
        if isinstance(artifact, Engine):
            found.append(of_artifact(artifact, engine_backend(artifact), "cuda"))
        elif isinstance(artifact, OnnxModel):
            target = artifact.manifest.target
            own = [place for place in places if target is not None and executing_target(place[0], place[2]) == target]
            for backend, where, provider in own or (places if target is None else elsewhere):
                one = of_artifact(artifact, backend, where, provider)
                found.extend(_with_thread_settings(one, pinning, spinning))
    if (pinning or spinning) and all(one.pinning is None and one.spinning is None for one in found):
        raise UsageError("pinning and spinning are of the CPU threads of ONNX models, and none is to run there")
    return found


def usual_runtimes(artifacts: Sequence[Artifact]) -> tuple[str, ...]:
    """Return what runs ONNX models where nothing is asked for: ONNX Runtime, and OpenVINO where a graph is made for it.

    OpenVINO only where it is installed: else ONNX Runtime runs such a graph, and its row says so.
    """
    targets = {artifact.manifest.target for artifact in artifacts if isinstance(artifact, OnnxModel)}
    with_openvino = "openvino" in targets and backends.get_backend("openvino").unavailable() is None
    return ("onnxruntime", "openvino") if with_openvino else ("onnxruntime",)


def _with_thread_settings(
    candidate: Candidate, pinning: Sequence[bool], spinning: Sequence[bool]
) -> Iterator[Candidate]:
    """Yield a candidate with each setting of its threads; what runs on a GPU as it is."""
    if candidate.device != "cpu":
        yield candidate
        return
    wanted = {"pinning": pinning, "spinning": spinning}
    known = thread_settings_of(backends.get_backend(candidate.backend))
    for name, values in wanted.items():
        if values and name not in known:
            raise UsageError(
                f"{backend_title(candidate.backend)} has no setting for {name} of CPU threads: leave {name}= out, or "
                "bench the other runtimes alone"
            )
    for pinned, spin in product(pinning or (None,), spinning or (None,)):
        yield replace(candidate, pinning=pinned, spinning=spin)


def list_checkpoints(
    artifacts: Sequence[Artifact], others: Sequence[Candidate], device: Device | None
) -> list[Candidate]:
    """Return each checkpoint on every device on which another candidate runs, so that both have their baseline."""
    checkpoints = [artifact for artifact in artifacts if isinstance(artifact, Checkpoint)]
    return [of_artifact(one, "pytorch", where) for where in devices_of(others, device) for one in checkpoints]


def list_rivals(baseline: Sequence[Candidate], modes: Sequence[str] | None) -> list[Candidate]:
    """Return PyTorch's faster ways beside the eager FP32 baseline, so that a speed-up over it flatters nobody.

    None is autocast in FP16 and ``torch.compile`` on a GPU, and nothing on a CPU, where compiling takes a minute.
    """
    found = []
    for one in (candidate for candidate in baseline if candidate.backend == "pytorch" and candidate.provider is None):
        for mode in GPU_RIVALS if modes is None and one.device == "cuda" else modes or ():
            precision: Precision = "fp16" if mode == "autocast-fp16" else "mixed" if "autocast" in mode else "fp32"
            found.append(replace(one, provider=mode, precision=precision))
    return found


def devices_of(others: Sequence[Candidate], device: Device | None) -> tuple[Device, ...]:
    """Return the devices on which these candidates can run; with none of them, ``device`` or the best there is."""
    used: set[Device] = {one.device for one in others if device in (None, one.device) and one.cannot_run() is None}
    if not used:
        used = {device or ("cuda" if environment.current().gpu is not None else "cpu")}
    return tuple(sorted(used))


def with_unique_names(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return them with names that differ: the file's, else its folder's too, else the runtime's too, else a number."""
    digests: defaultdict[str, set[str]] = defaultdict(set)
    for one in candidates:
        digests[one.name].add(one.digest)
    named = [
        replace(one, name=f"{one.artifact.path.absolute().parent.name}/{one.name}")
        if one.artifact is not None and len(digests[one.name]) > 1
        else one
        for one in candidates
    ]
    counts = Counter(one.name for one in named)
    named = [replace(one, name=f"{one.name} ({_place(one)})") if counts[one.name] > 1 else one for one in named]
    seen: Counter[str] = Counter()
    for index, one in enumerate(named):
        seen[one.name] += 1
        if seen[one.name] > 1:
            named[index] = replace(one, name=f"{one.name} #{seen[one.name]}")
    return named


def make_feed(session: Session, preprocess: Preprocess, batch: int, seed: int = 0) -> Feed:
    """Return one seeded input of a session: bytes, or [batch, C, H, W] as normalised images are distributed."""
    spec, rng = only_input(session), np.random.default_rng(seed)
    if preprocess.is_fused:
        size = preprocess.pixel_size or preprocess.resized_to
        pixels = rng.integers(0, 256, (batch, *size, preprocess.channels), np.uint8)
        return {spec.name: to_input(pixels, preprocess)}
    images = rng.standard_normal((batch, preprocess.channels, *preprocess.size))
    return {spec.name: images.astype(spec.dtype)}


def batch_fits(candidate: Candidate, session: Session, batch: int) -> str | None:
    """Return why a candidate cannot take a batch of this size, None where it can."""
    size = only_input(session).shape[0]
    build = candidate.artifact.manifest.build if candidate.artifact is not None else None
    ranges = [candidate.limits or (1, batch)]
    if size is not None:
        ranges = [(size, size)]
    elif build is not None and build.profiles:
        ranges = [(low, high) for low, _, high in build.profiles]
    if any(low <= batch <= high for low, high in ranges):
        return None
    takes = " or ".join(f"{low}" if low == high else f"{low} to {high}" for low, high in ranges)
    text = f"it takes a batch of {takes}, so batch {batch} was not timed"
    if build is None:
        return text
    return f"{text}: vd.build(..., target=vd.BuildTarget(batch={(batch,) * 3})) makes an engine for it"


def _places(runtime: str, device: Device | None) -> list[tuple[str, Device, str | None]]:
    """Return (backend, device, provider) of a runtime's text."""
    name, _, provider = runtime.partition(":")
    known = {one: backends.get_backend(one).graph_devices for one in backends.names()}
    if not known.get(name) or (provider and name not in ("onnxruntime", "openvino")):
        listed = ", ".join(repr(one) for one, places in known.items() if places and one != "null")
        raise UsageError(
            f"there is no runtime {runtime!r} for ONNX models, expected one of {listed}, or a provider of ONNX Runtime "
            f"such as 'onnxruntime:cuda'"
        )
    if name == "openvino" and provider:
        try:
            Mode.parse(provider)
        except BackendError as error:
            raise UsageError(f"there is no runtime {runtime!r}: {error}") from error
    if name != "onnxruntime":
        return [(name, where, provider or None) for where in known[name] if device in (None, where)]
    if provider:
        on: Device = "cuda" if provider in GPU_PROVIDERS else "cpu"
        return [("onnxruntime", on, provider)] if device in (None, on) else []
    places: list[tuple[str, Device, str | None]] = []
    if device != "cuda":
        places.append(("onnxruntime", "cpu", "cpu"))
    if device == "cuda" or (device is None and _cuda_provider()):
        places.append(("onnxruntime", "cuda", "cuda"))
    return places


def _place(candidate: Candidate) -> str:
    where = (candidate.provider or candidate.device).replace("cpu", "CPU").replace("cuda", "CUDA")
    threads = threads_text(candidate.pinning, candidate.spinning)
    return ", ".join(filter(None, (backend_title(candidate.backend), where, threads)))


def _cuda_provider() -> bool:
    """Return whether there is a GPU, and an ONNX Runtime that was built for it."""
    if environment.current().gpu is None or backends.get_backend("onnxruntime").unavailable() is not None:
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
