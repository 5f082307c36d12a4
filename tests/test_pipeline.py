"""The pipeline: recipes, freshness, kills, locks, and data of one's own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import sample_reports
import torch
from notes import Notes
from PIL import Image

from vitdeploy.artifacts import open_artifact, read_checkpoint
from vitdeploy.artifacts.run_record import Provenance
from vitdeploy.cli import main
from vitdeploy.errors import ArtifactError, BackendError, GateError, RecipeError
from vitdeploy.pipeline import Recipe, default_text, read_recipe, run
from vitdeploy.pipeline.folder import changes, locked
from vitdeploy.reading import parse_yaml
from vitdeploy.report import read_report

pytestmark = pytest.mark.slow

STAGES = (
    "train",
    "export",
    "quantize fp16",
    "quantize int8",
    "quantize int8.onnxruntime",
    "quantize int8.openvino",
    "build fp16",
    "build int8",
    "bench",
)
ONE_OF_A_KIND = ("train", "export", "quantize int8", "build int8", "bench")


def quick(changes: Mapping[str, Any], **more: Any) -> Recipe:
    return read_recipe(None, {**changes, **{name.replace("__", "."): value for name, value in more.items()}})


# --- recipes


def test_the_printed_recipe_is_the_default() -> None:
    assert Recipe.model_validate(parse_yaml(default_text())) == Recipe()


@pytest.mark.parametrize(
    ("limits", "refused"),
    [
        ({"bench.min_accuracy_ratio": 0.99}, r"keeps 0\.9\d+ of the baseline's top-1, at least 0\.99 is asked for"),
        ({"bench.max_drop": 1}, r"lost .* pp of top-1, allowed 1"),
        ({"bench.min_accuracy_ratio": 0.9, "bench.max_drop": 5}, None),
        ({}, None),
    ],
)
def test_limits_of_a_recipe_are_those_of_a_report(limits: dict[str, Any], refused: str | None) -> None:
    row = sample_reports.rows()[1].model_copy(update={"top1": 0.95, "delta_top1_pp": -2.0})
    report = sample_reports.build((row,))
    section = read_recipe(None, limits).bench
    if refused is None:
        section.hold(report)
    else:
        with pytest.raises(GateError, match=refused):
            section.hold(report)


def test_the_printed_recipe_shows_every_key() -> None:
    def keys(value: Any, prefix: str = "") -> set[str]:
        found: set[str] = set()
        names = [one.name for one in fields(value)] if is_dataclass(value) else type(value).model_fields
        for name in names:
            inner = getattr(value, name)
            found.add(prefix + name)
            if hasattr(type(inner), "model_fields") or is_dataclass(inner):
                found |= keys(inner, f"{prefix}{name}.")
        return found

    def printed(value: Mapping[str, Any], prefix: str = "") -> set[str]:
        found: set[str] = set()
        for name, inner in value.items():
            found.add(prefix + name)
            if isinstance(inner, dict):
                found |= printed(inner, f"{prefix}{name}.")
        return found

    shown = parse_yaml(default_text())
    assert printed(shown) == keys(Recipe())
    assert printed(shown["quantize"][1]) == keys(Recipe().quantize[1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {epochs: 3}", r"there is no key 'train\.epochs', did you mean 'train\.options\.epochs'"),
        ("train: {xyz: 3}", r"there is no key 'train\.xyz', expected some of model, weights"),
        ("batches: [8]", r"there is no key 'batches', expected some of data, source"),
        ("bench: {rounds: 3}", r"there is no key 'bench\.rounds', did you mean 'bench\.options\.rounds'"),
        ("train: {options: {epoch: 3}}", r"there is no key 'train\.options\.epoch', did you mean 'epochs'"),
        ("qantize: []", r"there is no key 'qantize', did you mean 'quantize'"),
        ("train: {options: {epochs: many}}", r"train\.options\.epochs is 'many': Input should be a valid integer"),
        ("train: {options: {epochs: 0}}", r"train\.options\.epochs is 0: Input should be greater than or equal to 1"),
        ("quantize: [{precision: int9}]", r"quantize\.0\.precision is 'int9'"),
        ("quantize: [{precision: int8}, {precision: int8}]", r"quantize has 'int8' twice"),
        ("quantize: [{precision: int8, options: {table: t.calib.json}}]", r"a run keeps no CalibrationTable"),
        ("quantize: [{precision: int8, options: {samples: 3}}]", r"say how many samples in 'samples'"),
        ("build: {batch: 8:1:2}", r"batch is 8:1:2, expected MIN <= OPT <= MAX"),
        ("build: {batch: x}", r"batch is 'x', expected a number such as 1, or MIN:OPT:MAX"),
        ("build: {precisions: [fp8]}", r"build\.precisions has 'fp8', and quantize makes no such graph"),
        ("source: a.safetensors\ntrain: {model: swin}", r"leave one of the two out"),
        ("export: {opset: 3}", r"export\.opset is 3"),
        ("data: digits\ndata: photos", r"is not YAML: .*found duplicate key"),
        ("data: [", r"is not YAML"),
        ("- 1", r"is not a recipe: expected the keys data, source, weights, arguments, preprocess, labels, train"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_key_and_what_was_expected(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)
    assert "my.yaml" in str(caught.value)


def test_a_missing_recipe_names_the_way_to_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match=r"there is no file .*none\.yaml'$"):
        read_recipe(tmp_path / "none.yaml")
    assert main(["run", str(tmp_path / "none.yaml")]) == 1
    assert re.search(r"none\.yaml' \('vitdeploy run --print-recipe' shows every key\)$", capsys.readouterr().err)


def test_changes_go_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("train: {options: {epochs: 3, batch: 8}}")
    recipe = read_recipe(path, {"train.options.epochs": 5, "build.batch": "1:2:4"})
    assert (recipe.train.options.epochs, recipe.train.options.batch, recipe.build.batch) == (5, 8, ((1, 2, 4),))


def test_a_recipe_with_one_option_of_bench_keeps_the_others_of_the_default() -> None:
    options = read_recipe(None, {"bench.options.rounds": 3}).bench.options
    assert (options.rounds, options.batches, options.runtimes) == (3, (1, 64), ("onnxruntime", "openvino"))
    assert read_recipe(None, {"bench.options.batches": [8]}).bench.options.batches == (8,)


def test_a_change_inside_a_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("quantize: [{precision: fp16}]")
    with pytest.raises(RecipeError, match="quantize is a list or a value, so change the file"):
        read_recipe(path, {"quantize.precision": "int8"})


# --- a run, and the next one


def test_a_run_makes_every_artifact_and_a_report_of_all_rows(finished_run: Path) -> None:
    names = {"model.safetensors", "model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8.onnxruntime.onnx"}
    for name in names | {"model.int8.openvino.onnx", "model.fp16.engine", "model.int8.engine"}:
        assert open_artifact(finished_run / name).manifest.key
    report = read_report(finished_run / "report.json")
    rows = {(row.backend, row.precision): row for row in report.rows}
    assert len(report.rows) == len(rows)  # an INT8 graph is run by the runtime that it was made for
    assert set(rows) == {
        ("pytorch", "fp32"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
        ("openvino", "fp32"),
        ("openvino", "int8"),
        ("tensorrt-rtx", "fp16"),
        ("tensorrt-rtx", "int8"),
    }
    for precision in ("fp16", "int8"):
        row = rows["tensorrt-rtx", precision]
        assert row.status in {"ok", "built"}
        assert row.inspected or (row.precision_by_layer is None and row.reason)
    assert "<table" in (finished_run / "report.html").read_text()


def test_a_second_run_does_nothing_and_says_so(finished_run: Path, quick_changes: dict[str, Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.iterdir() if path.name != ".lock"}
    notes = Notes()
    result = run(quick(quick_changes), finished_run, progress=notes)
    assert notes.lines == [f"{stage}: fresh" for stage in STAGES]
    assert [(stage.stage, stage.status) for stage in result.stages] == [(stage, "fresh") for stage in STAGES]
    assert before == {path: path.stat().st_mtime_ns for path in finished_run.iterdir() if path.name != ".lock"}


def test_a_fresh_run_loads_neither_torch_nor_a_runtime(finished_run: Path, quick_changes: dict[str, Any]) -> None:
    arguments = [f"--set={name}={value}" for name, value in quick_changes.items()]
    program = (
        "import sys; from vitdeploy.cli import main; code = main(sys.argv[1:]); "
        "print(code, [name for name in ('torch', 'onnxruntime', 'timm', 'tensorrt_rtx', 'openvino') "
        "if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, "run", "--output", str(finished_run), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "everything was fresh: nothing was done" in done.stdout


@pytest.mark.parametrize(
    ("change", "ran", "said"),
    [
        (
            {"build.batch": "1:2:4"},
            ("build fp16", "build int8", "bench"),
            "batch changed from [[1, 1, 1]] to [[1, 2, 4]]",
        ),
        ({"bench.options.seed": 3}, ("bench",), "seed changed from 0 to 3"),
    ],
)
def test_a_changed_option_runs_its_stage_and_what_depends_on_it(
    finished_run: Path, quick_changes: dict[str, Any], change: dict[str, Any], ran: tuple[str, ...], said: str
) -> None:
    notes = Notes()
    result = run(quick({**quick_changes, **change}), finished_run, progress=notes)
    assert tuple(stage.stage for stage in result.stages if stage.status == "done") == ran
    assert f"{ran[0]}: {said}, so it runs now" in notes.lines


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda path: path.unlink(), r"model\.int8\.onnx is gone"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), r"is not an ONNX file, or is damaged|does not match"),
        (lambda path: path.write_bytes((path.parent / "model.fp16.onnx").read_bytes()), r"was made by something else|"),
    ],
    ids=["removed", "truncated", "replaced"],
)
def test_a_broken_artifact_is_made_again(
    finished_run: Path, quick_changes: dict[str, Any], break_it: Any, said: str
) -> None:
    path = finished_run / "model.int8.onnx"
    digest = open_artifact(path).digest
    break_it(path)
    notes = Notes()
    result = run(quick(quick_changes), finished_run, progress=notes)
    assert [stage.stage for stage in result.stages if stage.status == "done"] == ["quantize int8"]
    assert re.search(said, next(line for line in notes.lines if line.startswith("quantize int8: ")))
    assert open_artifact(path).digest == digest  # so what was made from it is fresh


def test_a_run_without_its_memory_is_fresh_all_the_same(finished_run: Path, quick_changes: dict[str, Any]) -> None:
    (finished_run / "run.json").unlink()
    result = run(quick(quick_changes), finished_run)
    assert {stage.status for stage in result.stages} == {"fresh"}


def test_differences_are_said_by_name() -> None:
    old = Provenance(options={"a": 1, "b": {"c": [1]}}, parents={"onnx": "1"})
    new = Provenance(options={"a": 2, "b": {"c": [2]}}, parents={"onnx": "2"})
    assert changes(old, new) == ["a changed from 1 to 2", "b.c changed from [1] to [2]", "onnx changed"]


# --- kills, locks, leftovers


def _heed_interrupts() -> None:
    """Undo what a shell does to what it runs in its background: Ctrl-C is ignored there, and by all children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(folder: Path, quick_changes: Mapping[str, Any]) -> subprocess.Popen[str]:
    arguments = [f"--set={name}={value}" for name, value in quick_changes.items()]
    command = [sys.executable, "-m", "vitdeploy", "run", "--output", str(folder), *arguments]
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=_heed_interrupts,
    )


