from __future__ import annotations

import json

import pytest

from vitdeploy.backends.tensorrt_inspector import judge_precision, precision_by_layer, read_layer, read_layers
from vitdeploy.errors import BackendError
from vitdeploy.records import Manifest, ModelSpec, PlanEntry, PrecisionPlan


def ten(name: str, kind: str, inputs: list[str], outputs: list[str]) -> dict:
    """A layer as TensorRT 10 tells it."""

    def tensors(types):
        return [{"Name": "t", "Dimensions": [1, 64], "Format/Datatype": text} for text in types]

    return {"Name": name, "LayerType": kind, "Inputs": tensors(inputs), "Outputs": tensors(outputs)}


def with_kernel(layer: dict, tactic: str, *sources: str) -> dict:
    metadata = "".join(f"[ONNX Layer: {source}]" for source in sources)
    return {**layer, "TacticName": tactic, "Metadata": metadata, "StreamId": 0}


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


def counts(*layers: dict) -> dict[str, int]:
    return precision_by_layer(read_layers(json.dumps({"Layers": list(layers)})))


def manifest(precision: str, **groups: tuple[str, ...]) -> Manifest:
    """A graph whose plan quantizes the nodes of each group."""
    entries = tuple(PlanEntry(group=group, nodes=nodes, precision="int8") for group, nodes in groups.items())
    plan = PrecisionPlan(profile="linear", remainder="fp16", entries=entries) if groups else None
    return Manifest(kind="onnx", model=ModelSpec(family="vit", name="vit"), precision=precision, plan=plan)


def judged(manifest: Manifest, *layers: dict):
    return judge_precision(read_layers(json.dumps({"Layers": list(layers)})), manifest)


@pytest.mark.parametrize("text", [TEN, ELEVEN], ids=["10", "11"])
def test_both_dialects_give_the_same_counts_of_products(text: str) -> None:
    """``__myl_Norm`` multiplies no matrices, and reads and writes whatever it likes."""
    assert precision_by_layer(read_layers(text)) == {"int8": 1, "fp16": 1, "fp32": 1}


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
def test_types_are_known_by_every_spelling(spelling: str, name: str) -> None:
    assert counts(ten("l", "gemm", [spelling], [spelling])) == {name: 1}


@pytest.mark.parametrize(
    ("kind", "tactic", "types", "expected"),
    [
        ("gemm", "sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize64x64x64_stage6", ["Int8"], "int8"),
        ("fusion", "sm80_xmma_gemm_i8f32_i8i32_f32_by_fusion_tactic", ["Int8"], "int8"),
        ("gemm", "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64", ["Half"], "fp16"),
        ("gemm", "ampere_h16816gemm_256x128_ldg8_nn_v1", ["Half"], "fp16"),
        ("gemm", "sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn", ["BF16"], "bf16"),
        ("gemm", "sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n", ["Float"], "fp32"),
        ("gemm", "sm89_xmma_gemm_e4m3e4m3_e4m3f32_f32_tn_n", ["FP8"], "fp8"),
        ("CaskConvolution", "sm86_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw", ["Int8"], "int8"),
        ("CaskConvActPool", "", ["Row major Int8 format"], "int8"),
        ("kgen", "_gemm_mha_v2_0x957a2fe283f77dcf35c142c1390a3e6a", ["Half", "Half"], "fp16"),
        ("kgen", "_gemm_mha_v2_0x957a2fe283f77dcf35c142c1390a3e6a", ["Int8", "Int8", "Half"], "int8"),
        ("kgen", "__myl_FcCastAddErf_0x1234", ["Int8", "Half"], "int8"),
        ("gemm", "sm80_xmma_gemm_f16f16_f16f16_f16_tn", ["Half", "Int8"], "fp16"),
        ("gemm", "some_kernel", ["Half", "Int8"], "fp16"),
        ("MatrixMultiply", "", ["FP16"], "fp16"),
    ],
)
def test_a_product_counts_in_the_precision_that_its_kernel_multiplies_in(
    kind: str, tactic: str, types: list[str], expected: str
) -> None:
    layer = read_layer(with_kernel(ten("/blocks.0/attention/conv/MatMul_myl0_3", kind, types, ["Half"]), tactic))
    assert layer is not None
    assert layer.multiplies
    assert layer.precision == expected


@pytest.mark.parametrize(
    ("name", "kind", "tactic"),
    [
        ("__myl_CastMul_myl0_4", "kgen", "__myl_CastMul_0xf2543c36ff9f104b"),
        ("/blocks.0/attention/matmul/DequantizeLinear", "kgen", "__myl_CasMul_0x1"),
        ("__myl_AddMeanSubMul_myl0_8", "kgen", "__myl_AddMeanSubMul_0x2"),
    ],
)
def test_a_kernel_that_only_reads_8_bits_is_no_product(name: str, kind: str, tactic: str) -> None:
    layer = read_layer(with_kernel(ten(name, kind, ["Int8"], ["Half"]), tactic))
    assert layer is not None
    assert not layer.multiplies
    assert counts(with_kernel(ten(name, kind, ["Int8"], ["Half"]), tactic)) == {}


