"""What decides the result of ``quantize``: options, and every source, opened once and checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field, InstanceOf, PlainValidator

from vitdeploy import environment
from vitdeploy.artifacts import CalibrationTable, OnnxModel, is_calibration_table, read_calibration_table
from vitdeploy.artifacts.calibration_table import SUFFIX
from vitdeploy.datasets import Dataset, DataSource, open_dataset, overlap_text
from vitdeploy.datasets.opening import calibration_split
from vitdeploy.errors import CalibrationError, GraphError, SeenDataWarning, UsageError, require_one_of, warn
from vitdeploy.graph.linear_groups import PATCH_EMBEDDING
from vitdeploy.quantization.division import Division, divide, warn_of_few_images
from vitdeploy.quantization.observers import MANY_ROWS, METHODS
from vitdeploy.quantization.placement import INTEGER_PRECISIONS, Format
from vitdeploy.quantization.plan import Edits, Intent, Profile, make_plan, plan_of_graph, read_plan
from vitdeploy.quantization.search import AUTOMATIC, STEPS, Effort, SearchOptions, StepName, Wider
from vitdeploy.records import CpuIntegers, NodePrecision, Precision, PrecisionPlan, RangeMethod, Target, stage_key
from vitdeploy.records.constraints import Count, Finite, NonNegativeCount, check_fields
from vitdeploy.wording import adoption

if TYPE_CHECKING:
    from vitdeploy.quantization.prepared import Prepared

Method = Literal["auto", "minmax", "percentile", "mse", "entropy"]
PRECISIONS: tuple[NodePrecision, ...] = ("fp16", "int8", "int8-weight-only", "fp8")
TARGETS: tuple[Target, ...] = ("tensorrt", "onnxruntime", "openvino")


def _data_source(value: object) -> object:
    """Pass what names images: an opened dataset of any class, a path or a text."""
    if value is None or isinstance(value, str | Path) or hasattr(type(value), "sample_ids"):
        return value
    raise ValueError("expected a folder, a text such as 'digits:validation', or an opened dataset")


@dataclass(frozen=True)
class QuantizeOptions:
    """How ranges are chosen and what is quantized.

    profile: ``linear``: linears, with weights per channel and activations per tensor, and for OpenVINO the patch
        embedding. ``mha``: the two products of attention as well, where TensorRT can fuse them. ``full``, for a CPU:
        convolutions with a kernel or groups too. ``auto``: ``linear``, and where images are tried, so not with
        ``effort='fast'``, for OpenVINO attention where the logits lose at most 1 dB by it or keep 35 dB; with
        ``cpu='auto'`` or ``lower`` convolutions too, and of both what is measured to be faster on this machine.
    cpu: For which processors an INT8 graph for ONNX Runtime or OpenVINO is: ``any``; ``vnni``, those that have VNNI,
        AMX, or are not x86, where weights use all 8 bits; ``amx``, where OpenVINO's activations are signed too;
        ``auto``, the one of this machine, where it is also timed beside the FP32 graph. None: what a plan says, else
        any.
    remainder: For ``target='openvino'``: with ``bf16`` it computes in BF16, where the processor can, what is not in
        8 bits; with ``fp32`` it does not. None: what a plan says, else FP32. Other targets have one remainder each.
    lower: For ``target='onnxruntime'``: write ``NAME.lowered.onnx`` beside the graph too, with biases inside the
        integer products. It is for this machine's release of ONNX Runtime and its processor. The graph is timed as
        with ``cpu='auto'``.
    method: How ranges follow from the observed values; ``auto`` compares and takes the best.
    percentile: For ``method='percentile'``.
    equalization: Of channels, by scaling and shifting them: ``auto`` compares, ``off`` does without, a number is the
        alpha to take for all groups.
    rounding: Of weights: ``nearest`` integers, ``gptq``: together, so that outputs keep values, ``auto`` compares.
    steps: Which steps may be tried, of ``STEPS``; ``auto``: all but ``streams``.
    effort: ``fast`` trusts layer errors and tries nothing on images, ``default`` tries steps within a budget of work,
        ``best`` tries all of them on more images.
    plan: A precision plan, the file of one, or a quantized graph, whose entries go before the profile's.
    validation: Images for the check, instead of a part of the calibration set.
    samples: Take that many of the calibration images, stratified, by ``seed``.
    min_sqnr_db: Fail where the logits SQNR of the check is below it.
    table: Where to keep what was observed, a CalibrationTable ``NAME.calib.json`` with its arrays beside it.
    threads: CPU threads, 0 for all.
    max_drop: Percentage points of top-1. Groups stay in high precision until the drop on ``validation``, which needs
        labels, is no more than that with 95 % confidence; among such graphs the fastest is written.
    time_on: For ``max_drop``, where latency counts: ``onnxruntime``, ``onnxruntime:cuda``, ``openvino``, ``tensorrt``.
    time_batch: For ``max_drop``, images per call.
    """

    profile: Profile = "auto"
    cpu: CpuIntegers | Literal["auto"] | None = None
    remainder: Literal["fp32", "bf16"] | None = None
    lower: bool = False
    method: Method = "auto"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    equalization: Literal["auto", "off"] | float = "auto"
    rounding: Literal["auto", "nearest", "gptq"] = "auto"
    steps: Literal["auto"] | tuple[StepName, ...] = "auto"
    effort: Effort = "default"
    plan: PrecisionPlan | InstanceOf[Edits] | InstanceOf[OnnxModel] | Path | str | None = None
    validation: Annotated[DataSource | None, PlainValidator(_data_source)] = None
    samples: Count | None = None
    seed: int = 0
    min_sqnr_db: Finite | None = None
    table: Path | None = None
    threads: NonNegativeCount = 0
    max_drop: Annotated[float, Field(gt=0, lt=100)] | None = None
    time_on: str | None = None
    time_batch: Count = 1

    def __post_init__(self) -> None:
        check_fields(self)
        require_one_of("profile", self.profile, get_args(Profile))
        require_one_of("cpu", self.cpu, (None, "auto", *get_args(CpuIntegers)))
        require_one_of("remainder", self.remainder, (None, "fp32", "bf16"))
        require_one_of("method", self.method, ("auto", *METHODS))
        require_one_of("rounding", self.rounding, ("auto", "nearest", "gptq"))
        require_one_of("effort", self.effort, get_args(Effort))
        for step in () if isinstance(self.steps, str) and self.steps == "auto" else self.steps:
            require_one_of("steps", step, STEPS)
        if self.table is not None and not str(self.table).endswith(SUFFIX):
            raise UsageError(f"the calibration table {str(self.table)!r} must be called NAME{SUFFIX}")
        if self.max_drop is not None and self.time_on is None:
            raise UsageError("max_drop= finds the fastest graph, so say where: time_on='onnxruntime'")
        if self.time_on is not None and self.max_drop is None:
            raise UsageError(f"time_on={self.time_on!r} is for a search only: set max_drop= too")
        if self.max_drop is not None and self.remainder == "bf16":
            raise UsageError("max_drop= compares graphs beside FP32 or FP16, so it goes without remainder='bf16'")
        if isinstance(self.equalization, str):
            require_one_of("equalization", self.equalization, ("auto", "off", "a number from 0 to 1"))
        elif not 0.0 <= self.equalization <= 1.0:
            raise UsageError(f"equalization {self.equalization!r} is out of range, expected 0 to 1, 'auto' or 'off'")

    @property
    def processor(self) -> CpuIntegers | None:
        """What ``cpu`` asks for: with ``auto`` this machine's, ``any`` where the operating system does not tell."""
        return (environment.cpu_integers() or "any") if self.cpu == "auto" else self.cpu

    def values(self) -> dict[str, Any]:
        """Return what decides the result, as JSON values; plan and validation count by content and are left out."""
        return {
            "profile": self.profile,
            **({} if self.cpu is None else {"cpu": self.processor}),
            **({} if self.remainder is None else {"remainder": self.remainder}),
            **({"lower": True} if self.lower else {}),
            "method": self.method,
            "percentile": self.percentile,
            "equalization": self.equalization,
            "rounding": self.rounding,
            "steps": self.steps if isinstance(self.steps, str) else sorted(self.steps),
            "effort": self.effort,
            "samples": self.samples,
            "seed": self.seed,
            **({} if self.max_drop is None else {"max_drop": self.max_drop, "time_batch": self.time_batch}),
        }


