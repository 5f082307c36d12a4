"""``diff``: where two artifacts part, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifacts import Artifact, OnnxModel, open_artifact
from vitdeploy.backends import get_backend
from vitdeploy.backends.opening import open_session
from vitdeploy.benching.candidates import Candidate, list_candidates
from vitdeploy.datasets import Dataset, DataSource, batches, open_dataset
from vitdeploy.errors import ArtifactError, BackendError, UsageError
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.measure.difference import Difference
from vitdeploy.progress import Progress
from vitdeploy.records import Precision, Preprocess, Record
from vitdeploy.sessions import Session, SessionOptions
from vitdeploy.terminal_progress import AUTO, shown

if TYPE_CHECKING:
    from vitdeploy.graph.correspondence import Correspondence, Pair

LIMITS_DB: dict[Precision, float] = {
    "fp32": 60.0,  # summation order
    "fp16": 30.0,  # 2⁻¹¹ per operation, over tens of layers
    "int8-weight-only": 15.0,
    "int8": 10.0,  # the sums of a deep graph have 20 dB and more
    "fp8": 10.0,
    "mixed": 10.0,
}
"""Tensors of two sound graphs agree better than that; of the two precisions the coarser counts."""
BATCH = 16
FLOAT16_MAX = 65504.0
_RECOVERED_DB = 6.0
"""So much better than one that it is computed from, a tensor cannot have its error: both stand for something else."""
_ABSORBED = 0.25
"""A sum that keeps less of an operand's error never had it."""

Verdict = Literal["equal", "agrees", "rescaled", "differs"]


class TensorDifference(Record):
    """One tensor of two artifacts, over all images.

    ``tensor`` and ``node``, of operator ``op_type``, are those of the second graph, ``counterpart`` the tensor of the
    first. ``sqnr_db`` is ``10·log10(Σ first² / Σ (second - first)²)``, None where the tensors are equal bit for bit or
    the second is not finite; ``largest`` is ``max |second - first|``, ``peak`` is ``max |first|``, ``non_finite`` how
    many values are NaN or infinite in the second alone. ``lost_db``: by how much the SQNR is below that of the tensors
    that this one is computed from, None where one of these is not comparable.

    ``verdict``: ``equal`` bit for bit; ``agrees`` within the limit; ``rescaled``: it does not, but what is computed
    from it does, as where channels are scaled; ``differs``: it does not, and neither does what follows.
    """

    tensor: str
    counterpart: str
    node: str = ""
    op_type: str = ""
    dtype: str = ""
    sqnr_db: float | None = None
    largest: float = 0.0
    peak: float = 0.0
    non_finite: int = 0
    lost_db: float | None = None
    verdict: Verdict = "agrees"

    @property
    def overflows(self) -> bool:
        """Return whether the tensor is FP16 and holds values beyond FP16's range."""
        return self.dtype == "FLOAT16" and self.peak > FLOAT16_MAX


class Diff(Record):
    """Where two artifacts part.

    ``tensors`` are in the order of the second graph's nodes, empty where only outputs can be had (``notes`` say why);
    they are read from graphs that give all of them, so their nodes run unfused. ``outputs`` compares the logits of
    the artifacts as they are. ``parts_at`` is the first tensor that differs, ``overflow`` the first that FP16 does not
    hold. ``only_first`` and ``only_second`` count the tensors without a counterpart.
    """

    first: str
    second: str
    data: str
    images: int
    limit_db: float
    outputs: TensorDifference
    same_first_class: float | None = None
    tensors: tuple[TensorDifference, ...] = ()
    parts_at: str | None = None
    overflow: str | None = None
    only_first: int = 0
    only_second: int = 0
    notes: tuple[str, ...] = ()

    def tensor(self, name: str) -> TensorDifference:
        """Return the tensor of that name in the second graph."""
        return next(one for one in self.tensors if one.tensor == name)

    @property
    def losses(self) -> tuple[TensorDifference, ...]:
        """The tensors in which more is lost than in those before them, the worst first."""
        lossy = [one for one in self.tensors if one.lost_db is not None and one.lost_db > 0]
        return tuple(sorted(lossy, key=lambda one: -(one.lost_db or 0.0)))


