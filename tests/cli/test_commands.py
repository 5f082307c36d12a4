"""Each command does its work, says where the result is, and prints its record alone with ``--json``."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitdeploy.artifacts import open_artifact
from vitdeploy.cli import main
from vitdeploy.records import Report
from vitdeploy.report import read_report

pytestmark = pytest.mark.slow


@pytest.fixture
def work(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished run, entered."""
    monkeypatch.chdir(finished_run)
    Image.new("L", (8, 8), 90).save("image.png")
    return finished_run


def say(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(line.split()) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def record(line: str, capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(say(f"{line} --json", capsys))


def test_train_writes_a_checkpoint_and_shows_its_metrics(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--argument depth=1 --argument width=16 --argument patch=4 --argument heads=2"
    text = say(f"train digits -o t.safetensors --epochs 1 {small} --seed 3", capsys)
    assert "wrote t.safetensors" in text
    assert "top1" in text
    manifest = open_artifact(work / "t.safetensors").manifest
    assert (manifest.options["epochs"], manifest.options["seed"], manifest.model.arguments["depth"]) == (1, 3, 1)


def test_export_prints_its_checks_and_the_manifest(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = say("export model.safetensors -o e.onnx --opset 17", capsys)
    assert "PyTorch" in text
    assert "passed" in text
    assert "wrote e.onnx" in text
    printed = record("export vit -o r.onnx --random-weights --argument depth=1 --argument image_size=32", capsys)
    assert printed["path"] == "r.onnx"
    assert printed["manifest"]["kind"] == "onnx"
    assert printed["manifest"]["model"]["arguments"]["depth"] == 1


def test_convert_writes_a_checkpoint_and_export_points_to_it(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--model-arg depth=1 --model-arg image_size=32"
    assert "wrote c.safetensors" in say(f"convert vit --random-weights {arguments} -o c.safetensors", capsys)
    assert open_artifact(work / "c.safetensors").manifest.model.arguments["depth"] == 1
    assert main(["export", "c.safetensors", "-o", "d.safetensors"]) == 2
    assert "'vitdeploy convert' writes one" in capsys.readouterr().err
    assert main(["convert", "vit", "--random-weights", "-o", "d.onnx"]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err


def test_quantize_prints_what_it_judged(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = say("quantize model.onnx -o q.onnx --precision int8 --calibration digits --samples 64", capsys)
    assert "SQNR" in text
    assert "wrote q.onnx" in text
    printed = record(
        "quantize model.onnx -o p.onnx --precision int8 --calibration digits --samples 64 --method percentile "
        "--percentile 99.5 --equalization off --target openvino --table t.calib.json",
        capsys,
    )
    assert printed["manifest"]["target"] == "openvino"
    assert printed["manifest"]["options"]["percentile"] == 99.5
    assert open_artifact(work / "t.calib.json").manifest.kind == "calibration-table"
    again = record("quantize model.onnx -o p2.onnx --precision int8 --calibration t.calib.json", capsys)
    assert again["manifest"]["parents"]["calibration"] == open_artifact(work / "t.calib.json").digest


def test_build_says_what_for(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "build model.fp16.onnx -o b.engine --backend tensorrt-rtx --compute-capability 8.9 --batch 1:2:4"
    text = say(line, capsys)
    assert "batch 1 to 4, tuned for 2, for 8.9" in text
    printed = record(line.replace("b.engine", "c.engine"), capsys)
    assert printed["manifest"]["build"]["batch"] == [1, 2, 4]
    assert printed["manifest"]["build"]["compute_capabilities"] == ["8.9"]


def test_bench_prints_a_table_and_a_verdict(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "bench model.onnx model.int8.onnxruntime.onnx --data digits --samples 40 --rounds 1 --iterations 2"
    text = say(f"{line} --no-processes --report out --batch 1 --batch 4", capsys)
    assert "model.int8.onnxruntime.onnx" in text
    verdict = read_report(work / "out").verdict
    assert len(verdict) >= 2
    assert all(" ".join(sentence.split()) in " ".join(text.split()) for sentence in verdict)
    assert "wrote out/report.html" in text
    report = Report.model_validate(record(f"{line} --no-processes", capsys))
    assert report.conditions.n_samples == 40
    assert [row.backend for row in report.rows] == ["pytorch", "onnxruntime", "onnxruntime"]
    assert {path.name for path in (work / "out").iterdir()} == {
        "report.json",
        "report.md",
        "report.html",
        "report.samples.npz",
    }


def test_bench_holds_a_gate_after_it_has_reported(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "bench model.onnx --data digits --samples 40 --rounds 1 --iterations 2 --no-processes --report out"
    assert main([*line.split(), "--max-drop", "0.5"]) == 0
    capsys.readouterr()
    only = "bench model.onnx --data digits --samples 40 --rounds 1 --iterations 2 --no-processes --report only"
    assert main([*only.split(), "--baseline", "model.onnx", "--max-drop", "0.5"]) == 3
    assert "no candidate's top-1 could be compared" in capsys.readouterr().err
    assert (work / "only" / "report.json").is_file()


def test_compare_of_a_report_with_itself_finds_no_change(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "+0.0 %" in say("compare . report.json --max-drop 0 --max-slowdown 0", capsys)
    printed = record("compare . .", capsys)
    assert {timing["ratio"] for row in printed["rows"] for timing in row["timings"]} == {1.0}


def test_calibration_is_made_shown_and_checked(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "wrote c: 20 images of digits:train" in say("calibration make digits --samples 20 -o c", capsys)
    text = say("calibration show c", capsys)
    assert "images per class: 0 2, 1 2" in text
    assert "licence: CC" in text
    assert "overlap: passed: 0" in say("calibration check c --against digits:test", capsys)
    assert record("calibration show c", capsys)["samples"] == 20
    assert {check["status"] for check in record("calibration check c", capsys)} <= {"passed", "unchecked"}
    Path("recipe.yaml").write_text("data: digits\nsamples: 10\nseed: 4\n")
    assert record("calibration make --recipe recipe.yaml -o d", capsys)["seed"] == 4


def test_a_failed_calibration_check_exits_with_1(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say("calibration make digits:validation --samples 20 -o c", capsys)
    image = next(path for path in (work / "c").iterdir() if path.suffix == ".png")
    Image.new("L", (8, 8)).save(image)
    assert main(["calibration", "check", "c"]) == 1
    assert "failed" in capsys.readouterr().err


def test_predict_names_the_classes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for artifact in ("model.safetensors", "model.onnx", "model.int8.onnxruntime.onnx"):
        printed = record(f"predict {artifact} image.png image.png --top 3", capsys)
        assert [len(entry["classes"]) for entry in printed] == [3, 3]
        assert printed[0]["classes"][0]["name"] in "0123456789"
        assert say(f"predict {artifact} image.png --top 1", capsys).startswith("image.png: ")


def test_predict_goes_on_past_what_cannot_be_read_and_lists_it_last(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "torn.png").write_bytes((work / "image.png").read_bytes()[:40])
    (work / "empty.png").write_bytes(b"")
    line = "predict model.onnx torn.png image.png empty.png image.png --top 2"
    for form in ("", " --csv", " --json"):
        assert main((line + form).split()) == 1
        out, errors = capsys.readouterr()
        assert "torn.png" not in out
        last = errors.splitlines()
        assert last[-1] == "error: 2 of 4 images cannot be read and were left out"
        assert [text.startswith("left out: ") for text in last[-3:-1]] == [True, True]
        assert ["torn.png" in last[-3], "empty.png" in last[-2]] == [True, True]
    assert len(json.loads(out)) == 2


def test_predict_writes_the_same_lines_as_csv_and_parquet(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import csv

    import pyarrow.parquet

    Image.new("L", (8, 8), 200).save("digit.png")
    expected = record("predict model.onnx image.png digit.png --top 3", capsys)
    lines = list(csv.DictReader(say("predict model.onnx image.png digit.png --top 3 --csv", capsys).splitlines()))
    assert say("predict model.onnx image.png digit.png --top 3 --parquet out.parquet", capsys) == ""
    table = pyarrow.parquet.read_table("out.parquet").to_pylist()
    assert len(table) == len(lines) == 6
    flat = [
        {"image": one["image"], "rank": rank, **entry}
        for one in expected
        for rank, entry in enumerate(one["classes"], start=1)
    ]
    assert table == flat
    assert lines == [{name: str(value) for name, value in line.items()} for line in flat]


def test_images_by_any_name_are_read_and_called_the_same_in_every_form(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import csv

    import pyarrow.parquet

    names = [b"caf\xe9.png", rb"caf\xe9.png", b"a\x1b[31m\n.png", "café.png".encode()]
    (work / "pictures").mkdir()
    for name in names:
        shutil.copyfile(work / "image.png", os.path.join(os.fsencode(work / "pictures"), name))  # noqa: PTH118 - bytes
    shown = [r"pictures/a\x1b[31m\x0a.png", r"pictures/caf\\xe9.png", "pictures/café.png", r"pictures/caf\xe9.png"]
    line = "predict model.onnx pictures --top 1"
    assert [one["image"] for one in record(line, capsys)] == shown
    assert [one["image"] for one in csv.DictReader(say(f"{line} --csv", capsys).splitlines())] == shown
    assert [text.rpartition(": ")[0] for text in say(line, capsys).splitlines()] == shown
    say(f"{line} --parquet names.parquet", capsys)
    assert pyarrow.parquet.read_table("names.parquet")["image"].to_pylist() == shown
    Path("pictures", os.fsdecode(b"b\xe9.png")).write_bytes(b"torn")
    assert main(line.split()) == 1
    assert r"left out: 'pictures/b\xe9.png' is not an image" in capsys.readouterr().err


def test_predict_says_which_files_of_a_folder_are_no_images_to_it(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "phone").mkdir()
    shutil.copyfile("image.png", "phone/1.png")
    for name in ("2.HEIC", "3.heic", "notes.txt", ".DS_Store"):
        Path("phone", name).write_bytes(b"x")
    assert main(["predict", "model.onnx", "phone", "--csv"]) == 0
    found = capsys.readouterr()
    assert "'phone': left out are 2 .heic, 1 .txt, which are not read as images" in found.err
    assert "phone/1.png" in found.out
    assert main(["predict", "model.onnx", ""]) == 1
    assert capsys.readouterr().err == "error: the name of an image is empty\n"


@pytest.mark.parametrize("forms", ["--csv --json", "--csv --parquet x.parquet", "--parquet x.parquet --json"])
def test_predict_prints_in_one_form(work: Path, capsys: pytest.CaptureFixture[str], forms: str) -> None:
    assert main(["predict", "model.onnx", "image.png", *forms.split()]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert not Path("x.parquet").exists()


def test_inspect_tells_what_a_file_is(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = say("inspect model.int8.onnx", capsys)
    for part in (
        "kind:          onnx",
        "precision:     int8 for tensorrt",
        "QuantizeLinear",
        "digits:train",
        "digest:",
    ):
        assert part in text
    assert "tensorrt-rtx" in say("inspect model.fp16.engine", capsys)
    assert "weights:" in say("inspect model.safetensors", capsys)
    assert record("inspect model.onnx", capsys)["graph"]["opset"] == 20


def test_verify_prints_every_check(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = say("verify model.int8.onnx", capsys)
    assert "digest: passed: content" in text
    assert "golden samples: " in text
    checks = {check["name"]: check for check in record("verify model.onnx --data digits:test", capsys)["checks"]}
    assert checks["agreement with PyTorch"]["value"] == 1.0


def test_models_lists_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    text = say("models vit_*_patch16_224", capsys)
    assert text.splitlines()[0].split()[:2] == ["name", "input"]
    (line,) = (line for line in text.splitlines() if line.startswith("vit_base_patch16_224 "))
    assert line.split()[1:4] == ["3x224x224", "86.6", "17.56"]
    assert "ViT-B/16, B_16, vit_b_16" in line
    assert "timm:vit_base_patch16_224.augreg_in21k_ft_in1k" in line
    one = say("models S60", capsys).splitlines()
    assert one[0] == "patchconvnet_s60"
    assert "  also called  S60, PatchConvNet-S60" in one
    printed = {entry["name"]: entry for entry in record("models vit_base_patch16_224", capsys)}
    assert printed["vit_base_patch16_224"]["parameters"] == 86_567_656
    assert main(["models", "nothing"]) == 1
    assert capsys.readouterr().err == "error: no model matches 'nothing': 'vitdeploy models' lists all of them\n"


def test_doctor_prints_findings_and_remedies(capsys: pytest.CaptureFixture[str]) -> None:
    text = say("doctor", capsys)
    assert "machine:" in text
    assert "backend:" in text
    names = {entry["name"] for entry in record("doctor", capsys)}
    assert {"python", "GPU", "onnxruntime", "tensorrt", "tensorrt-rtx"} <= names


def test_run_prints_table_verdict_and_where_the_report_is(
    work: Path, quick_changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    line = " ".join(["run -o .", *(f"--set {name}={value}" for name, value in quick_changes.items())])
    text = say(line, capsys)
    assert "model.fp16.engine" in text
    assert text.endswith("everything was fresh: nothing was done\nreport: report.html\n")
    printed = record(line, capsys)
    assert printed["page"] == "report.html"
    assert {stage["status"] for stage in printed["stages"]} == {"fresh"}
    assert Report.model_validate(printed["report"]).rows


def test_print_recipe_prints_the_recipe_that_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from vitdeploy import Recipe, read_recipe

    path = tmp_path / "printed.yaml"
    path.write_text(say("run --print-recipe", capsys))
    assert read_recipe(path) == Recipe()
