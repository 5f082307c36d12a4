"""One thread per session of a CPU runtime where a test asks for no number: as many processes as cores run tests."""

from __future__ import annotations

import importlib.util
from typing import Any

import onnxruntime
from pytest import MonkeyPatch


class OneThread(onnxruntime.InferenceSession):
    """A session whose thread pool has one thread, the caller's, unless its options say how many."""

    def __init__(self, model: Any, sess_options: Any = None, *args: Any, **settings: Any) -> None:
        options = onnxruntime.SessionOptions() if sess_options is None else sess_options
        if options.intra_op_num_threads == 0:
            options.intra_op_num_threads = 1
        super().__init__(model, options, *args, **settings)


def use_one_thread(patch: MonkeyPatch) -> None:
    """Make one thread the default of ONNX Runtime and OpenVINO in this process."""
    patch.setattr(onnxruntime, "InferenceSession", OneThread)
    if importlib.util.find_spec("openvino") is not None:
        from vitdeploy.backends.openvino import DEVICE, shared_core

        shared_core().set_property(DEVICE, {"INFERENCE_NUM_THREADS": 1})