def diff(
    first: Artifact | Path | str,
    second: Artifact | Path | str,
    *,
    data: DataSource,
    runtimes: Sequence[str] = ("onnxruntime",),
    samples: int | None = 16,
    seed: int = 0,
    limit_db: float | None = None,
    threads: int = 0,
    progress: Progress | None = AUTO,
) -> Diff:
    """Compare two artifacts of one model, tensor by tensor in graph order, and their outputs.

    Tensors are compared where both are ONNX models and run under ONNX Runtime; of engines, checkpoints and other
    runtimes there are outputs only. Images stream through, and so many tensors at a time that the memory for them
    stays at a few hundred megabytes.

    Args:
        first: The reference, as a rule the FP32 graph.
        second: What is compared with it.
        data: Images, of which labels do not matter.
        runtimes: What runs ONNX models, as for ``bench``: one name for both, or one each.
        samples: Take that many of the images, by ``seed``; None for all.
        seed: Of that choice.
        limit_db: A tensor with less SQNR differs. None: by the coarser precision of the two (``LIMITS_DB``).
        threads: CPU threads, 0 for all.
        progress: Shows the runs over the images.
    Raises:
        ArtifactError: A file is missing or damaged, or the two take different inputs.
        BackendError: A runtime is not installed, or cannot run an artifact here.
        DataError: Images cannot be read.
        UsageError: There is no such runtime.
    """
    pair = open_artifact(first), open_artifact(second)
    images = open_dataset(data, samples=samples, seed=seed)
    options = _Options(_places(pair, runtimes, threads), _limit(pair, limit_db), threads)
    return _compare(pair, images, options, shown(progress))


@dataclass(frozen=True)
class _Options:
    places: tuple[Candidate | None, Candidate | None]
    limit_db: float
    threads: int


def _limit(pair: tuple[Artifact, Artifact], limit_db: float | None) -> float:
    if limit_db is None:
        return min(LIMITS_DB[artifact.manifest.precision] for artifact in pair)
    if not math.isfinite(limit_db):
        raise UsageError(f"limit_db is {limit_db!r}, expected a number of dB")
    return limit_db


def _places(
    pair: tuple[Artifact, Artifact], runtimes: Sequence[str], threads: int
) -> tuple[Candidate | None, Candidate | None]:
    """Return where each of the two runs, None for what its kind decides."""
    if len(runtimes) not in (1, 2):
        raise UsageError(f"{len(runtimes)} runtimes are named, expected one for both or one each")
    both = (runtimes[0], runtimes[-1])
    first, second = (
        list_candidates([artifact], [runtime], None)[0] if isinstance(artifact, OnnxModel) else None
        for artifact, runtime in zip(pair, both, strict=True)
    )
    return first, second


def _compare(pair: tuple[Artifact, Artifact], images: Dataset, options: _Options, progress: Progress) -> Diff:
    preprocess = _preprocess(pair)
    outputs, same = _outputs(pair, images, preprocess, options, progress)
    reason = _reason_for_outputs(pair, options)
    tensors: tuple[TensorDifference, ...] = ()
    only_first = only_second = 0
    if not reason:
        found, differences = _tensors(pair, images, preprocess, options, progress)
        tensors = _judged(found, differences, options.limit_db)
        only_first, only_second = found.only_first, found.only_second
    parted = [one for one in (*tensors, outputs) if one.verdict == "differs"]
    overflows = [one for one in tensors if one.overflows]
    return Diff(
        first=str(pair[0].path),
        second=str(pair[1].path),
        data=images.uri,
        images=len(images),
        limit_db=options.limit_db,
        outputs=outputs,
        same_first_class=same,
        tensors=tensors,
        parts_at=parted[0].tensor if parted else None,
        overflow=overflows[0].tensor if overflows else None,
        only_first=only_first,
        only_second=only_second,
        notes=(reason,) if reason else (),
    )


def _preprocess(pair: tuple[Artifact, Artifact]) -> Preprocess:
    """Return the preprocessing of both; where a tensor comes from does not count."""
    first, second = (artifact.manifest.preprocess for artifact in pair)
    if first is None or second is None:
        without = pair[0] if first is None else pair[1]
        raise ArtifactError(f"{str(without.path)!r} carries no preprocessing, so no image can become its input")
    if first.model_copy(update={"source": second.source}) != second:
        raise ArtifactError(
            f"{str(pair[0].path)!r} and {str(pair[1].path)!r} prepare images differently (vd.inspect() shows "
            f"how), so their tensors cannot be compared"
        )
    return first


