"""The defects that a review of the GPU code found, each with a test that failed before it was mended.

== ==================================================== ======================================================
1  CUDA graphs out of reach, engines run with NVTX      test_tensorrt_session.py test_device_time_leaves_the_copies_and_the_profilers_names_out
2  a turn's length from calls on cold clocks            ../measure/test_timing.py test_a_gpu_is_warm_before_calls_are_counted_and_their_number_follows_from_warm_calls
3  one module shared by the CPU and the GPU baseline    test_pytorch_backend.py test_a_module_in_use_stays_on_its_device_when_another_session_takes_it_elsewhere
4  a version-compatible plan that nothing can open      test_gpu_faults.py test_compatible_engine_has_no_host_code_and_runs_under_the_lean_runtime
5  an unfamiliar inspector's answer discards a plan     test_gpu_faults.py test_inspector_that_is_not_understood_leaves_a_check_unmade_and_the_engine_written
6  dequantizing kernels pass for INT8                   test_tensorrt_inspector.py test_dequantizing_kernels_before_fp16_products_are_no_int8
7  remedies that ignore the driver's CUDA               test_tensorrt_session.py test_missing_cuda_python_names_the_package_for_this_driver
8  engines built elsewhere are never checked            test_gpu_faults.py test_engine_of_another_machine_is_checked_at_its_first_open_and_not_again
9  a failed capture hides its reason                    test_gpu_faults.py test_launch_that_cannot_be_recorded_is_launched_kernel_by_kernel_and_said
10 TensorRT-RTX without its graphs and its cache        test_gpu_faults.py test_rtx_records_by_itself_and_keeps_what_it_compiled
11 ONNX Runtime's TensorRT provider uses TF32           test_gpu_defects.py test_tf32_is_off_under_the_tensorrt_provider_unless_it_is_asked_for
12 nodes that fall back to the CPU are invisible        test_onnxruntime_backend.py test_nodes_that_a_gpu_provider_leaves_to_the_cpu_are_an_error_unless_allowed
13 one session reports another's error                  test_gpu_faults.py test_one_session_does_not_report_the_error_of_another
14 a release after a sticky error hides the cause       test_gpu_faults.py test_after_a_sticky_error_the_first_cause_is_named_and_later_rows_say_the_same
15 torch's new TF32 settings make the getter raise      test_pytorch_backend.py test_tf32_is_set_and_put_back_also_where_a_program_used_the_new_settings
16 ONNX Runtime prints to stdout, which breaks --json   test_gpu_defects.py test_what_onnxruntime_does_not_find_is_not_printed
17 the help of the workspace speaks of the builder      test_gpu_defects.py test_the_workspace_is_a_kernels_while_building_and_running
18 errors of a move to the GPU come unwrapped           test_gpu_defects.py test_a_gpu_without_memory_is_one_line
19 no faster PyTorch rows, so that speed-ups flatter    test_gpu_defects.py test_on_a_gpu_pytorch_runs_in_half_and_compiled_too
20 TensorRT-RTX builds for GPUs that it does not list   test_tensorrt_build.py test_without_a_gpu_and_without_names_every_gpu_from_ampere_on_is_served
21 a builder that is made in one thread and run in another test_gpu_defects.py test_a_builder_is_made_and_run_in_one_thread
22 peak memory that misses a Jetson's GPU               test_gpu_defects.py test_on_a_jetson_peak_memory_says_what_may_not_be_in_it
== ==================================================== ======================================================
"""  # noqa: E501

from __future__ import annotations

import os
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from machine import be, fake_gpu, machine
from small_vit import images, write_small_vit

from vitdeploy.backends import get_backend
from vitdeploy.benching.candidates import list_rivals, of_artifact
from vitdeploy.benching.measuring import Entry, measure_processes
from vitdeploy.benching.options import BenchOptions
from vitdeploy.cli.app import app
from vitdeploy.errors import BackendError
from vitdeploy.measure.process import ProcessCost
from vitdeploy.progress import SILENT
from vitdeploy.records.report import Device
from vitdeploy.sessions import BuildTarget, SessionOptions

HERE = Path(__file__).resolve().parent


def test_every_defect_of_the_table_has_its_test() -> None:
    assert __doc__ is not None
    lines = re.findall(r"^(\d+) .* (\S+\.py) (test_\w+)$", __doc__, re.MULTILINE)
    assert [int(number) for number, _, _ in lines] == list(range(1, 23))
    missing = [(file, name) for _, file, name in lines if f"def {name}(" not in (HERE / file).read_text("utf8")]
    assert missing == []


class OnCuda:
    """An ONNX Runtime session whose provider took every node."""

    def __init__(self, provider: str) -> None:
        self.provider = provider

    def __call__(self, source: Any, settings: Any, providers: Any, **_: Any) -> OnCuda:
        return self

    def get_providers(self) -> list[str]:
        return [self.provider]

    def get_inputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="input", type="tensor(float)", shape=["batch", 1, 8, 8])]

    def get_outputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="logits", type="tensor(float)", shape=["batch", 10])]


