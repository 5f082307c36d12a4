"""Following CONTRIBUTING.md alone, a toy family and a toy backend are one file each: the blocks on the page."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitdeploy as vd
from vitdeploy import backends, catalog
from vitdeploy.models.registry import FAMILIES

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text("utf8")


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with the modules of the page; what they register is gone afterwards."""
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        name = re.match(r"# (\w+)\.py\n", block)
        assert name is not None
        (tmp_path / f"{name[1]}.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(catalog, "_registered", {})
    monkeypatch.setattr(backends, "_registered", {})
    catalog.variants.cache_clear()
    yield tmp_path
    FAMILIES.pop("mean_colour", None)
    for module in ("toy_family", "toy_backend"):
        sys.modules.pop(module, None)
    catalog.variants.cache_clear()
    backends.get_backend.cache_clear()


def test_a_family_of_one_file_goes_through_the_stages(toys: Path) -> None:
    importlib.import_module("toy_family")
    assert [entry.name for entry in vd.list_models("mean*")] == ["mean_colour_32"]
    assert sum(p.numel() for p in vd.create_model("mean_colour_32").parameters()) == 40
    graph = vd.export("mean_colour_32", toys / "m.onnx", options=vd.ExportOptions(random_weights=True))
    assert graph.manifest.model.family == "mean_colour"
    with pytest.raises(vd.UsageError, match="'vit'"):
        vd.register_family("vit", type(vd.create_model("mean_colour_32")))


def test_a_family_of_one_file_trains_and_its_checkpoint_is_opened_again(toys: Path) -> None:
    importlib.import_module("toy_family")
    options = vd.TrainOptions(epochs=1)
    checkpoint = vd.train("digits", toys / "m.safetensors", model="mean_colour", options=options)
    assert vd.open_artifact(checkpoint.path).manifest.model.family == "mean_colour"


def test_a_backend_of_one_file_runs_a_graph_in_bench_and_agrees(toys: Path, tiny_onnx: vd.OnnxModel) -> None:
    importlib.import_module("toy_backend")
    options = vd.BenchOptions(
        runtimes=("onnxruntime", "reference"), rounds=1, iterations=1, warmup=1, samples=20, processes=False
    )
    report = vd.bench([tiny_onnx.path], "digits:test", baseline=str(tiny_onnx.path), options=options)
    row = next(row for row in report.rows if row.backend == "reference")
    assert row.status == "ok", row.reason
    assert row.agreement == 1.0
    with pytest.raises(vd.UsageError, match="reference"):
        vd.bench([tiny_onnx.path], "digits", options=vd.BenchOptions(runtimes=("absent",)))


def test_a_plugin_that_cannot_be_imported_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint, EntryPoints

    from vitdeploy import plugins

    broken = EntryPoints([EntryPoint("toy", "no_such_module_of_a_plugin", plugins.__name__)])
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: broken)
    plugins.load_plugins.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no_such_module_of_a_plugin"):
            assert plugins.load_plugins("vitdeploy.backends") == ()
        assert plugins.load_plugins("vitdeploy.backends") == ()
    finally:
        plugins.load_plugins.cache_clear()
