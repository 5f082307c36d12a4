"""Bad input gets one line on stderr, exit code 1 (2 for usage), no traceback, and nothing is written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from vitdeploy.artifacts import read_onnx, sidecar_of, write_onnx
from vitdeploy.cli import main
from vitdeploy.report import read_report
from vitdeploy.report.files import report_json

pytestmark = pytest.mark.slow

Run = Callable[..., str]


@pytest.fixture
def refused(finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command inside a finished run's folder and return its error, after checking what holds for every error."""
    monkeypatch.chdir(finished_run)

    def run(line: str, *, code: int = 1, notes: tuple[str, ...] = ()) -> str:
        before = snapshot(finished_run)
        capsys.readouterr()
        assert main(line.split()) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        *said, last = captured.err.splitlines()
        assert [line for line in said if not line.startswith(notes)] == []
        assert last.startswith("error: ")
        assert snapshot(finished_run) == before
        return last.removeprefix("error: ")

    return run


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path, where: float) -> None:
    """Flip one bit, ``where`` as a fraction of the file."""
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 4
    path.write_bytes(data)


COMMANDS_ON_A_FILE = {
    "onnx": (
        "quantize {} -o out.onnx --precision fp16",
        "build {} -o out.engine",
        "bench {} --data digits",
        "predict {} image.png",
        "verify {}",
        "inspect {}",
    ),
    "safetensors": ("export {} -o out.onnx", "bench {} --data digits", "predict {} image.png", "verify {}"),
    "engine": ("bench {} --data digits", "predict {} image.png", "verify {}", "inspect {}"),
}


@pytest.mark.parametrize("command", sorted({line for lines in COMMANDS_ON_A_FILE.values() for line in lines}))
def test_a_missing_file_is_named(refused: Run, command: str) -> None:
    if command.startswith("export"):
        assert refused(command.format("none.safetensors"), code=1).find("none.safetensors") >= 0
    else:
        assert "there is no file 'none.onnx'" in refused(command.format("none.onnx"))


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (name, command)
        for kind, name in (
            ("onnx", "model.onnx"),
            ("safetensors", "model.safetensors"),
            ("engine", "model.fp16.engine"),
        )
        for command in COMMANDS_ON_A_FILE[kind]
    ],
)
def test_a_flipped_bit_is_noticed(refused: Run, finished_run: Path, name: str, command: str) -> None:
    flip(finished_run / name, 0.6)
    said = refused(command.format(name))
    assert name in said
    assert re.search("does not match|damaged|not an ONNX|not a whole", said)


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "model.fp16.engine"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_noticed(refused: Run, finished_run: Path, name: str, share: float) -> None:
    path = finished_run / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert name in refused(f"verify {name}")


def test_a_file_of_another_kind_is_told_what_was_expected(refused: Run, finished_run: Path) -> None:
    Image.new("L", (8, 8)).save(finished_run / "image.png")
    (finished_run / "notes.txt").write_text("hello")
    for name in ("image.png", "notes.txt"):
        for command in ("quantize {} -o o.onnx --precision fp16", "build {} -o o.engine", "verify {}", "inspect {}"):
            assert name in refused(command.format(name))
    assert "model.safetensors" in refused("quantize model.safetensors -o o.onnx --precision fp16")
    assert "is the folder of a run" in refused("build . -o o.engine")
    assert "is the record of a run, expected a report" in refused("compare run.json run.json")


def test_a_manifest_that_lies_about_its_payload_is_refused(refused: Run, finished_run: Path) -> None:
    first, second = onnx.load(finished_run / "model.onnx"), onnx.load(finished_run / "model.fp16.onnx")
    del second.metadata_props[:]
    second.metadata_props.extend(first.metadata_props)
    onnx.save(second, finished_run / "lies.onnx")
    assert "does not match the digest in its manifest" in refused("build lies.onnx -o lies.engine")
    sidecar = sidecar_of(finished_run / "model.fp16.engine")
    edited = json.loads(sidecar.read_text())
    edited["precision"] = "int8"
    sidecar.write_text(json.dumps(edited))
    assert "does not match its digest" in refused("verify model.fp16.engine")
    sidecar.write_bytes(sidecar_of(finished_run / "model.int8.engine").read_bytes())
    assert "does not match the digest in its manifest" in refused("verify model.fp16.engine")


