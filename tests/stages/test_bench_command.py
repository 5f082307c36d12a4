"""A report names the command that measures it again: the command line itself takes it apart."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import vitdeploy as vd
from vitdeploy.benching.command import FLAGS, NOT_MEASURED, bench_command
from vitdeploy.cli import main
from vitdeploy.stages.bench import BenchRequest


def _options_of(command: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what ``vd.bench`` is called with by a command for the shell."""
    taken: dict[str, Any] = {}

    def bench(artifacts: Any, data: Any, **named: Any) -> None:
        taken.update(named, artifacts=artifacts, data=data)
        raise KeyboardInterrupt

    program, *words = shlex.split(command)
    assert program == "vitdeploy"
    with monkeypatch.context() as patch:
        patch.setattr(vd, "bench", bench)
        assert main(words) == 130
    return taken


EVERYTHING: dict[str, Any] = {
    "batches": (1, 8), "threads": 4, "thread_counts": (1, 4), "pinning": (True, False), "spinning": (False,),
    "device": "cpu", "runtimes": ("onnxruntime", "openvino"),
    "rounds": 3, "iterations": 7, "samples": 50, "seed": 9, "label_map": Path("my labels.csv"),
    "labels_by_order": True, "tf32": True, "cuda_graph": False, "cpu_fallback": True,
    "pytorch": ("compile", "autocast-bf16"), "image_to_label": False, "self_check": True, "sustained_s": 2.5,
    "per_layer": True, "streams": (1, 2), "scenarios": ("offline", "server"), "scenario_s": 60.0,
    "latency_bound_ms": 20.0, "energy_s": 0.0, "processes": False, "thumbnails": False,
}  # fmt: skip


ONE_EACH = [{name: value} for name, value in EVERYTHING.items() if name != "thread_counts"]


@pytest.mark.parametrize("changed", [{}, *ONE_EACH, EVERYTHING])
def test_the_shell_gives_the_same_options(changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    options = vd.BenchOptions(**changed)
    taken = _options_of(
        bench_command(["a.onnx", "my b.onnx"], "digits:test", "vit s.safetensors", options), monkeypatch
    )
    assert taken["options"] == options
    assert (taken["artifacts"], taken["data"]) == (["a.onnx", "my b.onnx"], "digits:test")
    assert taken["baseline"] == "vit s.safetensors"


def test_every_option_has_a_flag_or_is_known_to_have_none() -> None:
    assert set(EVERYTHING) == set(FLAGS)
    without = set(vars(vd.BenchOptions())) - set(FLAGS) - set(NOT_MEASURED)
    assert without == {"warmup", "block_s", "fill_s", "accuracy_batch"}


@pytest.mark.parametrize("changed", [{"warmup": 9}, {"pytorch": ()}, {"energy_s": 9.0}, {"block_s": 1.0, "seed": 3}])
def test_options_without_a_flag_make_a_call_in_python(changed: dict[str, Any]) -> None:
    text = bench_command(["a.onnx"], "digits:test", None, vd.BenchOptions(**changed))
    assert text.startswith("vd.bench(['a.onnx'], 'digits:test', options=vd.BenchOptions(")
    assert eval(text.partition("options=")[2][:-1], {"vd": vd}) == vd.BenchOptions(**changed)


def test_a_report_has_its_command(tiny_onnx: vd.OnnxModel, tmp_path: Path) -> None:
    options = vd.BenchOptions(rounds=1, iterations=1, samples=20, processes=False, energy_s=0.0, image_to_label=False)
    report = vd.bench(tiny_onnx, "digits:test", options=options, progress=None)
    name = tiny_onnx.path.name
    assert report.command == (
        f"vitdeploy bench {name} --data digits:test --rounds 1 --iterations 1 --samples 20 --no-processes "
        "--no-image-to-label --no-energy"
    )
    page = vd.write_report(report, tmp_path / "report")
    assert report.command in re.sub("</?span>", "", page.read_text())
    assert f"    {report.command}" in page.with_suffix(".md").read_text().splitlines()
    digests = [row.payload_sha256 for row in report.rows if row.payload_sha256]
    assert digests
    assert all(digest in page.read_text() and digest in page.with_suffix(".md").read_text() for digest in digests)


def test_files_of_the_same_name_keep_their_folders(tiny_onnx: vd.OnnxModel, tmp_path: Path) -> None:
    other = tmp_path / "old" / tiny_onnx.path.name
    other.parent.mkdir()
    other.write_bytes(tiny_onnx.path.read_bytes())
    words = shlex.split(BenchRequest.open([tiny_onnx.path, other], "digits:test").command)
    assert words[2:4] == [f"{tiny_onnx.path.parent.name}/{other.name}", f"old/{other.name}"]
