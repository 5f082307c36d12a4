"""What the catalogue says of one variant; plain data, so that listing needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vitdeploy.records import Preprocess


@dataclass(frozen=True)
class Variant:
    """A named architecture with published figures.

    ``arguments`` go to the family's constructor. ``parameters`` counts trainable and fixed parameters in the state dict
    that count as parameters in the source, ``gmacs`` are 10⁹ multiply-accumulates of convolutions, linears and
    attention products at batch 1 and ``preprocess.size``. ``top1`` is the published ImageNet-1k accuracy as a fraction,
    with ``source`` saying by whom; ``checkpoints`` names the known weight files, ``aliases`` other names of the model.
    """

    name: str
    family: str
    arguments: dict[str, Any]
    preprocess: Preprocess
    parameters: int
    gmacs: float
    top1: float | None = None
    source: str = ""
    checkpoints: tuple[str, ...] = field(default=())
    aliases: tuple[str, ...] = field(default=())
