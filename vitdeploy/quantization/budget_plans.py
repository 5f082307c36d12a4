"""What a search for a budget chooses among: FP32, FP16, and plans with some groups in 8 bits, the others not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vitdeploy.quantization.overflow import Overflow, extended
from vitdeploy.quantization.placement import INTEGER_PRECISIONS
from vitdeploy.quantization.realize import Realized, Realizer, finish
from vitdeploy.quantization.sensitivity import in_high_precision
from vitdeploy.records import NodePrecision, PrecisionPlan, sha256_of

FP32, FP16 = "fp32", "fp16"


@dataclass(frozen=True)
class Option:
    """A plan that may be chosen; ``high`` are groups that are quantized in full and not here."""

    name: str
    precision: NodePrecision
    plan: PrecisionPlan
    high: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """A digest of the plan."""
        return sha256_of(self.plan.model_dump(mode="json"))


@dataclass(frozen=True)
class BudgetPlans:
    """What is chosen among: the graph itself, all of it in FP16, and ``full`` with a treatment for every group.

    ``overflows`` keep their nodes in FP32 wherever the remainder is FP16.
    """

    realizer: Realizer
    full: PrecisionPlan
    half: PrecisionPlan
    precision: NodePrecision
    overflows: tuple[Overflow, ...] = ()

    @cached_property
    def fp32(self) -> Option:
        """The graph as it is."""
        groups = in_high_precision(self.full, (entry.group for entry in self.full.entries))
        entries = tuple(entry.model_copy(update={"precision": "fp32", "treatment": None}) for entry in groups.entries)
        return Option(FP32, "fp32", groups.model_copy(update={"remainder": "fp32", "rotated": (), "entries": entries}))

    @cached_property
    def fp16(self) -> Option:
        """All of it in FP16."""
        return Option(FP16, "fp16", extended(self.half, self.overflows))

    def without(self, high: Sequence[str], name: str = "") -> Option:
        """Return the full plan with these groups in high precision."""
        plan = in_high_precision(self.full, high)
        if plan.remainder == "fp16":
            plan = extended(plan, self.overflows)
        usual = f"{self.precision}, {len(high)} in {plan.remainder}" if high else self.precision
        return Option(name or usual, self.precision, plan, tuple(high))

    def graph(self, option: Option) -> Realized:
        """Return the graph of a plan, and the plan as it was carried out."""
        return finish(self.realizer.realize(option.plan), self.realizer.prepared.graph)

    @property
    def quantized(self) -> tuple[str, ...]:
        """Groups with integers in the full plan."""
        return tuple(entry.group for entry in self.full.entries if entry.precision in INTEGER_PRECISIONS)


def levels(count: int) -> list[int]:
    """Return how many of ``count`` groups go back to high precision in the plans that are tried.

    0, 1, 2, 3, 4, 6, 8, 12, 16 … and fewer than all: fine where few suffice, which is the usual case.
    """
    found, step = {0}, 1
    while step < count:
        found |= {step, step + step // 2}
        step *= 2
    return sorted(size for size in found if size < count)