def test_a_graph_without_a_manifest_is_told_how_to_adopt_it(refused: Run, finished_run: Path) -> None:
    model = onnx.load(finished_run / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, finished_run / "foreign.onnx")
    for command in COMMANDS_ON_A_FILE["onnx"][:5]:
        said = refused(command.format("foreign.onnx"))
        assert "has no vitdeploy manifest" in said
        assert "'vitdeploy export foreign.onnx -o adopted.onnx --preprocess" in said


def make_images(folder: Path, classes: int, each: int = 4) -> None:
    for label in range(classes):
        (folder / f"c{label}").mkdir(parents=True)
        for index in range(each):
            Image.fromarray(np.full((8, 8), 40 * label + index, np.uint8)).save(folder / f"c{label}" / f"{index}.png")


def test_folders_that_cannot_be_trained_on_are_refused(refused: Run, finished_run: Path) -> None:
    (finished_run / "empty").mkdir()
    make_images(finished_run / "one", 1, 8)
    assert "there is no dataset 'nowhere'" in refused("train nowhere -o t.safetensors")
    assert "'empty' holds no images, expected files such as .jpg" in refused("train empty -o t.safetensors")
    assert "'one:train' has one class only, 'c0'" in refused("train one -o t.safetensors")
    assert "'one:train' has one class only, 'c0'" in refused("run --data one -o .")


