"""Stored logits: found by graph, given by sample, refused when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from present import present

from vitdeploy.artifacts import Checkpoint, OnnxModel
from vitdeploy.artifacts.reference import find_reference, load_reference, read_reference, reference_path
from vitdeploy.datasets import open_dataset
from vitdeploy.errors import ArtifactError


def test_rows_come_by_sample_in_any_order(tiny_onnx: OnnxModel) -> None:
    reference = load_reference(tiny_onnx)
    dataset = open_dataset("digits:test")
    assert reference.info.data_sha256 == dataset.digest
    assert reference.logits.shape == (len(dataset), 10)
    ids = dataset.sample_ids[7::-3]
    np.testing.assert_array_equal(reference.rows(ids), reference.logits[[7, 4, 1]])
    assert reference.rows([*ids, "0" * 64]) is None


@pytest.mark.torch
def test_they_are_pytorchs_logits(tiny_onnx: OnnxModel, tiny_checkpoint: Checkpoint) -> None:
    from vitdeploy.backends import get_backend
    from vitdeploy.datasets import load_pixels
    from vitdeploy.preprocess import normalize

    dataset, spec = open_dataset("digits:test"), present(tiny_onnx.manifest.preprocess)
    images = normalize(load_pixels(dataset, spec), spec)
    with get_backend("pytorch").open(tiny_checkpoint) as session:
        expected = session.run({"input": images})["logits"]
    np.testing.assert_allclose(
        present(present(load_reference(tiny_onnx)).rows(dataset.sample_ids)), expected, rtol=1e-4, atol=1e-4
    )


def test_logits_of_another_graph_are_not_taken(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    source = reference_path(tiny_onnx.path)
    (tmp_path / source.name).write_bytes(source.read_bytes())
    assert find_reference(tmp_path, {tiny_onnx.digest}).path == tmp_path / source.name
    assert find_reference(tmp_path, {"0" * 64}) is None
    assert find_reference(tmp_path / "..", {tiny_onnx.digest}) is None


def test_a_damaged_file_is_refused(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    data = bytearray(reference_path(tiny_onnx.path).read_bytes())
    data[-5] ^= 1
    path = tmp_path / "x.reference.safetensors"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"are damaged: make them again with vd\.export"):
        read_reference(path)
    with pytest.raises(ArtifactError, match="holds no reference logits"):
        read_reference(tiny_onnx.path.with_name("tiny.safetensors"))


def test_an_onnx_file_that_is_a_pipe_or_larger_than_protobuf_is_refused_at_once(tmp_path: Path) -> None:
    import os

    from vitdeploy.artifacts import load_ir
    from vitdeploy.errors import ArtifactError

    os.mkfifo(tmp_path / "fifo.onnx")
    with pytest.raises(ArtifactError, match="is a named pipe, expected a file"):
        load_ir(tmp_path / "fifo.onnx")
    with (tmp_path / "large.onnx").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ArtifactError, match="larger than the 2 GB"):
        load_ir(tmp_path / "large.onnx")
