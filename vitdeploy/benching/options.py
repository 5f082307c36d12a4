"""What a bench measures, and how."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitdeploy.errors import UsageError
from vitdeploy.measure.scenarios import RULE_SECONDS, SERVER_BOUND_MS
from vitdeploy.measure.timing import TurnOptions
from vitdeploy.reading import sha256_of_file
from vitdeploy.records.constraints import Count, NonNegative, NonNegativeCount, Positive, check_fields
from vitdeploy.records.report import Device
from vitdeploy.records.scenario import SCENARIO_NAMES, ScenarioName
from vitdeploy.sessions import THREAD_SETTINGS


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and how.

    ``batches`` are the batch sizes that are timed; ``threads`` 0 leaves the number to each runtime. ``device`` None
    is whatever is there; ``runtimes`` are those that ONNX models are run by (``onnxruntime``,
    ``openvino``, one provider as in ``onnxruntime:cuda``, or a way to run as in ``openvino:bf16`` and
    ``openvino:throughput``); a graph that was made for some of them is run by these alone. Empty is ``onnxruntime``,
    and ``openvino`` too where it is installed and a graph is made for it. ``rounds`` to ``fill_s`` say how turns are
    taken, as ``TurnOptions`` has it.
    ``samples`` takes a seeded part of the data, ``accuracy_batch`` images at a time go through the models.
    ``cuda_graph`` launches engines as CUDA graphs where they can be recorded. ``processes`` False leaves out load
    time, first inference and peak memory, which take a process per candidate.
    ``cpu_fallback`` lets ONNX Runtime leave nodes of a GPU's graph to the CPU. ``pytorch`` are rows beside the eager
    baseline, ``compile`` or ``autocast-…``; None is what ``list_rivals`` takes.
    ``image_to_label`` times the way from an image's file to its class as well, at the first batch size that a row
    takes. ``self_check`` lets one candidate take part twice and times each alone after the turns. ``energy_s`` is for
    how long each row runs to meter its energy, where the device has a meter; 0: not at all. ``sustained_s`` lets each
    row run that long without a pause. ``per_layer`` profiles the layers of each row, in calls of their own.
    ``streams`` are numbers of execution contexts that an engine is to be run with at once, for its throughput.
    ``thread_counts`` are numbers of CPU threads that rows on the CPU are timed with as well, at each batch size.
    ``pinning`` and ``spinning`` are settings of CPU threads, as ``SessionOptions`` has them, with each of which ONNX
    models are rows of their own; empty leaves them to the runtime. A runtime that has none is refused.
    ``scenarios`` are those of MLPerf Inference that each row is put under, ``scenario_s`` is the time for one run of
    them, ``latency_bound_ms`` what a server keeps for 99 % of its queries.
    ``thumbnails`` puts small copies of images on which rows and baseline differ into the report.
    """

    batches: tuple[Count, ...] = (1,)
    threads: NonNegativeCount = 0
    device: Device | None = None
    runtimes: tuple[str, ...] = ()
    rounds: Count = 10
    warmup: Count = 5
    iterations: Count = 20
    block_s: Positive = 0.5
    fill_s: NonNegative = 0.1
    samples: Count | None = None
    seed: int = 0
    accuracy_batch: Count = 32
    tf32: bool = False
    cuda_graph: bool = True
    cpu_fallback: bool = False
    pytorch: tuple[str, ...] | None = None
    label_map: Path | None = None
    labels_by_order: bool = False
    processes: bool = True
    image_to_label: bool = True
    self_check: bool = False
    energy_s: NonNegative = 5.0
    sustained_s: NonNegative = 0.0
    per_layer: bool = False
    streams: tuple[Count, ...] = ()
    thread_counts: tuple[Count, ...] = ()
    pinning: tuple[bool, ...] = ()
    spinning: tuple[bool, ...] = ()
    scenarios: tuple[ScenarioName, ...] = ()
    scenario_s: Positive = RULE_SECONDS
    latency_bound_ms: Positive = SERVER_BOUND_MS
    thumbnails: bool = True
    timeout_s: Positive = 600.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.batches or len(set(self.batches)) != len(self.batches):
            raise UsageError(f"the batch sizes are {self.batches!r}, expected at least one, each once")
        if len(set(self.thread_counts)) != len(self.thread_counts):
            raise UsageError(f"the numbers of threads are {self.thread_counts!r}, expected each once")
        for name in THREAD_SETTINGS:
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise UsageError(f"{name} is {getattr(self, name)!r}, expected each setting once")
        known = ("compile", "autocast-fp16", "autocast-bf16")
        wrong = [mode for mode in self.pytorch or () if mode not in known]
        if wrong:
            raise UsageError(f"there is no way {wrong[0]!r} to run PyTorch, expected one of {', '.join(known)}")
        unknown = [name for name in self.scenarios if name not in SCENARIO_NAMES]
        if unknown:
            raise UsageError(f"there is no scenario {unknown[0]!r}, expected one of {', '.join(SCENARIO_NAMES)}")

    @property
    def turns(self) -> TurnOptions:
        """How turns are taken."""
        return TurnOptions(self.rounds, self.warmup, self.iterations, self.block_s, self.fill_s, self.seed)

    def identity(self) -> dict[str, Any]:
        """Return what a number in the report depends on, as JSON; the label map by its content."""
        fields = asdict(self)
        del fields["timeout_s"]
        fields["label_map"] = None if self.label_map is None else sha256_of_file(self.label_map)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
