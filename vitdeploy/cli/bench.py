"""``vitdeploy bench``: accuracy and latency of artifacts, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vitdeploy.cli.flags import in_flags
from vitdeploy.cli.options import DATA_HELP, CpuFallback, Device, Gpu, Json, MaxDropBy, On, Samples, Seed
from vitdeploy.cli.output import print_line

if TYPE_CHECKING:
    from vitdeploy.records import Report
    from vitdeploy.records.scenario import ScenarioName


def bench(
    artifacts: Annotated[
        list[str], typer.Argument(metavar="ARTIFACT...", help="Checkpoints, ONNX models and engines.")
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help=DATA_HELP, show_default="what the weights were trained on"),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="SOURCE",
            help="What differences are against.",
            show_default="the checkpoint that they were made from",
        ),
    ] = None,
    batches: Annotated[
        list[str] | None,
        typer.Option("--batch", metavar="N[,N...]", help="Batch sizes to time; repeatable.", show_default="1"),
    ] = None,
    threads: Annotated[
        list[str] | None,
        typer.Option(
            "--threads",
            metavar="N[,N...]",
            help="CPU threads; of several, the most are those of the report, and all are compared.",
            show_default="the runtime's choice",
        ),
    ] = None,
    pinning: Annotated[
        list[str] | None,
        typer.Option(
            "--pinning",
            metavar="on|off[,...]",
            help="Keep each CPU thread on a core of its own; 'on,off' makes a row of each.",
            show_default="the runtime's choice",
        ),
    ] = None,
    spinning: Annotated[
        list[str] | None,
        typer.Option(
            "--spinning",
            metavar="on|off[,...]",
            help="Let CPU threads spin while they wait; 'on,off' makes a row of each.",
            show_default="the runtime's choice",
        ),
    ] = None,
    device: Device = "auto",
    gpu: Gpu = None,
    runtimes: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime",
            metavar="NAME[:PROVIDER][,...]",
            help="What runs ONNX models: onnxruntime, openvino, onnxruntime:cuda, openvino:bf16 …; repeatable.",
            show_default="onnxruntime, and openvino for graphs that are made for it",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Shuffled rounds of turns.")] = 10,
    iterations: Annotated[int, typer.Option("--iterations", min=1, help="Timed calls per turn.")] = 20,
    samples: Samples = None,
    seed: Seed = 0,
    label_map: Annotated[
        Path | None, typer.Option("--label-map", metavar="FILE", help="Folder name to class name, as JSON or CSV.")
    ] = None,
    labels_by_order: Annotated[
        bool, typer.Option("--labels-by-order", help="Match classes by position where no name matches.")
    ] = False,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let FP32 use TF32 on a GPU.")] = False,
    cuda_graph: Annotated[bool, typer.Option(help="Launch engines as CUDA graphs where they can be recorded.")] = True,
    cpu_fallback: CpuFallback = False,
    pytorch: Annotated[
        list[str] | None,
        typer.Option(
            "--pytorch",
            metavar="MODE",
            help="PyTorch rows beside eager FP32: compile, autocast-fp16, autocast-bf16; repeatable.",
            show_default="on a GPU autocast-fp16 and compile",
        ),
    ] = None,
    image_to_label: Annotated[
        bool, typer.Option(help="Time the way from image file to class too, at the first batch size.")
    ] = True,
    self_check: Annotated[
        bool, typer.Option("--self-check", help="Time one candidate twice in the turns, and each alone after them.")
    ] = False,
    sustained: Annotated[
        float,
        typer.Option(
            "--sustained", min=0, metavar="SECONDS", help="Also run each row this many seconds without a pause."
        ),
    ] = 0.0,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Profile the layers of each row, in calls beside the timed ones.")
    ] = False,
    streams: Annotated[
        list[str] | None,
        typer.Option(
            "--streams",
            metavar="N[,N...]",
            help="Throughput of engines with that many contexts at work at once; repeatable.",
        ),
    ] = None,
    scenarios: Annotated[
        list[str] | None,
        typer.Option(
            "--scenario",
            metavar="NAME[,...]",
            help="Loads as MLPerf Inference defines them: single-stream, multi-stream, offline, server; repeatable.",
        ),
    ] = None,
    scenario_s: Annotated[
        float, typer.Option("--scenario-seconds", min=0.001, help="Time for one run of a scenario; MLPerf's is 600.")
    ] = 600.0,
    latency_bound_ms: Annotated[
        float,
        typer.Option(
            "--latency-bound", min=0.001, metavar="MS", help="Latency that 99 % of a server's queries must not exceed."
        ),
    ] = 15.0,
    energy: Annotated[bool, typer.Option(help="Meter energy per image, where the device has a meter.")] = True,
    processes: Annotated[bool, typer.Option(help="Measure load time and peak memory, each in a fresh process.")] = True,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FOLDER", help="Write report.json, .md and .html there, and report.samples.npz."
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions", metavar="FILE", help="Write each row's prediction for each image, as a Parquet file."
        ),
    ] = None,
    thumbnails: Annotated[
        bool, typer.Option(help="Put small copies of images on which rows and baseline differ into the report.")
    ] = True,
    mlflow: Annotated[
        bool,
        typer.Option(
            "--mlflow", help="Log the report as a run of MLflow, on the server that MLflow's own settings name."
        ),
    ] = False,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Print the right answers of each class too, worst first.")
    ] = False,
    max_drop_pp: Annotated[
        float | None,
        typer.Option("--max-drop", min=0, metavar="PP", help="Exit with 3 where top-1 drops by more points than this."),
    ] = None,
    max_drop_by: MaxDropBy = "point",
    min_accuracy_ratio: Annotated[
        float | None,
        typer.Option(
            "--min-accuracy-ratio",
            min=0,
            max=1,
            metavar="RATIO",
            help="Exit with 3 where a row keeps less than this share of the baseline's top-1, such as 0.99.",
        ),
    ] = None,
    on: On = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy, fidelity, latency and memory against a baseline on the same device."""
    import vitdeploy as vd
    from vitdeploy import BenchOptions, FilesTogether, log_to_mlflow, write_report
    from vitdeploy.artifacts.outputs import folder_or_nothing, refuse_unwritable_folder
    from vitdeploy.cli.output import make_progress, print_json, print_rich
    from vitdeploy.cli.values import choose_gpu, parse_counts, parse_switches, split_lists
    from vitdeploy.records.report import REPORT_FILES
    from vitdeploy.report import class_table, layer_table, scenario_lines
    from vitdeploy.report.mlflow_run import require_mlflow

    choose_gpu(gpu, on)
    counts = () if threads in (None, ["0"]) else parse_counts("--threads", threads)
    options = BenchOptions(
        batches=parse_counts("--batch", batches) or (1,),
        threads=max(counts, default=0),
        thread_counts=counts if len(counts) > 1 else (),
        pinning=parse_switches("--pinning", pinning),
        spinning=parse_switches("--spinning", spinning),
        device=None if device == "auto" else device,
        runtimes=split_lists(runtimes),
        rounds=rounds,
        iterations=iterations,
        samples=samples,
        seed=seed,
        label_map=label_map,
        labels_by_order=labels_by_order,
        tf32=tf32,
        cuda_graph=cuda_graph,
        cpu_fallback=cpu_fallback,
        pytorch=None if pytorch is None else tuple(pytorch),
        processes=processes,
        image_to_label=image_to_label,
        self_check=self_check,
        sustained_s=sustained,
        per_layer=per_layer,
        streams=parse_counts("--streams", streams) or (),
        scenarios=cast("tuple[ScenarioName, ...]", split_lists(scenarios)),  # the options refuse other names
        scenario_s=scenario_s,
        latency_bound_ms=latency_bound_ms,
        thumbnails=thumbnails,
        energy_s=BenchOptions.energy_s if energy else 0.0,
    )
    if mlflow:
        require_mlflow()
    if report is not None:
        refuse_unwritable_folder(report, REPORT_FILES)
    with folder_or_nothing(report), FilesTogether() as files:
        measure = vd.bench if on is None else vd.Remote(on).bench
        found = measure(
            list(artifacts),
            data,
            baseline=baseline,
            options=options,
            keep=report,
            predictions=predictions,
            files=files,
            progress=make_progress(),
        )
        page = write_report(found, report, files=files) if report is not None else None
    if as_json:
        print_json(found)
    else:
        print_report(found)
        if per_class:
            print_rich(class_table(found))
        if per_layer:
            print_rich(layer_table(found))
        for line in scenario_lines(found):
            print_line(line)
        if page is not None:
            print_line(f"wrote {page}")
    if mlflow:
        run = log_to_mlflow(found, report)
        if not as_json:
            print_line(f"logged as MLflow run {run}")
    refuse_all_failed(found)
    found.check(max_drop_pp=max_drop_pp, max_drop_by=max_drop_by, min_accuracy_ratio=min_accuracy_ratio)


