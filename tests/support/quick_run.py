"""The changes that make a run of the default recipe short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUICK: Mapping[str, Any] = {
    "train.arguments.patch": 2,
    "train.arguments.width": 32,
    "train.arguments.depth": 1,
    "train.arguments.heads": 2,
    "train.options.epochs": 2,
    "bench.options.rounds": 1,
    "bench.options.iterations": 2,
    "bench.options.samples": 50,
    "bench.options.processes": False,
}
"""Changes to the default recipe that make a run short; its accuracy means nothing."""
