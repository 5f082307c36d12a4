"""Weights for processors that add in 32 bits are judged as these compute them, on one that adds in 16 bits too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from present import present
from readout_vit import write_readout_vit

from vitdeploy import environment
from vitdeploy.backends import get_backend, lowering, onnxruntime
from vitdeploy.backends.onnxruntime import cpu_opener, saturates
from vitdeploy.backends.timing_place import TimingPlace
from vitdeploy.records import CpuIntegers, PairedSpeed
from vitdeploy.stages.quantize import QuantizeOptions, quantize
from vitdeploy.stages.sensitivity import sensitivity


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether weights of each graph that is opened are converted, on a processor without VNNI."""
    found: list[bool] = []
    settings = onnxruntime.session_settings

    def recorded(options: Any, precision: Any, exact_integers: bool = False) -> Any:
        found.append(exact_integers)
        return settings(options, precision, exact_integers)

    monkeypatch.setattr(onnxruntime, "session_settings", recorded)
    monkeypatch.setattr(environment, "cpu_integers", lambda: "any")
    return found


@pytest.mark.parametrize(("processor", "converted"), [("any", False), ("vnni", True), ("amx", True)])
def test_a_graph_in_memory_is_computed_as_where_it_is_for(
    processor: CpuIntegers, converted: bool, opened: list[bool], tmp_path: Path
) -> None:
    source = write_readout_vit(tmp_path / "vit.onnx", 1)
    opened.clear()
    assert saturates(processor) is converted
    for opener in (cpu_opener(1, processor), TimingPlace("onnxruntime").opener(source.manifest, 1, 1, processor)):
        with opener(source.load()):
            pass
    assert opened == [converted, converted]


def test_trials_for_tensorrt_are_computed_as_it_adds(opened: list[bool], tmp_path: Path) -> None:
    source = write_readout_vit(tmp_path / "vit.onnx", 1)
    options = QuantizeOptions(threads=1, samples=60, method="minmax", equalization="off", effort="fast")
    opened.clear()
    written = quantize(source, tmp_path / "int8.onnx", precision="int8", calibration="digits", options=options)
    found = sensitivity(source, calibration="digits:train", data="digits:validation", options=options, images=16)
    with get_backend("onnxruntime").open(written):
        pass
    assert opened
    assert set(opened) == {True}
    assert present(written.manifest.plan).cpu == "any"
    assert found.all.logits_sqnr_db > 20, "products of neighbours that saturate leave 8 dB"


@pytest.mark.parametrize("processor", ["vnni", "any"])
def test_quantize_judges_and_lowers_the_graph_so(
    processor: CpuIntegers, opened: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_readout_vit(tmp_path / "vit.onnx", 1)
    faster = PairedSpeed(batch=1, speedup=1.2, interval=(1.1, 1.3))
    monkeypatch.setattr(lowering, "pair_timer", lambda *_: lambda *_: (faster,))
    options = QuantizeOptions(
        threads=1, samples=60, method="minmax", equalization="off", effort="fast", lower=True, cpu=processor
    )
    opened.clear()
    quantize(
        source, tmp_path / "int8.onnx", precision="int8", target="onnxruntime", calibration="digits", options=options
    )
    assert opened
    assert set(opened) == {processor == "vnni"}