def _reason_for_outputs(pair: tuple[Artifact, Artifact], options: _Options) -> str:
    for artifact, place in zip(pair, options.places, strict=True):
        if place is None:
            return f"outputs only: {artifact.path.name} is of kind {artifact.manifest.kind}, whose tensors stay inside"
        if place.backend != "onnxruntime":
            return f"outputs only: tensors of {artifact.path.name} stay inside the runtime {place.backend}"
    return ""


def _session(artifact: Artifact, place: Candidate | None, threads: int) -> Session:
    if place is None:
        return open_session(artifact, SessionOptions(threads=threads))
    backend = get_backend(place.backend)
    reason = backend.unavailable() or backend.can_run()
    if reason is not None:
        raise BackendError(f"{str(artifact.path)!r} cannot run here: {reason}")
    return place.open(threads=threads)


def _outputs(
    pair: tuple[Artifact, Artifact], images: Dataset, preprocess: Preprocess, options: _Options, progress: Progress
) -> tuple[TensorDifference, float | None]:
    """Return the difference of the logits, and on how many images the first class is the same."""
    first, second = pair
    difference, same = Difference(), 0
    with (
        _session(first, options.places[0], options.threads) as left,
        _session(second, options.places[1], options.threads) as right,
        progress.task("comparing outputs", total=len(images)) as task,
    ):
        for batch in batches(images, preprocess, BATCH):
            before = run_batch(left, batch, first.manifest.batch_limits)
            after = run_batch(right, batch, second.manifest.batch_limits)
            if before.shape != after.shape:
                raise ArtifactError(
                    f"{str(first.path)!r} has {before.shape[1]} outputs, {str(second.path)!r} has {after.shape[1]}"
                )
            difference.update(before, after)
            same += int(np.sum(before.argmax(axis=1) == after.argmax(axis=1)))
            task.advance(len(batch))
    verdict: Verdict = "equal" if math.isinf(difference.sqnr_db) and difference.noise == 0 else "agrees"
    if not difference.sqnr_db >= options.limit_db:
        verdict = "differs"
    record = _record(difference, verdict=verdict, tensor="outputs", counterpart="outputs")
    classifies = first.manifest.model.task == "single-label"
    return record, same / len(images) if classifies else None


def _tensors(
    pair: tuple[Artifact, Artifact], images: Dataset, preprocess: Preprocess, options: _Options, progress: Progress
) -> tuple[Correspondence, list[Difference]]:
    from vitdeploy.backends.onnxruntime import open_graph, saturates_here
    from vitdeploy.graph.correspondence import correspond, with_types
    from vitdeploy.quantization.collector import batch_for, with_outputs

    graphs = [with_types(artifact.load()) for artifact in pair if isinstance(artifact, OnnxModel)]
    found = correspond(*graphs)
    differences = [Difference() for _ in found.pairs]
    chunks = list(_chunks(graphs[1], found.pairs))
    with progress.task("comparing tensors", total=len(chunks) * len(images)) as task:
        for chunk in chunks:
            firsts = list(dict.fromkeys(str(found.pairs[i].first.name) for i in chunk))
            seconds = list(dict.fromkeys(str(found.pairs[i].second.name) for i in chunk))
            left, right = (
                open_graph(
                    with_outputs(graph, names),
                    SessionOptions(options.threads, place.device, place.provider, cpu_fallback=True),
                    exact_integers=place.artifact is not None and saturates_here(place.artifact.manifest),
                )
                for graph, names, place in zip(graphs, (firsts, seconds), options.places, strict=True)
                if place is not None
            )
            with left, right:
                for batch in batches(images, preprocess, batch_for(graphs[1], seconds)):
                    before, after = _run(left, batch), _run(right, batch)
                    for i in chunk:
                        one = found.pairs[i]
                        differences[i].update(before[str(one.first.name)], after[str(one.second.name)])
                    task.advance(len(batch))
    return found, differences


