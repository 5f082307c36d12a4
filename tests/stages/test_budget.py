"""``quantize --max-drop``: the fastest graph within a budget, with latencies that follow from a script."""

from __future__ import annotations

import errno
import io
import json
import os
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from notes import Notes
from outliers import weight_outliers
from PIL import Image
from present import present
from readout_vit import write_readout_vit
from rich.console import Console
from scripted_backend import ScriptedBackend, scripted

from vitdeploy.artifacts import OnnxModel, files, read_onnx, write_onnx
from vitdeploy.artifacts.pages import other_pages
from vitdeploy.cli import main
from vitdeploy.errors import ArtifactError, BackendError, BudgetError, DataError, GraphError, RecipeError, UsageError
from vitdeploy.pipeline import read_recipe
from vitdeploy.pipeline import run as carry_out
from vitdeploy.quantization.budget_run import front_beside
from vitdeploy.records import Front, PlanEntry, PrecisionPlan
from vitdeploy.report import front_table, read_front, write_front_page
from vitdeploy.stages.inspect import inspect
from vitdeploy.stages.quantize import QuantizeOptions, QuantizeRequest, quantize

pytestmark = pytest.mark.slow

BAD = "blocks.1.mlp.fc1"
PARTS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
GROUPS = {"patch", *(f"blocks.{index}.{part}" for index in (0, 1) for part in PARTS)}
IMAGES = 1097


@pytest.fixture(scope="module")
def backend() -> Iterator[ScriptedBackend]:
    with pytest.MonkeyPatch.context() as patch, scripted() as registered:
        patch.setattr("vitdeploy.measure.timing.wait_for_rest", lambda: True)
        yield registered


@pytest.fixture
def runtime(backend: ScriptedBackend) -> ScriptedBackend:
    """The registered backend, as it was at first."""
    backend.reset()
    return backend


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return write_readout_vit(tmp_path_factory.mktemp("source") / "vit.onnx", 2)


@pytest.fixture(scope="module")
def planted(source: OnnxModel) -> OnnxModel:
    """The same function, and one group whose weights round to almost nothing."""
    path = source.path.with_name("planted.onnx")
    return write_onnx(path, weight_outliers(source.load(), BAD, 3000.0), source.manifest, source.golden)


@pytest.fixture(scope="module")
def searched(backend: ScriptedBackend, planted: OnnxModel) -> tuple[OnnxModel, int]:
    """The planted graph within two points, and how many graphs were opened for it."""
    backend.reset()
    return run(planted, planted.path.with_name("searched.onnx")), backend.opened


def options(**changes: Any) -> QuantizeOptions:
    plain = {
        "threads": 1, "method": "minmax", "equalization": "off", "steps": (), "validation": "digits:train",
        "max_drop": 2.0, "time_on": "scripted",
    }  # fmt: skip
    return QuantizeOptions(**{**plain, **changes})


def run(model: OnnxModel, output: Path, notes: Notes | None = None, **changes: Any) -> OnnxModel:
    return quantize(
        model, output, precision="int8", target="openvino", calibration="digits:validation",
        options=options(**changes), progress=notes,
    )  # fmt: skip


def front_of(output: Path) -> Front:
    return read_front(output.with_suffix(".budget") / "front.json")


def test_a_bad_group_goes_back_to_high_precision(searched: tuple[OnnxModel, int]) -> None:
    made, _ = searched
    front = front_of(made.path)
    assert front.within_budget
    (chosen,) = (one for one in front.candidates if one.name == front.chosen)
    full = next(one for one in front.candidates if one.name == "int8")
    assert BAD in chosen.high
    assert -chosen.delta_ci95_pp[0] <= 2.0
    assert -full.delta_ci95_pp[0] > 2.0, "with all groups in 8 bits the drop is beyond the budget"
    assert not full.certified
    faster = [one for one in front.candidates if one.speedup > chosen.speedup * 1.01]
    assert not any(one.certified for one in faster)
    # 10 linears of 1 ms in FP32; 9 of them, all but the head, may take 0.4 ms
    quantized = len(GROUPS) - len(chosen.high)
    assert chosen.speedup == pytest.approx(10 / (10 - 0.6 * quantized))
    kept = {entry.group for entry in made.manifest.plan.entries if entry.precision == "fp32"}
    assert BAD in kept
    check = next(check for check in made.manifest.checks if check.name == "top-1 drop")
    assert (check.status, check.limit) == ("passed", 2.0)
    assert made.manifest.precision == "int8"


