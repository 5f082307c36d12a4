"""Linears are found by what the graph does, whatever its nodes are called and however they are wrapped."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import parse
from small_vit import small_vit

from vitdeploy.graph.channel_places import channel_axis
from vitdeploy.graph.linear_groups import find_linear_groups, path_of, products_left_out, shapes_at_batch_one
from vitdeploy.quantization.prepared import prepare

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def graph(body, out: str = "[batch, 20]", image: str = "[batch, 3, 32, 32]", **constants: Any):
    """A graph whose patches come from a convolution (value ``x`` [batch, 64, 32]) and which ends in ``logits``."""
    text = f"""g (float{image} input) => (float{out} logits) {{
        [patch] c = Conv <strides = [4, 4]> (input, patch)
        [tokens] r = Reshape (c, to_tokens)
        [order] x = Transpose <perm = [0, 2, 1]> (r)
        {body}
    }}"""
    values = {"patch": normal(32, 3, 4, 4), "to_tokens": np.array([0, 32, 64]), **constants}
    model = parse(text, **values)
    for node in model.graph:
        path, separator, op = str(node.name).partition("__")
        if separator:  # ONNX text takes identifiers: blk_norm__MatMul stands for blk.norm/MatMul
            node.name = f"{path.replace('_', '.')}/{op}"
    return model


HEAD = "[pool] pooled = ReduceMean <keepdims = 0> (h, axes) [head] logits = Gemm (pooled, head)"
HEAD_CONSTANTS = {"axes": np.array([1]), "head": normal(32, 20)}


def found(model: ir.Model):
    """name → (obstacle's first word, number of linears, tensor that is rounded)."""
    return {
        group.name: (group.obstacle.split(":")[0].split(" ")[0], len(group.linears), group.activation.name)
        for group in find_linear_groups(model)
    }


def test_fused_qkv_proj_and_mlp_of_a_vit_are_found_and_patch_embedding_and_head_are_left() -> None:
    groups = find_linear_groups(ir.serde.deserialize_model(small_vit(depth=2)))
    free = [group.name for group in groups if not group.obstacle]
    assert free == [f"blocks.{i}.{part}" for i in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert {group.name: group.obstacle for group in groups if group.obstacle} == {
        "patch": "patch embedding: the first layer from the image",
        "head": "head: feeds the output",
    }


def test_separate_projections_of_one_norm_are_one_group_with_one_tensor() -> None:
    model = graph(
        f"""[blk_norm__LayerNormalization] n = LayerNormalization (x, gamma, beta)
        [blk_q__MatMul] q = MatMul (n, wq) [blk_k__MatMul] k = MatMul (n, wk) [blk_v__MatMul] v = MatMul (n, wv)
        s = Add (q, k) h = Mul (s, v) {HEAD}""",
        gamma=normal(32), beta=normal(32), wq=normal(32, 32), wk=normal(32, 32), wv=normal(32, 32), **HEAD_CONSTANTS,
    )  # fmt: skip
    assert found(model)["blk.{q,k,v}"] == ("", 3, "n")
    (group,) = [group for group in find_linear_groups(model) if len(group.linears) == 3]
    assert [(node.name, index) for node, index in group.uses] == [
        ("blk.q/MatMul", 0), ("blk.k/MatMul", 0), ("blk.v/MatMul", 0)
    ]  # fmt: skip


def test_gemms_behind_reshapes_of_their_own_share_the_tensor_before_the_reshapes() -> None:
    model = graph(
        f"""n = LayerNormalization (x, gamma, beta)
        [to_rows] a = Reshape (n, rows) [q] q2 = Gemm <transB = 1> (a, wq, bias)
        [to_rows_too] b = Reshape (n, rows) [k] k2 = Gemm <transB = 1> (b, wk, bias)
        s = Add (q2, k2) h = Reshape (s, back) {HEAD}""",
        gamma=normal(32), beta=normal(32), wq=normal(48, 32), wk=normal(48, 32), bias=normal(48),
        rows=np.array([-1, 32]), back=np.array([-1, 64, 48]), **{**HEAD_CONSTANTS, "head": normal(48, 20)},
    )  # fmt: skip
    (group,) = [group for group in find_linear_groups(model) if not group.obstacle]
    assert group.activation.name == "n"
    assert [node.name for node, _ in group.uses] == ["to_rows", "to_rows_too"]
    assert [(linear.in_features, linear.out_features, linear.channel_axis) for linear in group.linears] == [
        (32, 48, 0), (32, 48, 0)
    ]  # fmt: skip


def test_a_wrapper_that_something_else_reads_keeps_the_float_values() -> None:
    model = graph(
        f"""n = LayerNormalization (x, gamma, beta)
        [one] a = Reshape (n, rows) [q] q = MatMul (a, wq) [other] e = Exp (a) z = Add (q, e)
        [two] b = Reshape (n, rows) [k] k = MatMul (b, wk)
        s = Add (z, k) h = Reshape (s, back) {HEAD}""",
        gamma=normal(32), beta=normal(32), wq=normal(32, 32), wk=normal(32, 32),
        rows=np.array([-1, 32]), back=np.array([-1, 64, 32]), **HEAD_CONSTANTS,
    )  # fmt: skip
    assert [group.activation.name for group in find_linear_groups(model) if not group.obstacle] == ["a", "b"]


def test_one_tensor_read_by_a_linear_and_by_a_spatial_reduction_is_rounded_for_the_linear_only() -> None:
    model = graph(
        f"""n = LayerNormalization (x, gamma, beta)
        [attn_q__MatMul] q = MatMul (n, wq)
        t = Transpose <perm = [0, 2, 1]> (n) m = Reshape (t, to_map)
        [attn_sr__Conv] c2 = Conv <strides = [2, 2]> (m, sr)
        f = Reshape (c2, to_rows) s = Transpose <perm = [0, 2, 1]> (f) [attn_kv__MatMul] kv = MatMul (s, wkv)
        u = ReduceMean <keepdims = 1> (kv, axes) h = Add (q, u) {HEAD}""",
        gamma=normal(32), beta=normal(32), wq=normal(32, 32), wkv=normal(32, 32), sr=normal(32, 32, 2, 2),
        to_map=np.array([0, 32, 8, 8]), to_rows=np.array([0, 32, 16]), **HEAD_CONSTANTS,
    )  # fmt: skip
    groups = found(model)
    assert groups["attn.q"] == ("", 1, "n")
    assert groups["attn.kv"][0] == ""
    assert groups["attn.sr"] == ("convolution", 1, "n")
    (query,) = [group for group in find_linear_groups(model) if group.name == "attn.q"]
    assert [node.name for node, _ in query.uses] == ["attn.q/MatMul"]
    (reduction,) = [group for group in find_linear_groups(model) if group.name == "attn.sr"]
    assert [node.op_type for node, _ in reduction.uses] == ["Transpose"], "its pair lies before the map is laid out"


def test_pointwise_convolutions_are_linears_and_depthwise_ones_are_not() -> None:
    model = graph(
        f"""t = Transpose <perm = [0, 2, 1]> (x) m = Reshape (t, to_map)
        [one] a = Conv (m, w1) [dw] b = Conv <group = 32, pads = [1, 1, 1, 1]> (a, w2) [two] d = Conv (b, w3)
        f = Reshape (d, to_rows) h = Transpose <perm = [0, 2, 1]> (f) {HEAD}""",
        to_map=np.array([0, 32, 8, 8]), to_rows=np.array([0, 32, 64]),
        w1=normal(32, 32, 1, 1), w2=normal(32, 1, 3, 3), w3=normal(32, 32, 1, 1), **HEAD_CONSTANTS,
    )  # fmt: skip
    assert {name: value[0] for name, value in found(model).items()} == {
        "patch": "patch", "w1": "", "w2": "convolution", "w3": "", "head": "head"
    }  # fmt: skip


def test_gates_and_class_token_linears_have_one_row_per_image() -> None:
    model = graph(
        f"""[gap] g1 = ReduceMean <keepdims = 1> (x, axes) [reduce] r1 = MatMul (g1, w1) act = Relu (r1)
        [expand] e1 = MatMul (act, w2) gate = Sigmoid (e1) y = Mul (x, gate)
        token = Slice (y, zero, one, axes) [cls_q] q = MatMul (token, w3) u = Gelu (q) h = Add (y, u) {HEAD}""",
        w1=normal(32, 16), w2=normal(16, 32), w3=normal(32, 32), zero=np.array([0]), one=np.array([1]),
        **HEAD_CONSTANTS,
    )  # fmt: skip
    assert [found(model)[name][0] for name in ("w1", "w2", "w3")] == ["one", "one", "one"]


def test_a_fixed_batch_is_told_from_rows_by_the_shape_at_that_batch() -> None:
    text = """g (float[1, 64, 32] input) => (float[1, 20] logits) {
        first = MatMul (input, w0) a = Gelu (first) [mid] b = MatMul (a, w1) h = Gelu (b)
        pooled = ReduceMean <keepdims = 0> (h, axes) [pre] p = MatMul (pooled, w2) t = Tanh (p)
        [head] logits = MatMul (t, w3)
    }"""
    model = parse(text, w0=normal(32, 32), w1=normal(32, 32), w2=normal(32, 32), w3=normal(32, 20), axes=np.array([1]))
    obstacles = [group.obstacle.split(":")[0] for group in find_linear_groups(model)]
    assert obstacles == ["patch embedding", "", "one row per image", "head"]


def test_small_matrices_are_left() -> None:
    model = graph(
        f"[down] a = MatMul (x, w1) b = Gelu (a) [up] h = MatMul (b, w2) {HEAD}",
        w1=normal(32, 8), w2=normal(8, 32), **HEAD_CONSTANTS,
    )  # fmt: skip
    assert [found(model)[name][0] for name in ("w1", "w2")] == ["32", "8"]


def test_a_performer_and_everything_in_its_module_is_left() -> None:
    model = graph(
        f"""[t2t_att_kqv__MatMul] k = MatMul (x, wk) [t2t_att__MatMul] f = MatMul (k, features)
        sq = Mul (k, k) n2 = ReduceSum <keepdims = 1> (sq, last) d = Sub (f, n2) [t2t_att__Exp] e = Exp (d)
        [t2t_att__MatMul_1] y = MatMul (e, back) [t2t_att_proj__MatMul] p = MatMul (y, wp)
        n = LayerNormalization (p, g, b) [t2t_att_mlp_fc1__MatMul] m = MatMul (n, w1) a = Gelu (m)
        [blocks_0_mlp_fc1__MatMul] h = MatMul (a, w2) {HEAD}""",
        wk=normal(32, 32), features=normal(32, 16), back=normal(16, 32), wp=normal(32, 32), w1=normal(32, 32),
        w2=normal(32, 32), last=np.array([2]), g=normal(32), b=normal(32), **HEAD_CONSTANTS,
    )  # fmt: skip
    # The first linear after the patch convolution is the performer's own, so no patch embedding is in the way.
    groups = {group.name: group.obstacle.split(":")[0] for group in find_linear_groups(model)}
    assert groups["t2t.att.kqv"] == groups["t2t.att.proj"] == groups["t2t.att.mlp.fc1"] == "performer"
    assert groups["blocks.0.mlp.fc1"] == ""


def test_a_token_that_is_copied_by_shape_does_not_make_the_whole_graph_a_patch_embedding() -> None:
    model = graph(
        f"""size = Shape <end = 1> (input) full = Concat <axis = 0> (size, ones) cls = Expand (token, full)
        z = Concat <axis = 1> (cls, x) [blocks_0_fc__MatMul] h = MatMul (z, w) {HEAD}""",
        ones=np.array([1, 32]), token=normal(1, 1, 32), w=normal(32, 32), **HEAD_CONSTANTS,
    )  # fmt: skip
    assert found(model)["blocks.0.fc"][0] == ""


def test_a_matmul_of_two_activations_or_of_constants_is_no_linear() -> None:
    model = graph(
        f"""t = Transpose <perm = [0, 2, 1]> (x) s = MatMul (x, t) y = MatMul (s, x)
        k = MatMul (table, w) h = Add (y, k) {HEAD}""",
        table=normal(64, 16), w=normal(16, 32), **HEAD_CONSTANTS,
    )  # fmt: skip
    assert list(found(model)) == ["patch", "head"]


def test_equal_paths_get_numbers() -> None:
    model = graph(
        f"""[m__MatMul] a = MatMul (x, w1) b = Gelu (a) [m__MatMul_1] h = MatMul (b, w2) {HEAD}""",
        w1=normal(32, 32), w2=normal(32, 32), **HEAD_CONSTANTS,
    )  # fmt: skip
    assert [group.name for group in find_linear_groups(model)][1:3] == ["m", "m#2"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("blocks.0.attn.qkv/MatMul", "blocks.0.attn.qkv"),
        ("/blocks/blocks.0/attn/qkv/MatMul", "blocks.0.attn.qkv"),
        ("/layers/layers.1/blocks/blocks.0/mlp/fc1/Gemm", "layers.1.blocks.0.mlp.fc1"),
        ("MatMul_12", ""),
    ],
)
def test_module_paths_are_read_from_names_of_every_exporter(name: str, path: str) -> None:
    assert path_of(ir.node("MatMul", [], name=name)) == path


def test_module_paths_recorded_by_the_dynamo_exporter_go_before_names() -> None:
    node = ir.node("MatMul", [], name="node_MatMul_3")
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'blocks.0', 'blocks.0.fc1', 'linear']"
    assert path_of(node) == "blocks.0.fc1"