CalibrationSource = CalibrationTable | DataSource
"""What ranges are taken from: a table, opened or the file of one, or images."""


@dataclass(frozen=True, kw_only=True)
class QuantizeInputs:
    """All that decides the result of ``quantize``, opened."""

    source: OnnxModel
    precision: NodePrecision
    target: Target
    options: QuantizeOptions
    edits: Edits | None = None
    table: CalibrationTable | None = None
    data: Dataset | None = None
    validation: Dataset | None = None

    @property
    def needs_ranges(self) -> bool:
        """Return whether activations are quantized, by the precision or by an entry of the plan."""
        return _needs_ranges(self.precision, self.edits)

    @property
    def form(self) -> Format:
        """What the integers must suit."""
        remainder = Intent(self.precision, self.target).remainder
        on_cpu = self.target != "tensorrt" and self.needs_ranges
        replayed = "any" if self.edits is None else self.edits.plan.cpu
        processor = (self.options.processor or replayed) if on_cpu else "any"
        return Format(
            "float16" if remainder == "fp16" else "float32",
            cpu=on_cpu,
            vnni=processor != "any",
            signed=processor == "amx" and self.target == "openvino",
            openvino=on_cpu and self.target == "openvino",
        )

    @property
    def _bf16(self) -> bool:
        """Return whether OpenVINO is to compute in BF16 what is not in 8 bits, by the options or a plan for it."""
        replayed = "fp32" if self.edits is None else self.edits.plan.remainder
        return self.target == "openvino" and self.precision != "fp16" and (self.options.remainder or replayed) == "bf16"

    @property
    def values(self) -> dict[str, Any]:
        """The options as JSON values."""
        plan = None if self.edits is None else self.edits.plan.model_dump(mode="json")
        return {"precision": self.precision, "target": self.target, "plan": plan, **self.options.values()}

    @property
    def parents(self) -> dict[str, str]:
        """Role → digest of every source."""
        parents = {"onnx": self.source.digest}
        for role, source in (("calibration", self.table or self.data), ("validation", self.validation)):
            if source is not None:
                parents[role] = source.digest
        return parents

    @property
    def key(self) -> str:
        """The freshness key of the result."""
        return stage_key("quantize", self.values, self.parents)

    def search_options(self) -> SearchOptions:
        """Return what may be tried.

        FP8 has steps that grow with the value, so clipping gains it nothing.
        """
        options = self.options
        known: tuple[RangeMethod, ...] = ("minmax",) if self.precision == "fp8" else METHODS
        methods = known if options.method == "auto" else (options.method,)
        steps: frozenset[StepName] = frozenset(AUTOMATIC if options.steps == "auto" else options.steps)
        return SearchOptions(methods, options.percentile, options.equalization, options.rounding, steps, options.effort)

    def plan_of(self, prepared: Prepared, profile: Profile | None = None) -> PrecisionPlan:
        """Return the plan of a prepared graph: the profile's, edited by the one that was handed in.

        ``profile`` goes before that of the options.

        Raises:
            GraphError: The graph has Q/DQ nodes already, or nothing to quantize, or the edits do not fit it.
        """
        name = str(self.source.path)
        if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in prepared.graph.graph):
            raise GraphError(
                f"{name!r} is quantized already, it has QuantizeLinear or DequantizeLinear nodes: quantize the FP32 "
                f"graph"
            )
        profile = profile or self.options.profile
        intent = Intent(self.precision, self.target, profile, self._bf16, self._knows_images(prepared))
        plan = make_plan(prepared.linears, prepared.attentions, intent)
        if self.edits is not None:
            plan = self.edits.applied(plan, self.target, {str(node.name) for node in prepared.graph.graph})
        if self._learns_rounding:
            plan = plan.model_copy(update={"sampled_rows": MANY_ROWS})
        if self.precision != "fp16" and not any(entry.precision in INTEGER_PRECISIONS for entry in plan.entries):
            raise GraphError(
                f"{name!r} has no node to quantize, expected linears of at least 16 features between patch embedding "
                f"and head: precision='fp16' needs none"
            )
        return plan

    @property
    def _learns_rounding(self) -> bool:
        """Return whether weights are rounded together whatever that costs; a plan that is replayed says so itself."""
        if self.data is None or self.precision != "int8" or self.options.rounding == "nearest":
            return False
        searched = self.edits is None and self.options.effort == "best"
        allowed = self.options.steps == "auto" or "rounding" in self.options.steps
        return self.options.rounding == "gptq" or (searched and allowed)

    @property
    def is_for_this_machine(self) -> bool:
        """Return whether integers are for this machine's processor: what they gain there can be timed.

        A search for a budget times by itself, and effort ``fast`` measures nothing.
        """
        options = self.options
        if not self.form.cpu or self.precision != "int8" or options.effort == "fast" or options.max_drop is not None:
            return False
        return options.cpu == "auto" or options.lower

    def wider_plans_of(self, prepared: Prepared, timed: bool) -> tuple[Wider, ...]:
        """Return what profile ``auto`` tries on images, in turn.

        For OpenVINO the products of attention go to 8 bits, and on a CPU where that is ``timed`` convolutions: first
        the depth-wise ones, which hardly touch the logits, as they have few weights for each of their outputs.
        """
        options, attentions = self.options, frozenset(attention.name for attention in prepared.attentions)
        if options.profile != "auto" or self.precision != "int8" or self.target == "tensorrt":
            return ()
        if options.effort == "fast" or self.data is None or options.max_drop is not None:
            return ()
        found = []
        if self.target == "openvino":
            found.append(Wider("attention in 8 bits", self.plan_of(prepared, "mha"), attentions))
        if timed and self.convolutions_of(prepared):
            full, linears = self.plan_of(prepared, "full"), frozenset(group.name for group in prepared.linears)
            depthwise = frozenset(group.name for group in prepared.linears if group.is_depthwise)
            found.append(Wider("depth-wise convolutions in 8 bits", full, depthwise))
            found.append(Wider("convolutions in 8 bits", full, linears))
        return tuple(found)

    def convolutions_of(self, prepared: Prepared) -> int:
        """Return how many convolutions profile ``full`` has in 8 bits and this plan has not: none for TensorRT."""
        if self.precision != "int8" or self.target == "tensorrt":
            return 0
        plans = self.plan_of(prepared), self.plan_of(prepared, "full")
        here, wide = ({one.group for one in plan.entries if one.precision == "int8"} for plan in plans)
        more = [linear for group in prepared.linears if group.name in wide - here for linear in group.linears]
        return sum(linear.node.op_type == "Conv" for linear in more)

    def _knows_images(self, prepared: Prepared) -> bool:
        """Return whether a calibration table, if there is one, has the range of the images."""
        first = [group for group in prepared.linears if group.obstacle == PATCH_EMBEDDING]
        return self.table is None or all(str(group.activation.name) in self.table.ranges for group in first)

    def divide(self) -> Division | None:
        """Divide the calibration images: to observe, to compare steps on, and to check with; None without images.

        Raises:
            CalibrationError: There are too few.
        """
        if self.data is None:
            return None
        compare = self.needs_ranges and self.options.effort != "fast"
        return divide(self.data, hold_out=self.validation is None, compare=compare, seed=self.options.seed)

    def warn_of_images(self) -> None:
        """Warn of few calibration images, and of images that ranges are taken from and the check looks at."""
        if self.data is None:
            return
        if self.needs_ranges:
            warn_of_few_images(self.data)
        if self.validation is not None and (text := overlap_text(self.validation, self.data)):
            warn(f"{text}: the check looks better than it would on other images", SeenDataWarning)


