"""Trained models with outliers: min-max on every operator loses them, quantization as it is by default does not.

(a) channels of γ and β times 30 to 1000, rows of the readers divided; (b) the same by a Mul behind each GELU; (c)
trained with two channels of the residual stream pinned at 300 and -1400. ``trained/`` holds a ViT, a DeiT with two
heads and a T2T-ViT, each of two blocks, fitted to the digits plainly and with pinned channels; weights rounded to FP16.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from outliers import gelu_outliers, norm_outliers
from present import present
from readout_vit import run
from trained_models import FAMILIES, trained_model

from vitdeploy.artifacts import write_onnx
from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.datasets import load_pixels, open_dataset
from vitdeploy.graph.insert_qdq import ActivationPair, InsertQDQ, QdqPlacement
from vitdeploy.preprocess import normalize
from vitdeploy.quantization.affine import scale_of
from vitdeploy.quantization.collector import with_outputs
from vitdeploy.quantization.prepared import prepare
from vitdeploy.sessions import SessionOptions
from vitdeploy.stages.quantize import QuantizeOptions, quantize

pytestmark = pytest.mark.slow
PLANTED = {"a": norm_outliers, "b": gelu_outliers, "c": None}


@pytest.fixture(scope="module", params=[(family, kind) for family in FAMILIES for kind in PLANTED], ids="-".join)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    family, kind = request.param
    artifact = trained_model(f"{family}.pinned" if kind == "c" else family, tmp_path_factory.mktemp("trained"))
    if kind == "c":
        return artifact
    planted = artifact.path.with_name("planted.onnx")
    return write_onnx(planted, present(PLANTED[kind])(artifact.load()), artifact.manifest, artifact.golden)


def inputs(artifact, split):
    dataset, spec = open_dataset(f"digits:{split}"), artifact.manifest.preprocess
    return normalize(load_pixels(dataset, spec), spec), dataset.labels


def top1(graph, artifact):
    images, labels = inputs(artifact, "test")
    return float(np.mean(run(graph, images).argmax(axis=1) == labels))


def min_max_on_every_operator(artifact):
    """Return the graph with a Q/DQ pair on every float tensor that a node computes, ranges from 200 digits."""
    graph = prepare(artifact.load())
    values = [
        value
        for node in graph.graph
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT and value.uses() and not value.is_graph_output()
    ]
    images = inputs(artifact, "train")[0][:200]
    with open_graph(
        with_outputs(graph, [present(value.name) for value in values]), SessionOptions(threads=1)
    ) as session:
        seen = session.run({present(graph.graph.inputs[0].name): images})
    pairs = [
        ActivationPair(
            value,
            float(scale_of(np.abs(seen[value.name]).max(), steps=127)),
            tuple((u.node, u.idx) for u in value.uses()),
        )
        for value in values
    ]
    InsertQDQ(QdqPlacement(tuple(pairs)))(graph)
    return graph


def test_min_max_on_every_operator_loses_what_the_default_keeps(model, tmp_path: Path) -> None:
    before = top1(model.load(), model)
    assert before > 0.97
    assert top1(min_max_on_every_operator(model), model) <= before - 0.20
    options = QuantizeOptions(threads=1, samples=400)
    made = quantize(
        model, tmp_path / "int8.onnx", precision="int8", target="onnxruntime", calibration="digits", options=options
    )
    assert top1(made.load(), model) >= before - 0.005
