from __future__ import annotations

import json

import pytest

from vitdeploy.backends.tensorrt_inspector import layer_precision, missing_precision, precision_by_layer
from vitdeploy.errors import BackendError


def ten(name: str, kind: str, inputs: list[str], outputs: list[str]) -> dict:
    """A layer as TensorRT 10 tells it."""

    def tensors(types):
        return [{"Name": "t", "Dimensions": [1, 64], "Format/Datatype": text} for text in types]

    return {"Name": name, "LayerType": kind, "Inputs": tensors(inputs), "Outputs": tensors(outputs), "TacticName": "x"}


def eleven(name: str, kind: str, inputs: list[str], outputs: list[str]) -> dict:
    """A layer as TensorRT 11 tells it."""

    def tensors(types):
        return [{"Name": "t", "Dimensions": [1, 64], "Format": "Row major linear", "DataType": text} for text in types]

    return {"Name": name, "LayerType": kind, "Inputs": tensors(inputs), "Outputs": tensors(outputs)}


TEN = json.dumps(
    {
        "Layers": [
            ten("reformat", "Reformat", ["Row major linear FP32"], ["Row major linear FP16 format"]),
            ten("patch", "CaskConvolution", ["Row major linear FP16 format"], ["Row major linear FP16 format"]),
            ten("__myl_Fc", "gemm", ["Row major linear Int8 format", "Row major linear FP16 format"], ["Half"]),
            ten("__myl_Norm", "kgen", ["Half"], ["Thirty-two wide channel vectorized row major Int8 format"]),
            ten("head", "gemm", ["Row major linear FP32"], ["Float"]),
            ten("shape", "kgen", ["Row major linear INT64 format"], ["Row major linear INT64 format"]),
        ],
        "Bindings": ["input", "logits"],
    }
)
ELEVEN = json.dumps(
    {
        "Layers": [
            eleven("reformat", "Reformat", ["FP32"], ["FP16"]),
            eleven("patch", "CaskConvolution", ["FP16"], ["FP16"]),
            eleven("__myl_Fc", "gemm", ["INT8", "FP16"], ["FP16"]),
            eleven("__myl_Norm", "kgen", ["FP16"], ["INT8"]),
            eleven("head", "gemm", ["FP32"], ["FP32"]),
            eleven("shape", "kgen", ["INT64"], ["INT64"]),
        ],
        "I/O Tensors": ["input", "logits"],
    }
)


@pytest.mark.parametrize("text", [TEN, ELEVEN], ids=["10", "11"])
def test_both_dialects_give_the_same_counts(text):
    assert precision_by_layer(text) == {"int8": 1, "fp16": 2, "fp32": 1}


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Half", "fp16"),
        ("FP16", "fp16"),
        ("BF16", "bf16"),
        ("Float", "fp32"),
        ("FP32", "fp32"),
        ("Int8", "int8"),
        ("E4M3", "fp8"),
        ("FP8", "fp8"),
        ("Row major FP8E4M3FN format", "fp8"),
        ("N/A due to dynamic shapes", "unknown"),
    ],
)
def test_types_are_known_by_every_spelling(spelling, name):
    assert layer_precision(ten("l", "gemm", [spelling], [spelling])) == name


def test_layer_without_inputs_counts_by_what_it_writes():
    assert layer_precision(ten("l", "kgen", [], ["Half"])) == "fp16"
    assert layer_precision(ten("l", "Constant", [], ["Half"])) is None


def test_fused_subgraph_is_opaque():
    layer = ten("{ForeignNode[blocks.0 ... head]}", "Myelin", ["Float"], ["Float"])
    assert layer_precision(layer) == "opaque"
    assert precision_by_layer(json.dumps({"Layers": [layer]})) == {"opaque": 1}


def test_names_without_types_are_unknown():
    assert precision_by_layer(json.dumps({"Layers": ["gemm0", "gemm1"]})) == {"unknown": 2}


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"Bindings": []}'])
def test_other_answers_are_refused(text):
    with pytest.raises(BackendError, match="the engine inspector's answer is not understood"):
        precision_by_layer(text)


def test_engine_in_another_precision_than_its_graph_is_noticed():
    text = missing_precision({"fp32": 12}, "fp16")
    assert text == "the graph is fp16, and no layer of the engine runs in fp16 or bf16 (layers: 12 fp32)"
    assert missing_precision({"fp16": 12, "fp32": 1}, "int8") is not None
    assert missing_precision({}, "fp8") is not None
    assert missing_precision({"int8": 4, "fp16": 8}, "int8") is None
    assert missing_precision({"fp32": 12}, "fp32") is None
    assert missing_precision({"opaque": 1}, "int8") is None
