"""Whose INT8 is fastest on this CPU: ours beside PyTorch, timm, torchao, onnxruntime, optimum and NNCF.

    python benchmarks/cpu.py vit_small_patch16_224 --batch 1 8 --threads 2
    python benchmarks/cpu.py --page                # renew docs/cpu.md from the results
    python benchmarks/cpu.py --folder F --make     # quantize with all of them, to measure later with --folder F
    python benchmarks/cpu.py --folder F --default  # which profile `quantize` takes by itself, at which SQNR
    python benchmarks/cpu.py NAME --kernels        # the kernels of OpenVINO with our INT8 beside those with NNCF's

Every candidate runs in a process of its own and they take turns, so that clocks and other users of the machine meet all
alike. A ratio is of medians over the same rounds with a 95 % interval (``measure.statistics.speedup``), and nobody is
called faster whose interval touches 1. Weights are redrawn and images made: SQNR is of the outputs against the FP32
graph, on images that no candidate was calibrated on. Large products of matrices take turns too: the best of them is
what the machine can do at that time, of which each candidate's share is given. What is installed of the peers takes
part (``pip install torchao nncf optimum-onnx timm openvino``), the others are named with the reason. At the end both
runtimes say how their time with our INT8 is divided over kernels.

``benchmarks/results/cpu.json`` is written after every round: a run that is ended leaves what it has.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from cpu_candidates import (
    BASELINE,
    CHECKED,
    GEMM,
    ORT_INT8,
    ORT_LOWERED,
    OURS,
    OV_INT8,
    Candidate,
    Sources,
    beside_nncf,
    gemms,
    make_all,
)
from cpu_page import CPU_PAGE, CPU_RESULTS, WITHOUT_VNNI, cpu_page
from cpu_worker import Images, Worker
from numpy.typing import NDArray
from support_tables import read_results, write_results

from vitdeploy import environment
from vitdeploy.artifacts import read_onnx
from vitdeploy.backends import get_backend
from vitdeploy.backends.openvino import OpenVINOSession, shared_core
from vitdeploy.catalog import variant
from vitdeploy.measure.load import watch_other_load
from vitdeploy.measure.statistics import logits_sqnr_db, speedup
from vitdeploy.sessions import LayerTimes, Session, SessionOptions
from vitdeploy.stages.inspect import inspect
from vitdeploy.stages.quantize import quantize

VARIANTS = (
    "vit_base_patch16_224",
    "vit_small_patch16_224",
    "vit_tiny_patch16_224",
    "deit_small_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b1",
)
Blocks = dict[str, list[NDArray[np.float64]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="VARIANT", help=f"names of the catalogue; {', '.join(VARIANTS)}")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calibrated", type=int, default=64, help="images that ranges are taken from")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="PATTERN", help="titles to leave out, as '*torchao*'"
    )
    parser.add_argument("--folder", type=Path, help="where graphs are kept: those that are there are not made again")
    parser.add_argument("--make", action="store_true", help="measure nothing, make the graphs in --folder")
    parser.add_argument("--default", action="store_true", help="measure nothing, quantize with all defaults")
    parser.add_argument("--kernels", action="store_true", help="measure kernels only: OpenVINO, our INT8 and NNCF's")
    parser.add_argument("--page", action="store_true", help="measure nothing, renew the page")
    arguments = parser.parse_args()
    for name in () if arguments.page else arguments.names or VARIANTS:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            folder = Path(temporary) if arguments.folder is None else arguments.folder / name
            folder.mkdir(parents=True, exist_ok=True)
            sources = Sources.make(name, folder, arguments.calibrated)
            if arguments.default:
                keep("defaults", name, by_default(sources))
                continue
            for batch in arguments.batch:
                print(f"{name}, batch {batch}", flush=True)
                if arguments.kernels:
                    keep(
                        "kernels",
                        key_of(name, batch, arguments.threads),
                        kernels_of(beside_nncf(sources), sources, batch, arguments),
                    )
                elif arguments.make:
                    print(f"  left out: {make_all(sources, batch, arguments.without)[1]}", flush=True)
                else:
                    measure(name, sources, batch, arguments)
    if arguments.make:
        return
    CPU_PAGE.write_text(cpu_page(read_results(CPU_RESULTS)), "utf8")
    print(f"wrote {CPU_PAGE}")


def measure(name: str, sources: Sources, batch: int, arguments: argparse.Namespace) -> None:
    """Judge the outputs of all candidates of a model, time them in turns, and keep what there is after each round."""
    key = key_of(name, batch, arguments.threads)
    found, reasons = make_all(sources, batch, arguments.without)
    feeds = {"images": sources.folder / "feed.npy", "matrix": sources.folder / "matrix.npy"}
    np.save(sources.folder / "images.npy", sources.images)
    np.save(feeds["images"], np.resize(sources.images, (batch, *sources.images.shape[1:])))
    np.save(feeds["matrix"], np.random.default_rng(0).standard_normal((GEMM, GEMM), np.float32))
    workers: dict[str, Worker] = {}
    outputs: dict[str, Images] = {}
    for title, candidate in found.items():
        worker = Worker(candidate.runtime, candidate.file, arguments.threads)
        try:
            worker.feed(feeds["images"])
            outputs[title] = worker.outputs(sources.folder / "images.npy")
            workers[title] = worker
        except RuntimeError as error:
            reasons[title] = str(error)
            worker.close()
    products = gemms(sources.folder)
    for title, (runtime, file, _) in products.items():
        workers[title] = Worker(runtime, file, arguments.threads)
        workers[title].feed(feeds["matrix"])
    fixed = {
        title: {"sqnr_db": sqnr(outputs[title], outputs[BASELINE]), "integers": integers(found[title], title)}
        for title in outputs
    }
    blocks: Blocks = {title: [] for title in workers}
    random = np.random.default_rng(0)
    loads: list[float] = []
    for _ in range(arguments.rounds):
        start, used = time.perf_counter(), sum(worker.cpu_s() for worker in workers.values())
        with watch_other_load() as load:
            for title in random.permutation(list(workers)):
                blocks[title].append(workers[title].turn())
        used = sum(worker.cpu_s() for worker in workers.values()) - used
        loads += [] if load.cores is None else [max(0.0, load.cores - used / (time.perf_counter() - start))]
        peaks = peaks_of(blocks, {title: arithmetic for title, (_, _, arithmetic) in products.items()})
        rows = {
            title: fixed[title] | timed(title, found[title], blocks, peaks, batch * variant(name).gmacs)
            for title in outputs
        }
        row = {"candidates": rows, "left_out": reasons, "gemm_gmacs_per_s": peaks}
        keep("rows", key, row | conditions(loads, len(blocks[BASELINE])))
    for worker in workers.values():
        worker.close()
    feed = np.load(feeds["images"])
    profiles = {
        title: profile(found[title], feed, arguments.threads)
        for title in (ORT_INT8, ORT_LOWERED, OV_INT8)
        if title in rows
    }
    keep("rows", key, row | conditions(loads, len(blocks[BASELINE])) | {"profiles": profiles})
    for title, one in sorted(rows.items(), key=lambda item: item[1]["p50_ms"]):
        print(f"  {title}: {one['p50_ms']:.2f} ms, ours {one['ours_faster_by']:.2f} × as fast {one['interval']}")
    for title, reason in reasons.items():
        print(f"  {title}: left out, {reason}", flush=True)


def key_of(name: str, batch: int, threads: int) -> str:
    return f"{name}, batch {batch}, {threads} threads" + WITHOUT_VNNI * (environment.cpu_integers() == "any")


def keep(part: str, key: str, row: dict[str, Any]) -> None:
    results = read_results(CPU_RESULTS)
    write_results(CPU_RESULTS, {**results, part: results.get(part, {}) | {key: row}})


def kernels_of(
    files: Mapping[str, Path], sources: Sources, batch: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the milliseconds of OpenVINO's kernels with each graph, by operator and precision, and the SQNR.

    They are profiled in turns; of each kernel the median of the rounds counts.
    """
    images = np.resize(sources.images, (batch, *sources.images.shape[1:]))
    spent: dict[str, list[Counter[str]]] = {title: [] for title in files}
    options = SessionOptions(threads=arguments.threads)
    sessions = {title: OpenVINOSession(file, options) for title, file in files.items()}
    with watch_other_load() as load:
        for _ in range(arguments.rounds):
            for title, session in sessions.items():
                (name,) = session.inputs
                spent[title].append(by_kernel(session.layer_times({name: images}, warmup=2, iterations=8)))
    outputs = {title: logits_of(session, sources.images) for title, session in sessions.items()}
    with get_backend("onnxruntime").open(sources.model, SessionOptions(device="cpu")) as plain:
        reference = logits_of(plain, sources.images)
    kernels = {
        title: {kernel: float(np.median([turn[kernel] for turn in turns])) for kernel in set().union(*turns)}
        for title, turns in spent.items()
    }
    for kernel in sorted(set().union(*kernels.values())):
        print(f"  {kernel}: {', '.join(f'{kernels[title].get(kernel, 0):.2f} ms' for title in kernels)}", flush=True)
    sqnrs = {title: sqnr(outputs[title], reference) for title in outputs}
    loads = [] if load.cores is None else [load.cores]
    exact = {title: sqnr(simulated(file, sources.images), reference) for title, file in files.items()}
    found = {"kernels_ms": kernels, "sqnr_db": sqnrs, "exact_sqnr_db": exact} | conditions(loads, arguments.rounds)
    return found | {"versions": {**environment.versions(), "nncf": version("nncf")}}