def _onnxruntime_with(monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudnn"), raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", OnCuda(provider))


@pytest.mark.parametrize(("tf32", "override"), [(False, "0"), (True, None)])
def test_tf32_is_off_under_the_tensorrt_provider_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tf32: bool, override: str | None
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")  # put back when the test ends
    del os.environ["NVIDIA_TF32_OVERRIDE"]
    model = write_small_vit(tmp_path / "vit.onnx", "fp32")
    _onnxruntime_with(monkeypatch, "TensorrtExecutionProvider")
    with get_backend("onnxruntime").open(model, SessionOptions(provider="tensorrt", tf32=tf32)) as session:
        assert any("TF32 is switched off" in note for note in session.notes) is not tf32
    assert os.environ.get("NVIDIA_TF32_OVERRIDE") == override


def test_what_onnxruntime_does_not_find_is_not_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = write_small_vit(tmp_path / "vit.onnx", "fp32")
    _onnxruntime_with(monkeypatch, "CUDAExecutionProvider")
    with get_backend("onnxruntime").open(model, SessionOptions(provider="cuda")):
        pass
    assert capfd.readouterr().out == ""


def test_the_workspace_is_a_kernels_while_building_and_running() -> None:
    command = typer.main.get_command(app).commands["build"]  # type: ignore[attr-defined]
    (option,) = (one for one in command.params if "--workspace-mib" in one.opts)
    assert option.help == "Most scratch memory that a kernel may use, building and running."
    assert "while running" in str(BuildTarget.__doc__)


@pytest.mark.torch
def test_a_gpu_without_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from vitdeploy.backends import pytorch

    def short(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")

    module = torch.nn.Linear(4, 4)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "to", short)
        with pytest.raises(BackendError, match=r"pytorch cannot put the model on meta: CUDA out of memory"):
            pytorch.on_device(module, torch.device("meta"))
    session = pytorch.open_module(module, (None, 4), 4, SessionOptions(device="cpu"))
    session._device = torch.device("cuda")
    monkeypatch.setattr(torch.Tensor, "pin_memory", short)
    with pytest.raises(BackendError, match=r"pytorch failed: CUDA out of memory") as caught:
        session.run({"input": np.zeros((1, 4), np.float32)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("device", "modes", "providers"),
    [
        ("cuda", None, ["autocast-fp16", "compile"]),
        ("cpu", None, []),
        ("cpu", ("autocast-bf16",), ["autocast-bf16"]),
        ("cuda", (), []),
    ],
)
def test_on_a_gpu_pytorch_runs_in_half_and_compiled_too(
    tmp_path: Path, device: Device, modes: tuple[str, ...] | None, providers: list[str]
) -> None:
    baseline = of_artifact(write_small_vit(tmp_path / "vit.onnx", "fp32"), "pytorch", device)
    found = list_rivals([baseline], modes)
    assert [one.provider for one in found] == providers
    assert [one.precision for one in found] == [
        {"autocast-fp16": "fp16", "compile": "fp32"}.get(one, "mixed") for one in providers
    ]
    assert {one.device for one in found} <= {device}


@pytest.mark.parametrize("release", ["10.3", "11.4", "rtx"])
def test_a_builder_is_made_and_run_in_one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: str) -> None:
    """The fake's builder fails in another thread than its own, as a device that is chosen per thread would."""
    fakes = fake_gpu(monkeypatch, release)
    backend = get_backend("tensorrt-rtx" if release == "rtx" else "tensorrt")
    engine = backend.build(write_small_vit(tmp_path / "vit.onnx", "fp16"), tmp_path / "vit.engine", BuildTarget())
    assert len(fakes.trt.record.threads) == 1
    with backend.open(engine) as session:
        assert session.run({"input": images(1)})["logits"].shape == (1, 10)


@pytest.mark.parametrize(
    ("jetpack", "device", "told"), [("6.2", "cuda", True), ("6.2", "cpu", False), (None, "cuda", False)]
)
def test_on_a_jetson_peak_memory_says_what_may_not_be_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jetpack: str | None, device: Device, told: bool
) -> None:
    be(monkeypatch, machine("8.7" if jetpack else "8.9", jetpack))
    cost = ProcessCost(load_ms=1.0, first_inference_ms=2.0, peak_memory_bytes=300 << 20)
    monkeypatch.setattr("vitdeploy.benching.measuring.measure_in_child", lambda *_, **__: cost)
    entry = Entry(of_artifact(write_small_vit(tmp_path / "vit.onnx", "fp32"), "onnxruntime", device), is_baseline=False)
    entry.session = types.SimpleNamespace()  # open, as far as an entry asks
    measure_processes([entry], BenchOptions(), SILENT)
    assert entry.cost.peak_memory_bytes == 300 << 20
    assert any("what the GPU takes may not be in it" in note for note in entry.notes) is told