def _chunks(graph: Any, pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """Yield the numbers of pairs whose tensors for one image fit into the budget together."""
    from vitdeploy.graph.linear_groups import shapes_at_batch_one
    from vitdeploy.quantization.collector import MEMORY_BUDGET_BYTES

    shapes = shapes_at_batch_one(graph)
    chunk: list[int] = []
    held = 0
    for index, pair in enumerate(pairs):
        size = 4 * math.prod(one or 1 for one in shapes.get(str(pair.second.name), ()))
        if chunk and held + size > MEMORY_BUDGET_BYTES:
            yield chunk
            chunk, held = [], 0
        chunk.append(index)
        held += size
    if chunk:
        yield chunk


def _run(session: Session, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Run a graph on images; one with a fixed batch runs piece by piece, filled up with the last image."""
    (fed,) = session.inputs.values()
    size = fed.shape[0] or len(images)
    parts = []
    for start in range(0, len(images), size):
        piece = images[start : start + size]
        whole = np.concatenate([piece, np.repeat(piece[-1:], size - len(piece), axis=0)])
        found = session.run({fed.name: np.ascontiguousarray(whole, fed.dtype)})
        parts.append({name: array[: len(array) // size * len(piece)] for name, array in found.items()})
    return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _judged(found: Correspondence, differences: Sequence[Difference], limit_db: float) -> tuple[TensorDifference, ...]:
    """Tell for every tensor whether it differs, and whether what is computed from it does too."""
    from vitdeploy.graph.correspondence import sources_of

    number = {pair.second: index for index, pair in enumerate(found.pairs)}
    readers: list[list[int]] = [[] for _ in found.pairs]
    sources: list[list[int]] = []
    for index, pair in enumerate(found.pairs):
        node = pair.second.producer()
        before = [] if node is None else sorted(number[value] for value in sources_of(node, set(number)))
        sources.append(before)
        for source in before:
            readers[source].append(index)
    verdicts: list[Verdict] = ["agrees"] * len(found.pairs)
    for index in reversed(range(len(found.pairs))):
        one, after = differences[index], readers[index]
        if one.noise == 0 and not one.non_finite:
            verdicts[index] = "equal"
            continue
        ends = not after or found.pairs[index].second.is_graph_output()
        if one.non_finite:  # even where a runtime computes what follows in FP32 and hides it
            verdicts[index] = "differs"
        elif not ends and all(_recovers(one, differences[r], verdicts[r], found.pairs[r], limit_db) for r in after):
            verdicts[index] = "rescaled"
        elif not one.sqnr_db >= limit_db:
            verdicts[index] = "differs"
    return tuple(
        _record(
            differences[index],
            verdict=verdicts[index],
            tensor=str(pair.second.name),
            counterpart=str(pair.first.name),
            node=str(node.name) if (node := pair.second.producer()) is not None else "",
            op_type=node.op_type if node is not None else "",
            dtype="" if pair.second.dtype is None else pair.second.dtype.name,
            lost_db=_lost(index, sources[index], differences, verdicts),
        )
        for index, pair in enumerate(found.pairs)
    )


def _recovers(error: Difference, after: Difference, verdict: Verdict, reader: Pair, limit_db: float) -> bool:
    """Return whether a tensor that is computed from another one lacks its error, as no rounding could undo it.

    A sum may hide the error of an operand in a larger one and still have all of it.
    """
    if verdict == "rescaled":
        return error.sqnr_db < limit_db or after.sqnr_db > error.sqnr_db - _RECOVERED_DB
    node = reader.second.producer()
    if node is not None and node.op_type in ("Add", "Sub", "Sum") and after.noise >= _ABSORBED * error.noise:
        return False
    return after.sqnr_db >= max(limit_db, error.sqnr_db + _RECOVERED_DB)


def _lost(
    index: int, sources: Sequence[int], differences: Sequence[Difference], verdicts: Sequence[Verdict]
) -> float | None:
    own = differences[index].sqnr_db
    before = [differences[source].sqnr_db for source in sources]
    if verdicts[index] == "rescaled" or any(verdicts[source] == "rescaled" for source in sources):
        return None
    if not math.isfinite(own) or not before or any(math.isnan(value) for value in before):
        return None
    worst = min(before)
    return worst - own if math.isfinite(worst) else None


def _record(difference: Difference, **fields: Any) -> TensorDifference:
    sqnr = difference.sqnr_db
    return TensorDifference(
        sqnr_db=sqnr if math.isfinite(sqnr) else None,
        largest=difference.largest,
        peak=difference.peak,
        non_finite=difference.non_finite,
        **fields,
    )