def simulated(file: Path, images: Images) -> Images:
    """Return the outputs in FP32 from rounded tensors and weights: those of products that do not saturate."""
    model = shared_core().read_model(str(file))
    model.reshape(list(images.shape))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"}
    return np.array(shared_core().compile_model(model, "CPU", settings)([images])[0])


def logits_of(session: Session, images: Images) -> Images:
    (name,) = session.inputs
    return np.concatenate([next(iter(session.run({name: images[i : i + 1]}).values())) for i in range(len(images))])


def by_default(sources: Sources) -> dict[str, Any]:
    """Return which profile ``quantize`` takes for OpenVINO where nothing is chosen, and the SQNR of its check."""
    path = sources.folder / "default.onnx"
    if not path.exists():
        quantize(sources.model, path, precision="int8", target="openvino", calibration=sources.calibration)
    manifest = read_onnx(path).manifest
    (sqnr,) = (check.value for check in manifest.checks if check.name == "logits SQNR")
    assert manifest.plan is not None
    print(f"  {manifest.plan.profile}, {sqnr:.1f} dB", flush=True)
    return {"profile": manifest.plan.profile, "sqnr_db": sqnr}


def conditions(loads: list[float], rounds: int) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "images_compared": CHECKED,
        "measured": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "environment": environment.current().model_dump(mode="json", exclude_none=True),
        "versions": environment.versions(),
        "cpu_integers": environment.cpu_integers(),
        "openvino_batch": "fixed",
        "other_load_cores": float(np.mean(loads)) if loads else None,
    }


