"""Holding a graph against the logits that it should give, under ONNX Runtime on the CPU."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifacts import load_ir
from vitdeploy.artifacts.files import TEMPORARY_PREFIX, write_error
from vitdeploy.datasets.check_images import CHECKED_BATCH
from vitdeploy.errors import GraphError
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.measure.statistics import fraction_of_range
from vitdeploy.preprocess import to_input
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import Check, Precision, Preprocess
from vitdeploy.sessions import Session, SessionOptions

if TYPE_CHECKING:
    import onnx_ir as ir

GATE = 1e-4
"""Largest |Δlogit| as a fraction of the logits' range: float32 gives 1e-7 to 1e-5, a wrong graph 1e-2 and more."""

TOLERANCES: dict[Precision, float] = {
    "fp32": GATE,
    "fp16": 1e-2,
    "int8": 5e-2,
    "int8-weight-only": GATE,
    "fp8": 5e-2,
    "mixed": 1e-2,
}
"""The same for graphs that are adopted, by their own precision: what a rounding that falls the other way may change."""

LARGE_BYTES = 256 << 20
CPU = SessionOptions(device="cpu")

Logits = NDArray[np.float32]


@contextmanager
def staged(holder: list[ir.Model], output: Path) -> Iterator[tuple[ir.Model, Session]]:
    """Open a graph under ONNX Runtime; a large one is first written beside ``output``, so its weights leave memory.

    ``holder`` is emptied: whoever holds the graph would hold its weights.
    """
    import onnx_ir as ir

    from vitdeploy.backends.onnxruntime import OnnxRuntimeSession, open_graph
    from vitdeploy.graph.values import weight_bytes

    model = holder.pop()
    if weight_bytes(model) <= LARGE_BYTES:
        with open_graph(model, CPU) as session:
            yield model, session
        return
    with _folder_beside(output) as folder:
        path = folder / "graph.onnx"
        try:
            ir.save(model, path, external_data="graph.data")
        except OSError as error:
            raise write_error(output, error) from error
        for value in model.graph.initializers.values():
            value.const_value = None  # onnxscript's rules remember the last graph that they saw, and so its weights
        del model
        gc.collect()
        with OnnxRuntimeSession(str(path), CPU) as session:
            yield load_ir(path), session


@contextmanager
def _folder_beside(output: Path) -> Iterator[Path]:
    """Yield a temporary folder on the disk that the result goes to, which is removed at the end."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=output.parent)
    except OSError as error:
        raise write_error(output, error) from error
    with folder as name:
        yield Path(name)


@dataclass(frozen=True)
class Expected:
    """Logits [n, classes] by the batch at which they were computed: an integer graph's depend on it."""

    by_batch: Mapping[int, Logits]

    @property
    def last(self) -> Logits:
        """Those of the last batch."""
        return list(self.by_batch.values())[-1]


def compare(
    session: Session,
    spec: Preprocess,
    pixels: NDArray[np.uint8],
    expected: Logits | Expected,
    against: str,
    limit: float = GATE,
) -> tuple[tuple[Check, ...], Logits]:
    """Compare a graph's logits at batch 1, 2 and 5 with the expected ones; of a graph with a fixed batch, at that.

    Args:
        session: Of the graph.
        spec: Its preprocessing.
        pixels: [n, H, W, C].
        expected: What it should give, for every batch or by batch.
        against: What gave that.
        limit: Largest difference, as a fraction of the range of the expected ones.

    Returns:
        One check per batch, and the graph's logits [n, classes] at the last of them.

    Raises:
        GraphError: Logits differ by more than ``limit``, or are not numbers.
    """
    images = to_input(pixels, spec)
    fixed = next(iter(session.inputs.values())).shape[0]
    sizes = [1, 2, CHECKED_BATCH] if fixed is None else [fixed]
    checks, outputs = [], None
    for size in sizes:
        wanted = expected.by_batch[size] if isinstance(expected, Expected) else expected
        low, high = float(wanted.min()), float(wanted.max())
        logits = run_batch(session, images, (size, size))
        apart = float(np.abs(logits - wanted).max())
        fraction = fraction_of_range(apart, high - low)
        detail = f"max |Δlogit| {apart:.3g} where logits are {low:.4g} to {high:.4g}"
        if not fraction <= limit:
            raise GraphError(
                f"the graph's logits at batch {size} differ from those of {against} by {fraction:.3g} of their range "
                f"({detail}), expected at most {limit:g}: nothing was written"
            )
        checks.append(
            Check(
                name=f"logits against {against}, batch {size}",
                status="passed",
                value=fraction,
                limit=limit,
                unit="of the logits' range",
                detail=detail,
            )
        )
        outputs = logits
    assert outputs is not None
    return tuple(checks), outputs


def describe_graph(model: ir.Model, progress: Progress = SILENT) -> dict[str, float]:
    """Return the size of a graph for its manifest, and note how it departs from a legal one."""
    from vitdeploy.graph.legality import findings

    found = findings(model)
    for finding in found:
        progress.note(f"graph: {finding}")
    return {"nodes": float(model.graph.num_nodes()), "graph_findings": float(len(found))}
