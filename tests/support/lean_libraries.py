"""Libraries that compute in one thread and read their tables once: as many processes as cores run the tests."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from typing import Any

import onnxruntime
import pytest


class OneThread(onnxruntime.InferenceSession):  # type: ignore[misc]
    """A session whose thread pool has one thread, the caller's, unless its options say how many."""

    def __init__(self, model: Any, sess_options: Any = None, *args: Any, **settings: Any) -> None:
        options = onnxruntime.SessionOptions() if sess_options is None else sess_options
        if options.intra_op_num_threads == 0:
            options.intra_op_num_threads = 1
        super().__init__(model, options, *args, **settings)


def use_one_thread(patch: pytest.MonkeyPatch) -> None:
    """Make one thread the default of ONNX Runtime and OpenVINO in this process."""
    patch.setattr(onnxruntime, "InferenceSession", OneThread)
    if importlib.util.find_spec("openvino") is not None:
        from vitdeploy.backends.openvino import DEVICE, shared_core

        shared_core().set_property(DEVICE, {"INFERENCE_NUM_THREADS": 1})


def read_operators_once(patch: pytest.MonkeyPatch) -> None:
    """Let torch.onnx.export parse the source of its 500 operators at the first export of this process alone."""
    import onnxscript._framework_apis as apis

    for found in pkgutil.iter_modules(apis.__path__, f"{apis.__name__}."):  # one for each version of torch
        module = importlib.import_module(found.name)
        if hasattr(module, "get_torchlib_ops"):
            patch.setattr(module, "get_torchlib_ops", functools.cache(module.get_torchlib_ops))
