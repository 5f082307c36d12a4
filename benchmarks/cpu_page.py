"""``docs/cpu.md`` from the results of ``benchmarks/cpu.py``; needs only the standard library."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from support_tables import RESULTS, ROOT, prose, read_results

__all__ = ["CPU_PAGE", "CPU_RESULTS", "WITHOUT_VNNI", "cpu_page", "read_results"]

CPU_RESULTS, CPU_PAGE = RESULTS / "cpu.json", ROOT / "docs" / "cpu.md"
NNCF_INT8, ORT_STATIC = "OpenVINO, NNCF INT8", "ONNX Runtime, its own static INT8"
WITHOUT_VNNI = ", a processor without VNNI"
"""The end of the names of what was measured where 8-bit products take several instructions."""

HEAD = "# On a CPU, beside others\n\n" + "\n\n".join(
    prose(paragraph)
    for paragraph in (
        """Rendered from `benchmarks/results/cpu.json`; `python benchmarks/cpu.py` measures again and renews it, and a
        test holds it against the JSON. Every candidate ran in a process of its own, in turns with the others. Weights
        are redrawn and the same for all, SQNR is of the outputs against our FP32 graph on images that nothing was
        calibrated on. *Ours* is how many times as fast our INT8 is in the same runtime (in OpenVINO for PyTorch; the
        row *by default* where there is one, else in ONNX Runtime the lowered graph, where there is one), with its 95 %
        interval: where that holds 1, nobody is called faster. *Of GEMM* is the share of what the fastest large product
        of matrices reached in the same turns, in the arithmetic of most of the candidate's products; attention and all
        else count as lost time.""",
        """Our graph for OpenVINO is of profile `mha` here, whatever it keeps; the row *of profile linear* has attention
        in FP32. By itself `quantize` takes `mha` where the logits keep 35 dB or lose at most 1 dB
        ([quantization](quantization.md#what-becomes-8-bits)), after a search of ranges that these rows are made
        without (`--effort fast`): the next table says what it takes, and the SQNR of its own check, on images that
        calibration has not seen (`python benchmarks/cpu.py --default`). Where that is `linear`, `--profile mha` gives
        the speed of the rows below, at their SQNR. Rows *of profile full* have convolutions in 8 bits too, where a
        model has any behind its first layer; rows *by default* are what `quantize --cpu auto` then makes with nothing
        else chosen, which times on the machine what 8 bits gain. NNCF's default rounds residual sums too, its mode for
        transformers does not.""",
        """Tables whose heading does not say *a processor without VNNI* are of one with VNNI, from before OpenVINO
        compiled each graph for its batch size and `--cpu auto` tried convolutions; none was to be had since. Those
        without VNNI have no rows of `torch.compile`, torchao and other settings of threads (`--without`). There, by the
        medians of every table, OpenVINO takes longer for INT8 than for FP32, whoever made the graph, and ours in ONNX
        Runtime takes less than either: `--target onnxruntime`.""",
        """Under a table: what the time of our INT8 is divided over, by the runtimes' own profiles. What a runtime
        fuses is one kernel there; OpenVINO's Subgraph is attention.""",
        """Rows of ours with *threads pinned* or *that sleep* are the same graph with another setting of the runtime:
        a core for each thread, and threads that do not spin while they wait within a call, as `bench --pinning on`
        and `--spinning off` set it ([measuring](measuring.md#threads)); the other rows pin nothing and spin. *Ours*
        of such a row says what that gains. *Lowered* is what `quantize --lower` writes for this machine
        ([quantization](quantization.md#what-becomes-8-bits)).""",
    )
)


NNCF = prose(
    """OpenVINO's kernels with our INT8 beside those with NNCF's (`python benchmarks/cpu.py NAME --kernels`). Both
    multiply linears and attention in 8 bits, divide q, k and v and merge heads in bytes. NNCF's default also rounds the
    two sums of each block: the residual stream is bytes, which sums (Subgraph or Eltwise), norms (MVN) and the Gathers
    of a Swin read and write at a quarter of the size; its head is in 8 bits too. Ours keeps the stream in FP32, because
    outliers in it set its range in some checkpoints. The third column is NNCF's graph with sums in FP32
    (`IgnoredScope(types=["Add"])`), so the last row says what those cost: a few tenths of a decibel on Swin, several on
    a ViT. That row is computed in FP32 from rounded values, as processors with VNNI compute; without VNNI the products
    of NNCF's graphs saturate, which ours are kept clear of. On the processor of these tables products take nearly all
    of the time, and beside them ours takes no longer than NNCF's; others used it too, so small differences
    mean little. On one with VNNI these kernels weigh more. NNCF's
    lead on Swin further down was measured there, with graphs compiled for any batch size, where OpenVINO fuses no
    sums; it was not measured again since."""
)


