"""The API as a practitioner uses it: artifacts go from verb to verb, are values, and show themselves."""

from __future__ import annotations

import inspect
import io
import re
import shutil
import sys
import types
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from readout_vit import write_readout_vit
from tiny_checkpoint import write_tiny_checkpoint

import vitdeploy as vd
from vitdeploy.artifacts import Golden, TensorRange, read_checkpoint, read_engine, write_engine
from vitdeploy.artifacts.golden import Golden as StoredGolden
from vitdeploy.records import Baseline, Conditions, Manifest, ModelSpec, Report, Row
from vitdeploy.terminal_progress import AUTO

pytestmark = pytest.mark.slow

DOCS = Path(__file__).resolve().parents[1] / "docs" / "python.md"
THOUSAND = tuple(f"class number {index}" for index in range(1000))


def readout(path: Path) -> vd.OnnxModel:
    return write_readout_vit(path, 1)


# --- from weights to report


def test_ten_lines_of_the_docs_go_from_weights_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = DOCS.read_text("utf8")
    (script,) = re.findall(r"<!-- test: from weights to report -->\n\n```python\n(.*?)```", text, re.DOTALL)
    lines = [line for line in script.splitlines() if line.strip()]
    assert len(lines) == 10
    assert ".path" not in script
    write_tiny_checkpoint(tmp_path / "vit.safetensors", depth=1)
    vd.open_dataset("digits:test").image(3).save(tmp_path / "three.png")
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    names = {"vit.onnx", "vit.fp16.onnx", "vit.int8.onnxruntime.onnx", "report"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    assert {row.name for row in vd.read_report("report").rows} == {
        "vit.safetensors",
        "vit.onnx",
        "vit.int8.onnxruntime.onnx",
    }
    printed = capsys.readouterr()
    assert "three.png" in printed.out
    assert printed.err == "", "nobody watches, so nothing is drawn"
    (script,) = re.findall(r"<!-- test: with options -->\n\n```python\n(.*?)```", text, re.DOTALL)
    names_there: dict[str, Any] = {}
    exec(script, names_there)
    assert [one.batch for one in names_there["report"].rows[-1].timings if one.scope == "end_to_end"] == [1, 8]


def test_the_docs_say_which_options_each_verb_is_handed() -> None:
    rows = re.findall(r"^\| `vd\.(\w+)` \| (.*?) \|", DOCS.read_text("utf8"), re.MULTILINE)
    public = {name for name in dir(vd) if name.endswith(("Options", "BuildTarget"))}
    assert {name for name, _ in rows} >= public
    for name, taken_by in rows:
        keyword = "".join(re.findall(r"`(\w+)=`", taken_by)) or "options"
        for verb in re.findall(r"`(\w+)`", taken_by):
            assert name in str(inspect.signature(getattr(vd, verb)).parameters[keyword].annotation), (verb, name)


def test_every_verb_takes_an_artifact_a_path_and_a_text(tmp_path: Path) -> None:
    model = readout(tmp_path / "vit.onnx")
    image = tmp_path / "digit.png"
    vd.open_dataset("digits:test").image(0).save(image)
    options = vd.QuantizeOptions(threads=1, samples=60, method="minmax", equalization="off", effort="fast")
    ways: tuple[vd.Artifact | Path | str, ...] = (model, model.path, str(model.path))
    for number, one in enumerate(ways):
        int8 = vd.quantize(
            one,
            tmp_path / f"{number}.onnx",
            precision="int8",
            target="onnxruntime",
            calibration="digits",
            options=options,
        )
        found = vd.predict(one, [image], top=1)
        assert found == vd.predict(model, str(image), top=1)
        assert vd.inspect(one).payload_sha256 == model.digest
        assert vd.verify(int8 if number == 0 else one).passed
        plan = vd.QuantizeOptions(
            threads=1, plan=int8 if number == 0 else int8.path, samples=60, equalization="off", effort="fast"
        )
        vd.quantize(model, tmp_path / "again.onnx", precision="int8", calibration="digits", options=plan)
        quick = vd.BenchOptions(rounds=1, iterations=1, warmup=1, samples=20, processes=False)
        report = vd.bench([one, int8], "digits", baseline=one, options=quick)
        assert [row.status for row in report.rows] == ["ok", "ok"]


NAMED = {"artifact", "artifacts", "baseline", "file", "first", "model", "second", "source", "teacher"}
"""Parameters that name an artifact, whatever the verb."""


def test_what_names_an_artifact_is_annotated_so_in_every_verb() -> None:
    verbs = ("train", "convert", "export", "quantize", "sensitivity", "build", "bench", "diff", "package", "predict")
    functions = [*verbs, "inspect", "verify", "load", "load_source", "observe_calibration", "write_triton_repository"]
    seen = set()
    for function in functions:
        for name, parameter in inspect.signature(getattr(vd, function)).parameters.items():
            if name in NAMED:
                assert "Artifact | Path | str" in str(parameter.annotation), f"{function}: {name}"
                seen.add(function)
    assert seen == set(functions)


def test_an_open_dataset_is_taken_wherever_data_is_named(tmp_path: Path) -> None:
    model = readout(tmp_path / "vit.onnx")
    train, test = vd.open_dataset("digits", split="train"), vd.open_dataset("digits:test")
    options = vd.QuantizeOptions(
        threads=1, samples=60, method="minmax", equalization="off", effort="fast", validation=test
    )
    int8 = vd.quantize(model, precision="int8", calibration=train, options=options)
    assert int8.path == tmp_path / "vit.int8.onnx"
    quick = vd.BenchOptions(rounds=1, iterations=1, warmup=1, processes=False)
    report = vd.bench(model, test, options=quick)
    assert report.conditions.n_samples == len(test)
    with pytest.raises(vd.CalibrationError, match="is a test split"):
        vd.quantize(model, tmp_path / "no.onnx", precision="int8", calibration=test)
    with pytest.raises(vd.DataError, match="'digits:test' is open already, so its split cannot be chosen"):
        vd.open_dataset(test, split="train")


def test_an_artifact_of_the_wrong_kind_is_refused_with_the_way_on(tiny_checkpoint: Any, tmp_path: Path) -> None:
    with pytest.raises(vd.ArtifactError, match=r"kind 'checkpoint', expected an ONNX model: vd\.export"):
        vd.quantize(tiny_checkpoint, tmp_path / "x.onnx", precision="fp16")
    model = readout(tmp_path / "vit.onnx")
    with pytest.raises(vd.ArtifactError, match="kind 'onnx', expected a checkpoint"):
        vd.convert(model, tmp_path / "x.safetensors")


def test_a_file_that_was_written_anew_is_not_taken_for_the_artifact(tmp_path: Path) -> None:
    model = readout(tmp_path / "vit.onnx")
    shutil.copy(model.path, tmp_path / "same.onnx")
    shutil.copy(tmp_path / "same.onnx", model.path)
    assert vd.open_artifact(model) == model, "the same content, written again"
    write_readout_vit(model.path, 2)
    for verb in (
        lambda: vd.open_artifact(model),
        lambda: vd.quantize(model, tmp_path / "x.onnx", precision="fp16"),
        lambda: vd.verify(model),
    ):
        with pytest.raises(vd.ArtifactError, match="was written anew since it was opened, and holds something else"):
            verb()
    model.path.unlink()
    with pytest.raises(vd.ArtifactError, match="there is no file"):
        vd.open_artifact(model)


def test_an_output_that_is_not_named_replaces_nothing_of_others(tmp_path: Path) -> None:
    model = readout(tmp_path / "vit.onnx")
    (tmp_path / "vit.fp16.onnx").write_bytes(b"somebody else's")
    with pytest.raises(vd.ArtifactError, match=r"vit\.fp16\.onnx' exists and was not written by vitdeploy"):
        vd.quantize(model, precision="fp16")
    (tmp_path / "vit.fp16.onnx").unlink()
    first = vd.quantize(model, precision="fp16")
    assert vd.quantize(model, precision="fp16") == first


# --- values


def test_artifacts_are_equal_by_content(tmp_path: Path, tiny_checkpoint: Any) -> None:
    model = readout(tmp_path / "a.onnx")
    shutil.copy(model.path, tmp_path / "b.onnx")
    copy, other = vd.open_artifact(tmp_path / "b.onnx"), write_readout_vit(tmp_path / "c.onnx", 2)
    assert model == copy
    assert model != other
    assert len({model, copy, other, tiny_checkpoint, read_checkpoint(tiny_checkpoint.path)}) == 3
    assert model != "a.onnx"


def tensor_range(**changes: Any) -> TensorRange:
    values = dict.fromkeys((one.name for one in fields(TensorRange)), 1)
    return TensorRange(**{**values, **changes})


@pytest.mark.parametrize(
    "make",
    [
        lambda value: Golden(
            np.zeros((1, 2, 2, 1), np.uint8), np.ones((1, 3), np.float32), np.full((1, 3), value, "f4")
        ),
        lambda value: tensor_range(counts=np.array([1, value])),
        lambda value: tensor_range(hi=float(value)),
        lambda value: tensor_range(rows=None if value == 1 else np.array([value], np.float32)),
    ],
)
def test_records_with_arrays_are_values(make: Any) -> None:
    assert make(1) == make(1)
    assert make(1) != make(2)
    assert len({make(1), make(1), make(2)}) == 2
    assert make(1) != "something else"


def test_golden_samples_of_a_model_are_those_that_were_written(tmp_path: Path) -> None:
    model = readout(tmp_path / "a.onnx")
    again = vd.open_artifact(model.path)
    assert isinstance(again, vd.OnnxModel)
    assert again.golden is not None
    assert again.golden == model.golden == StoredGolden.from_text(again.golden.to_text())


# --- how they show themselves


def engine(path: Path, name: str = "vit") -> vd.Engine:
    golden = Golden(np.zeros((8, 224, 224, 3), np.uint8), np.ones((8, 1000), "f4"), np.ones((8, 1000), "f4"))
    spec = ModelSpec(family="vit", name=name, arguments={"num_classes": 1000}, classes=THOUSAND)
    manifest = Manifest(kind="engine", model=spec, precision="int8", target="tensorrt", golden=golden.to_text())
    return write_engine(path, b"a plan", manifest)


def test_each_value_is_one_short_line(tmp_path: Path, tiny_checkpoint: Any) -> None:
    made = engine(tmp_path / "vit.engine")
    assert repr(made) == f"<Engine {str(made.path)!r}: vit, int8 for tensorrt, 6 B, {made.digest[:12]}>"
    assert repr(read_engine(made.path).golden) == "<Golden: 8 samples of 224×224×3, 1000 classes>"
    model = readout(tmp_path / "vit.onnx")
    loaded = vd.load_source(tiny_checkpoint)
    report = small_report()
    values = [made, made.manifest, made.manifest.model, read_engine(made.path).golden, model, model.golden]
    values += [tiny_checkpoint, loaded, loaded.spec, report, vd.compare(report, report), vd.inspect(made)]
    for value in values:
        for text in (repr(value), str(value)):
            assert "\n" not in text
            assert len(text) < 2000, type(value)
        assert "class number 500" not in repr(value)


def small_report(name: str = "vit.onnx") -> Report:
    row = Row(
        name=name, backend="onnxruntime", device="cpu", precision="int8", status="ok", top1=0.9867, size_bytes=1000
    )
    skipped = Row(name="vit.engine", backend="tensorrt", precision="fp16", status="skipped", reason="no <GPU> here")
    conditions = Conditions(
        data="digits:test", data_sha256="0", n_samples=450, batches=(1,), threads=0, warmup=1, rounds=1, iterations=1
    )
    return Report(
        created="2026-01-01T00:00:00+00:00",
        producer="vitdeploy",
        model="vit",
        environment=vd.Environment(os="Linux", python="3.11", cpu="a CPU", cores=2),
        baseline=Baseline(row=None, accuracy_against="nothing", latency_against=None),
        conditions=conditions,
        rows=(row, skipped),
        verdict=("Ship <b>it</b>.",),
    )


HOSTILE = "<script>alert(1)</script>\x1b[31m"


def test_a_notebook_shows_tables_and_runs_nothing_in_them(tmp_path: Path) -> None:
    report = small_report(HOSTILE)
    shown: list[Any] = [report, vd.compare(report, report), engine(tmp_path / "vit.engine", HOSTILE)]
    for value in shown:
        html = value._repr_html_()
        assert html.startswith("<table>")
        assert "<script" not in html
        assert "\x1b" not in html
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    page = report._repr_html_()
    assert "98.67 %" in page
    assert "skipped: no &lt;GPU&gt; here" in page
    assert "Ship &lt;b&gt;it&lt;/b&gt;." in page


# --- progress and warnings


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(**options: Any) -> None:
    """Note something and draw a bar with what a verb takes by default."""
    progress = options.get("progress", AUTO)
    with progress.task("calibrating", total=2) as task:
        task.advance()
        with progress.task("inner"):
            progress.note("a note")


def test_progress_shows_by_itself_on_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, log = Terminal(), io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    work()
    assert "a note" in terminal.getvalue()
    assert "calibrating" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", log)
    work()
    assert log.getvalue() == ""


def test_progress_shows_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    shell = types.SimpleNamespace(kernel=object())
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    work()
    assert "a note" in sys.stderr.getvalue()


def test_one_argument_silences_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    model = readout(tmp_path / "vit.onnx")
    options = vd.QuantizeOptions(threads=1, samples=60, method="minmax", equalization="off", effort="fast")
    vd.quantize(model, precision="int8", calibration="digits", options=options, progress=None)
    assert terminal.getvalue() == ""
    vd.quantize(model, precision="int8", calibration="digits", options=options)
    assert "calibrating" in terminal.getvalue()


def test_a_warning_can_be_made_an_error_and_then_nothing_is_written(tmp_path: Path) -> None:
    model = readout(tmp_path / "vit.onnx")
    options = vd.QuantizeOptions(threads=1, samples=20, method="minmax", equalization="off")
    with warnings.catch_warnings():
        warnings.simplefilter("error", vd.FidelityWarning)
        with pytest.raises(vd.FidelityWarning, match="20 images"):
            vd.quantize(model, precision="int8", calibration="digits", options=options)
    assert [path.name for path in tmp_path.iterdir()] == ["vit.onnx"]


def test_an_image_for_predict_may_be_one_path(tmp_path: Path) -> None:
    model = readout(tmp_path / "vit.onnx")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "photo.jpg")
    (found,) = vd.predict(model, str(tmp_path / "photo.jpg"))
    assert Path(found.image).name == "photo.jpg"