def open_inputs(
    source: OnnxModel,
    precision: Precision | NodePrecision,
    target: Target,
    calibration: CalibrationSource | None,
    options: QuantizeOptions,
    *,
    validation: Dataset | None = None,
) -> QuantizeInputs:
    """Check the options and open plan, table and datasets; ``validation`` takes the place of the options'.

    Raises:
        CalibrationError: Ranges are needed and there is nothing to take them from, or a table or split is unfit.
        GraphError: The graph is quantized already.
        UsageError: A precision or target is not known.
        ArtifactError: A file is missing or damaged.
        DataError: A dataset cannot be opened.
    """
    require_one_of("precision", precision, PRECISIONS)
    require_one_of("target", target, TARGETS)
    if options.remainder == "bf16" and (target != "openvino" or precision == "fp16"):
        raise UsageError(
            f"remainder 'bf16' is for 8-bit graphs and target 'openvino', got precision {precision!r} and target "
            f"{target!r}: a bench of any graph on runtime 'openvino:bf16' computes all of it in BF16"
        )
    if options.lower and (target, precision) != ("onnxruntime", "int8"):
        raise UsageError(
            f"lower is for precision 'int8' and target 'onnxruntime', got precision {precision!r} and target {target!r}"
        )
    wanted: NodePrecision = next(known for known in PRECISIONS if known == precision)
    if source.manifest.precision != "fp32":
        raise GraphError(
            f"{str(source.path)!r} is {source.manifest.precision} already: quantize the FP32 graph that it came from"
        )
    refuse_resizing(source)
    edits = open_plan(options.plan)
    opened = open_calibration(calibration, options.samples, options.seed)
    table = opened if isinstance(opened, CalibrationTable) else None
    data = None if isinstance(opened, CalibrationTable) else opened
    if table is not None:
        table.require_fit(source.manifest.payload_sha256, source.manifest.preprocess)
    if calibration is None and _needs_ranges(wanted, edits):
        what = f"precision {precision!r}" if edits is None else f"precision {precision!r} with the plan {edits.where}"
        raise CalibrationError(
            f"{what} needs calibration images, ranges are never invented: pass calibration='DATA' (100 to 500 images "
            "like those in use), or take precision='int8-weight-only'"
        )
    if validation is None and options.validation is not None:
        validation = open_dataset(options.validation)
    if (data is not None or validation is not None) and source.manifest.preprocess is None:
        raise CalibrationError(
            f"{str(source.path)!r} has no preprocessing in its manifest, so no image can be prepared for it: "
            f"{adoption(source.path)} adds it"
        )
    return QuantizeInputs(
        source=source,
        precision=wanted,
        target=target,
        options=options,
        edits=edits,
        table=table,
        data=data,
        validation=validation,
    )