def test_killed_in_each_kind_of_stage_and_started_again_it_completes(
    tmp_path: Path, quick_changes: dict[str, Any]
) -> None:
    folder = tmp_path / "run"
    for index, stage in enumerate(ONE_OF_A_KIND):
        process = start(folder, quick_changes)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"{stage}: ") and "so it runs now" in line:
                break
        else:
            pytest.fail(f"the run ended before {stage}")
        time.sleep(0.1 * index)  # somewhere in the stage, not always at its first instruction
        process.kill()
        process.wait()
        process.stderr.close()
        for path in folder.iterdir():  # what has its final name is whole
            if path.suffix in {".safetensors", ".onnx"} and "reference" not in path.name:
                open_artifact(path)
    (folder / ".vitdeploy-leftover.onnx").write_bytes(b"half")
    process = start(folder, quick_changes)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not list(folder.glob(".vitdeploy-*"))
    assert [row.status in {"ok", "built"} for row in read_report(folder).rows] == [True] * 7


def test_a_killed_training_goes_on_where_it_stopped(tmp_path: Path, quick_changes: dict[str, Any]) -> None:
    changes = {**quick_changes, "train.options.epochs": 400, "train.options.save_every_s": 0.1}
    process = start(tmp_path / "run", changes)
    state = tmp_path / "run" / "model.state.pt"
    until = time.monotonic() + 60
    while not state.exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert state.exists()
    process = start(tmp_path / "run", changes)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "going on from where the last one stopped" in line or "train: done" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert "train: going on from where the last one stopped\n" in lines
    assert process.returncode == 130


