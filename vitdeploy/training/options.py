"""The options of a training: plain values, so that a recipe can be read and a freshness key computed without torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError, with_config

from vitdeploy.artifacts import Checkpoint
from vitdeploy.errors import UsageError, require_one_of
from vitdeploy.records.constraints import Count, NonNegative, NonNegativeCount, Positive, Share, check_fields

_NUMBER = r"\d+(?:\.\d+)?"
_POLICY = re.compile(  # timm.data.auto_augment, which passes over what it does not know
    rf"rand(-(m\d+|n[1-9]\d*|p{_NUMBER}|mstd{_NUMBER}|mmax[1-9]\d*|inc[01]|t(weights|3aw?)))*"
    rf"|augmix(-(m\d+|w[1-9]\d*|d\d+|a{_NUMBER}|b[01]|mstd{_NUMBER}))*"
    rf"|(v0r?|originalr?|3a)(-mstd{_NUMBER})?"
)

AugmentationKind = Literal["auto", "none", "affine", "timm"]
DistillationKind = Literal["hard", "soft"]
TrainPrecision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"]

_Beta = Annotated[float, Field(ge=0, le=0.99999)]

STRICT = ConfigDict(extra="forbid")  # an option that is misspelt in a recipe is refused

MEMORY_PIXELS = 64 * 64
MEMORY_BYTES = 1 << 30


@with_config(STRICT)
@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    ``affine`` turns, shifts and scales whole batches of tensors; it suits tiny images and needs no worker processes.
    ``timm`` is the usual chain for photographs: random resized crop, flip, colour jitter or RandAugment, random
    erasing. ``auto`` is ``affine`` up to 64×64 pixels and ``timm`` above. Mixup and cutmix go with either.

    Args:
        rotate_degrees: Largest turn, either way (affine).
        translate: Largest shift as a fraction of the side (affine).
        scale: Largest change of size as a fraction (affine).
        crop_area: Smallest and largest share of the image that is cropped (timm).
        flip: Probability of a mirror image (timm).
        colour_jitter: Strength; without effect where ``policy`` is given, as in timm (timm).
        policy: RandAugment or AutoAugment in timm's spelling, such as ``rand-m9-mstd0.5-inc1`` (timm).
        erase: Probability of random erasing (timm).
        mixup, cutmix: Alpha of the Beta distribution; 0 is off, and where both are on each batch takes one of them.
        mix_probability: Share of the batches that are mixed.
    """

    kind: AugmentationKind = "auto"
    rotate_degrees: NonNegative = 10.0
    translate: Share = 0.08
    scale: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    crop_area: tuple[float, float] = (0.08, 1.0)
    flip: Share = 0.5
    colour_jitter: NonNegative = 0.4
    policy: str | None = "rand-m9-mstd0.5-inc1"
    erase: Share = 0.25
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    mix_probability: Share = 1.0

    @property
    def mixes(self) -> bool:
        """Return whether batches are mixed at all."""
        return self.mixup > 0 or self.cutmix > 0


@with_config(STRICT)
@dataclass(frozen=True)
class Distillation:
    """Learning from a teacher (Touvron et al. 2021, arXiv:2012.12877, section 3).

    loss = (1 − weight) · loss(labels) + weight · loss(teacher). ``hard`` takes the teacher's answer as a label,
    ``soft`` its distribution at ``temperature``. A model with a distillation head learns from the teacher with that.

    Args:
        teacher: A checkpoint, or any other SOURCE that ``export`` takes.
        weights: A weight file, for a teacher that is a name.
        arguments: Of the teacher's constructor, such as ``{"image_size": 224}``.
    """

    teacher: InstanceOf[Checkpoint] | str | Path
    kind: DistillationKind = "hard"
    weight: Share = 0.5
    temperature: Positive = 3.0
    weights: InstanceOf[Checkpoint] | str | Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@with_config(STRICT)
@dataclass(frozen=True)
class Hardware:
    """Where a training runs; handed to Lightning Fabric as it is. Only ``precision`` is meant to change the result.

    Args:
        workers: Processes that load images of real size; without effect on small images, which are held in memory.
        threads: Of the processor, for the model; chosen by its size where None.
    """

    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: TrainPrecision = "32-true"
    workers: NonNegativeCount = 4
    threads: Count | None = None


