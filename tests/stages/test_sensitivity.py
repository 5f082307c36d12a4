"""``sensitivity``: which part of a graph the error comes from, as record, table, page and file."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir
import pytest
from notes import Notes
from outliers import weight_outliers
from present import present
from readout_vit import digits, run, write_readout_vit
from rich.console import Console

from vitdeploy.artifacts import OnnxModel, write_onnx
from vitdeploy.errors import ArtifactError, CalibrationError, DataError, GraphError, UsageError
from vitdeploy.graph.part_kinds import kind_of
from vitdeploy.measure.statistics import logits_sqnr_db
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.records import PlanEntry, PrecisionPlan, Sensitivity
from vitdeploy.report.sensitivity import render_sensitivity, sensitivity_table, write_sensitivity
from vitdeploy.stages.inspect import inspect
from vitdeploy.stages.quantize import QuantizeOptions, quantize
from vitdeploy.stages.sensitivity import sensitivity

pytestmark = pytest.mark.slow

PLAIN = QuantizeOptions(threads=1, samples=60, method="minmax", equalization="off", steps=(), effort="fast")
TRAIN, VALIDATION = "digits:train", "digits:validation"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return write_readout_vit(tmp_path_factory.mktemp("source") / "vit.onnx", 2)


@pytest.fixture(scope="module")
def found(source: OnnxModel) -> Sensitivity:
    return sensitivity(source, calibration=TRAIN, data=VALIDATION, options=PLAIN)


def with_model(source: OnnxModel, path: Path, model: ir.Model) -> OnnxModel:
    return write_onnx(path, model, source.manifest, source.golden)


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.1.mlp.fc1"])
def test_a_planted_bad_group_ranks_first(source: OnnxModel, tmp_path: Path, name: str) -> None:
    images, _ = digits("test")
    planted = weight_outliers(source.load(), name)
    assert logits_sqnr_db(run(planted, images), run(source.load(), images)) > 80, "the function is the same"
    model = with_model(source, tmp_path / "planted.onnx", planted)
    found = sensitivity(model, calibration=TRAIN, data=VALIDATION, options=PLAIN)
    worst, second = found.groups[:2]
    assert worst.name == name
    assert worst.share is not None
    assert worst.share > 0.8
    assert worst.alone.logits_sqnr_db < second.alone.logits_sqnr_db - 6
    assert worst.alone.kl > second.alone.kl
    assert worst.gain_db > 6, "left out, the whole graph is better by as much"
    assert worst.gain_db == max(present(part.gain_db) for part in found.groups if part.quantized)
    assert found.kinds[0].kind == worst.kind


def test_every_group_is_tried_alone_and_those_of_the_plan_are_left_out(found: Sensitivity) -> None:
    quantized = {part.name for part in found.groups if part.quantized}
    blocks = [f"blocks.{index}.{part}" for index in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert quantized == set(blocks)
    assert {part.kind for part in found.groups if not part.quantized} == {"patch embedding", "head", "attention"}
    assert all((part.left_out is not None) == part.quantized for part in found.groups)
    assert [part.quantized for part in found.groups] == sorted((p.quantized for p in found.groups), reverse=True)
    shares = [present(part.share) for part in found.groups if part.quantized]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert {part.kind for part in found.kinds} == {"qkv", "proj", "fc1", "fc2", "attention"}
    assert found.trials == 2 + 2 * 8 + 4 + 2 * 4 + 1
    assert found.images == 128
    assert found.labelled
    for part in (*found.groups, *found.kinds):
        assert not part.alone.failure
        assert 0.9 <= part.alone.agreement <= 1
        assert part.alone.kl >= 0


def test_parts_alone_add_up_to_the_whole(found: Sensitivity) -> None:
    """Errors of different groups are nearly independent, which is what makes shares mean something."""
    noise = sum(10 ** (-present(part.alone.logits_sqnr_db) / 10) for part in found.groups if part.quantized)
    assert -10 * np.log10(noise) == pytest.approx(found.all.logits_sqnr_db, abs=1.5)
    kinds = {part.kind: part for part in found.kinds}
    for part in found.groups:
        if part.quantized:
            assert kinds[part.kind].alone.logits_sqnr_db <= part.alone.logits_sqnr_db + 0.5


def test_the_whole_is_the_graph_that_quantize_writes(source: OnnxModel, found: Sensitivity, tmp_path: Path) -> None:
    written = write_sensitivity(found, tmp_path / "sensitivity.json").with_suffix(".json")
    replayed = quantize(
        source, tmp_path / "replayed.onnx", precision="int8", target="openvino", calibration=TRAIN,
        options=QuantizeOptions(threads=1, samples=60, plan=written, effort="fast"),
    )  # fmt: skip
    images, _ = digits("validation")
    sqnr = logits_sqnr_db(run(replayed.load(), images), run(source.load(), images))
    assert sqnr == pytest.approx(found.all.logits_sqnr_db, abs=1.5)


def test_kinds_alone_are_quick(source: OnnxModel) -> None:
    notes = Notes()
    found = sensitivity(
        source, calibration=TRAIN, data=VALIDATION, level="kinds", images=40, options=PLAIN, progress=notes
    )
    assert found.groups == ()
    assert found.trials == 11
    assert "11 graphs on 40 images each: 440 images in all" in notes.lines


def test_without_data_the_images_kept_out_of_calibration_count(source: OnnxModel) -> None:
    found = sensitivity(source, calibration=TRAIN, level="kinds", options=PLAIN)
    assert found.images == 16
    assert found.calibration_images == 60 - 16


def test_weights_alone_need_no_calibration_and_have_no_attention(source: OnnxModel) -> None:
    found = sensitivity(
        source, calibration=None, data=VALIDATION, precision="int8-weight-only", images=40, options=PLAIN
    )
    assert "attention" not in {part.kind for part in found.groups}
    assert found.calibration_images == 0
    assert found.all.logits_sqnr_db > 25


def test_labels_that_do_not_fit_leave_top1_out_and_say_so(source: OnnxModel, tmp_path: Path) -> None:
    names = tuple(f"bird {index}" for index in range(3))
    manifest = source.manifest.model_copy(update={"model": source.manifest.model.model_copy(update={"classes": names})})
    model, notes = write_onnx(tmp_path / "birds.onnx", source.load(), manifest, source.golden), Notes()
    found = sensitivity(
        model, calibration=TRAIN, data=VALIDATION, level="kinds", images=20, options=PLAIN, progress=notes
    )
    assert not found.labelled
    assert found.all.delta_top1_pp is None
    assert any(line.startswith("top-1 is left out: ") for line in notes.lines)


def test_bad_input_is_refused(source: OnnxModel, tmp_path: Path) -> None:
    absent = PrecisionPlan(profile="hand", remainder="fp32", entries=(PlanEntry(group="nose", precision="fp32"),))
    with pytest.raises(GraphError, match="'nose', which is not in the graph"):
        sensitivity(source, calibration=TRAIN, options=QuantizeOptions(plan=absent))
    with pytest.raises(CalibrationError, match="needs calibration images"):
        sensitivity(source, calibration=None)
    with pytest.raises(CalibrationError, match="data='DATA' gives some"):
        sensitivity(source, calibration=None, precision="int8-weight-only")
    with pytest.raises(UsageError, match="validation belongs to quantize"):
        sensitivity(source, calibration=TRAIN, options=QuantizeOptions(validation=VALIDATION))
    with pytest.raises(UsageError, match="images is 0"):
        sensitivity(source, calibration=TRAIN, images=0)
    with pytest.raises(DataError, match="no dataset"):
        sensitivity(source, calibration=TRAIN, data=str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match=r"expected NAME\.json"):
        write_sensitivity(cast(Sensitivity, object()), tmp_path / "page.html")


def test_inspect_says_what_the_file_is(found: Sensitivity, tmp_path: Path) -> None:
    written = write_sensitivity(found, tmp_path / "vit.json").with_suffix(".json")
    seen = inspect(written)
    assert (seen.kind, seen.size_bytes) == ("sensitivity", written.stat().st_size)
    facts = dict(seen.facts)
    assert facts["model"] == found.model
    assert f"{found.images} images" in facts["data"]
    parts = [text for name, text in seen.facts if name == "part"]
    assert parts[0].startswith(f"{found.groups[0].name}: ")
    broken = found.model_dump(mode="json") | {"trials": "many"}
    written.write_text(json.dumps(broken), "utf8")
    with pytest.raises(ArtifactError, match="is damaged, or from another version: trials"):
        inspect(written)


def test_a_file_holds_all_numbers(found: Sensitivity, tmp_path: Path) -> None:
    page = write_sensitivity(found, tmp_path / "vit.json")
    assert page == tmp_path / "vit.html"
    read = json.loads((tmp_path / "vit.json").read_text("utf8"))
    assert Sensitivity.model_validate(read) == found


def test_the_page_has_every_group_and_asks_nothing_of_other_files(found: Sensitivity) -> None:
    page = render_sensitivity(found)
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    for part in (*found.groups, *found.kinds):
        assert f'data-name="{part.name}"' in page
    assert page.count("<svg") == page.count('role="img"') == 4


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_cuts_nothing(found: Sensitivity, width: int) -> None:
    stream = io.StringIO()
    Console(file=stream, width=width).print(sensitivity_table(found))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for part in found.groups:
        assert any(part.name in line for line in lines)
    assert any("most of the error: " in line for line in lines)


def test_kinds_are_found_by_structure(source: OnnxModel) -> None:
    prepared = Prepared.of(source.load())
    kinds = [kind_of(group, prepared.attentions) for group in prepared.linears]
    assert kinds == ["patch embedding", *["qkv", "proj", "fc1", "fc2"] * 2, "head"]


def test_a_plan_may_quantize_patch_embedding_and_head(source: OnnxModel, tmp_path: Path) -> None:
    prepared = Prepared.of(source.load())
    entries = [PlanEntry(group=group.name, precision="int8") for group in prepared.linears if group.obstacle]
    plan = PrecisionPlan(profile="hand", remainder="fp32", entries=tuple(entries))
    options = QuantizeOptions(threads=1, samples=200, plan=plan)
    made = quantize(
        source, tmp_path / "all.onnx", precision="int8", target="openvino", calibration=TRAIN, options=options
    )
    assert {entry.precision for entry in made.manifest.plan.entries if "attention" not in entry.group} == {"int8"}
