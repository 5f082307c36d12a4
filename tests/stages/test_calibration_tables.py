"""Tables of shards merge into the table of one pass; a killed pass goes on; a table serves ``quantize``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from readout_vit import write_readout_vit
from small_vit import write_small_vit

from vitdeploy.artifacts import OnnxModel, read_calibration_table, write_onnx
from vitdeploy.errors import ArtifactError, CalibrationError, GraphError, UsageError
from vitdeploy.quantization import saved_observations
from vitdeploy.stages.calibration_tables import ObserveOptions, merge_calibration_tables, observe_calibration
from vitdeploy.stages.quantize import QuantizeOptions, quantize

pytestmark = pytest.mark.slow

ONE = ObserveOptions(threads=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return write_readout_vit(tmp_path_factory.mktemp("source") / "vit.onnx", 1)


@pytest.fixture(scope="module")
def whole(source: OnnxModel, tmp_path_factory: pytest.TempPathFactory):
    options = ObserveOptions(threads=1, samples=203)
    return observe_calibration(source, "digits", tmp_path_factory.mktemp("w") / "all.calib.json", options=options)


ARRAYS = ("lo", "hi", "counts", "keys", "rows")


def state(table):
    return {
        name: (found.axis, found.count, found.exponent, *(getattr(found, part).tobytes() for part in ARRAYS))
        for name, found in table.ranges.items()
    }


def test_shards_with_many_rows_merge_too_and_not_with_others(source: OnnxModel, whole, tmp_path: Path) -> None:
    tables = {}
    for shard in (None, (1, 2), (2, 2)):
        options = ObserveOptions(threads=1, samples=203, rounding="gptq", shard=shard)
        output = tmp_path / f"{shard and shard[0]}.calib.json"
        tables[shard] = observe_calibration(source, "digits", output, options=options)
    merged = merge_calibration_tables([tables[2, 2], tables[1, 2]], tmp_path / "merged.calib.json")
    assert state(merged) == state(tables[None])
    assert merged.manifest.payload_sha256 == tables[None].manifest.payload_sha256
    read = read_calibration_table(merged.path).ranges
    rows = {name: found.rows.shape[1] for name, found in read.items() if found.axis is not None}
    assert {found.most_rows for found in read.values()} == {16}
    assert max(rows.values()) > max(found.rows.shape[1] for found in whole.ranges.values()) == 4
    with pytest.raises(
        CalibrationError, match="keep up to 4 and 16 rows of an image: observe all shards with the same"
    ):
        merge_calibration_tables([merged, whole], tmp_path / "mixed.calib.json")


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_shards_merge_into_exactly_the_table_of_one_pass(source: OnnxModel, whole, shards: int, tmp_path: Path) -> None:
    parts = []
    for index in range(shards):
        options = ObserveOptions(threads=1, samples=203, shard=(index + 1, shards))
        parts.append(observe_calibration(source, "digits", tmp_path / f"{index}.calib.json", options=options))
    merged = merge_calibration_tables(parts[::-1], tmp_path / "merged.calib.json")
    assert state(merged) == state(whole)
    assert merged.manifest.payload_sha256 == whole.manifest.payload_sha256
    assert merged.manifest.calibration.samples == 203
    assert merged.manifest.calibration.images == whole.manifest.calibration.images
    assert read_calibration_table(merged.path).manifest == merged.manifest


def test_a_table_takes_the_place_of_images(source: OnnxModel, whole, tmp_path: Path) -> None:
    options = QuantizeOptions(threads=1, method="percentile", equalization="off", validation="digits:validation")
    by_table = quantize(source, tmp_path / "a.onnx", precision="int8", calibration=whole.path, options=options)
    assert by_table.manifest.calibration.samples == 203
    assert by_table.manifest.checks[0].status == "passed"


class Killed(BaseException):
    """What no handler of errors catches."""


class KillAt:
    """Progress that ends the run after so many images."""

    def __init__(self, images: int) -> None:
        self.left = images
        self.notes: list[str] = []

    def task(self, description, total=None):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        return None

    def describe(self, text) -> None:
        return None

    def advance(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left <= 0:
            raise Killed

    def note(self, text) -> None:
        self.notes.append(text)


@pytest.fixture
def saves_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_observations, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(saved_observations, "LARGEST_SHARE", 1e9)


@pytest.mark.parametrize("after", [40, 130])
def test_a_pass_that_was_killed_goes_on_to_the_same_table(
    source: OnnxModel, whole, after: int, saves_always: None, tmp_path: Path
) -> None:
    output, options = tmp_path / "t.calib.json", ObserveOptions(threads=1, samples=203)
    with pytest.raises(Killed):
        observe_calibration(source, "digits", output, options=options, progress=KillAt(after))
    assert not output.exists()
    again = KillAt(10_000)
    table = observe_calibration(source, "digits", output, options=options, progress=again)
    assert any("resumes after" in note for note in again.notes)
    assert state(table) == state(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.calib.json", "t.calib.safetensors"]


def test_quantize_goes_on_after_a_kill_and_writes_the_same_graph(
    source: OnnxModel, saves_always: None, tmp_path: Path
) -> None:
    options = QuantizeOptions(threads=1, samples=120, method="mse")
    straight = quantize(source, tmp_path / "a.onnx", precision="int8", calibration="digits", options=options)
    output = tmp_path / "b.onnx"
    with pytest.raises(Killed):
        quantize(source, output, precision="int8", calibration="digits", options=options, progress=KillAt(70))
    again = KillAt(10_000)
    resumed = quantize(source, output, precision="int8", calibration="digits", options=options, progress=again)
    assert any("resumes after" in note for note in again.notes)
    assert resumed.digest == straight.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_what_was_saved_for_something_else_is_ignored(
    source: OnnxModel, whole, saves_always: None, tmp_path: Path
) -> None:
    output = tmp_path / "t.calib.json"
    with pytest.raises(Killed):
        observe_calibration(source, "digits", output, options=ObserveOptions(samples=60), progress=KillAt(30))
    again = KillAt(10_000)
    options = ObserveOptions(threads=1, samples=203)
    assert state(observe_calibration(source, "digits", output, options=options, progress=again)) == state(whole)
    assert not again.notes


@pytest.mark.parametrize("part", ["calib.json", "calib.safetensors"])
def test_a_damaged_save_is_ignored_for_the_one_before(
    source: OnnxModel, whole, part: str, saves_always: None, tmp_path: Path
) -> None:
    output, options = tmp_path / "t.calib.json", ObserveOptions(threads=1, samples=203)
    with pytest.raises(Killed):
        observe_calibration(source, "digits", output, options=options, progress=KillAt(130))
    newest = max(tmp_path.glob(f".t.calib.json.*.{part}"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-7])
    table = observe_calibration(source, "digits", output, options=options)
    assert state(table) == state(whole)


def test_an_error_leaves_nothing_behind(source: OnnxModel, saves_always: None, tmp_path: Path) -> None:
    model = source.load()
    gamma = next(value for name, value in model.graph.initializers.items() if "norm" in name)
    gamma.const_value = ir.tensor(np.full(gamma.const_value.shape.numpy(), np.nan, np.float32), name=gamma.name)
    broken = write_onnx(tmp_path / "broken.onnx", model, source.manifest)
    with pytest.raises(CalibrationError, match=r"has NaN during calibration for image 'digits/"):
        observe_calibration(broken, "digits", tmp_path / "t.calib.json", options=ONE)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.onnx"]


def test_merging_refuses_what_does_not_belong_together(source: OnnxModel, whole, tmp_path: Path) -> None:
    other = write_small_vit(tmp_path / "other.onnx")
    foreign = observe_calibration(other, "digits", tmp_path / "f.calib.json", options=ObserveOptions(samples=5))
    more = observe_calibration(
        source, "digits", tmp_path / "m.calib.json", options=ObserveOptions(samples=5, profile="mha")
    )
    copy = tmp_path / "copy.calib.json"
    shutil.copy(whole.path, copy)
    shutil.copy(whole.path.with_name("all.calib.safetensors"), tmp_path / "copy.calib.safetensors")
    output = tmp_path / "out.calib.json"
    for tables, error, words in (
        ([whole], UsageError, "expected at least two"),
        ([whole, foreign], CalibrationError, "another graph"),
        ([whole, more], CalibrationError, "observed different tensors"),
        ([whole, copy], CalibrationError, "occurs twice"),
        ([whole, tmp_path / "absent.calib.json"], ArtifactError, "no file"),
    ):
        with pytest.raises(error, match=words):
            merge_calibration_tables(tables, output)
    with pytest.raises(UsageError, match=r"must be called NAME\.calib\.json"):
        merge_calibration_tables([whole, more], tmp_path / "out.json")
    assert not output.exists()


def test_observing_refuses_what_cannot_be_calibrated(source: OnnxModel, tmp_path: Path) -> None:
    output = tmp_path / "t.calib.json"
    with pytest.raises(UsageError, match=r"must be called NAME\.calib\.json"):
        observe_calibration(source, "digits", tmp_path / "t.json")
    with pytest.raises(UsageError, match="shard 3/2 is out of range"):
        ObserveOptions(shard=(3, 2))
    with pytest.raises(UsageError, match="profile is 'all', expected one of linear, mha"):
        ObserveOptions(profile="all")  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="no images"):
        observe_calibration(source, "digits", output, options=ObserveOptions(samples=2, shard=(3, 3)))
    half = quantize(source, tmp_path / "half.onnx", precision="fp16")
    with pytest.raises(GraphError, match="is fp16 already"):
        observe_calibration(half, "digits", output)
    assert not output.exists()


def test_nothing_is_saved_by_a_short_pass(tmp_path: Path) -> None:
    clock = iter(np.arange(0, 100, 10.0))
    saved = saved_observations.SavedObservations(tmp_path / "x.onnx", "key", lambda: next(clock))
    saved.save("all", {}, 1)
    assert not list(tmp_path.iterdir())
    saved.save("all", {}, 2)
    assert len(list(tmp_path.iterdir())) == 2
    assert saved.restore("all")[1] == 2
    assert saved.restore("fit") == (None, 0)