@with_config(STRICT)
@dataclass(frozen=True)
class TrainOptions:
    """Settings of a training; the defaults are those for small images.

    Args:
        batch: Images per update of the weights, over all devices and accumulation steps together.
        accumulate: Passes that one update is divided into, to save memory.
        repeats: Variations of each image within an epoch, which then sees fewer images (Hoffer et al. 2020).
        learning_rate: After warm-up; from there it falls as a cosine to ``final_learning_rate``.
        warmup_epochs: 5 % of all epochs where None.
        layer_decay: Factor on the learning rate per layer away from the head; None for none.
        freeze: Shell patterns of parameter names that are not trained.
        clip_norm: Largest norm of the gradient; None for none.
        drop_path: Replaces that of the model where given.
        ema_decay: Also keep an average of the weights, and evaluate and write that; None for none.
        patience: Stop after so many epochs without a better validation; None for never.
        keep_last: Write the last weights too, beside the best, as NAME.last.safetensors.
        tensorboard: Write metrics for TensorBoard too, into the folder NAME.tensorboard.
        save_every_s: How often, at the least, the state is saved from which a killed training goes on.
        skip_unreadable: Train without the images that cannot be read or varied, each named once; where False such an
            image ends the training. Images that are held in memory, and those for evaluation, must all be readable.
    """

    epochs: Count = 140
    batch: Count = 64
    accumulate: Count = 1
    repeats: Count = 1
    seed: int = 0
    learning_rate: Positive = 3e-3
    final_learning_rate: NonNegative = 0.0
    warmup_epochs: NonNegative | None = None
    weight_decay: NonNegative = 0.05
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    layer_decay: Annotated[float, Field(ge=0.001, le=1)] | None = None
    freeze: tuple[str, ...] = ()
    clip_norm: Positive | None = 1.0
    label_smoothing: Annotated[float, Field(ge=0, le=0.999)] = 0.1
    drop_path: Annotated[float, Field(ge=0, le=0.99)] | None = None
    ema_decay: Annotated[float, Field(ge=0, le=0.999999)] | None = None
    patience: Count | None = None
    augmentation: Augmentation = Augmentation()
    distillation: Distillation | None = None
    hardware: Hardware = Hardware()
    keep_last: bool = False
    tensorboard: bool = False
    save_every_s: NonNegative = 20.0
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            UsageError: One line that names the option, its value and what was expected.
        """
        check_fields(self)
        check_fields(self.hardware)
        check_fields(self.augmentation, "augmentation.")
        _check_options(self)
        _check_augmentation(self.augmentation)
        if self.distillation is not None:
            check_fields(self.distillation, "distillation.")
            require_one_of("distillation.kind", self.distillation.kind, ("hard", "soft"))

    @property
    def warmup(self) -> float:
        """Epochs of warm-up."""
        return 0.05 * self.epochs if self.warmup_epochs is None else self.warmup_epochs

    def key(self) -> dict[str, Any]:
        """Return, as JSON values, everything that decides the result: not where it runs, nor what it writes beside it.

        ``skip_unreadable`` is left out: it changes no training that ends without it, and is added to resume one.
        The teacher is left out too; whoever makes the key adds its digest.
        """
        values = _json(self)
        for name in ("hardware", "keep_last", "tensorboard", "save_every_s", "skip_unreadable"):
            del values[name]
        if values["distillation"] is not None:
            del values["distillation"]["teacher"], values["distillation"]["weights"]
        values["precision"] = self.hardware.precision
        return values


def options_from(values: Mapping[str, Any]) -> TrainOptions:
    """Return options from the values of a recipe, nested as the dataclasses are.

    Raises:
        UsageError: A key is not an option, or a value has the wrong type or range.
    """
    try:
        return TypeAdapter(TrainOptions).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
            raise UsageError(f"there is no training option {name!r}{_nearest(name)}") from error
        raise UsageError(f"training option {name} is {first['input']!r}: {first['msg']}") from error


def _nearest(name: str) -> str:
    groups = {"augmentation": Augmentation, "distillation": Distillation, "hardware": Hardware}
    group, _, last = name.rpartition(".")
    known = [entry.name for entry in fields(groups.get(group, TrainOptions))]
    near = difflib.get_close_matches(last, known, n=3)
    return f": did you mean {', '.join(near)}?" if near else f", expected some of {', '.join(known)}"


def augmentation_kind(augmentation: Augmentation, size: tuple[int, int]) -> AugmentationKind:
    """Return what ``auto`` stands for at an input of ``size``."""
    if augmentation.kind != "auto":
        return augmentation.kind
    return "affine" if size[0] * size[1] <= MEMORY_PIXELS else "timm"


def _check_options(options: TrainOptions) -> None:
    if not options.final_learning_rate <= options.learning_rate:
        raise UsageError(
            f"final_learning_rate is {options.final_learning_rate!r}, expected 0 to {options.learning_rate!r}, "
            "the learning rate"
        )
    if options.warmup_epochs is not None and not options.warmup_epochs < options.epochs:
        raise UsageError(
            f"warmup_epochs is {options.warmup_epochs!r}, expected at least 0 and less than the {options.epochs} epochs"
        )
    if options.batch % options.accumulate:
        raise UsageError(
            f"batch {options.batch} does not divide by accumulate {options.accumulate}: change one of them"
        )


def _check_augmentation(augmentation: Augmentation) -> None:
    require_one_of("augmentation.kind", augmentation.kind, ("auto", "none", "affine", "timm"))
    if augmentation.policy and not _POLICY.fullmatch(augmentation.policy):
        raise UsageError(
            f"augmentation.policy is {augmentation.policy!r}, expected timm's spelling, such as rand-m9-mstd0.5-inc1, "
            "augmix-m5-w4, original or v0, or null for none"
        )
    low, high = augmentation.crop_area
    if not 0 < low <= high <= 1:
        raise UsageError(f"augmentation.crop_area is {augmentation.crop_area!r}, expected 0 < smallest ≤ largest ≤ 1")


def _json(options: Any) -> dict[str, Any]:
    """Return a dataclass as JSON values, tuples as lists."""
    values: dict[str, Any] = {}
    for entry in fields(options):
        value = getattr(options, entry.name)
        if is_dataclass(value) and not isinstance(value, type):
            value = _json(value)
        values[entry.name] = list(value) if isinstance(value, tuple) else value
    return values


DEFAULTS = TrainOptions()
