"""``vitdeploy inspect``: what a file is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vitdeploy.cli.flags import in_flags
from vitdeploy.cli.options import Json
from vitdeploy.cli.output import print_line

if TYPE_CHECKING:
    from vitdeploy.records import Manifest, OperatorCensus
    from vitdeploy.stages.inspect import GraphInfo, Inspection, WeightsInfo


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="An artifact, a bundle, a report, a run, a calibration set, any ONNX file or weights."
        ),
    ],
    runtime: Annotated[
        Literal["onnxruntime", "openvino"] | None,
        typer.Option("--runtime", help="Count which 8-bit products of a graph this runtime computes in integers."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a file or folder is: model, preprocessing, precision, graph, checks, where it comes from."""
    from vitdeploy import inspect as look
    from vitdeploy.cli.output import print_json

    found = look(file, runtime=runtime)
    if as_json:
        print_json(found)
    else:
        for name, text in describe(found):
            print_line(f"{name + ':' if name else '':15}{text}")


def describe(found: Inspection) -> list[tuple[str, str]]:
    """Return name and text of each line."""
    from vitdeploy.text import size_text

    lines = [("file", found.path), ("kind", f"{found.kind}, {size_text(found.size_bytes)}")]
    if found.manifest is not None:
        lines += _manifest_lines(found.manifest)
    lines += [(name, in_flags(text, calls_only=True)) for name, text in found.facts]
    if found.graph is not None:
        lines += _graph_lines(found.graph)
    if found.census is not None:
        lines += _census_lines(found.census)
    if found.weights is not None:
        lines += _weights_lines(found.weights)
    if found.golden_samples:
        is_exported = found.manifest is not None and found.manifest.model.family != "onnx"
        whose = "PyTorch's logits" if is_exported else "the outputs of the graph as it was adopted"
        lines.append(("golden", f"{found.golden_samples} samples with {whose} and the graph's own"))
    if found.payload_sha256 is not None:
        lines.append(("digest", found.payload_sha256))
    if found.remedy:
        lines.append(("not ours", in_flags(found.remedy)))
    return lines


def _manifest_lines(manifest: Manifest) -> list[tuple[str, str]]:
    from vitdeploy.cli.output import check_words, one_of_each

    model = manifest.model
    arguments = ", ".join(f"{name}={value}" for name, value in model.arguments.items())
    family = "" if model.family == model.name else f", family {model.family}"
    lines = [("model", f"{model.name}{family} ({arguments})")]
    if model.classes:
        shown = ", ".join(model.classes[:10])
        more = f" … {len(model.classes)} in all" if len(model.classes) > 10 else ""
        lines.append(("classes", shown + more))
    if model.activation != "none":
        lines.append(("outputs", f"probabilities: a {model.activation} is in the graph"))
    if (spec := manifest.preprocess) is not None:
        lines.append(("input", spec.words))
    target = f" for {manifest.target}" if manifest.target is not None else ""
    lines.append(("precision", f"{manifest.precision}{target}"))
    if manifest.plan is not None:
        quantized = sum(entry.precision not in ("fp32", "fp16", "bf16") for entry in manifest.plan.entries)
        groups = f"{quantized} of {len(manifest.plan.entries)} groups quantized"
        lines.append(("plan", f"profile {manifest.plan.profile}, {groups}, remainder {manifest.plan.remainder}"))
    if (calibration := manifest.calibration) is not None:
        used = f"{calibration.samples} images of {calibration.data}, {calibration.held_out} kept out"
        lines.append(("calibration", f"{used}, ranges by {calibration.method}"))
    if (build := manifest.build) is not None:
        gpus = ", ".join(build.compute_capabilities) or build.gpu or "the GPU that it was built on"
        lines.append(("engine", f"{build.backend} {build.version}, batch {build.batch}, for {gpus}"))
        lines += [("", in_flags(note)) for note in (*build.notes, *filter(None, [build.reason]))]
    lines += [("check", f"{check.name}: {check_words(check)}") for check in one_of_each(manifest.checks)]
    lines += [("metric", f"{name} {value:.6g}") for name, value in manifest.metrics.items()]
    lines += [("made from", f"{role} {digest[:12]}") for role, digest in manifest.parents.items()]
    lines.append(("made by", manifest.producer or "unknown"))
    return lines


def _graph_lines(graph: GraphInfo) -> list[tuple[str, str]]:
    operators = ", ".join(f"{name} {count}" for name, count in graph.operators.items())
    lines = [
        ("graph", f"{graph.nodes} nodes, opset {graph.opset}, ir_version {graph.ir_version}"),
        ("operators", operators),
        ("computes in", ", ".join(f"{name} {count}" for name, count in graph.precisions.items())),
    ]
    for name, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        lines += [(name, f"{one.name} {one.dtype} [{', '.join(map(str, one.shape))}]") for one in tensors]
    lines += [("finding", text) for text in graph.findings]
    return lines


def _census_lines(census: OperatorCensus) -> list[tuple[str, str]]:
    from vitdeploy.records.report import backend_title

    title = f"{backend_title(census.runtime)} {census.version}"
    lines = [
        ("runs in", f"{title}: {census.integer} of {census.planned} 8-bit products in integers"),
        ("kernels", ", ".join(f"{name} {count}" for name, count in census.kernels.items())),
        ("moves", f"{census.conversions} conversions of type, {census.reorders} of memory layout"),
    ]
    return lines + [("in floats", f"{one.node} as {one.kernel or 'unknown'}: {one.reason}") for one in census.floating]


def _weights_lines(weights: WeightsInfo) -> list[tuple[str, str]]:
    kinds = ", ".join(f"{name} {count}" for name, count in weights.dtypes.items())
    lines = [("weights", f"{weights.tensors} tensors, {weights.parameters / 1e6:.3f} M values ({kinds})")]
    if weights.dialect is not None or weights.reason:
        lines.append(("dialect", in_flags(f"{weights.dialect or 'unknown'}: {weights.reason}")))
    return lines
