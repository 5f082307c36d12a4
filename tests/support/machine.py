"""A machine with a GPU that is not there: fakes of TensorRT and cuda-python, and the environment to match."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from fake_cuda import FakeRuntime
from fake_tensorrt import fake_module

from vitdeploy import environment
from vitdeploy.records import Environment

GPUS = {
    "8.9": "NVIDIA L4",
    "9.0": "NVIDIA H100 80GB HBM3",
    "8.7": "Orin",
    "11.0": "NVIDIA Thor",
    "12.0": "NVIDIA GeForce RTX 5090",
    "7.0": "Tesla V100",
}


def machine(capability: str | None = "8.9", jetpack: str | None = None, cuda: str = "13.0") -> Environment:
    """Return a machine with that GPU, or with none."""
    gpu = None if capability is None else GPUS[capability]
    return Environment(
        os="Linux-6.8-x86_64" if jetpack is None else "Linux-5.15-tegra-aarch64",
        python="3.12.3",
        cpu="some processor",
        cores=8,
        memory_bytes=32 << 30,
        gpu=gpu,
        compute_capability=capability,
        gpu_memory_bytes=None if gpu is None else 24 << 30,
        driver=None if gpu is None else "580.65",
        cuda=None if gpu is None else cuda,
        jetpack=jetpack,
    )


def be(monkeypatch: pytest.MonkeyPatch, there: Environment, **installed: str) -> None:
    """Make this machine ``there``; ``installed`` are library versions (``tensorrt_rtx="1.7.1"``)."""
    versions = {name.replace("_", "-"): version for name, version in installed.items()}
    monkeypatch.setattr(environment, "current", lambda: there)
    monkeypatch.setattr(environment, "versions", lambda: dict(versions))
    monkeypatch.setattr(environment, "cuda_of", lambda library: None)


def fake_gpu(
    monkeypatch: pytest.MonkeyPatch, release: str, capability: str | None = "8.9", **more: Any
) -> types.SimpleNamespace:
    """Install TensorRT of ``release`` (or ``rtx``, ``lean``) and a GPU; return the fakes ``trt`` and ``cuda``."""
    trt = fake_module(release, more.pop("version", None))
    cuda = FakeRuntime(more.pop("devices", 1))
    there = machine(capability, **more)
    trt.record.cuda, trt.record.gpu = cuda, there.gpu or ""
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, trt if name == trt.__name__ else None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    be(monkeypatch, there, **{trt.__name__: trt.__version__})
    return types.SimpleNamespace(trt=trt, cuda=cuda)
