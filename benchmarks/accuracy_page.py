"""docs/accuracy.md from what ``benchmarks/quantization.py`` measured; needs only the standard library.

python benchmarks/accuracy_page.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from support_tables import RESULTS, ROOT, Results, bullet, prose, read_results, table

QUANTIZATION_RESULTS = RESULTS / "quantization.json"
PAGE = ROOT / "docs" / "accuracy.md"
OURS = "vitdeploy"
TITLES = {
    OURS: "vitdeploy",
    "onnxruntime": "onnxruntime, defaults",
    "onnxruntime-minmax": "onnxruntime, per channel, min-max",
    "onnxruntime-entropy": "onnxruntime, per channel, entropy",
    "onnxruntime-percentile": "onnxruntime, per channel, percentile",
    "onnxruntime-dynamic": "onnxruntime, dynamic",
    "optimum-dynamic": "optimum, dynamic",
    "nncf": "NNCF, transformer mode",
    "modelopt": "NVIDIA ModelOpt",
    "quark": "AMD Quark, A8W8",
}
INTRODUCTION = """\
INT8 of vitdeploy beside other quantizers: the same FP32 graph, the same calibration images, the same runtime. Rendered
from `benchmarks/results/quantization.json`, which `python benchmarks/quantization.py` writes; the docstring there says
what each number is. **(a)** channels of LayerNorm grow 30 to 1000 times and their readers shrink, **(b)** the same
behind GELU, **(c)** trained with two channels of the residual stream at 300 and -1400. *emoji* are models of
`benchmarks/emoji.py`, a task of nine classes that they do not saturate."""


def render_accuracy() -> None:
    """Write the page from the results that are there."""
    results = read_results(QUANTIZATION_RESULTS)
    if results:
        PAGE.write_text(page(results), "utf8")


def page(results: Results) -> str:
    """Return the page."""
    models: Mapping[str, Any] = dict(sorted(results["models"].items()))
    parts = ["# Accuracy of INT8, beside others", prose(INTRODUCTION), "## Signal to noise of the logits, in dB"]
    parts += [comparison(models, lambda row, _model: f"{row['sqnr_db']:.1f}", lambda row: row["sqnr_db"])]
    parts += ["## Top-1, in percentage points against FP32"]
    parts += [
        comparison(
            models, lambda row, model: f"{100 * (row['top1'] - model['fp32_top1']):+.1f}", lambda row: row["top1"]
        )
    ]
    parts += [
        prose(
            f"The best of a column is bold. FP32 has {fp32_line(models)}. One image more or less is 0.2 points on the "
            "450 digits, so such a lead is none."
        )
    ]
    parts += ["## Latency in ONNX Runtime, one image, one thread", speeds(models)]
    parts += [
        prose(
            "Of medians in turns: above 1, vitdeploy's graph is faster than the tool's. No figure where the 95 % "
            f"interval holds 1, which is no difference that this run shows. {faster_than_ours(models)}"
        )
    ]
    parts += ["## Cost of the whole process", costs(models), "## Left out", left_out(models), "## Conditions"]
    return "\n\n".join([*parts, conditions(models)]) + "\n"


def comparison(models: Mapping[str, Any], cell: Callable[[Any, Any], str], rank: Callable[[Any], float]) -> str:
    """Return a table of tools by models, the best of each model bold."""
    best = {name: max(rank(row) for row in valid(model).values()) for name, model in models.items()}
    rows = []
    for title in titles(models):
        cells = []
        for name, model in models.items():
            row = valid(model).get(title)
            text = "failed" if row is None else cell(row, model)
            cells.append(f"**{text}**" if row is not None and rank(row) == best[name] else text)
        rows.append([TITLES[title], *cells])
    return table(["tool", *(short(name) for name in models)], rows)


def speeds(models: Mapping[str, Any]) -> str:
    def cell(row: Any) -> str:
        if row is None:
            return "failed"
        low, high = row["interval"]
        return f"{row['ours_faster_by']:.2f}" if low > 1 or high < 1 else "–"

    rows = [
        [TITLES[title], *(cell(valid(model).get(title)) for model in models.values())]
        for title in titles(models)
        if title != OURS
    ]
    return table(["tool", *(short(name) for name in models)], rows)


def costs(models: Mapping[str, Any]) -> str:
    """Return the medians over all models: seconds and peak memory."""
    rows = []
    for title in titles(models):
        found = [valid(model)[title] for model in models.values() if title in valid(model)]
        if found:
            middle = [sorted(row[key] for row in found)[len(found) // 2] for key in ("seconds", "peak_mb")]
            rows.append([TITLES[title], f"{middle[0]:.1f} s", f"{middle[1]:.0f} MB"])
    return table(["tool", "time", "peak memory"], rows)


def left_out(models: Mapping[str, Any]) -> str:
    reasons: dict[str, list[str]] = {}
    for name, model in models.items():
        for title, row in model["candidates"].items():
            if "error" in row:
                reasons.setdefault(f"{TITLES[title]}: {row['error']}", []).append(short(name))
    lines = [bullet(f"{reason} ({', '.join(names)})") for reason, names in reasons.items()]
    return "\n".join(lines) or "Nothing: every tool took every model."


def conditions(models: Mapping[str, Any]) -> str:
    last = max(models.values(), key=lambda model: str(model["measured"]))
    load = max(model["other_load_cores"] or 0 for model in models.values())
    sizes = {name.partition(".")[0]: model["test_images"] for name, model in models.items()}
    return prose(
        f"Measured until {last['measured']}; {last['calibration_images']} calibration images, test images: "
        f"{', '.join(f'{count} of {task}' for task, count in sizes.items())}. "
        f"While latency was measured, others kept at most {load:.1f} cores busy. The tools: "
        + ", ".join(f"{name} {version}" for name, version in sorted(last["tools"].items()))
        + "."
    )


def fp32_line(models: Mapping[str, Any]) -> str:
    """Return the top-1 before quantization, of each family once: planted outliers do not change the function."""
    shown = {short(name).replace(" (a)", "").replace(" (b)", ""): model["fp32_top1"] for name, model in models.items()}
    return ", ".join(f"{100 * top1:.1f} % ({name})" for name, top1 in shown.items())


def faster_than_ours(models: Mapping[str, Any]) -> str:
    """Return in words which tools' graphs are faster than ours, where the interval says so."""
    found: dict[str, list[str]] = {}
    for name, model in models.items():
        for title, row in valid(model).items():
            if title != OURS and row["interval"][1] < 1:
                found.setdefault(TITLES[title], []).append(short(name))
    if not found:
        return "No tool's graph is faster than ours."
    return "Faster than ours: " + "; ".join(f"{title} on {', '.join(names)}" for title, names in found.items()) + "."


def valid(model: Mapping[str, Any]) -> dict[str, Any]:
    return {title: row for title, row in model["candidates"].items() if "error" not in row}


def titles(models: Mapping[str, Any]) -> list[str]:
    return [title for title in TITLES if any(title in model["candidates"] for model in models.values())]


def short(name: str) -> str:
    task, family, *kind = name.split(".")
    return f"{'emoji ' if task == 'emoji' else ''}{family}{f' ({kind[0]})' if kind else ''}"


if __name__ == "__main__":
    render_accuracy()