def test_a_state_of_another_training_is_no_hindrance(tmp_path: Path, quick_changes: dict[str, Any]) -> None:
    from vitdeploy.stages.train import TrainRequest

    state = tmp_path / "model.state.pt"
    torch.save(dict.fromkeys(("identity", "loss_sum", "history", "parts")), state)
    request = TrainRequest.open("digits", tmp_path / "model.safetensors", resume="auto")
    assert not request._state_fits(Notes())
    state.write_bytes(b"somebody's")
    with pytest.raises(ArtifactError, match="was not written by vitdeploy, or is damaged"):
        TrainRequest.open("digits", tmp_path / "model.safetensors", resume="auto")


def test_two_runs_in_one_folder_are_refused(finished_run: Path, quick_changes: dict[str, Any]) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib; from vitdeploy.pipeline.folder import locked\n"
            "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()",
            str(finished_run),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ArtifactError, match=rf"another vitdeploy is at work in .*\(process {holder.pid}\): wait"):
        run(quick(quick_changes), finished_run)
    holder.communicate("")
    run(quick(quick_changes), finished_run)


def test_the_children_of_a_killed_run_are_waited_for(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys, time; from vitdeploy.pipeline.folder import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    if os.fork() == 0: time.sleep(1.5); os._exit(0)  # a loader process that inherited the lock\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(tmp_path):
        assert (tmp_path / ".lock.pid").read_text() == f"{os.getpid()}\n"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, quick_changes: dict[str, Any]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is a file, expected a folder"):
        run(quick(quick_changes), tmp_path / "file")


# --- what is not installed


def test_without_a_builder_the_engines_are_skipped_and_the_report_says_so(
    finished_run: Path, quick_changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise BackendError("no library that builds engines is installed: pip install 'vitdeploy[tensorrt]'")

    monkeypatch.setattr("vitdeploy.backends.opening.default_builder", none)
    notes = Notes()
    result = run(quick(quick_changes), finished_run, progress=notes)
    skipped = [stage for stage in result.stages if stage.status == "skipped"]
    assert [stage.stage for stage in skipped] == ["build fp16", "build int8"]
    assert "build int8: skipped, no library that builds engines is installed" in "\n".join(notes.lines)
    rows = [row for row in read_report(finished_run).rows if row.status == "skipped"]
    assert [(row.name, row.precision) for row in rows] == [("model.fp16.engine", "fp16"), ("model.int8.engine", "int8")]
    assert all("pip install" in row.reason for row in rows)
    assert [stage.status for stage in run(quick(quick_changes), finished_run).stages].count("done") == 0


def test_a_stage_that_needs_torch_names_the_extra(
    tmp_path: Path, quick_changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdeploy.backends.absent import AbsentBackend

    def absent(name: str) -> AbsentBackend:
        return AbsentBackend(name, "torch is not installed: pip install 'vitdeploy[torch]'")

    monkeypatch.setattr("vitdeploy.backends.get_backend", absent)
    with pytest.raises(BackendError, match=r"the stage 'train' has to run, and it needs torch: .*vitdeploy\[torch\]"):
        run(quick(quick_changes), tmp_path / "run")


# --- data and models of one's own


def make_photos(folder: Path, classes: int = 3, each: int = 20) -> Path:
    """Write images of stripes whose direction tells the class, in colours and modes that vary."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:40, 0:48] / 8.0
    for label in range(classes):
        (folder / f"class_{label}").mkdir(parents=True)
        angle = label * np.pi / classes
        for index in range(each):
            wave = np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 6))
            grey = (127 + 100 * wave + rng.normal(0, 8, wave.shape)).clip(0, 255).astype(np.uint8)
            image = Image.fromarray(grey)
            image = [image, image.convert("RGB"), image.convert("P"), image.convert("RGBA")][index % 4]
            image.save(folder / f"class_{label}" / f"{index}.png")
    return folder


def test_an_image_folder_goes_through_all_stages_with_one_recipe(tmp_path: Path, quick_changes: dict[str, Any]) -> None:
    photos = make_photos(tmp_path / "photos")
    recipe, names = tmp_path / "photos.yaml", tmp_path / "names.txt"
    names.write_text("apple\nbear\ncar\n")
    recipe.write_text(
        f"data: {photos}\n"
        "train:\n"
        f"  labels: {names}\n"
        "  arguments: {image_size: 32, patch: 8, width: 32, depth: 1, heads: 2}\n"
        "  options: {epochs: 3, batch: 8}\n"
        "bench:\n"
        "  options: {rounds: 1, iterations: 2, processes: false}\n"
    )
    result = run(recipe, tmp_path / "run")
    assert [stage.status for stage in result.stages] == ["done"] * len(STAGES)
    report = read_report(tmp_path / "run")
    assert report.conditions.n_samples == 15  # a quarter of each class, kept out of training and calibration
    assert {row.status for row in report.rows} <= {"ok", "built"}
    spec = open_artifact(tmp_path / "run" / "model.int8.engine").manifest.model
    assert spec.classes == ("apple", "bear", "car")
    assert {stage.status for stage in run(recipe, tmp_path / "run").stages} == {"fresh"}
    limited = read_recipe(recipe, {"bench.max_drop": 0, "bench.max_drop_by": "interval"})
    with pytest.raises(GateError, match=r"of top-1 \(95 % interval\), allowed 0"):  # 15 images show no such thing
        run(limited, tmp_path / "run")
    listed = run(read_recipe(recipe, {"bench.predictions": True}), tmp_path / "run")
    assert listed.stages[-1].reason == "predictions.parquet is gone"
    table = pyarrow.parquet.read_table(tmp_path / "run" / "predictions.parquet").to_pydict()
    assert set(table["row"]) == {row.name for row in listed.report.rows if row.status == "ok"}
    (tmp_path / "run" / "report.samples.npz").write_bytes(b"of another")
    again = run(read_recipe(recipe, {"bench.predictions": True}), tmp_path / "run")
    assert again.stages[-1].reason == "report.samples.npz is of another bench"
    extra = photos / "class_0" / "more.png"
    Image.new("L", (40, 40), 77).save(extra)
    notes = Notes()
    with pytest.raises(StopIteration):
        _stop_at_train(recipe, tmp_path / "run", notes)
    assert notes.lines == ["train: the data or a file that the recipe names changed, so it runs now"]


def _stop_at_train(recipe: Path, folder: Path, notes: Notes) -> None:
    class Stop(Notes):
        def note(self, text: str) -> None:
            notes.note(text)
            raise StopIteration

    run(recipe, folder, progress=Stop())


def test_a_run_can_start_from_a_checkpoint(finished_run: Path, quick_changes: dict[str, Any], tmp_path: Path) -> None:
    source = finished_run / "model.safetensors"
    changes = {name: value for name, value in quick_changes.items() if not name.startswith("train")}
    recipe = read_recipe(None, {**changes, "source": str(source), "quantize": [{"precision": "fp16"}]})
    folder = tmp_path / "from-source"
    result = run(recipe, folder)
    assert [stage.stage for stage in result.stages] == ["export", "quantize fp16", "build fp16", "bench"]
    assert open_artifact(folder / "model.onnx").manifest.parents["checkpoint"] == read_checkpoint(source).digest
    assert result.report.rows[0].backend == "pytorch"
    assert {stage.status for stage in run(recipe, folder).stages} == {"fresh"}


def test_without_openvino_its_rows_say_so_and_the_others_are_measured(
    finished_run: Path, quick_changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    changes = {name: value for name, value in quick_changes.items() if not name.startswith("train")}
    recipe = read_recipe(None, {**changes, "source": str(finished_run / "model.safetensors"), "build.precisions": []})
    rows = run(recipe, tmp_path / "without").report.rows
    skipped = [row for row in rows if row.status == "skipped"]
    assert [(row.backend, row.precision) for row in skipped] == [("openvino", "fp32"), ("openvino", "int8")]
    assert all("pip install 'vitdeploy[openvino]'" in str(row.reason) for row in skipped)
    assert {row.backend for row in rows if row.status == "ok"} == {"pytorch", "onnxruntime"}


def test_what_a_run_remembers_is_json_without_paths_of_the_machine(finished_run: Path) -> None:
    text = (finished_run / "run.json").read_text()
    assert set(json.loads(text)) == set(STAGES)
    assert str(finished_run.parent) not in text
    assert os.getcwd() not in text  # noqa: PTH109 - compared as text
