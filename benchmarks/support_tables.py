"""The pages that are rendered from measured results, and nothing else; needs only the standard library.

python benchmarks/support_tables.py    # renew docs/support-matrix.md and docs/graph-size.md from the committed JSON
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FAMILY_RESULTS, MATRIX_RESULTS, NODE_RESULTS = (RESULTS / f"{name}.json" for name in ("families", "matrix", "nodes"))
EXPORTER_RESULTS = RESULTS / "exporters.json"
SUPPORT_PAGE, SIZE_PAGE = ROOT / "docs" / "support-matrix.md", ROOT / "docs" / "graph-size.md"

FAMILIES = {
    "vit": "ViT",
    "deit": "DeiT, distilled",
    "hybrid": "hybrid R+ViT",
    "t2t": "T2T-ViT",
    "tnt": "TNT",
    "pvt": "PVT v1",
    "pvt_v2": "PVT v2",
    "swin": "Swin",
    "swin_v2": "Swin v2",
    "patchconvnet": "PatchConvNet",
}
TRAINED = tuple(name for name in FAMILIES if name != "hybrid")
"""Families with a small variant for the digits; a ResNet stem halves an image of 8×8 pixels five times."""

LEAST_TOP1, MOST_TRAIN_S, MOST_DELTA_PP = 0.95, 300.0, 1.0
MOST_EXPORTER_DB = 1.0
INT8_GRAPHS = {"model.int8.onnx": "TensorRT", "model.int8.onnxruntime.onnx": "ONNX Runtime"}
FORBIDDEN = ("Shape", "Expand", "Squeeze", "If", "Loop", "Resize", "Einsum", "ScatterND")
COUNTED_WITH = ("torch", "onnxscript", "onnx-ir", "timm", "transformers")
NEVER_EXECUTED = "**The engines were built, never executed**: no NVIDIA GPU was here."
PRECISIONS = ("fp32", "fp16", "int8")

Results = dict[str, Any]


def read_results(path: Path) -> Results:
    return json.loads(path.read_text("utf8")) if path.exists() else {}


def write_results(path: Path, results: Results) -> None:
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf8")


def misses_of_family(row: Mapping[str, Any]) -> list[str]:
    """Return in words where a family of the digits falls short of what is expected."""
    if "error" in row:
        return [row["error"]]
    misses = []
    if row["top1"] < LEAST_TOP1:
        misses.append(f"top-1 is {row['top1']:.4f}, expected {LEAST_TOP1:g}")
    if row["train_s"] > MOST_TRAIN_S:
        misses.append(f"training took {row['train_s']:.0f} s, expected at most {MOST_TRAIN_S:g} s")
    for name, target in INT8_GRAPHS.items():
        graph = row["rows"][name]
        delta = graph["delta_top1_pp"]
        if delta is None:
            misses.append(f"INT8 for {target} was not executed: {graph['reason']}")
        elif abs(delta) > MOST_DELTA_PP:
            misses.append(f"INT8 for {target} changes top-1 by {delta:+.2f} pp, expected {MOST_DELTA_PP:g} at most")
    for precision in PRECISIONS:
        engine = row["engines"].get(precision, {"status": "missing", "reason": "it was not built"})
        if engine["status"] not in ("ok", "built"):
            misses.append(f"no engine of {precision}: {engine['reason']}")
    return misses


def misses_of_stages(row: Mapping[str, Any]) -> list[str]:
    """Return in words which stage a family did not get through at full size."""
    misses = [f"{stage}: {row[stage]['error']}" for stage in ("export", "fp16", "int8") if "error" in row[stage]]
    return misses + [
        f"engine of {precision}: {engine['error']}" for precision, engine in row["engines"].items() if "error" in engine
    ]


def misses_of_exporters(row: Mapping[str, Any]) -> list[str]:
    """Return in words which exports of a model are not quantized as the native one."""
    native, misses = row["forms"]["native"], []
    for name, form in row["forms"].items():
        if "error" in form:
            misses.append(f"{name}: {form['error']}")
        elif form["groups"] != native["groups"]:
            misses.append(f"{name}: {form['groups']} groups in INT8, native {native['groups']}")
        elif abs(form["sqnr_db"] - native["sqnr_db"]) > MOST_EXPORTER_DB:
            misses.append(f"{name}: {form['sqnr_db']:.1f} dB, native {native['sqnr_db']:.1f} dB")
    return misses


def misses_of_nodes(row: Mapping[str, Any]) -> list[str]:
    """Return which operators a family's graph has and should not have, and other departures from a legal graph."""
    operators = row["after"]["operators"]
    return [f"{operators[name]} × {name}" for name in FORBIDDEN if operators.get(name)] + row["after"]["findings"]