def test_the_front_is_what_none_beats_and_its_plans_replay_to_the_same_graph(
    runtime: ScriptedBackend, planted: OnnxModel, searched: tuple[OnnxModel, int], tmp_path: Path
) -> None:
    made, _ = searched
    front = front_of(made.path)
    best = [one for one in front.candidates if one.on_front]
    speeds = [present(one.speedup) for one in best]
    assert speeds == sorted(speeds, reverse=True)
    noise = [present(one.logits_sqnr_db) for one in best if one.precision == "int8"]
    assert noise == sorted(noise)
    (chosen,) = (one for one in front.candidates if one.name == front.chosen)
    replayed = run(
        planted, tmp_path / "again.onnx", max_drop=None, time_on=None,
        plan=made.path.with_suffix(".budget") / chosen.plan_file,
    )  # fmt: skip
    assert replayed.digest == made.digest
    again = run(planted, tmp_path / "again.onnx")
    assert again.path.read_bytes() == made.path.read_bytes()


@pytest.mark.parametrize("full_at", ["front.html", "front.json", "a plan", "the graph"])
def test_a_full_disk_leaves_the_earlier_front_and_its_plans(
    searched: tuple[OnnxModel, int], tmp_path: Path, full_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = searched[0].path.with_suffix(".budget"), tmp_path / "made.budget"
    front = front_of(searched[0].path)
    plans = {
        one.name: PrecisionPlan.model_validate_json((source / one.plan_file).read_text("utf8"))
        for one in front.candidates
        if one.plan_file
    }

    def called(suffix: str) -> Front:
        candidates = tuple(
            one.model_copy(update={"name": f"{one.name}{suffix}", "plan": plans.get(one.name)})
            for one in front.candidates
        )
        return front.model_copy(update={"candidates": candidates, "chosen": f"{front.chosen}{suffix}"})

    with front_beside(folder, called(""), page=lambda front: f"{front.chosen}\n") as path:
        assert not path.exists()
    assert (folder / "front.html").read_text("utf8").startswith(front.chosen)
    assert other_pages(folder / "front.json", [folder / "front.html"]) == []
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.keys() == {"front.json", "front.html", *(one.plan_file for one in front.candidates if one.plan_file)}
    written = count()

    def full(path: Path) -> None:
        if next(written) == {"front.html": 0, "front.json": 1, "a plan": 2}.get(full_at):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", full)
        beside = front_beside(folder, called(" b"), page=lambda front: "other")
        with pytest.raises(ArtifactError, match="the disk is full"), beside:
            raise ArtifactError("the disk is full: the graph")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with front_beside(folder, called(" b")):
        pass
    assert other_pages(folder / "front.json", [folder / "front.html"]) == [folder / "front.html"]
    assert before.keys() & {path.name for path in folder.iterdir()} == {"front.json", "front.html"}, (
        "earlier plans are removed"
    )


def test_inspect_says_what_a_search_and_a_plan_are(searched: tuple[OnnxModel, int]) -> None:
    folder = searched[0].path.with_suffix(".budget")
    front = front_of(searched[0].path)
    for place in (folder, folder / "front.json"):
        found = inspect(place)
        assert (found.kind, found.path) == ("front", str(folder / "front.json"))
        assert [text for name, text in found.facts if name == "verdict"] == list(front.verdict)
        assert dict(found.facts)["candidates"].startswith(f"{len(front.candidates)}, ")
    (chosen,) = (one for one in front.candidates if one.name == front.chosen)
    plan = inspect(folder / chosen.plan_file)
    assert plan.kind == "plan"
    quantized = [entry for entry in present(chosen.plan).entries if entry.precision == "int8"]
    assert ("groups", f"{len(quantized)} in int8") in plan.facts


def test_integers_that_are_slower_leave_fp32_as_it_is_and_say_so(
    runtime: ScriptedBackend, source: OnnxModel, tmp_path: Path
) -> None:
    runtime.script = lambda kind, _: {"INT8": 1.5, "FLOAT": 1.0, "FLOAT16": 2.0}[kind]
    made = run(source, tmp_path / "made.onnx")
    front = front_of(made.path)
    assert (front.chosen, front.within_budget, made.manifest.precision) == ("fp32", True, "fp32")
    assert front.verdict[0].startswith("FP32 is the fastest on scripted on the CPU")
    assert "int8 is not faster here: it takes 1.45 times the time of fp32" in front.verdict
    assert not any(node.op_type == "QuantizeLinear" for node in made.load().graph)


def test_fp16_that_is_faster_is_taken(runtime: ScriptedBackend, source: OnnxModel, tmp_path: Path) -> None:
    runtime.script = lambda kind, _: {"INT8": 0.9, "FLOAT": 1.0, "FLOAT16": 0.5}[kind]
    made = run(source, tmp_path / "made.onnx")
    assert made.manifest.precision == "fp16"
    front = front_of(made.path)
    assert front.chosen == "fp16"
    assert "int8 is not faster here: it takes 1.82 times the time of fp16" in front.verdict


def test_layers_that_integers_slow_down_stay_in_high_precision(
    runtime: ScriptedBackend, source: OnnxModel, tmp_path: Path
) -> None:
    def script(kind: str, sizes: tuple[int, ...]) -> float:
        return {"INT8": 3.0 if sizes == (32, 96) else 0.4, "FLOAT": 1.0, "FLOAT16": 2.0}[kind]

    runtime.script, notes = script, Notes()
    made = run(source, tmp_path / "made.onnx", notes, max_drop=3.0)
    front = front_of(made.path)
    (chosen,) = (one for one in front.candidates if one.name == front.chosen)
    assert {"blocks.0.attn.qkv", "blocks.1.attn.qkv"} <= set(chosen.high)
    assert "faster in fp32 than in int8 here: qkv 32→96" in notes.lines


def test_too_few_images_say_how_many_are_needed_and_rank_by_the_error_of_the_logits(
    runtime: ScriptedBackend, source: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(1_000_000)  # a second passes from one look at it to the next
    monkeypatch.setattr("vitdeploy.quantization.budget.time", SimpleNamespace(monotonic=lambda: next(clock)))
    output, notes = tmp_path / "made.onnx", Notes()
    before = run(source, output).path.read_bytes()
    words = r"1097 images cannot certify a drop of at most 0\.1 pp, 3838 are needed"
    with pytest.raises(BudgetError, match=words) as caught:
        run(source, output, notes, max_drop=0.1)
    assert caught.value.exit_code == 3
    assert output.read_bytes() == before, "what was there is untouched"
    assert read_onnx(tmp_path / "made.best-found.onnx").manifest.plan is not None
    assert notes.lines[1].startswith("1097 images cannot certify a drop of at most 0.1 pp, 3838 are needed"), "at once"
    assert "made.best-found.onnx', with exit code 3" in notes.lines[1]
    assert any(re.match(r"the search takes about \d+ (s|min) more", line) for line in notes.lines)
    front = read_front(caught.value.front)
    (base,) = (present(one.p50_ms) for one in front.candidates if one.name == "fp32")
    timed = [one for one in front.candidates if one.speedup is not None]
    assert len(timed) > 5
    assert all(one.p50_ms == pytest.approx(base / present(one.speedup)) for one in timed), "one scale"
    assert not front.within_budget
    assert front.least_images == 3838
    noise = [present(one.logits_sqnr_db) for one in front.candidates if one.precision == "int8"]
    assert noise == sorted(noise, reverse=True)
    assert all(one.images_needed > IMAGES for one in front.candidates if one.images_needed is not None)


def test_nothing_within_the_budget_is_a_gate_and_the_best_found_has_another_name(
    runtime: ScriptedBackend, planted: OnnxModel, tmp_path: Path
) -> None:
    plan = PrecisionPlan(
        profile="hand", remainder="fp32",
        entries=tuple(PlanEntry(group=name, precision="fp32") for name in sorted(GROUPS - {BAD})),
    )  # fmt: skip
    with pytest.raises(BudgetError, match="nothing faster than FP32 is certain to drop by at most 1 pp"):
        run(planted, tmp_path / "made.onnx", max_drop=1.0, plan=plan)
    assert not (tmp_path / "made.onnx").exists()
    found = read_onnx(tmp_path / "made.best-found.onnx")
    check = next(check for check in found.manifest.checks if check.name == "top-1 drop")
    assert check.status == "failed"
    assert check.value > 1.0


@pytest.mark.parametrize("calls", [3, 60, 100])
def test_killed_it_goes_on_from_what_was_measured(
    runtime: ScriptedBackend, planted: OnnxModel, searched: tuple[OnnxModel, int], tmp_path: Path, calls: int
) -> None:
    whole, opened = searched
    runtime.fails_after = calls
    output = tmp_path / "made.onnx"
    with pytest.raises(KeyboardInterrupt):
        run(planted, output)
    assert not output.exists()
    started = runtime.opened
    runtime.fails_after, runtime.opened, notes = None, 0, Notes()
    made = run(planted, output, notes)
    assert made.digest == whole.digest
    kept = [line for line in notes.lines if line.startswith("the search resumes after ")]
    if calls > 3:
        assert kept
        assert runtime.opened < opened
        assert runtime.opened + started >= opened
    assert not list(tmp_path.glob(".*budget*"))
    fronts = (front_of(whole.path), front_of(output))
    ours, theirs = ({one.name: (one.speedup, one.gained, one.lost) for one in front.candidates} for front in fronts)
    assert ours == theirs


def test_a_candidate_that_the_runtime_refuses_is_out_and_the_others_go_on(
    runtime: ScriptedBackend, source: OnnxModel, tmp_path: Path
) -> None:
    def script(kind: str, _: tuple[int, ...]) -> float:
        if kind == "FLOAT16":
            raise BackendError("no FP16 here")
        return 0.4 if kind == "INT8" else 1.0

    runtime.script = script
    made = run(source, tmp_path / "made.onnx", max_drop=3.0)
    front = front_of(made.path)
    (half,) = (one for one in front.candidates if one.name == "fp16")
    assert "no FP16 here" in half.failure
    assert front.chosen.startswith("int8")


def test_bad_input_is_refused_and_nothing_is_written(
    runtime: ScriptedBackend, source: OnnxModel, tmp_path: Path
) -> None:
    output = tmp_path / "made.onnx"
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("a", "b"):
        Image.new("L", (8, 8), 90).save(flat / f"{name}.png")
    absent = PrecisionPlan(profile="hand", remainder="fp32", entries=(PlanEntry(group="nose", precision="fp32"),))
    with pytest.raises(UsageError, match="no runtime for time_on='abacus'"):
        run(source, output, time_on="abacus")
    with pytest.raises(UsageError, match="no runtime for time_on='pytorch'"):
        run(source, output, time_on="pytorch")
    with pytest.raises(BackendError, match="nothing can be timed on 'tensorrt' here"):
        quantize(source, output, precision="int8", calibration="digits:validation", options=options(time_on="tensorrt"))
    with pytest.raises(UsageError, match="the target is 'tensorrt' and latency is taken on 'openvino'"):
        quantize(
            source, output, precision="int8", target="tensorrt", calibration="digits:validation",
            options=options(time_on="openvino"),
        )  # fmt: skip
    with pytest.raises(DataError, match="labels"):
        run(source, output, validation=str(flat))
    with pytest.raises(DataError, match="validation='DATA'"):
        run(source, output, validation=None)
    with pytest.raises(GraphError, match="'nose', which is not in the graph"):
        run(source, output, plan=absent)
    with pytest.raises(UsageError, match="expected precision int8 or fp8"):
        quantize(source, output, precision="fp16", target="openvino", options=options())
    with pytest.raises(UsageError, match="say where: time_on="):
        options(time_on=None)
    with pytest.raises(UsageError, match="set max_drop= too"):
        options(max_drop=None)
    with pytest.raises(UsageError, match="max_drop"):
        options(max_drop=0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flat"]


def test_the_key_knows_the_budget_and_where_it_was_timed(runtime: ScriptedBackend, source: OnnxModel) -> None:
    def key(**changes: Any) -> str:
        return QuantizeRequest.open(
            source, "unwritten.onnx", precision="int8", target="openvino", calibration="digits:validation",
            options=options(**changes),
        ).key  # fmt: skip

    assert key() == key()
    assert len({key(), key(max_drop=1.0), key(time_batch=8), key(max_drop=None, time_on=None)}) == 4


def test_page_and_table_show_every_candidate(searched: tuple[OnnxModel, int]) -> None:
    made, _ = searched
    page = write_front_page(made.path.with_suffix(".budget") / "front.json")
    text, front = page.read_text("utf8"), front_of(made.path)
    assert "<script" not in text
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", text)
    stream = io.StringIO()
    Console(file=stream, width=80).print(front_table(front))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for one in front.candidates:
        assert f'data-name="{one.name}"' in text
        assert any(line.strip().startswith(one.name) for line in lines)
    assert text.count("<svg") >= 2


def test_the_command_line_shows_the_front_and_exits_with_3_where_nothing_is_certain(
    runtime: ScriptedBackend, source: OnnxModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "quantize", str(source.path), "-o", str(tmp_path / "made.onnx"), "--calibration", "digits:validation",
        "--validation", "digits:train", "--time-on", "scripted", "--target", "openvino", "--effort", "fast",
        "--threads", "1",
    ]  # fmt: skip
    assert main([*line, "--max-drop", "3"]) == 0
    out = capsys.readouterr().out
    assert "is the fastest within 3 pp on scripted on the CPU" in out
    assert (tmp_path / "made.budget" / "front.html").is_file()
    assert main([*line, "--max-drop", "0.01"]) == 3
    printed = capsys.readouterr()
    assert "made.best-found.onnx' was written" in printed.err
    assert json.loads((tmp_path / "made.budget" / "front.json").read_text("utf8"))["within_budget"] is False
    assert main([word for word in line if word not in ("--time-on", "scripted")]) == 2
    assert "--precision says what to make" in capsys.readouterr().err


def section(**changes: Any) -> dict[str, Any]:
    budget = {"max_drop": 5.0, "time_on": "scripted", "validation": "digits:validation"}
    chosen = {**budget, "threads": 1, "effort": "fast", **changes}
    return {"precision": "int8", "target": "openvino", "samples": 100, "options": chosen}


def test_a_run_takes_a_budget_as_lines_of_its_recipe(
    runtime: ScriptedBackend, finished_run: Path, quick_changes: dict[str, Any]
) -> None:
    recipe = read_recipe(None, {**quick_changes, "quantize": [section()]})
    result = carry_out(recipe, finished_run, progress=None)
    states = {outcome.stage: outcome.status for outcome in result.stages}
    assert (states["train"], states["quantize int8.openvino"]) == ("fresh", "done")
    assert front_of(finished_run / "model.int8.openvino.onnx").within_budget
    assert (finished_run / "model.int8.openvino.budget" / "front.html").is_file()
    again = carry_out(recipe, finished_run, progress=None)
    assert {outcome.status for outcome in again.stages if outcome.stage.startswith("quantize")} == {"fresh"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"time_on": "abacus"}, "no runtime for time_on='abacus'"),
        ({"time_on": "onnxruntime"}, "time_on is 'onnxruntime' and the target 'openvino'"),
        ({"validation": None}, "options.validation"),
        ({"max_drop": None}, "set max_drop= too"),
    ],
)
def test_a_recipe_with_half_a_budget_is_refused(runtime: ScriptedBackend, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        read_recipe(None, {"quantize": [section(**changes)]})
