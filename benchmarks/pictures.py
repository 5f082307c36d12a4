"""Draw the pictures of docs/quantization-explained.md from a small model that is trained, quantized and observed here.

    python benchmarks/pictures.py [FOLDER]     # some minutes; less where FOLDER has model and search already
    python benchmarks/pictures.py --drawn      # draws what was measured last once more

The model is a ViT of twelve blocks on the digits. Its twin has outliers as checkpoints of large models have them: four
channels of each norm are 30 to 1000 times as large, and the rows that read them as much smaller, which changes no
output. What was measured is kept in ``docs/pictures/measured.json``, and a test holds the drawings against it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from vitdeploy.report.axes import Axis, linear_ticks

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "quantization-explained.md"
PLACE = ROOT / "docs" / "pictures"
MEASURED = PLACE / "measured.json"
WIDTH, HEIGHT = 460, 280
LEFT, TOP, RIGHT, BOTTOM = 46, 34, 448, 232
BLOCKS, CALIBRATED = 12, 200
CELLS = 60
ROUNDED_ONLY: dict[str, Any] = {"method": "minmax", "equalization": "off", "steps": (), "rounding": "nearest"}
STYLE = """
svg{--paper:#fff;--ink:#1f2328;--soft:#59636e;--grid:#d8dee4;--a:#0072b2;--b:#b84e00;--c:#6b7480}
@media(prefers-color-scheme:dark){svg{--paper:#1a1c20;--ink:#e6e9ee;--soft:#a3acb8;--grid:#3a3f47;--a:#56b4e9;--b:#ff9e4f;--c:#98a2b0}}
text{font:13px system-ui,-apple-system,"Segoe UI",sans-serif;fill:var(--ink)}.soft{fill:var(--soft)}
.paper{fill:var(--paper)}.grid{stroke:var(--grid)}.a{--here:var(--a)}.b{--here:var(--b)}.c{--here:var(--c)}
.line{fill:none;stroke:var(--here);stroke-width:2}.dash{stroke-dasharray:5 4}.dot,.bar,.name{fill:var(--here)}
"""


@dataclass(frozen=True)
class Scale(Axis):
    """An axis and the values that stand beside it."""

    marks: tuple[float, ...] = ()


def linear(low: float, high: float, start: float, end: float) -> Scale:
    return Scale(low, high, start, end, marks=tuple(linear_ticks(low, high, 5)))


def decades(low: float, high: float, start: float, end: float) -> Scale:
    first, last = math.ceil(math.log10(low)), math.ceil(math.log10(high))
    return Scale(low, 10.0**last, start, end, True, tuple(10.0**power for power in range(first, last + 1)))


def said(value: float) -> str:
    """Return a number of an axis."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e3 else f"{value:g}"


def picture(title: str, says: str, x: Scale, y: Scale, names: tuple[str, str], marks: Iterator[str]) -> str:
    """Return an SVG: both axes, and the marks; ``says`` is what a person hears who does not see it."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-labelledby="t d"><title id="t">{escape(title)}</title><desc id="d">{escape(says)}</desc>',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        f'<text class="soft" x="{LEFT - 34}" y="20">{escape(names[1])}</text>',
        f'<text class="soft" x="{RIGHT}" y="{HEIGHT - 12}" text-anchor="end">{escape(names[0])}</text>',
    ]
    for value in y.marks:
        at = y.at(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at}H{RIGHT}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{said(value)}</text>')
    for value in x.marks:
        parts.append(
            f'<text class="soft" x="{x.at(value)}" y="{BOTTOM + 17}" text-anchor="middle">{said(value)}</text>'
        )
    return "\n".join([*parts, *marks, "</svg>"]) + "\n"


def label(kind: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="name {kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def curve(kind: str, points: Sequence[tuple[float, float]], *, dashed: bool = False) -> str:
    path = "L".join(f"{x} {y}" for x, y in points)
    return f'<path class="line {kind}{" dash" if dashed else ""}" d="M{path}"/>'


def draw_range(data: dict[str, Any]) -> str:
    """Draw how often each magnitude occurs in one activation, and how far two ways to choose a range reach."""
    counts, end = data["counts"], data["max"]
    x, y = linear(0, end, LEFT, RIGHT), decades(0.5, max(counts), BOTTOM, TOP)
    wide = (RIGHT - LEFT) / len(counts)

    def marks() -> Iterator[str]:
        for index, count in enumerate(counts):
            if count:
                top = y.at(count)
                box = f'x="{LEFT + index * wide:.1f}" y="{top}" width="{wide - 1:.1f}" height="{BOTTOM - top:.1f}"'
                yield f'<rect class="bar c" {box}/>'
        for kind, key, row in (("b", "minmax", 0), ("a", "chosen", 1)):
            at = x.at(data[key])
            step = data[key] / data["steps"]
            text = f"{'min-max' if key == 'minmax' else 'least error'}: step {step:.3g}"
            yield f'<path class="line {kind}" d="M{at} {TOP + 20 * row}V{BOTTOM}"/>'
            yield label(kind, at - 6, TOP + 14 + 20 * row, text, "end")

    says = (
        f"Magnitudes of {data['tensor']} up to {end:.3g}. Min-max represents all of it; the range of least error ends "
        f"at {data['chosen']:.3g} and clips {100 * data['clipped']:.2g} % of the values."
    )
    return picture("Magnitudes of one activation", says, x, y, ("magnitude", "how often"), marks())


def draw_channels(data: dict[str, Any]) -> str:
    """Draw the largest magnitude of each channel before and after channels were scaled."""
    before, after = data["before"], data["after"]
    x = Scale(0, len(before), LEFT, RIGHT, marks=tuple(linear_ticks(0, len(before), 5)))
    y = decades(min(*before, *after) / 2, max(*before, *after), BOTTOM, TOP)
    wide = (RIGHT - LEFT) / len(before)

    def marks() -> Iterator[str]:
        for kind, values, shift in (("b", before, 0.0), ("a", after, 0.5)):
            for index, value in enumerate(values):
                top = y.at(value)
                box = f'x="{LEFT + (index + shift) * wide:.1f}" y="{top}" width="{wide * 0.42:.1f}"'
                yield f'<rect class="bar {kind}" {box} height="{BOTTOM - top:.1f}"/>'
        yield label("b", LEFT + 150, 20, "as exported")
        yield label("a", LEFT + 262, 20, "scaled")

    says = (
        f"{data['tensor']}: the largest channel is {spread(before):.0f} times the median one before scaling and "
        f"{spread(after):.1f} times after it."
    )
    return picture("The largest value of each channel", says, x, y, ("channel", "largest value"), marks())


def spread(values: Sequence[float]) -> float:
    """Return how many times the median the largest is."""
    return max(values) / sorted(values)[len(values) // 2]


def draw_depth(data: dict[str, Any]) -> str:
    """Draw the SQNR of the residual stream by depth, of the model and its twin with outliers."""
    lines = data["lines"]
    values = [value for line in lines.values() for value in line]
    count = max(map(len, lines.values()))
    x = Scale(1, count, LEFT, RIGHT, marks=tuple(linear_ticks(1, count, 5)))
    y = linear(min(0.0, *values), max(values) * 1.12, BOTTOM, TOP)

    def marks() -> Iterator[str]:
        for kind, key, dashed in LINES:
            yield curve(kind, [(x.at(index + 1), y.at(value)) for index, value in enumerate(lines[key])], dashed=dashed)
        for kind, key, lift in (("c", "trained", -10), ("a", "outliers", 38), ("b", "outliers, min-max", -10)):
            yield label(kind, x.at(count // 2 + 1), y.at(lines[key][count // 2]) + lift, NAMES[key], "middle")

    says = ". ".join(
        f"{NAMES[key]}: {line[0]:.0f} dB at the start, {line[-1]:.0f} dB at the end" for key, line in lines.items()
    )
    return picture(
        "SQNR of the residual stream by depth", says, x, y, ("sum of the residual stream", "SQNR, dB"), marks()
    )


LINES = (
    ("c", "trained, min-max", True),
    ("c", "trained", False),
    ("b", "outliers, min-max", True),
    ("a", "outliers", False),
)
NAMES = {
    "trained": "as trained (dashed: min-max)",
    "trained, min-max": "as trained, min-max",
    "outliers, min-max": "with outliers, min-max",
    "outliers": "with outliers, as quantize does it",
}


def draw_front(data: dict[str, Any]) -> str:
    """Draw error over latency of what a search within a budget tried."""
    spots = data["candidates"]
    times, errors = [spot["ms"] for spot in spots], [spot["db"] for spot in spots]
    x = linear(min(times) * 0.75, max(*times, data["fp32_ms"]) * 1.03, LEFT, RIGHT)
    y = linear(min(errors) - 4, max(errors) + 6, BOTTOM, TOP)

    def marks() -> Iterator[str]:
        front = sorted((spot["ms"], spot["db"]) for spot in spots if spot["front"])
        at = x.at(data["fp32_ms"])
        yield f'<path class="line c dash" d="M{at} {TOP}V{BOTTOM}"/>'
        yield label("c", at - 6, BOTTOM - 8, "FP32, no error", "end")
        yield curve("a", [(x.at(ms), y.at(db)) for ms, db in front])
        for spot in spots:
            at, height = x.at(spot["ms"]), y.at(spot["db"])
            kind, said_of_it = "a" if spot["front"] else "c", f"<title>{escape(spot['says'])}</title>"
            yield f'<circle class="dot {kind}" cx="{at}" cy="{height}" r="4">{said_of_it}</circle>'
        for spot in spots:
            if spot["named"]:
                at, height = x.at(spot["ms"]), y.at(spot["db"])
                kind, lift = ("a", -8) if spot["front"] else ("c", 18)
                yield label(kind, at, height + lift, spot["name"], "end")

    says = ". ".join(spot["says"] for spot in spots)
    return picture("Error over latency", says, x, y, (f"p50, ms, batch {data['batch']}", "logits SQNR, dB"), marks())


DRAWN = {"range": draw_range, "channels": draw_channels, "depth": draw_depth, "front": draw_front}


def drawings(measured: dict[str, Any]) -> dict[str, str]:
    """Return the text of each picture by the name of its file."""
    return {f"{name}.svg": draw(measured[name]) for name, draw in DRAWN.items()}


def measure(folder: Path) -> dict[str, Any]:
    """Train where there is no model yet, quantize it and its twin, and return what the pictures show."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from outliers import norm_outliers

    import vitdeploy as vd
    from vitdeploy.artifacts import write_onnx

    checkpoint = folder / "deep.safetensors"
    if not checkpoint.exists():
        arguments = {"depth": BLOCKS, "width": 64, "heads": 4, "patch": 2}
        vd.train("digits", checkpoint, arguments=arguments, options=vd.TrainOptions(epochs=60))
    trained = vd.export(checkpoint, folder / "deep.onnx")
    twin = write_onnx(folder / "twin.onnx", norm_outliers(trained.load()), trained.manifest, trained.golden)
    made = {
        f"{name}{suffix}": quantized(graph, folder / f"{name}{suffix}.onnx", **options)
        for name, graph in (("trained", trained), ("outliers", twin))
        for suffix, options in ((", min-max", ROUNDED_ONLY), ("", {}))
    }
    seen = observed(trained, trained)
    tensor = max(seen, key=lambda name: seen[name].amax / seen[name].clip("mse"))
    return {
        "top1": {name: top1(graph) for name, graph in {"FP32": trained, **made}.items()},
        "sqnr_db": {name: graph.manifest.checks[0].value for name, graph in made.items()},
        "range": magnitudes(tensor, seen[tensor]),
        "channels": channels(observed(twin, twin), observed(made["outliers"], twin)),
        "depth": {
            "lines": {name: [one.sqnr_db for one in graph.manifest.error_profile.depth] for name, graph in made.items()}
        },
        "front": front(trained, folder / "front.onnx"),
    }


def quantized(model: Any, path: Path, **options: Any) -> Any:
    """Return INT8 for ONNX Runtime, calibrated on training digits and judged on the test digits."""
    import vitdeploy as vd

    chosen = vd.QuantizeOptions(threads=1, samples=CALIBRATED, validation="digits:test", **options)
    return vd.quantize(model, path, precision="int8", target="onnxruntime", calibration="digits:train", options=chosen)


def top1(model: Any) -> float:
    """Return the share of test digits that a graph names rightly."""
    from vitdeploy.backends.onnxruntime import open_graph
    from vitdeploy.datasets import load_pixels, open_dataset
    from vitdeploy.preprocess import normalize

    data, spec = open_dataset("digits:test"), model.manifest.preprocess
    with open_graph(model.load()) as session:
        (logits,) = session.run({name: normalize(load_pixels(data, spec), spec) for name in session.inputs}).values()
    return float((logits.argmax(axis=1) == data.labels).mean())


def observed(model: Any, fp32: Any) -> dict[str, Any]:
    """Return an observer for the input of each linear of the FP32 graph, in a graph that has tensors of these names."""
    from vitdeploy.backends.onnxruntime import open_graph
    from vitdeploy.datasets import batches, open_dataset
    from vitdeploy.quantization.collector import Collector
    from vitdeploy.quantization.prepared import Prepared

    names = {group.activation.name: -1 for group in Prepared.of(fp32.load()).linears if not group.obstacle}
    with Collector(model.load(), names, open_graph) as collector:
        images = open_dataset("digits:train", samples=CALIBRATED)
        return collector.observe(batches(images, model.manifest.preprocess, 32))


def magnitudes(tensor: str, observer: Any) -> dict[str, Any]:
    """Return how often each magnitude occurred, and the ends of two ranges of 127 steps."""
    histogram = observer.histogram
    end, chosen = observer.amax, observer.clip("mse")
    places = [
        min(int((index + 0.5) * histogram.width / end * CELLS), CELLS - 1) for index in range(len(histogram.counts))
    ]
    counts = [0] * CELLS
    for place, count in zip(places, histogram.counts.tolist(), strict=True):
        counts[place] += count
    beyond = sum(histogram.counts[math.ceil(chosen / histogram.width) :].tolist())
    clipped = beyond / int(histogram.counts.sum())
    return {
        "tensor": tensor,
        "counts": counts,
        "max": end,
        "minmax": end,
        "chosen": chosen,
        "clipped": clipped,
        "steps": 127,
    }


def channels(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the largest magnitude of each channel of the first norm's output, before and after scaling."""
    tensor = next(name for name in before if "norm1" in name)
    return {
        "tensor": tensor,
        "before": [round(float(value), 4) for value in before[tensor].channel_amax],
        "after": [round(float(value), 4) for value in after[tensor].channel_amax],
    }


def front(model: Any, path: Path) -> dict[str, Any]:
    """Return what a search within a point of top-1 tried, timed on this CPU."""
    import vitdeploy as vd

    options = vd.QuantizeOptions(
        threads=1, samples=CALIBRATED, validation="digits:test", max_drop=1.0, time_on="onnxruntime", time_batch=64
    )
    place = path.with_suffix(".budget") / "front.json"
    if not place.exists():
        with contextlib.suppress(vd.BudgetError):  # too few images for this budget: the front is there all the same
            vd.quantize(
                model, path, precision="int8", target="onnxruntime", calibration="digits:train", options=options
            )
    found = vd.read_front(place)
    fp32 = next(one for one in found.candidates if one.precision == "fp32")
    timed = [one for one in found.candidates if one.speedup and one.logits_sqnr_db is not None]
    named = {"int8", "fp16", found.chosen, max(timed, key=lambda one: one.on_front and one.logits_sqnr_db).name}
    return {
        "batch": found.batch,
        "fp32_ms": fp32.p50_ms,
        "images": found.images,
        "verdict": list(found.verdict),
        "candidates": [
            {
                "name": one.name,
                "ms": round(fp32.p50_ms / one.speedup, 3),
                "db": round(one.logits_sqnr_db, 2),
                "front": one.on_front,
                "named": one.name in named,
                "says": f"{one.name}: {one.speedup:.2f} times the speed of FP32, {one.logits_sqnr_db:.1f} dB, top-1 "
                f"{one.delta_top1_pp:+.2f} points",
            }
            for one in timed
        ],
    }


def passages(measured: dict[str, Any]) -> dict[str, str]:
    """Return what stands in the page at each mark: a picture with what it shows, and the table."""
    ranged, scaled, found = measured["range"], measured["channels"], measured["front"]
    ends = {name: line[-1] for name, line in measured["depth"]["lines"].items()}
    noise = {name: f"{value:.1f} dB".replace("-", "−") for name, value in measured["sqnr_db"].items()}
    rows = [
        f"| {TITLES[name]} | {100 * share:.2f} % | {noise.get(name, '–')} |" for name, share in measured["top1"].items()
    ]
    return {
        "range": shown(
            "range",
            f"`{ranged['tensor']}` over {CALIBRATED} digits. The range of least error (blue) ends at "
            f"{ranged['chosen']:.2f}, that of min-max (orange) at {ranged['minmax']:.2f}: it clips "
            f"{100 * ranged['clipped']:.2g} % of the values, and its step is "
            f"{ranged['minmax'] / ranged['chosen']:.2f} times as fine.",
        ),
        "channels": shown(
            "channels",
            f"`{scaled['tensor']}` of the model with outliers. The largest channel is {spread(scaled['before']):.0f} "
            f"times the median one as exported (orange), and {spread(scaled['after']):.1f} times scaled (blue).",
        ),
        "depth": shown(
            "depth",
            f"With outliers and min-max alone the stream ends at {ends['outliers, min-max']:.1f} dB; as `quantize` "
            f"does it, at {ends['outliers']:.1f} dB, beside {ends['trained']:.1f} dB for the model without outliers.",
        ),
        "front": shown(
            "front",
            f"{len(found['candidates'])} mixes under ONNX Runtime on one thread of a CPU that others use too, "
            f"{found['images']} test digits; on the line are those that none beats in both. "
            f"{found['verdict'][0][0].upper()}{found['verdict'][0][1:]}.",
        ),
        "table": "\n".join(["| on the test digits | top-1 | SQNR of the logits |", "| --- | --- | --- |", *rows]),
    }


def shown(name: str, text: str) -> str:
    return f"![{ALT[name]}](pictures/{name}.svg)\n\n{text}"


ALT = {
    "range": "How often each magnitude of an activation occurs, and the ends of two ranges",
    "channels": "The largest value of each channel, as exported and scaled",
    "depth": "SQNR of the residual stream by depth, of four INT8 graphs",
    "front": "SQNR of the logits over latency, for each mix of precisions that was tried",
}
TITLES = {
    "FP32": "FP32",
    "trained, min-max": "INT8 as trained, min-max alone",
    "trained": "INT8 as trained, as `quantize` does it",
    "outliers, min-max": "INT8 with outliers, min-max alone",
    "outliers": "INT8 with outliers, as `quantize` does it",
}


def put(page: str, measured: dict[str, Any]) -> str:
    """Return the page with what was measured in its places."""
    for name, text in passages(measured).items():
        mark = re.compile(rf"<!-- {name} -->\n.*?<!-- end -->", re.DOTALL)
        page = mark.sub(lambda found, name=name, text=text: f"<!-- {name} -->\n\n{text}\n\n<!-- end -->", page)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", help="where the model is, or is written (default: a temporary one)"
    )
    parser.add_argument("--drawn", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    PLACE.mkdir(exist_ok=True)
    if not arguments.drawn:
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.folder or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            MEASURED.write_text(json.dumps(measure(folder), indent=1) + "\n", "utf8")
    measured = json.loads(MEASURED.read_text("utf8"))
    for name, text in drawings(measured).items():
        (PLACE / name).write_text(text, "utf8")
    PAGE.write_text(put(PAGE.read_text("utf8"), measured), "utf8")


if __name__ == "__main__":
    main()
