"""Building an engine with TensorRT for RTX, which needs no GPU when the compute capability is named."""

from __future__ import annotations

from pathlib import Path

import pytest


def built_for_sm89(path: Path, *, batches: tuple[int, int, int] = (1, 2, 5)) -> int:
    """Return the size in bytes of an engine of the FP32 graph for compute capability 8.9."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is published for x86-64 alone")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    image = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(image.name, *((batch, *tuple(image.shape)[1:]) for batch in batches))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, "TensorRT for RTX built no engine"
    return int(plan.nbytes)