def test_an_unreadable_image_is_named(refused: Run, finished_run: Path) -> None:
    make_images(finished_run / "photos", 2, 8)
    for label in ("c0", "c1"):
        for path in (finished_run / "photos" / label).iterdir():
            path.write_bytes(path.read_bytes()[:48])
    said = refused(
        "train photos -o t.safetensors",
        notes=("'photos' has no folders", "vit of small size", "batch 10 instead of 64"),
    )
    assert re.search(r"10 of 10 images cannot be read: image 'photos/c\d/\d\.png' is truncated", said)
    said = refused(
        "quantize model.onnx -o o.onnx --precision int8 --calibration photos",
        notes=(
            "the graph is for TensorRT",
            "calibration images",
            "'photos' has no folders",
            "warning: the calibration set",
        ),
    )
    assert re.search(r"\d\.png", said)
    (finished_run / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "broken.png" in refused("predict model.onnx broken.png")


def test_labels_that_do_not_fit_the_model_are_listed(refused: Run, finished_run: Path) -> None:
    make_images(finished_run / "photos", 2)
    said = refused("bench model.onnx --data photos --no-processes")
    assert "'c0', 'c1'" in said


def test_int8_without_calibration_is_refused(refused: Run) -> None:
    assert "needs calibration images, ranges are never invented" in refused(
        "quantize model.onnx -o o.onnx --precision int8"
    )
    assert "is a test split" in refused("quantize model.onnx -o o.onnx --precision int8 --calibration digits:test")


def test_a_table_of_another_graph_is_refused(refused: Run, finished_run: Path) -> None:
    table = finished_run / "t.calib.json"
    made = "quantize model.onnx -o o.onnx --precision int8 --calibration digits --samples 32 --table t.calib.json"
    assert main(made.split()) == 0
    assert table.is_file()
    other = read_onnx(finished_run / "model.onnx")
    graph = other.load()
    weight = next(value for value in graph.graph.initializers.values() if value.const_value.size > 1000)
    import onnx_ir

    weight.const_value = onnx_ir.tensor(2 * weight.const_value.numpy(), name=weight.name)
    write_onnx(finished_run / "other.onnx", graph, other.manifest, other.golden)
    assert "t.calib.json" in refused("quantize other.onnx -o p.onnx --precision int8 --calibration t.calib.json")


def test_a_quantized_graph_is_not_quantized_again(refused: Run) -> None:
    said = refused("quantize model.int8.onnx -o o.onnx --precision fp16")
    assert "is int8 already: quantize the FP32 graph" in said


def test_a_graph_with_nothing_to_quantize_is_refused(refused: Run, finished_run: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    tiny (float[batch, 1, 8, 8] input) => (float[batch, 64] logits) { logits = Flatten(input) }"""
    onnx.save(onnx.parser.parse_model(text), finished_run / "flat.onnx")
    assert main(["export", "flat.onnx", "--preprocess", "digits", "-o", "adopted.onnx"]) == 0
    said = refused(
        "quantize adopted.onnx -o o.onnx --precision int8 --calibration digits --samples 32",
        notes=("the graph is for TensorRT", "calibration images"),
    )
    assert re.search("nothing|no linear|no .*quantiz", said)


def test_an_unknown_compute_capability_is_refused(refused: Run) -> None:
    said = refused("build model.fp16.onnx -o o.engine --backend tensorrt-rtx --compute-capability 3.5")
    assert "3.5" in said
    assert "8.9" in said


def test_an_engine_of_another_version_or_gpu_says_which(refused: Run, finished_run: Path) -> None:
    Image.new("L", (8, 8)).save(finished_run / "image.png")
    said = refused("predict model.fp16.engine image.png")
    assert re.search("cannot run here|built", said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train", "Missing argument 'DATA' (see 'vitdeploy train --help')"),
        ("train digits", "Missing option '--output' / '-o'"),
        ("train digits -o x --epochs three", "got 'three'"),
        ("train digits -o x --epochs 3 --set epochs=4", "epochs is given twice"),
        ("train digits -o x.safetensors --set epoch=4", "there is no training option 'epoch': did you mean epochs"),
        ("train digits -o x.safetensors --epochs 0", "epochs is 0: Input should be greater than or equal to 1"),
        ("export m -o x --weights w --random-weights", "--weights and --random-weights contradict each other"),
        ("export model.safetensors -o x.onnx --opset 3", "opset 3 is not offered, expected 17 to 20"),
        ("export model.safetensors -o x.onnx --output-name y", "--output-name is for ONNX files"),
        ("quantize model.onnx -o o.onnx --precision int9", "'int9' is not one of 'fp16', 'int8'"),
        ("quantize model.onnx -o o.onnx --precision fp16 --percentile 99", "--percentile 99 goes with --method"),
        ("quantize model.onnx -o o.onnx --precision fp16 --table t.calib.json", "--table keeps activation ranges"),
        ("quantize model.onnx -o o.onnx --precision int8 --equalization on", "expected 'auto', 'off' or a number"),
        ("build model.onnx -o o.engine --batch 8:1:2", "expected MIN <= OPT <= MAX"),
        ("build model.onnx -o o.engine --backend onnxruntime", "'onnxruntime' is not one of"),
        ("bench", "Missing argument 'ARTIFACT...'"),
        ("bench model.onnx --data digits --runtime abacus", "there is no runtime 'abacus'"),
        ("bench model.onnx --data digits --rounds 0", "greater than or equal to 1"),
        ("compare report.json report.json --max-drop -1", "greater than or equal to 0"),
        (
            "quantize model.onnx -o o.onnx --precision int8 --calibration digits --max-drop 1",
            "--max-drop finds the fastest graph, so say where: --time-on onnxruntime",
        ),
        (
            "quantize model.onnx -o o.onnx --precision int8 --calibration digits --time-on openvino",
            "--time-on openvino is for a search only: set --max-drop too",
        ),
        (
            "quantize model.onnx -o o.onnx --precision int8 --calibration digits --max-drop 1 --time-on abacus",
            "there is no runtime for --time-on abacus, expected one of",
        ),
        ("calibration make -o c", "name the DATA and how many --samples, or a --recipe"),
        ("calibration make digits -o c --recipe r.yaml --samples 3", "--recipe sets samples"),
        ("predict model.onnx", "Missing argument 'IMAGE...'"),
        ("run --print-recipe --data digits", "--print-recipe prints the default and takes nothing else"),
        ("run --data digits --set data=digits", "data is given twice"),
        ("run --set data", "--set is 'data', expected NAME=VALUE"),
        ("frobnicate", "No such command 'frobnicate'"),
        ("run --frobnicate", "No such option: --frobnicate"),
    ],
)
def test_wrong_usage_is_one_line_too(refused: Run, line: str, said: str) -> None:
    assert said in refused(line, code=2)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("export vitt -o x.onnx --random-weights", "vitt"),
        ("train digits -o x.safetensors --model vitt", "vitt"),
        ("train digits -o x.safetensors --recipe deitt", "there is no training recipe 'deitt'"),
        ("calibration show .", "is not a calibration set"),
        ("calibration make digits:test --samples 8 -o c", "is a test split"),
        ("run none.yaml", "there is no file 'none.yaml'"),
        ("run --set train.option=1 -o .", "there is no key 'train.option', did you mean 'options'"),
        ("compare none report.json", "there is no file 'none'"),
    ],
)
def test_wrong_names_are_answered_with_what_there_is(refused: Run, line: str, said: str) -> None:
    assert said in refused(line)


def test_a_failed_gate_exits_with_3(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = read_report(finished_run)
    rows = list(report.rows)
    rows[1] = rows[1].model_copy(update={"top1": rows[1].top1 - 0.02})
    worse = finished_run / "worse.json"
    worse.write_text(report_json(report.model_copy(update={"rows": tuple(rows)})))
    command = ["compare", str(finished_run), str(worse)]
    assert main([*command, "--max-drop", "1"]) == 3
    assert "lost 2.00 pp of top-1, allowed 1" in capsys.readouterr().err
    assert main([*command, "--max-drop", "3"]) == 0


# --- a full disk


@contextlib.contextmanager
def tiny_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk of that size; where that is not allowed, the test is skipped with the reason."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("no mount command here: test_a_write_that_fails… covers the message")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this user may not mount a small disk ({done.stderr.strip()}): the test beside covers the message")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_artifact_intact(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = finished_run / "model.fp16.onnx"
    with tiny_disk(tmp_path / "disk", f"{half.stat().st_size * 3 // 2048}k") as disk:  # room for one and a half
        old = disk / "out.onnx"
        shutil.copyfile(half, old)
        before = old.read_bytes()
        for command in (
            f"quantize {finished_run}/model.onnx -o {old} --precision fp16",
            f"build {finished_run}/model.fp16.onnx -o {disk}/out.engine --compute-capability 8.9",
            f"export {finished_run}/model.safetensors -o {disk}/out2.onnx",
        ):
            capsys.readouterr()
            assert main(command.split()) == 1
            last = capsys.readouterr().err.splitlines()[-1]
            assert last.startswith("error: the disk is full: ")
            assert [path.name for path in disk.iterdir()] == ["out.onnx"]
            assert old.read_bytes() == before


@pytest.mark.parametrize(
    "command",
    [
        "quantize model.onnx -o o.onnx --precision fp16",
        "build model.fp16.onnx -o o.engine --backend tensorrt-rtx --compute-capability 8.9",
        "export model.safetensors -o o.onnx",
        "calibration make digits --samples 8 -o c",
        "train digits -o o.safetensors --epochs 1",
        "bench model.onnx --data digits --samples 20 --rounds 1 --iterations 1 --no-processes --report r",
    ],
)
def test_a_write_that_fails_for_lack_of_space_says_so(
    finished_run: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(finished_run)
    before = snapshot(finished_run)
    monkeypatch.setattr(os, "fsync", full)
    assert main(command.split()) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: the disk is full: ")
    left = {name for name in snapshot(finished_run) if name not in before}
    assert left <= {"o.metrics.jsonl"}