def support_page(matrix: Results, families: Results, exporters: Results) -> str:
    """Return ``docs/support-matrix.md``."""
    return "\n\n".join([SUPPORT_HEAD, full_size(matrix), digits(families), other_exporters(exporters)]) + "\n"


SUPPORT_HEAD = """# Support matrix

Every family, every stage, with what was measured. This page is rendered from `matrix.json`, `families.json` and
`exporters.json` of `benchmarks/results`; `make matrix` and `make families` measure again and renew it, and a test holds
it against the JSON."""


def full_size(matrix: Results) -> str:
    """Return the section about catalogue variants at full size."""
    rows = matrix["rows"]
    if any(engine.get("executed") for row in rows for engine in row["engines"].values()):
        executed = "The engines ran their golden samples on the GPU named below."
    else:
        executed = (
            f"{NEVER_EXECUTED} That they give the right logits is shown for the graphs that they were built from, "
            "not for the engines."
        )
    misses = [f"* {FAMILIES[row['family']]}: {miss}" for row in rows for miss in misses_of_stages(row)]
    return "\n\n".join(
        [
            "## At full size",
            prose(
                """One catalogue variant per family, with weights redrawn so that every tensor matters (norm weights
                U(0.5, 1.5), biases N(0, 0.1), weights N(0, 1/fan-in), LayerScale U(0.25, 0.75)): what is proven
                is that the graph computes what the model computes. Random weights have no accuracy; how much
                noise INT8 adds to a trained model is in the table below this one."""
            ),
            "\n".join(
                bullet(text)
                for text in (
                    "**Δ batch N**: largest |Δlogit| of the exported graph against PyTorch in float32, as a share of "
                    "the logits' range.",
                    "**FP16, INT8**: logits SQNR of the quantized graph for TensorRT against the FP32 graph, both "
                    f"under ONNX Runtime on the CPU. {matrix['calibration']}",
                    "**Engine**: TensorRT-RTX, compute capability 8.9, batch 1 to 5; seconds of building, and size. "
                    f"{executed}",
                )
            ),
            table(
                [
                    *("family", "variant", "parameters", "nodes", "Δ batch 1", "Δ batch 2", "Δ batch 5"),
                    *("FP16 SQNR", "INT8 SQNR", "engine FP32", "engine FP16", "engine INT8"),
                ],
                [stage_row(row) for row in rows],
            ),
            "What fell short:\n\n" + "\n".join(misses) if misses else "No family fell short at any stage.",
            conditions_line(rows),
        ]
    )


def stage_row(row: Mapping[str, Any]) -> list[str]:
    export = row["export"]
    deltas = [sharp(export["delta"][str(batch)]) if "delta" in export else "failed" for batch in (1, 2, 5)]
    engines = [engine_cell(row["engines"].get(precision, {"error": "not tried"})) for precision in PRECISIONS]
    return [
        FAMILIES[row["family"]],
        f"`{row['model']}`",
        f"{row['parameters'] / 1e6:.1f} M",
        str(export.get("nodes", "–")),
        *deltas,
        *(decibels(row[stage]) for stage in ("fp16", "int8")),
        *engines,
    ]