def test_shapes_at_batch_one_see_through_a_reshape_and_leave_the_graph_alone() -> None:
    model = graph(
        f"a = Reshape (x, rows) m = MatMul (a, w) h = Reshape (m, back) {HEAD}",
        rows=np.array([-1, 32]), w=normal(32, 32), back=np.array([-1, 64, 32]), **HEAD_CONSTANTS,
    )  # fmt: skip
    before = ir.to_proto(model).SerializeToString()
    shapes = shapes_at_batch_one(model)
    assert shapes["a"] == (64, 32)
    assert shapes["pooled"] == (1, 32)
    assert ir.to_proto(model).SerializeToString() == before


def test_weights_that_the_user_feeds_are_not_constants() -> None:
    model = graph(f"h = MatMul (x, w) {HEAD}", w=normal(32, 32), **HEAD_CONSTANTS)
    model.graph.inputs.append(model.graph.initializers["w"])
    assert "w" not in found(model)


@pytest.mark.parametrize("dynamo", [True, False])
def test_a_graph_that_timm_exports_gives_the_same_four_groups_per_block(tmp_path: Path, dynamo: bool) -> None:
    """Neither exporter nor names are ours: TorchScript writes a decomposed GELU and Shape chains, dynamo neither."""
    torch = pytest.importorskip("torch", reason="torch is an extra: pip install 'vitdeploy[torch]'")
    timm = pytest.importorskip("timm", reason="timm is an extra: pip install 'vitdeploy[torch]'")
    module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=3).eval()
    for block in module.blocks:
        block.attn.fused_attn = False
    path, example = tmp_path / "timm.onnx", torch.zeros(2, 3, 32, 32)
    names = {"input_names": ["input"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the legacy exporter says that it is one
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(
                module, (example,), path, dynamo=True, opset_version=20, dynamic_shapes=shapes, verbose=False, **names
            )
        else:
            axes = {"input": {0: "batch"}}
            torch.onnx.export(module, (example,), path, dynamo=False, opset_version=17, dynamic_axes=axes, **names)
    groups = find_linear_groups(prepare(ir.load(path)))
    assert [group.name for group in groups if not group.obstacle] == [
        f"blocks.{index}.{part}" for index in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    assert {group.name: group.obstacle.split(":")[0] for group in groups if group.obstacle} == {
        "patch_embed.proj": "patch embedding",
        "head": "head",
    }


@pytest.mark.parametrize(
    ("body", "weight", "reason"),
    [
        ("[mix] h = MatMul (w, x)", normal(64, 64), "'mix' has its weight on the left"),
        ("[wide] h = MatMul (x, w)", normal(1, 32, 32), "'wide' has a weight that is no matrix"),
        (
            "kept = Identity (w) first = ReduceMax <keepdims = 0> (x) yes = Greater (first, first) h = If (yes) <"
            "then_branch = g1 () => (a) { [inner] a = MatMul (x, w) },"
            "else_branch = g2 () => (b) { b = Identity (x) }>",
            normal(32, 32),
            "'inner' lies inside another node",
        ),
        ("[fc] h = MatMul (x, w)", normal(32, 32), None),
        ("[scores] h = MatMul (s, x) s = Softmax (w)", normal(64, 64), None),
    ],
)
def test_products_with_weights_that_no_group_has_are_named(body: str, weight: Any, reason: str | None) -> None:
    model = graph(f"{body} {HEAD}", w=weight, **HEAD_CONSTANTS)
    assert products_left_out(model) == (() if reason is None else (reason,))


def test_a_linear_without_channels_has_no_channel_axis_and_stays_as_it_is() -> None:
    body = f"[narrow] n = MatMul (x, w1) a = Relu (n) [back] b = MatMul (a, w2) h = Add (x, b) {HEAD}"
    model = prepare(graph(body, w1=normal(32, 0), w2=normal(0, 32), **HEAD_CONSTANTS))
    back = next(group for group in find_linear_groups(model) if group.nodes == ("back",))
    assert back.obstacle.startswith("0 → 32 features")
    assert channel_axis(back, shapes_at_batch_one(model)) is None