def print_report(report: Report) -> None:
    """Print the table and the verdict, whose advice is in the words of the command line."""
    from vitdeploy.cli.output import print_rich, print_wrapped
    from vitdeploy.cli.shell import was_shown
    from vitdeploy.report import measurement_tables, table

    report = _in_flags(report)
    print_rich(table(report))
    for grid in measurement_tables(report):
        print_rich(grid)
    for line in report.verdict:
        if not was_shown(line):
            print_wrapped(line)


def _in_flags(report: Report) -> Report:
    rows, verdict = [], "\n".join(report.verdict)
    for row in report.rows:
        reason = in_flags(row.reason)
        verdict = verdict.replace(row.reason.rstrip("."), reason.rstrip(".")) if row.reason else verdict
        rows.append(row.model_copy(update={"reason": reason, "notes": tuple(map(in_flags, row.notes))}))
    against = in_flags(report.baseline.accuracy_against, calls_only=True)
    verdict = verdict.replace(report.baseline.accuracy_against.rstrip("."), against.rstrip("."))
    baseline = report.baseline.model_copy(update={"accuracy_against": against})
    lines = tuple(verdict.split("\n")) if verdict else ()
    return report.model_copy(update={"rows": tuple(rows), "verdict": lines, "baseline": baseline})


def refuse_all_failed(report: Report) -> None:
    """Pass where something was measured, or nothing went wrong: engines that are only built are no failure.

    Raises:
        BackendError: Nothing was measured, and something failed.
    """
    from vitdeploy.errors import BackendError

    failed = [row for row in report.rows if row.status == "failed"]
    if failed and all(row.status != "ok" for row in report.rows):
        raise BackendError(f"nothing could be measured: {failed[0].name} failed, {failed[0].reason}")
