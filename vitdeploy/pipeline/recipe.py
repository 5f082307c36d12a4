"""The recipe of a run: the options of each stage. ``recipes/run.yaml`` is the default, with every key and a comment."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vitdeploy.backends.timing_place import TimingPlace
from vitdeploy.benching.options import BenchOptions
from vitdeploy.errors import ArtifactError, RecipeError, UsageError
from vitdeploy.quantization.request import QuantizeOptions
from vitdeploy.reading import read_yaml
from vitdeploy.records import Target
from vitdeploy.records.report import DropBy, Report
from vitdeploy.sessions import (
    BatchRange,
    BuildTarget,
    HardwareCompatibility,
    ProfilingVerbosity,
    batch_profiles,
)
from vitdeploy.training.options import DEFAULTS, TrainOptions
from vitdeploy.training.recipe import with_teacher


def _capability(value: Any) -> Any:
    """Return ``8.9`` as text: YAML reads a number."""
    text = str(value) if isinstance(value, float) else value
    if not isinstance(text, str) or re.fullmatch(r"[0-9]+\.[0-9]", text) is None:
        raise ValueError("expected a compute capability such as 8.9")
    return text


def _profiles(value: Any) -> Any:
    """Return the profiles of ``1``, ``1:8:32``, ``1,8`` or a list of such."""
    try:
        return batch_profiles(value)
    except UsageError as error:
        raise ValueError(str(error)) from error
    except TypeError as error:
        raise ValueError("expected a number such as 1, MIN:OPT:MAX such as 1:8:32, or a list of such") from error


BENCHED = BenchOptions(batches=(1, 64), runtimes=("onnxruntime", "openvino"))
"""What a run measures: INT8 often pays only for many images, and in one of the runtimes."""


def _as_benched(value: Any) -> Any:
    """Return options of ``bench`` with the run's defaults where they are left out."""
    return {"batches": BENCHED.batches, "runtimes": BENCHED.runtimes, **value} if isinstance(value, dict) else value


BatchProfiles = Annotated[tuple[BatchRange, ...], BeforeValidator(_profiles)]
ComputeCapability = Annotated[str, BeforeValidator(_capability)]


class Section(BaseModel):
    """A part of the recipe: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class TrainSection(Section):
    """Options of ``train``."""

    model: str | None = None
    weights: Path | None = None
    random_weights: bool = False
    arguments: dict[str, Any] = {}
    preprocess: str | None = None
    labels: Path | None = None
    teacher: str | None = None
    options: TrainOptions = DEFAULTS

    @property
    def complete(self) -> TrainOptions:
        """The options with the teacher."""
        return with_teacher(self.options, self.teacher)

    @model_validator(mode="after")
    def _one_teacher(self) -> TrainSection:
        try:
            _ = self.complete
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self


class ExportSection(Section):
    """Options of ``export``; ``reference`` keeps PyTorch's logits of the test data beside the graph."""

    opset: int = Field(20, ge=17, le=20)
    reference: bool = True


class QuantizeSection(Section):
    """One graph to make of the FP32 one. ``calibration`` None is at most ``samples`` of the training images."""

    precision: Literal["fp16", "int8", "int8-weight-only", "fp8"]
    target: Target = "tensorrt"
    calibration: str | None = None
    samples: Annotated[int, Field(ge=1)] = 512
    options: QuantizeOptions = QuantizeOptions()

    @property
    def name(self) -> str:
        """``int8``, or with its runtime ``int8.onnxruntime`` where that is not TensorRT."""
        return self.precision if self.target == "tensorrt" else f"{self.precision}.{self.target}"

    @model_validator(mode="after")
    def _one_place_for_samples(self) -> QuantizeSection:
        if self.options.samples is not None:
            raise ValueError("say how many samples in 'samples', not in 'options.samples'")
        if self.options.table is not None:
            raise ValueError(
                "a run keeps no CalibrationTable: vd.quantize(..., options=vd.QuantizeOptions(table='FILE')) does"
            )
        return self

    @model_validator(mode="after")
    def _budget_is_whole(self) -> QuantizeSection:
        if self.options.max_drop is None or self.options.time_on is None:
            return self
        try:
            target = TimingPlace.parse(self.options.time_on).target
        except UsageError as error:
            raise ValueError(str(error)) from error
        if target not in (None, self.target):
            raise ValueError(f"time_on is {self.options.time_on!r} and the target {self.target!r}: name one runtime")
        if self.options.validation is None:
            raise ValueError("max_drop needs labelled images that calibration does not see, in 'options.validation'")
        return self