def digits(families: Results) -> str:
    """Return the section about small variants that were trained."""
    rows = families["rows"]
    misses = [f"* {FAMILIES[row['family']]}: {miss}" for row in rows for miss in misses_of_family(row)]
    lacking = [FAMILIES[name] for name in TRAINED if name not in {row["family"] for row in rows}]
    misses += [f"* {name}: not measured" for name in lacking]
    good = [row for row in rows if "error" not in row]
    executed = any(engine["status"] == "ok" for row in good for engine in row["engines"].values())
    minutes = f"{MOST_TRAIN_S / 60:.0f}"
    images = " or ".join(str(count) for count in sorted({row["test_images"] for row in good}))
    return "\n\n".join(
        [
            "## Trained, on the digits",
            prose(
                f"""A small variant of each family (`vitdeploy/recipes/families/`), trained from nothing on the
                training split, and measured on the {images} images of the test split, which neither training nor
                calibration saw. Expected: top-1 of at least {LEAST_TOP1:.0%}, training within {minutes} minutes on
                2 cores, INT8 within {MOST_DELTA_PP:g} pp of PyTorch. Intervals are 95 %
                (Wilson's for top-1, Tango's for differences against PyTorch on the same images). The graphs for
                TensorRT, from which the engines were built, were executed by ONNX Runtime on the CPU to measure
                them. {"" if executed else NEVER_EXECUTED}"""
            ),
            table(
                ["family", "parameters", "epochs", "training", "top-1 (PyTorch, FP32)", "FP16 Δ", "FP16 SQNR"]
                + [f"INT8 {what}, {target}" for target in INT8_GRAPHS.values() for what in ("Δ", "SQNR")]
                + [f"engine {precision.upper()}" for precision in PRECISIONS],
                [digits_row(row) for row in good],
            ),
            "What fell short:\n\n" + "\n".join(misses) if misses else "All are as expected.",
            conditions_line(good),
        ]
    )


def other_exporters(results: Results) -> str:
    """Return the section about graphs of other packages and exporters."""
    rows = results["rows"]
    forms = list(rows[0]["forms"])
    misses = [f"* {row['model']}, {miss}" for row in rows for miss in misses_of_exporters(row)]
    return "\n\n".join(
        [
            "## Graphs of other exporters",
            prose(
                f"""Small models of other packages with redrawn weights, exported with PyTorch's two exporters, and what
                `onnxruntime.transformers` makes of them (optimised), each taken over by `vitdeploy export` and
                quantized to INT8 for ONNX Runtime by min-max. Native: the same weights through our own model. In each
                cell the groups of linears in INT8 and the logits SQNR against the FP32 graph; expected are the same
                groups, and an SQNR within {MOST_EXPORTER_DB:g} dB. (`python benchmarks/exporters.py`)"""
            ),
            table(
                ["model", *forms],
                [[row["model"], *(fidelity_cell(row["forms"][name]) for name in forms)] for row in rows],
            ),
            "What fell short:\n\n" + "\n".join(misses) if misses else "All are as expected.",
            conditions_line(rows),
        ]
    )


def fidelity_cell(form: Mapping[str, Any]) -> str:
    return "failed" if "error" in form else f"{form['groups']}, {form['sqnr_db']:.1f} dB"


def digits_row(row: Mapping[str, Any]) -> list[str]:
    low, high = row["top1_ci95"]
    cells = [
        FAMILIES[row["family"]],
        f"{row['parameters'] / 1e3:.0f} k",
        str(row["epochs"]),
        f"{row['train_s']:.0f} s",
        f"{row['top1']:.2%} ({low:.1%} to {high:.1%})",
        *delta_cells(row["rows"]["model.fp16.onnx"]),
    ]
    for name in INT8_GRAPHS:
        cells += delta_cells(row["rows"][name])
    return cells + [megabytes(row["engines"].get(precision, {})) for precision in PRECISIONS]


def delta_cells(graph: Mapping[str, Any]) -> list[str]:
    if graph["delta_top1_pp"] is None:
        return ["not executed", "–"]
    low, high = graph["delta_ci95_pp"]
    sqnr = "equal" if graph["logits_identical"] else f"{graph['logits_sqnr_db']:.1f} dB"
    return [f"{graph['delta_top1_pp']:+.2f} pp ({low:+.1f} to {high:+.1f})", sqnr]


def size_page(nodes: Results) -> str:
    """Return ``docs/graph-size.md``."""
    rows = [size_row(row) for row in nodes["rows"]]
    misses = [f"* {FAMILIES[row['family']]}: {miss}" for row in nodes["rows"] for miss in misses_of_nodes(row)]
    found = (
        "These departures were found:\n\n" + "\n".join(misses)
        if misses
        else prose(
            f"""No graph of ours has one of {", ".join(FORBIDDEN)}, nor anything else that `vitdeploy.graph.legality`
            objects to; the command that renews this page fails where that changes."""
        )
    )
    versions = ", ".join(f"{name} {version}" for name, version in nodes["versions"].items() if name in COUNTED_WITH)
    return (
        "\n\n".join(
            [
                "# Graph size",
                prose(
                    f"""How many nodes a model has, before and after. Before: the model of another package, exported
                    by `torch.onnx.export(dynamo=True, opset_version={nodes["opset"]})` with a dynamic batch and
                    its own optimizer. After: `vitdeploy export` of ours, which computes the same function
                    (`tests/conformance`). Rendered from `benchmarks/results/nodes.json`; `make matrix` counts
                    again. {versions}."""
                ),
                table(["family", "variant", "before", "nodes before", "nodes after", "share"], rows),
                found,
                block_section(nodes["vit_block"]),
            ]
        )
        + "\n"
    )


