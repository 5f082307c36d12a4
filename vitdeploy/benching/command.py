"""The command that measures a report again: what a reader with the same files and data types."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from vitdeploy.benching.options import BenchOptions

Words = Callable[[Any], list[str]]


def _value(flag: str) -> Words:
    return lambda value: [flag, format(value, "g") if isinstance(value, float) else str(value)]


def _list(flag: str) -> Words:
    return lambda values: [flag, ",".join(map(str, values))]


def _switches(flag: str) -> Words:
    return lambda values: [flag, ",".join("on" if value else "off" for value in values)]


def _each(flag: str) -> Words:
    return lambda values: [word for value in values for word in (flag, value)]


def _set(flag: str) -> Words:
    return lambda _: [flag]


FLAGS: dict[str, Words] = {
    "batches": _list("--batch"),
    "threads": _value("--threads"),
    "thread_counts": _list("--threads"),
    "pinning": _switches("--pinning"),
    "spinning": _switches("--spinning"),
    "device": _value("--device"),
    "runtimes": _list("--runtime"),
    "rounds": _value("--rounds"),
    "iterations": _value("--iterations"),
    "samples": _value("--samples"),
    "seed": _value("--seed"),
    "label_map": _value("--label-map"),
    "labels_by_order": _set("--labels-by-order"),
    "tf32": _set("--tf32"),
    "cuda_graph": _set("--no-cuda-graph"),
    "cpu_fallback": _set("--cpu-fallback"),
    "pytorch": _each("--pytorch"),
    "image_to_label": _set("--no-image-to-label"),
    "self_check": _set("--self-check"),
    "sustained_s": _value("--sustained"),
    "per_layer": _set("--per-layer"),
    "streams": _list("--streams"),
    "scenarios": _list("--scenario"),
    "scenario_s": _value("--scenario-seconds"),
    "latency_bound_ms": _value("--latency-bound"),
    "energy_s": _set("--no-energy"),
    "processes": _set("--no-processes"),
    "thumbnails": _set("--no-thumbnails"),
}
"""Field of ``BenchOptions`` → its words on the command line, where it is not the default."""
NOT_MEASURED = ("timeout_s",)


def bench_command(artifacts: Sequence[str], data: str, baseline: str | None, options: BenchOptions) -> str:
    """Return the command for the shell, or the call in Python where options are set that have no flag."""
    changed = {
        field.name: getattr(options, field.name)
        for field in fields(options)
        if getattr(options, field.name) != field.default and field.name not in NOT_MEASURED
    }
    if any(name not in FLAGS for name in changed) or changed.get("pytorch") == () or changed.get("energy_s", 0.0):
        against = "" if baseline is None else f", baseline={baseline!r}"
        values = ", ".join(
            f"{name}={(str(value) if name == 'label_map' else value)!r}" for name, value in changed.items()
        )
        return f"vd.bench({list(artifacts)!r}, {data!r}{against}, options=vd.BenchOptions({values}))"
    if "thread_counts" in changed:
        changed.pop("threads", None)
    words = ["vitdeploy", "bench", *artifacts, "--data", data]
    words += [] if baseline is None else ["--baseline", baseline]
    return shlex.join([*words, *(word for name, value in changed.items() for word in FLAGS[name](value))])