def timed(title: str, candidate: Candidate, blocks: Blocks, peaks: Mapping[str, float], gmacs: float) -> dict[str, Any]:
    """Return a candidate's median, its speed beside ours, and its share of what the machine's large products reach."""
    p50 = float(np.median(np.concatenate(blocks[title])))
    share = gmacs / (p50 / 1000) / peaks[candidate.arithmetic]
    found = {"p50_ms": p50, "ours_faster_by": 1.0, "interval": None, "share_of_gemm": share}
    ours = next((one for one in candidate.against if one in blocks), title)
    if title == ours:
        return found
    ratio, interval = speedup(blocks[ours], blocks[title])
    return found | {"ours_faster_by": ratio, "interval": interval, "against": ours}


def peaks_of(blocks: Blocks, arithmetics: Mapping[str, str]) -> dict[str, float]:
    """Return arithmetic → 10⁹ multiply-accumulates per second of its fastest large product, by medians."""
    found: dict[str, float] = {}
    for title, arithmetic in arithmetics.items():
        rate = GEMM**3 / 1e9 / (np.median(np.concatenate(blocks[title])) / 1000)
        found[arithmetic] = max(float(rate), found.get(arithmetic, 0.0))
    return found


def sqnr(outputs: Images, reference: Images) -> float | None:
    found = logits_sqnr_db(outputs, reference)
    return found if np.isfinite(found) else None


def integers(candidate: Candidate, title: str) -> list[int] | None:
    """Return how many products of our INT8 run in integers, and how many should."""
    if title not in OURS:
        return None
    runtime = candidate.runtime.partition(":")[0]
    census = inspect(read_onnx(candidate.file), runtime=runtime).census  # type: ignore[arg-type]
    return None if census is None else [census.integer, census.planned]


def profile(candidate: Candidate, images: NDArray[np.float32], threads: int) -> dict[str, float]:
    """Return kernel and precision → share of the time of all kernels, largest first, by the runtime's own clock."""
    backend = get_backend(candidate.runtime.partition(":")[0])
    with backend.open(read_onnx(candidate.file), SessionOptions(threads=threads, device="cpu")) as session:
        (name,) = session.inputs
        times = session.layer_times({name: images}, warmup=3, iterations=20)
    assert times is not None
    spent = by_kernel(times)
    whole = spent.total()
    return {kernel: ms / whole for kernel, ms in spent.most_common() if ms >= 0.005 * whole}


def by_kernel(times: LayerTimes) -> Counter[str]:
    """Return operator and precision → milliseconds of all such kernels of a call."""
    spent: Counter[str] = Counter()
    for layer in times.layers:
        spent[f"{layer.operator} {layer.precision}"] += float(np.median(layer.ms))
    return spent


if __name__ == "__main__":
    main()