def size_row(row: Mapping[str, Any]) -> list[str]:
    before, after = row["before"], row["after"]["nodes"]
    head = [FAMILIES[row["family"]], f"`{row['model']}`", before["source"]]
    if "nodes" not in before:
        return [*head, before["reason"], str(after), "–"]
    return [*head, str(before["nodes"]), str(after), f"{after / before['nodes']:.0%}"]


def block_section(block: Mapping[str, Any]) -> str:
    """Return what one encoder block of ViT consists of."""
    names = sorted(set(block["before"]) | set(block["after"]), key=lambda name: (-block["after"].get(name, 0), name))
    rows = [[name, *(str(block[when].get(name, 0) or "–") for when in ("before", "after"))] for name in names]
    rows.append(["**all**", *(f"**{sum(block[when].values())}**" for when in ("before", "after"))])
    return "\n\n".join(
        [
            "## One block of ViT",
            prose(
                """Operators that one more encoder block adds (`vit_tiny_patch16_224` at depth 12, less that at depth
                11). A block needs two LayerNorm, four linears as MatMul and Add, the split into q, k and v, their
                Reshape and Transpose into heads, the scale, two products, Softmax, Gelu and two residual Add."""
            ),
            table(["operator", "before (timm)", "after"], rows),
        ]
    )


def conditions_line(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return in words where and with what the rows were measured, and how busy the machine was."""
    parts = []
    for condition in unique([row["conditions"] for row in rows]):
        machine, versions = condition["environment"], condition["versions"]
        names = ("torch", "onnxruntime", "onnx", "tensorrt-rtx", "vitdeploy")
        packages = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
        parts.append(
            f"Measured {condition['measured']} on {machine['cpu']}, {machine['cores']} cores, "
            f"{machine.get('gpu') or 'no GPU'}, Python {machine['python']}; {packages}."
        )
    busy = [row["conditions"]["other_load_cores"] for row in rows if row["conditions"].get("other_load_cores")]
    if busy:
        parts.append(
            f"Other processes kept {min(busy):.1f} to {max(busy):.1f} cores busy meanwhile, so seconds are longer than "
            f"they would be on an idle machine."
        )
    return prose(" ".join(parts))


def unique(conditions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return each set of conditions once; the load of the machine aside."""
    seen: dict[str, Mapping[str, Any]] = {}
    for condition in conditions:
        rest = {key: value for key, value in condition.items() if key != "other_load_cores"}
        seen.setdefault(json.dumps(rest, sort_keys=True), condition)
    return list(seen.values())


def prose(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def bullet(text: str) -> str:
    return textwrap.fill(f"* {text}", 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines)


def sharp(fraction: float) -> str:
    return "equal" if fraction == 0 else f"{fraction:.1e}"


def decibels(stage: Mapping[str, Any]) -> str:
    return f"{stage['sqnr_db']:.1f} dB" if "sqnr_db" in stage else "failed"


def engine_cell(engine: Mapping[str, Any]) -> str:
    if "error" in engine:
        return "no"
    how = "executed" if engine["executed"] else "built"
    return f"{how}, {engine['build_s']:.0f} s, {engine['size_bytes'] / 1e6:.1f} MB"


def megabytes(engine: Mapping[str, Any]) -> str:
    if engine.get("status") not in ("ok", "built"):
        return "no"
    return f"{engine['status'].replace('ok', 'executed')}, {engine['size_bytes'] / 1e6:.1f} MB"


def render_all() -> None:
    """Write both pages from the results that are there."""
    families, matrix, nodes = (read_results(path) for path in (FAMILY_RESULTS, MATRIX_RESULTS, NODE_RESULTS))
    exporters = read_results(EXPORTER_RESULTS)
    if families and matrix and exporters:
        SUPPORT_PAGE.write_text(support_page(matrix, families, exporters), "utf8")
    if nodes:
        SIZE_PAGE.write_text(size_page(nodes), "utf8")


if __name__ == "__main__":
    render_all()
