"""Weights for an engine that was built without them, or that may be given others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitdeploy.backends.tensorrt_monitor import clean_message, listening_logger
from vitdeploy.errors import BackendError
from vitdeploy.text import one_line


def refit(backend: str, trt: Any, engine: Any, model: Path) -> None:
    """Give an engine the weights of an ONNX model of the same graph.

    Raises:
        BackendError: The library has no refitter, the graph is another one, or weights are missing.
    """
    if not hasattr(trt, "OnnxParserRefitter"):
        raise BackendError(f"{backend} cannot give an engine its weights: open it with 'tensorrt'")
    logger, messages = listening_logger(trt)
    mark = messages.mark()
    refitter = trt.Refitter(engine, logger)
    parser_refitter = trt.OnnxParserRefitter(refitter, logger)
    if not parser_refitter.refit_from_file(str(model)):
        parser_errors = [
            clean_message(parser_refitter.get_error(index).desc()) for index in range(parser_refitter.num_errors)
        ]
        reason = (parser_errors or [messages.first_error(mark) or "its graph is another one"])[0]
        raise BackendError(f"{backend} cannot take the weights of {str(model)!r}: {one_line(reason)}")
    missing = refitter.get_missing_weights()
    if missing:
        raise BackendError(f"{str(model)!r} lacks weights that the engine needs, the first is {missing[0]!r}")
    if not refitter.refit_cuda_engine():
        reason = messages.first_error(mark) or "it gave no reason"
        raise BackendError(f"{backend} cannot give the engine its weights: {one_line(reason)}")