def test_copies_and_integers_compute_nothing() -> None:
    assert read_layer(ten("l", "Reformat", ["Half"], ["Half"])) is None
    assert read_layer(ten("l", "Constant", [], ["Half"])) is None
    assert read_layer(ten("l", "kgen", ["INT64"], ["INT64"])) is None


def test_fused_subgraph_is_opaque() -> None:
    assert counts(ten("{ForeignNode[blocks.0 ... head]}", "Myelin", ["Float"], ["Float"])) == {"opaque": 1}


def test_names_without_types_are_unknown() -> None:
    assert precision_by_layer(read_layers(json.dumps({"Layers": ["gemm0", "gemm1"]}))) == {"unknown": 2}


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"Bindings": []}'])
def test_other_answers_are_refused(text: str) -> None:
    with pytest.raises(BackendError, match="the engine inspector's answer cannot be read"):
        read_layers(text)


@pytest.mark.parametrize("text", ['{"Layers": null}', '{"Layers": []}', '{"Layers": {}}'])
def test_answer_without_layers_is_refused(text: str) -> None:
    with pytest.raises(BackendError, match="the engine inspector lists no layers"):
        read_layers(text)


GEMM_8 = with_kernel(ten("g8", "gemm", ["Int8"], ["Half"]), "sm80_xmma_gemm_i8i8_i8i32_f32_tn")
GEMM_16 = with_kernel(ten("g16", "gemm", ["Half"], ["Half"]), "sm80_xmma_gemm_f16f16_f16f16_f16_tn")
GEMM_32 = with_kernel(ten("g32", "gemm", ["Float"], ["Float"]), "sm80_xmma_gemm_f32f32_f32f32_f32_tn")
DEQUANTIZE = with_kernel(ten("__myl_CastMul", "kgen", ["Int8"], ["Half"]), "__myl_CastMul_0x1")


def of(layer: dict, *sources: str) -> dict:
    return with_kernel(layer, layer["TacticName"], *sources)


def test_dequantizing_kernels_before_fp16_products_are_no_int8() -> None:
    """NVIDIA/TensorRT issue 3784: 12 kernels read INT8, 12 products run in FP16."""
    check = judged(manifest("int8"), *[DEQUANTIZE] * 12, *[GEMM_16] * 12)
    assert check.status == "failed"
    assert check.detail == "the graph is int8, and no product runs in int8 (products: 12 fp16)"


def test_every_quantized_node_has_to_run_in_8_bits() -> None:
    graph = manifest("int8", qkv=("q", "k", "v"), fc=("fc1", "fc2"))
    fused = of(GEMM_8, "q", "k", "v")
    assert judged(graph, fused, of(GEMM_8, "fc1"), of(GEMM_8, "fc2"), GEMM_16).status == "passed"
    check = judged(graph, fused, of(GEMM_8, "fc1"), of(GEMM_16, "fc2"))
    assert check.status == "failed"
    assert check.detail == "4 of 5 quantized products run in int8 (products: 2 int8, 1 fp16)"
    assert check.value == pytest.approx(0.8)
    assert check.limit == 1.0


def test_fewer_products_than_the_graph_quantizes_are_unchecked_where_no_layer_names_its_source() -> None:
    graph = manifest("int8", qkv=("q", "k", "v"))
    assert judged(graph, GEMM_8, GEMM_8, GEMM_8).status == "passed"
    check = judged(graph, GEMM_8)
    assert check.status == "unchecked"
    assert "1 products run in int8 and the graph quantizes 3" in check.detail


def test_a_mixed_graph_is_judged_by_its_8_bit_nodes() -> None:
    graph = manifest("mixed", fc=("fc1",))
    assert judged(graph, of(GEMM_8, "fc1"), of(GEMM_16, "fc2")).status == "passed"
    assert judged(graph, of(GEMM_16, "fc1"), of(GEMM_16, "fc2")).status == "failed"


def test_most_products_of_an_fp16_graph_run_in_fp16() -> None:
    assert judged(manifest("fp16"), *[GEMM_16] * 3, GEMM_32).status == "passed"
    check = judged(manifest("fp16"), GEMM_16, *[GEMM_32] * 3)
    assert check.status == "failed"
    assert check.detail == "1 of 4 products run in fp16 or bf16 (products: 1 fp16, 3 fp32)"
    assert judged(manifest("fp16"), *[GEMM_32] * 3).status == "failed"
    assert judged(manifest("fp32"), *[GEMM_32] * 3).status == "passed"


def test_what_the_inspector_hides_is_unchecked() -> None:
    hidden = ten("{ForeignNode[blocks.0 ... head]}", "Myelin", ["Float"], ["Float"])
    assert judged(manifest("int8"), hidden, GEMM_16).status == "unchecked"
    assert judged(manifest("int8"), DEQUANTIZE).status == "unchecked"
