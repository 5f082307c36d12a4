"""What calibration sees is the dataset, once; and ONNX Runtime's tensors come out of the graph unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from present import present
from small_vit import images, small_vit

from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.errors import CalibrationError, GraphError
from vitdeploy.quantization.collector import Collector, batch_for, merged, with_outputs
from vitdeploy.sessions import Session, SessionOptions, TensorSpec


class Recorder:
    """A session that notes every image that it is fed and hands them out as the observed tensor."""

    def __init__(self, tensors: list[str], batch: int | None = None, spread=lambda images: images) -> None:
        self.inputs = {"input": TensorSpec("input", np.dtype(np.float32), (batch, 2))}
        self.tensors, self.batch, self.spread = tensors, batch, spread
        self.seen: list[tuple[float, ...]] = []
        self.closed = False

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        fed = feed["input"]
        assert self.batch is None or len(fed) == self.batch
        self.seen += [tuple(row) for row in fed.tolist()]
        return {name: self.spread(fed) for name in self.tensors}

    def close(self) -> None:
        self.closed = True


@contextmanager
def recording(batch: int | None = None, **arguments: Any):
    recorder = Recorder(["input"], batch, **arguments)
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[N,2] input) => (float[N,2] y) { y = Relu(input) }'
    )
    with Collector(model, {"input": -1}, lambda _: cast(Session, recorder)) as collector:
        yield collector, recorder
    assert recorder.closed


datasets = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=40)


def batched(rows, size: int):
    array = np.array(rows, np.float32)
    return (array[start : start + size] for start in range(0, len(array), size))


@given(datasets, st.integers(1, 9))
def test_the_multiset_of_images_seen_is_the_dataset(rows, size: int) -> None:
    with recording() as (collector, recorder):
        observers = collector.observe(batched(rows, size))
    assert Counter(recorder.seen) == Counter((float(a), float(b)) for a, b in rows)
    assert observers["input"].count == 2 * len(rows)
    assert observers["input"].histogram.counts.sum() == 2 * len(rows)


@given(datasets, st.integers(1, 9), st.integers(1, 5))
def test_a_fixed_batch_counts_its_filling_for_nothing(rows, size: int, fixed: int) -> None:
    with recording(fixed) as (collector, _), recording() as (free, _):
        padded = collector.observe(batched(rows, size))["input"]
        plain = free.observe(batched(rows, size))["input"]
    assert (padded.lo.tolist(), padded.hi.tolist(), padded.count) == (plain.lo.tolist(), plain.hi.tolist(), plain.count)
    assert np.array_equal(padded.histogram.counts, plain.histogram.counts)
    assert np.array_equal(padded.sample.rows, plain.sample.rows)


def test_a_tensor_that_does_not_run_over_images_cannot_be_cut() -> None:
    with (
        recording(4, spread=lambda fed: np.ones((3, 2))) as (collector, _),
        pytest.raises(GraphError, match=r"\(3, 2\)"),
    ):
        collector.observe(batched([(1, 2)] * 5, 4))


def test_no_images_are_an_error() -> None:
    with recording() as (collector, _), pytest.raises(CalibrationError, match="no images"):
        collector.observe([])


def test_the_stream_is_consumed_batch_by_batch() -> None:
    alive = []

    def stream() -> Iterator[np.ndarray]:
        for index in range(5):
            alive.append(index)
            yield np.full((1, 2), index, np.float32)
            assert len(alive) == index + 1, "a batch was asked for before the one before was observed"

    with recording() as (collector, recorder):
        collector.observe(stream())
    assert len(recorder.seen) == 5


def test_nan_is_reported_with_the_name_of_the_tensor_and_of_the_image() -> None:
    broken = [np.array([[0.0, 1.0]], np.float32), np.array([[0.0, 1.0], [np.nan, 1.0]], np.float32)]
    with recording() as (collector, _), pytest.raises(CalibrationError, match=r"'input' has NaN .* for image 3, "):
        collector.observe(broken)
    with (
        recording() as (collector, _),
        pytest.raises(CalibrationError, match=r"'input' has NaN .* for image 'c.png', "),
    ):
        collector.observe(broken, name_of=["a.png", "b.png", "c.png"].__getitem__)


def test_ranges_are_those_of_the_graphs_tensors() -> None:
    model = ir.serde.deserialize_model(small_vit(depth=1))
    norms = [present(node.outputs[0].name) for node in model.graph if node.op_type in ("LayerNormalization", "Gelu")]
    x = images(7)
    options = SessionOptions(threads=1)
    with open_graph(with_outputs(model, norms), options) as session:
        expected = session.run({"input": x})
    with Collector(model, dict.fromkeys(norms, -1), lambda graph: open_graph(graph, options)) as collector:
        observers = collector.observe([x[:3], x[3:]])
    assert set(observers) == set(norms)
    for name, array in expected.items():
        assert observers[name].count == array.size
        np.testing.assert_allclose(present(observers[name].hi), array.max(axis=(0, 1)), rtol=1e-5)
        np.testing.assert_allclose(present(observers[name].lo), array.min(axis=(0, 1)), rtol=1e-5)


def test_observing_leaves_the_graph_as_it_is() -> None:
    model = ir.serde.deserialize_model(small_vit(depth=1))
    before = ir.to_proto(model).SerializeToString()
    with_outputs(model, [present(list(model.graph)[3].outputs[0].name)])
    assert ir.to_proto(model).SerializeToString() == before


def test_a_tensor_that_is_not_there_is_named() -> None:
    model = ir.serde.deserialize_model(small_vit(depth=1))
    with pytest.raises(GraphError, match="no tensor 'absent'"):
        with_outputs(model, ["absent"])


@settings(max_examples=20)
@given(datasets, datasets)
def test_parts_of_a_set_merge_into_the_whole(first, second) -> None:
    with recording() as (collector, _):
        parts = [collector.observe(batched(rows, 4)) for rows in (first, second, first + second)]
    together, whole = merged(parts[0], parts[1])["input"], parts[2]["input"]
    assert (together.lo.tolist(), together.hi.tolist()) == (whole.lo.tolist(), whole.hi.tolist())
    assert np.array_equal(together.histogram.counts, whole.histogram.counts)
    assert parts[0]["input"].count == 2 * len(first), "merging must not change what it reads"


def test_batch_size_follows_from_memory() -> None:
    model = ir.serde.deserialize_model(small_vit(depth=1))
    names = [present(node.outputs[0].name) for node in model.graph if node.op_type == "Gelu"]
    assert batch_for(model, names) == 32
    large = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]>'
        " g (float[N,3,4096,4096] input) => (float[N,3,4096,4096] y) { y = Relu(input) }"
    )
    assert batch_for(large, ["y"]) == 1