def refuse_resizing(source: OnnxModel) -> None:
    """Refuse a graph that resizes its images: the weights of its filters are no weights of the model.

    Raises:
        GraphError: It does.
    """
    if source.manifest.preprocess is not None and source.manifest.preprocess.frame is not None:
        raise GraphError(
            f"{str(source.path)!r} resizes its images itself: quantize the graph that it was made from, and put the "
            "resizing into the result with vd.export(..., options=vd.ExportOptions(fuse_resize=(480, 640)))"
        )


def open_calibration(
    source: CalibrationSource | None, samples: int | None = None, seed: int = 0
) -> CalibrationTable | Dataset | None:
    """Open a calibration table or calibration images; whether they fit a model is not asked.

    Raises:
        ArtifactError, DataError: It is not there or is damaged.
        CalibrationError: The data is a test split.
    """
    if source is None or isinstance(source, CalibrationTable):
        return source
    if isinstance(source, str | Path) and is_calibration_table(Path(source)):
        return read_calibration_table(Path(source))
    return open_dataset(source, split=calibration_split(source), samples=samples, seed=seed)


def _needs_ranges(precision: NodePrecision, edits: Edits | None) -> bool:
    entries = () if edits is None else edits.plan.entries
    return any(wanted in ("int8", "fp8") for wanted in (precision, *(entry.precision for entry in entries)))


def open_plan(plan: Edits | PrecisionPlan | OnnxModel | Path | str | None) -> Edits | None:
    """Read a plan, of which a quantized graph has one too.

    Raises:
        ArtifactError: The file is missing, or is not a plan.
    """
    if plan is None or isinstance(plan, Edits):
        return plan
    if isinstance(plan, PrecisionPlan):
        return Edits(plan, "given")
    if isinstance(plan, OnnxModel):
        return Edits(plan_of_graph(plan), repr(str(plan.path)))
    return Edits(read_plan(Path(plan)), repr(str(plan)))


DEFAULTS = QuantizeOptions()
