from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.artifacts import OnnxModel

pytest.importorskip("torch", reason="torch is an extra: pip install 'vitdeploy[torch]'")

import torch
from conformance import SessionConformance
from small_vit import PREPROCESS, images

from vitdeploy import environment
from vitdeploy.artifacts import Checkpoint, write_checkpoint
from vitdeploy.backends import get_backend
from vitdeploy.backends.pytorch import on_device, open_module, set_tf32
from vitdeploy.errors import BackendError, BuildError, UsageError
from vitdeploy.models import create_model
from vitdeploy.records import Manifest, ModelSpec
from vitdeploy.sessions import BuildTarget, SessionOptions
from vitdeploy.training.launch import make_fabric
from vitdeploy.training.options import Hardware

ARGUMENTS = {
    "image_size": 8,
    "patch": 2,
    "channels": 1,
    "num_classes": 10,
    "width": 32,
    "depth": 2,
    "heads": 2,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.manual_seed(0)
    module = create_model("vit", **ARGUMENTS)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)
    tensors = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    spec = ModelSpec(family="vit", name="small", arguments=ARGUMENTS)
    manifest = Manifest(kind="checkpoint", model=spec, preprocess=PREPROCESS)
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "vit.safetensors", tensors, manifest)


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint):
    module = create_model("vit", **ARGUMENTS).eval()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in checkpoint.tensors().items()})

    def logits(batch):
        with torch.no_grad():
            return module(torch.from_numpy(batch)).numpy()

    return logits


class TestEagerSession(SessionConformance):
    @pytest.fixture
    def session(self, checkpoint: Checkpoint):
        with get_backend("pytorch").open(checkpoint, SessionOptions(threads=1)) as session:
            yield session


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
class TestEagerSessionOnAGpu(SessionConformance):
    tolerance = 1e-3  # another order of summation; TF32 is off

    @pytest.fixture
    def session(self, checkpoint: Checkpoint):
        with get_backend("pytorch").open(checkpoint, SessionOptions(device="cuda")) as session:
            yield session


def test_compiled_session_gives_the_logits_of_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is captured for real and run eagerly: compiling its kernels takes twenty seconds and is torch's own."""
    real, asked = torch.compile, []

    def capture(module, **arguments: Any):
        asked.append(arguments)
        return real(module, backend="eager", **arguments)

    monkeypatch.setattr(torch, "compile", capture)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.GELU())
    shape, feed = (None, 1, 8, 8), {"input": images(2)}
    with (
        open_module(module, shape) as eager,
        open_module(module, shape, None, SessionOptions(provider="compile")) as other,
    ):
        assert (eager.provider, other.provider) == ("eager-cpu", "compile-cpu")
        np.testing.assert_allclose(other.run(feed)["logits"], eager.run(feed)["logits"], rtol=0, atol=1e-6)
    assert asked == [{"dynamic": False}]


def test_module_is_put_into_evaluation_mode() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.Linear(64, 10)).train()
    with open_module(module, (None, 1, 8, 8), 10) as session:
        first, second = (session.run({"input": images(2)})["logits"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_threads_hold_only_while_the_session_runs(checkpoint: Checkpoint) -> None:
    before = torch.get_num_threads()
    seen = []

    class Watching(torch.nn.Module):
        def forward(self, batch):
            seen.append(torch.get_num_threads())
            return batch.flatten(1)

    with open_module(Watching(), (None, 1, 8, 8), 64, SessionOptions(threads=before + 1)) as session:
        session.run({"input": images(1)})
        session.time({"input": images(1)}, warmup=0, iterations=1)
    assert seen == [before + 1, before + 1]
    assert torch.get_num_threads() == before


def test_weights_that_do_not_fit_are_one_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = checkpoint.tensors()
    tensors["surplus"] = np.zeros(3, np.float32)
    other = write_checkpoint(tmp_path / "vit.safetensors", tensors, checkpoint.manifest)
    with pytest.raises(BackendError, match=r"does not fit its model 'small': .*surplus") as caught:
        get_backend("pytorch").open(other)
    assert "\n" not in str(caught.value)


def test_failure_inside_the_module_is_one_line() -> None:
    class Failing(torch.nn.Module):
        def forward(self, batch) -> None:
            raise RuntimeError("out of memory\nTraceback of the kernel")

    with (
        open_module(Failing(), (None, 1, 8, 8)) as session,
        pytest.raises(BackendError, match=r"pytorch failed: out of memory$"),
    ):
        session.run({"input": images(1)})


def test_what_it_does_not_do_is_refused(checkpoint: Checkpoint, model: OnnxModel, engine_path: Path) -> None:
    backend = get_backend("pytorch")
    with pytest.raises(BackendError, match="no provider 'jit', expected one of eager, compile"):
        backend.open(checkpoint, SessionOptions(provider="jit"))
    with pytest.raises(BackendError, match=r"pytorch opens checkpoints, .*vit.onnx' is of kind 'onnx'"):
        backend.open(model)
    with pytest.raises(BuildError, match="pytorch builds no engine"):
        backend.build(model, engine_path, BuildTarget())


@pytest.mark.parametrize(
    ("gpu", "built_for", "said"),
    [
        (None, "13.0", "there is no GPU"),
        ("NVIDIA L4", None, "is built for the CPU alone"),
        ("NVIDIA L4", "13.0", r"for CUDA 13.0 cannot use NVIDIA L4, driver for CUDA 12.4"),
    ],
)
def test_why_torch_has_no_gpu_is_said(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, gpu: str | None, built_for: str | None, said: str
) -> None:
    there = environment.current().model_copy(update={"gpu": gpu, "cuda": "12.4"})
    monkeypatch.setattr(environment, "current", lambda: there)
    monkeypatch.setattr(environment, "reason_without_gpu", lambda: "" if gpu else "there is no GPU")
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match=f"{said}.*; device 'cpu' works without"):
        get_backend("pytorch").open(checkpoint, SessionOptions(device="cuda"))
    with pytest.raises(UsageError, match=f"{said}.*; 'cpu' works without"):
        make_fabric(Hardware(accelerator="cuda"))


def test_a_module_in_use_stays_on_its_device_when_another_session_takes_it_elsewhere() -> None:
    """The CPU row of a bench shares its module with the GPU row; device ``meta`` stands for the GPU."""
    module = torch.nn.Linear(4, 2)
    weight = module.weight
    elsewhere = on_device(module, torch.device("meta"))
    assert elsewhere is not module
    assert {one.device.type for one in elsewhere.parameters()} == {"meta"}
    assert module.weight is weight
    assert {one.device.type for one in module.parameters()} == {"cpu"}
    assert on_device(module, torch.device("cpu")) is module


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_set_and_put_back_also_where_a_program_used_the_new_settings(
    monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    settings: Any = torch.backends
    matmul, conv = settings.cuda.matmul, settings.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    try:
        matmul.fp32_precision = "tf32"  # from here on the older getter raises
        put_back = set_tf32(allowed)
        assert {matmul.fp32_precision, conv.fp32_precision} == {"tf32" if allowed else "ieee"}
        put_back()
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision, conv.fp32_precision = before


def test_autocast_computes_in_half_and_answers_in_fp32() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    images_ = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    options = SessionOptions(device="cpu", provider="autocast-bf16")
    with open_module(module, (None, 1, 8, 8), 10, options) as session:
        half = session.run({"input": images_})["logits"]
        assert session.provider == "autocast-bf16-cpu"
    exact = module(torch.from_numpy(images_)).detach().numpy()
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.1