class BuildSection(Section):
    """Engines to build: of the graphs in ``precisions`` that were quantized for TensorRT."""

    precisions: tuple[Literal["fp32", "fp16", "int8", "int8-weight-only", "fp8"], ...] = ("fp16", "int8")
    backend: Literal["tensorrt", "tensorrt-rtx"] | None = None
    batch: BatchProfiles = ((1, 1, 1),)
    compute_capabilities: tuple[ComputeCapability, ...] = ()
    workspace_mib: int | None = Field(None, ge=1)
    optimization_level: int | None = Field(None, ge=0, le=5)
    tf32: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    profiling: ProfilingVerbosity = "detailed"
    strip: bool = False
    refit: bool = False
    dla_core: int | None = Field(None, ge=0)
    timing_cache: Literal["kept", "off"] | Path = "kept"

    @property
    def target(self) -> BuildTarget:
        """Options of the builder."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        for name in ("precisions", "backend"):
            del fields[name]
        mib = fields.pop("workspace_mib")
        return BuildTarget(workspace_bytes=None if mib is None else mib << 20, **fields)


class BenchSection(Section):
    """Options of ``bench``.

    ``data`` None is the test split of the run's data; limits are those of ``Report.check``. ``predictions`` writes
    ``predictions.parquet`` beside the report.
    """

    data: str | None = None
    max_drop: Annotated[float, Field(ge=0)] | None = None
    max_drop_by: DropBy = "point"
    min_accuracy_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    predictions: bool = False
    options: Annotated[BenchOptions, BeforeValidator(_as_benched)] = BENCHED

    def hold(self, report: Report) -> None:
        """Pass where a report is within the limits.

        Raises:
            GateError: It is not.
        """
        report.check(
            max_drop_pp=self.max_drop, max_drop_by=self.max_drop_by, min_accuracy_ratio=self.min_accuracy_ratio
        )


_WITHOUT = {
    "train": "'source: MODEL' takes a model that exists in place of a training",
    "export": "there is no run without it",
    "quantize": "'quantize: []' quantizes nothing",
    "build": "'build: {precisions: []}' builds no engine",
    "bench": "there is no run without it, 'bench: {options: {rounds: 3, processes: false}}' makes it short",
}
"""How a stage is left out, or that it cannot be."""


class Recipe(Section):
    """A run. Either a model is trained (``train``), or ``source`` names one that exists."""

    data: str = "digits"
    source: str | None = None
    weights: Path | None = None
    arguments: dict[str, Any] = {}
    preprocess: str | None = None
    labels: Path | None = None
    train: TrainSection = TrainSection()
    export: ExportSection = ExportSection()
    quantize: tuple[QuantizeSection, ...] = (
        QuantizeSection(precision="fp16"),
        QuantizeSection(precision="int8"),
        QuantizeSection(precision="int8", target="onnxruntime"),
        QuantizeSection(precision="int8", target="openvino", options=QuantizeOptions(cpu="auto")),
    )
    build: BuildSection = BuildSection()
    bench: BenchSection = BenchSection()

    @model_validator(mode="before")
    @classmethod
    def _no_empty_section(cls, values: Any) -> Any:
        """Refuse ``build: null``, and a section all of whose lines are comments: is that none, or the default."""
        for name, without in _WITHOUT.items() if isinstance(values, dict) else ():
            if name in values and values[name] is None:
                raise ValueError(f"{name!r} is empty: leave the key out for the default; {without}")
        return values

    @property
    def data_sources(self) -> tuple[str, ...]:
        """What the recipe names as data, for any stage; tables of calibration are among them."""
        named = (self.data, self.bench.data, *(section.calibration for section in self.quantize))
        return tuple(text for text in named if text is not None)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.source is not None and self.train != TrainSection():
            raise ValueError("'source' names a model that exists and 'train' trains one: leave one of the two out")
        for key in ("weights", "arguments", "preprocess", "labels") if self.source is None else ():
            if getattr(self, key):
                raise ValueError(
                    f"{key!r} belongs to 'source', which is not given: a training has its own, 'train.{key}'"
                )
        names = [section.name for section in self.quantize]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"quantize has {twice[0]!r} twice: give each precision and target once")
        buildable = {"fp32", *(section.precision for section in self.quantize if section.target == "tensorrt")}
        lacking = [precision for precision in self.build.precisions if precision not in buildable]
        if lacking and "precisions" in self.build.model_fields_set:
            raise ValueError(f"build.precisions has {lacking[0]!r}, and quantize makes no such graph for tensorrt")
        return self


def default_text() -> str:
    """Return the default recipe as YAML with comments."""
    return (resources.files("vitdeploy") / "recipes" / "run.yaml").read_text("utf8")


def read_recipe(path: Path | str | None = None, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe; what it leaves out is as in the default.

    Args:
        path: A YAML file; None for the default.
        changes: Values that replace those of the file, by dotted names such as ``train.options.epochs``.
    Raises:
        RecipeError: It cannot be read, is not YAML, or has a key or value that is not allowed; the line names the key.
    """
    where = "the recipe" if path is None else f"the recipe {str(path)!r}"
    values = {} if path is None else _load(Path(path), where)
    for name, value in (changes or {}).items():
        _put(values, name, value, where)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{where} is not valid: {_first_problem(error)}") from error
    except UsageError as error:  # from the options' own checks
        raise RecipeError(f"{where} is not valid: {error}") from error


