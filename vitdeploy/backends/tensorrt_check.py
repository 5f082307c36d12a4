"""Does an engine compute what its graph computes? Its golden samples tell, within what its precision may change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifacts import Engine
from vitdeploy.errors import BackendError
from vitdeploy.preprocess import to_input
from vitdeploy.records import Check, Precision

if TYPE_CHECKING:
    from vitdeploy.backends.tensorrt_session import EngineSession

# largest difference to the same graph under ONNX Runtime, as a part of the logits' range. FP32: another order of
# summation. FP16: ONNX Runtime computes it in FP32 on a CPU. INT8, FP8: a value at a rounding border falls to the other
# side and carries through the blocks. A miscompiled engine is off by the range itself.
LIMITS: dict[Precision, float] = {
    "fp32": 1e-3,
    "fp16": 2e-2,
    "int8": 1e-1,
    "int8-weight-only": 2e-2,
    "fp8": 1e-1,
    "mixed": 1e-1,
}


def compare_golden(session: EngineSession, engine: Engine) -> Check:
    """Run the golden samples and compare the logits with those that the graph gave under ONNX Runtime.

    Memory that is short leaves the check unmade; an engine that cannot run fails it.
    """
    golden, preprocess = engine.golden, engine.manifest.preprocess
    if golden is None or preprocess is None:
        return unchecked("golden", "the graph carries no golden samples")
    images = to_input(golden.pixels, preprocess)
    try:
        logits = run_in_batches(session, images)
    except BackendError as error:
        if "memory" in str(error).lower():
            return unchecked("golden", str(error))
        return Check(name="golden", status="failed", detail=str(error))
    limit = LIMITS[engine.manifest.precision]
    reach = float(np.ptp(golden.outputs)) or 1.0
    apart = float(np.max(np.abs(logits - golden.outputs))) / reach
    passed = bool(np.isfinite(logits).all()) and apart <= limit
    return Check(
        name="golden",
        status="passed" if passed else "failed",
        value=apart if np.isfinite(apart) else None,
        limit=limit,
        unit="of the logits' range",
        detail=f"max |Δlogit| is {apart:.3g} of the logits' range against onnxruntime, expected at most {limit:g}",
    )


def run_in_batches(session: EngineSession, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits of [n, C, H, W] images, n free: the last batch is filled up with its last image."""
    least, _, most = max(session.profiles, key=lambda profile: (profile[2], -profile[0]))
    (name,) = session.inputs
    logits: list[NDArray[np.float32]] = []
    for start in range(0, len(images), most):
        part = images[start : start + most]
        filled = np.concatenate([part, np.repeat(part[-1:], max(0, least - len(part)), axis=0)])
        (result,) = session.run({name: filled}).values()
        logits.append(np.asarray(result[: len(part)], np.float32))
    return np.concatenate(logits)


def unchecked(name: str, reason: str) -> Check:
    """Return a check that was not made, and why."""
    return Check(name=name, status="unchecked", detail=reason)
