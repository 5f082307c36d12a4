"""``vitdeploy diff``: where two artifacts part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitdeploy.cli.options import DATA_HELP, Json, Seed, Threads
from vitdeploy.cli.output import line_width, print_line, print_wrapped

if TYPE_CHECKING:
    from vitdeploy.stages.diff import Diff, TensorDifference

_OPERATOR, _SQNR, _LARGEST, _VERDICT = 18, 7, 9, 8
_LEAST_NAME = 20
LOSSES = 3
SHOWN = 20
"""Tensors that are printed unless all are asked for."""


def diff(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="The reference, such as the FP32 graph.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="What is compared with it.")],
    data: Annotated[str, typer.Option("--data", metavar="DATA", help=DATA_HELP)],
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime",
            metavar="NAME[:PROVIDER]",
            help="What runs ONNX models; twice: for the first and for the second.",
            show_default="onnxruntime",
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Use this many images.")] = 16,
    seed: Seed = 0,
    limit: Annotated[
        float | None,
        typer.Option(
            "--limit", metavar="DB", help="A tensor with less SQNR differs.", show_default="by the coarser precision"
        ),
    ] = None,
    threads: Threads = 0,
    every: Annotated[
        bool, typer.Option("--all", help="Print every tensor, not only those that tell most; --json has them all too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare two artifacts tensor by tensor in graph order: how far they are apart, and where they part first."""
    from vitdeploy import diff as compare
    from vitdeploy.cli.output import make_progress, print_json
    from vitdeploy.cli.values import split_lists

    found = compare(
        first,
        second,
        data=data,
        runtimes=split_lists(runtime) or ("onnxruntime",),
        samples=samples,
        seed=seed,
        limit_db=limit,
        threads=threads,
        progress=make_progress(),
    )
    if as_json:
        print_json(found)
        return
    for line in summary_lines(found):
        print_wrapped(line)
    shown = found.tensors if every else worst_tensors(found)
    for line in table_lines(shown, line_width()):
        print_line(line)
    if len(shown) < len(found.tensors):
        print_wrapped(
            f"{len(shown)} of {len(found.tensors)} tensors, in graph order: where they part, where most is lost, the "
            "noisiest; --all prints all of them, --json all numbers"
        )


def worst_tensors(found: Diff) -> tuple[TensorDifference, ...]:
    """Return at most ``SHOWN`` tensors in graph order: the first that part, where most is lost, the noisiest."""
    first = [one for one in found.tensors if one.tensor in (found.parts_at, found.overflow)]
    differ = [one for one in found.tensors if one.verdict == "differs"]
    last = found.tensors[-1:]
    noisy = sorted((one for one in found.tensors if one.sqnr_db is not None), key=lambda one: one.sqnr_db or 0.0)
    ranked = [*first, *last, *differ[: SHOWN // 2], *found.losses, *noisy]
    kept = {one.tensor for one in list({one.tensor: one for one in ranked}.values())[:SHOWN]}
    return tuple(one for one in found.tensors if one.tensor in kept)


def table_lines(tensors: Sequence[TensorDifference], width: int) -> list[str]:
    """Return tensors, a line each of at most ``width`` columns; long names lose their beginning."""
    if not tensors:
        return []
    room = max(width - _OPERATOR - _SQNR - _LARGEST - _VERDICT - 4, _LEAST_NAME)
    room = min(room, max(len(one.tensor) for one in tensors))
    header = _line("tensor", "operator", "SQNR dB", "max |Δ|", "", room)
    return [
        "",
        header,
        *(
            _line(
                one.tensor,
                one.op_type,
                sqnr_text(one),
                f"{one.largest:.2g}",
                "" if one.verdict == "agrees" else one.verdict,
                room,
            )
            for one in tensors
        ),
    ]


def _line(name: str, operator: str, sqnr: str, largest: str, verdict: str, room: int) -> str:
    name = name if len(name) <= room else f"…{name[len(name) - room + 1 :]}"
    operator = operator if len(operator) <= _OPERATOR else f"{operator[: _OPERATOR - 1]}…"
    return f"{name:{room}} {operator:{_OPERATOR}} {sqnr:>{_SQNR}} {largest:>{_LARGEST}} {verdict}".rstrip()


def sqnr_text(one: TensorDifference) -> str:
    """Return the SQNR, or what there is in its place."""
    if one.non_finite:
        return "NaN"
    return "equal" if one.verdict == "equal" else "–" if one.sqnr_db is None else f"{one.sqnr_db:.1f}"


def summary_lines(found: Diff) -> list[str]:
    """Return in words where the two part and how their outputs compare."""
    lines = list(found.notes)
    if found.overflow is not None:
        one = found.tensor(found.overflow)
        lines.append(f"beyond FP16: {_place(one)}, holds up to {one.peak:.4g} in the first, FP16 ends at 65504")
    if found.tensors and found.parts_at not in (None, found.outputs.tensor):
        one = found.tensor(str(found.parts_at))
        bad = f"{one.non_finite} values are NaN or infinite" if one.non_finite else f"{sqnr_text(one)} dB"
        lines.append(f"they part at {_place(one)}: {bad}, limit {found.limit_db:g} dB")
    elif found.tensors:
        lines.append(f"no tensor is below {found.limit_db:g} dB")
    losses = [f"{one.tensor} {one.lost_db:.1f} dB" for one in found.losses[:LOSSES] if one.lost_db is not None]
    if losses:
        lines.append(f"most is lost in {', '.join(losses)}")
    if found.only_first or found.only_second:
        lines.append(
            f"without a counterpart: {found.only_first} tensors of the first, {found.only_second} of the second"
        )
    lines.append(_outputs(found))
    return lines


def _place(one: TensorDifference) -> str:
    return f"{one.tensor!r} (node {one.node!r}, {one.op_type})"


def _outputs(found: Diff) -> str:
    one, images = found.outputs, f"{found.images} images of {found.data!r}"
    if one.non_finite:
        return f"outputs: {one.non_finite} values are NaN or infinite, {images}"
    if one.verdict == "equal":
        return f"outputs: equal bit for bit, {images}"
    same = ""
    if found.same_first_class is not None:
        same = f", same first class on {100 * found.same_first_class:.4g} %"
    verdict = f", below the limit of {found.limit_db:g} dB" if one.verdict == "differs" else ""
    return f"outputs: {sqnr_text(one)} dB, max |Δ| {one.largest:.3g}{same}{verdict}, {images}"