def _load(path: Path, where: str) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except ArtifactError as error:
        raise RecipeError(str(error)) from error
    except ValueError as error:
        raise RecipeError(f"{where} is not YAML: {error}") from error
    if not values:
        raise RecipeError(
            f"{where} is empty, expected some of the keys {', '.join(Recipe.model_fields)}; without a recipe, "
            "vd.run() trains the demo"
        )
    if not isinstance(values, dict):
        raise RecipeError(f"{where} is not a recipe: expected the keys {', '.join(Recipe.model_fields)}")
    return values


def _put(values: dict[str, Any], name: str, value: Any, where: str) -> None:
    *groups, last = name.split(".")
    for group in groups:
        nested = values.setdefault(group, {})
        if not isinstance(nested, dict):
            raise RecipeError(f"{where} has no {name!r}: {group} is a list or a value, so change the file")
        values = nested
    values[last] = value


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        known = _keys_at(first["loc"][:-1])
        *place, last = first["loc"]
        inner = [key for key in known if last in _keys_at((*place, key))]
        near = (
            [".".join(map(str, (*place, inner[0], last)))] if inner else difflib.get_close_matches(str(last), known, 1)
        )
        hint = f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(known)}"
        return f"there is no key {name!r}, {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message  # of a check of ours, which names the keys
    value = first["input"]
    shown = f" is {value!r}" if isinstance(value, str | int | float | bool | None) else ""
    return f"{name}{shown}: {message}"


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    """Return the keys that a place in the recipe knows."""
    known: Any = Recipe
    for part in place:
        if isinstance(part, int):
            known = QuantizeSection
            continue
        fields = getattr(known, "model_fields", None)
        if fields is None:
            fields = getattr(known, "__dataclass_fields__", {})
            value = fields[part].default if part in fields else None
            known = type(value)
        else:
            known = type(fields[part].default) if part in fields else None
    return list(getattr(known, "model_fields", None) or getattr(known, "__dataclass_fields__", {}))