def cpu_page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    sections = [section(key, row) for key, row in results.get("rows", {}).items()]
    beside = [beside_nncf(key, row) for key, row in results.get("kernels", {}).items()]
    tables = [*summary(results.get("rows", {})), *defaults(results.get("defaults", {}))]
    parts = [HEAD, *tables, *([NNCF] if beside else []), *beside, *sections]
    return "\n\n".join(parts) + "\n"


def summary(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return how ours stands beside what each runtime's makers offer, and the fastest of all; nothing without rows."""
    if not rows:
        return []
    lines = [f"| {key} | {_beside(row, NNCF_INT8)} | {_beside(row, ORT_STATIC)} |" for key, row in rows.items()]
    head = "| our INT8 is as fast as, at SQNR of both | NNCF's, by default | | ONNX Runtime's own, static | |"
    fastest = [f"| {key} | {_fastest(row, True)} | {_fastest(row, False)} |" for key, row in rows.items()]
    medians = "| the fastest INT8, by medians | ours | p50 ms | SQNR dB | others' | p50 ms | SQNR dB |"
    return [
        "\n".join([head, "| --- | --- | --- | --- | --- |", *lines]),
        "\n".join([medians, "| --- | --- | ---: | ---: | --- | ---: | ---: |", *fastest]),
    ]


def _fastest(row: Mapping[str, Any], ours: bool) -> str:
    """Return three cells: the INT8 graph of the smallest median, that median and its SQNR."""
    found = {title: one for title, one in row["candidates"].items() if "INT8" in title and ("our " in title) == ours}
    title = min(found, key=lambda title: found[title]["p50_ms"])
    return f"{title} | {found[title]['p50_ms']:.1f} | {_sqnr(found[title])}"


def _beside(row: Mapping[str, Any], peer: str) -> str:
    """Return two cells: how many times as fast ours is as a peer, and the SQNR of both."""
    found = row["candidates"]
    if peer not in found:
        return "– | –"
    theirs = found[peer]
    return f"{_ratio(theirs)} | {_sqnr(found[theirs['against']])} and {_sqnr(theirs)} dB"


def _sqnr(one: Mapping[str, Any]) -> str:
    return "–" if one["sqnr_db"] is None else f"{one['sqnr_db']:.1f}"


def _ratio(one: Mapping[str, Any]) -> str:
    found = f"{one['ours_faster_by']:.2f} ×"
    return found if one["interval"] is None else f"{found} [{one['interval'][0]:.2f}, {one['interval'][1]:.2f}]"


def defaults(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the table of what ``quantize`` takes by itself; nothing where that was not tried."""
    if not found:
        return []
    lines = [f"| {name} | `{one['profile']}` | {one['sqnr_db']:.1f} |" for name, one in sorted(found.items())]
    table = ["| `quantize --target openvino` at its defaults | profile | SQNR dB |", "| --- | --- | ---: |", *lines]
    return ["\n".join(table)]


def section(key: str, row: Mapping[str, Any]) -> str:
    """Return the table of a model at a batch size, and under it the conditions."""
    table = [
        "| candidate | p50 ms | SQNR dB | ours | | of GEMM |",
        "| --- | ---: | ---: | --- | --- | ---: |",
        *(line(title, one) for title, one in sorted(row["candidates"].items(), key=lambda item: item[1]["p50_ms"])),
    ]
    left_out = [
        f"Left out: {'; '.join(title for title, why in row['left_out'].items() if why == reason)} ({reason})."
        for reason in dict.fromkeys(row["left_out"].values())
    ]
    words = prose(" ".join([conditions(row), *left_out]))
    return "\n\n".join([f"## {key}", "\n".join(table), words, *kernels(row.get("profiles", {}))])


def conditions(row: Mapping[str, Any]) -> str:
    """Return under which conditions a row was measured, in words."""
    machine, load = row["environment"], row["other_load_cores"]
    others = "unknown" if load is None else f"{load:.1f} of {machine['cores']} cores"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(row["versions"].items()) if name in SHOWN)
    where = f"{machine['cpu']}, {machine['cores']} cores; {row['rounds']} rounds on {row['measured']}"
    without = "It has no VNNI, so that 8-bit products take several instructions." * (row["cpu_integers"] == "any")
    of_any = "compiled every graph for any batch size, ours and the others', which vitdeploy no longer does"
    fixed = f"OpenVINO {'compiled every graph for this batch size' if 'openvino_batch' in row else of_any}."
    return " ".join(filter(None, [f"{where}; other processes kept busy: {others}.", f"{versions}.", without, fixed]))


def beside_nncf(key: str, row: Mapping[str, Any]) -> str:
    """Return the table of OpenVINO's kernels with two graphs, and under it the conditions."""
    titles, spent = list(row["kernels_ms"]), row["kernels_ms"]
    whole = {title: sum(found.values()) for title, found in spent.items()}
    names = sorted({name for found in spent.values() for name in found}, key=lambda name: _order(name, spent))
    shown = [name for name in names if any(spent[t].get(name, 0) >= LEAST_SHARE * whole[t] for t in titles)]
    cells = [[f"{spent[t][name]:.2f}" if name in spent[t] else "–" for t in titles] for name in shown]
    ran, exact = ([f"{row[name][title]:.1f} dB" for title in titles] for name in ("sqnr_db", "exact_sqnr_db"))
    lines = [
        f"| {key}: ms by kernel | {' | '.join(titles)} |",
        f"| --- |{' ---: |' * len(titles)}",
        *(f"| {name} | {' | '.join(of_it)} |" for name, of_it in zip(shown, cells, strict=True)),
        f"| all | {' | '.join(f'{whole[title]:.2f}' for title in titles)} |",
        f"| all but products | {' | '.join(f'{_beside_products(spent[title]):.2f}' for title in titles)} |",
        f"| SQNR as it ran | {' | '.join(ran)} |",
        f"| SQNR without saturation | {' | '.join(exact)} |",
    ]
    return "\n".join(lines) + "\n\n" + prose(conditions(row))


def _order(name: str, spent: Mapping[str, Mapping[str, float]]) -> tuple[float, str]:
    """Order kernels by the time of their operator, so that what one graph has in 8 bits stands beside the other's."""
    operator = name.rpartition(" ")[0]
    of_operator = [ms for found in spent.values() for one, ms in found.items() if one.rpartition(" ")[0] == operator]
    return -sum(of_operator), name


def _beside_products(found: Mapping[str, float]) -> float:
    return sum(ms for name, ms in found.items() if name.rpartition(" ")[0] not in PRODUCTS)


LEAST_SHARE = 0.005
PRODUCTS = ("FullyConnected", "MatMul", "Convolution")


def kernels(profiles: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the table of what the time goes into, two columns for each runtime; nothing where it is unknown."""
    if not profiles:
        return []
    columns = [[f"{kernel} | {100 * share:.1f} %" for kernel, share in found.items()] for found in profiles.values()]
    rows = [f"| {' | '.join(cells)} |" for cells in zip_longest(*columns, fillvalue=" | ")]
    head = f"| {' | '.join(f'kernels of {title}, by time | ' for title in profiles)} |"
    return ["\n".join([head, f"| {' | '.join('--- | ---:' for _ in profiles)} |", *rows])]


SHOWN = ("nncf", "onnxruntime", "openvino", "torch", "timm", "vitdeploy")


def line(title: str, one: Mapping[str, Any]) -> str:
    """Return the row of a candidate."""
    ours, verdict = "–", ""
    if "against" in one:
        ours, verdict = _ratio(one), "not known, too few rounds"
        if one["interval"] is not None:
            low, high = one["interval"]
            verdict = "ours is faster" if low > 1 else "ours is slower" if high < 1 else "no winner"
    share = f"{100 * one['share_of_gemm']:.0f} %"
    return f"| {title} | {one['p50_ms']:.1f} | {_sqnr(one)} | {ours} | {verdict} | {share} |"
