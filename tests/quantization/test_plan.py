"""A plan says what runs in which precision and why; it can be read, edited and replayed, and is checked when it is."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
from small_vit import small_vit, write_small_vit

from vitdeploy.errors import ArtifactError, GraphError, UsageError
from vitdeploy.graph.attentions import find_attentions
from vitdeploy.graph.linear_groups import CONVOLUTION, find_linear_groups
from vitdeploy.quantization.plan import Edits, Intent, Profile, make_plan, read_plan
from vitdeploy.records import NodePrecision, PlanEntry, PrecisionPlan, Target

INT8 = Intent("int8", "tensorrt")


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return ir.serde.deserialize_model(small_vit(depth=1))


def plan(model: ir.Model, intent: Intent = INT8) -> PrecisionPlan:
    return make_plan(find_linear_groups(model), find_attentions(model), intent)


def precisions(found: PrecisionPlan) -> dict[str, str]:
    return {entry.group: entry.precision for entry in found.entries}


def edit(
    model: ir.Model, entries: Iterable[PlanEntry], intent: Intent = INT8, remainder: str = "fp16"
) -> PrecisionPlan:
    edits = PrecisionPlan(profile="hand", remainder=remainder, entries=tuple(entries))
    names = {str(node.name) for node in model.graph}
    return Edits(edits, "'plan.json'").applied(plan(model, intent), intent.target, names)


LINEAR = {f"blocks.0.{part}": "int8" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}


@pytest.mark.parametrize(("target", "rest"), [("tensorrt", "fp16"), ("onnxruntime", "fp32"), ("openvino", "fp32")])
def test_profile_linear_takes_the_linears_and_leaves_the_rest_to_the_targets_best(
    model: ir.Model, target: Target, rest: str
) -> None:
    found = plan(model, Intent("int8", target))
    attention = found.entries[-1].group
    patch = "int8" if target == "openvino" else rest
    assert precisions(found) == {"patch": patch, **LINEAR, "head": rest, attention: rest}
    assert found.remainder == rest


def test_images_whose_range_is_not_known_stay_as_they_are(model: ir.Model) -> None:
    assert precisions(plan(model, Intent("int8", "openvino", images=False)))["patch"] == "fp32"


@pytest.mark.parametrize("precision", ["int8-weight-only", "fp16"])
def test_a_patch_embedding_is_quantized_with_its_images_only(model: ir.Model, precision: NodePrecision) -> None:
    assert precisions(plan(model, Intent(precision, "openvino")))["patch"] != "int8"


def test_every_entry_has_nodes_and_a_reason(model: ir.Model) -> None:
    for intent in (Intent("int8", "tensorrt"), Intent("fp16", "tensorrt"), Intent("int8-weight-only", "openvino")):
        for entry in plan(model, intent).entries:
            assert entry.nodes
            assert entry.reason


def test_profile_mha_adds_the_products_of_attention(model: ir.Model) -> None:
    found = plan(model, Intent("int8", "tensorrt", "mha"))
    assert found.entries[-1].precision == "int8"
    assert len(found.entries[-1].nodes) == 2
    assert found.entries[-1].group.endswith(".attention")


def test_openvino_multiplies_attentions_that_tensorrt_does_not_fuse(model: ir.Model) -> None:
    groups = find_linear_groups(model)
    attentions = [replace(found, obstacle="TensorRT has none") for found in find_attentions(model)]
    for target, precision in (("openvino", "int8"), ("onnxruntime", "fp32"), ("tensorrt", "fp16")):
        found = make_plan(groups, attentions, Intent("int8", target, "mha"))  # type: ignore[arg-type]
        assert found.entries[-1].precision == precision
    assert make_plan(groups, attentions, Intent("int8", "openvino", "auto")).profile == "linear"


def test_fp16_leaves_nothing_to_decide(model: ir.Model) -> None:
    assert set(precisions(plan(model, Intent("fp16", "onnxruntime"))).values()) == {"fp16"}


def test_an_edit_changes_its_group_and_no_other(model: ir.Model) -> None:
    found = edit(
        model, [PlanEntry(group="head", precision="int8"), PlanEntry(group="blocks.0.mlp.fc2", precision="fp16")]
    )
    expected = precisions(plan(model)) | {"head": "int8", "blocks.0.mlp.fc2": "fp16"}
    assert precisions(found) == expected
    reasons = {entry.group: entry.reason for entry in found.entries}
    assert reasons["head"] == "set by 'plan.json'"


def test_a_reason_that_was_written_is_kept(model: ir.Model) -> None:
    found = edit(model, [PlanEntry(group="head", precision="int8", reason="we measured it")])
    assert {entry.reason for entry in found.entries if entry.group == "head"} == {"we measured it"}


def test_a_plan_replays_to_itself(model: ir.Model) -> None:
    made = plan(model)
    assert edit(model, made.entries) == made


def test_a_plan_for_one_target_replays_for_another(model: ir.Model) -> None:
    made = plan(model, Intent("int8", "onnxruntime"))
    found = edit(model, made.entries, Intent("int8", "tensorrt"), remainder="fp32")
    assert precisions(found) == precisions(plan(model))


def test_fp32_keeps_a_group_out_of_an_fp16_remainder(model: ir.Model) -> None:
    assert precisions(edit(model, [PlanEntry(group="head", precision="fp32")]))["head"] == "fp32"


def test_fp32_can_name_nodes_that_hold_no_weights(model: ir.Model) -> None:
    softmax = next(node.name for node in model.graph if node.op_type == "Softmax")
    found = edit(model, [PlanEntry(group="careful", nodes=(softmax,), precision="fp32")])
    assert found.entries[-1].group == "careful"


def test_an_unknown_group_is_named_with_the_nearest(model: ir.Model) -> None:
    with pytest.raises(GraphError, match=r"'plan.json' names the group 'blocks.0.mlp.fc3'.*'blocks.0.mlp.fc[12]'"):
        edit(model, [PlanEntry(group="blocks.0.mlp.fc3", precision="int8")])


def test_nodes_of_another_graph_are_refused(model: ir.Model) -> None:
    with pytest.raises(GraphError, match=r"'head' the nodes \['other'\].*made for another graph"):
        edit(model, [PlanEntry(group="head", nodes=("other",), precision="int8")])


def test_fp16_beside_an_fp32_remainder_is_refused(model: ir.Model) -> None:
    with pytest.raises(UsageError, match="asks for 'fp16' in group 'head'"):
        edit(model, [PlanEntry(group="head", precision="fp16")], Intent("int8", "openvino"), remainder="fp32")


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_fp8_is_for_tensorrt_only(model: ir.Model, target: Target) -> None:
    with pytest.raises(UsageError, match=f"'fp8', which target '{target}' does not have"):
        plan(model, Intent("fp8", target))
    with pytest.raises(UsageError, match=r"the plan 'plan\.json' asks for 'fp8'"):
        edit(model, [PlanEntry(group="head", precision="fp8")], Intent("int8", target), remainder="fp32")


@pytest.mark.parametrize("profile", ["mha", "full"])
def test_profiles_with_activations_contradict_weights_only(model: ir.Model, profile: Profile) -> None:
    with pytest.raises(UsageError, match=f"profile '{profile}' quantizes activations"):
        plan(model, Intent("int8-weight-only", "onnxruntime", profile))


def test_profile_full_is_for_a_cpu(model: ir.Model) -> None:
    with pytest.raises(UsageError, match=r"profile 'full' .* got target 'tensorrt': take 'mha'"):
        plan(model, Intent("int8", "tensorrt", "full"))


@pytest.mark.parametrize(("target", "attends"), [("onnxruntime", False), ("openvino", True)])
def test_profile_full_adds_convolutions_and_what_openvino_multiplies_of_attention(
    model: ir.Model, target: Target, attends: bool
) -> None:
    linear = find_linear_groups(model)[1]
    convolution = replace(linear, name="dwconv", obstacle=f"{CONVOLUTION} 3×3, only those of 1×1 are linears")
    for profile, precision in (("linear", "fp32"), ("full", "int8")):
        intent = Intent("int8", target, profile)  # type: ignore[arg-type]
        found = make_plan((linear, convolution), find_attentions(model), intent)
        assert precisions(found)["dwconv"] == precision
        assert (found.entries[-1].precision == "int8") == (attends and profile == "full")
    assert found.entries[1].reason.startswith("convolution that reads the output of")


def test_a_plan_is_read_from_json_from_a_manifest_and_from_a_model(model: ir.Model, tmp_path: Path) -> None:
    made = plan(model)
    alone, within = tmp_path / "plan.json", tmp_path / "manifest.json"
    alone.write_text(made.model_dump_json())
    within.write_text(json.dumps({"kind": "onnx", "plan": made.model_dump(mode="json")}))
    assert read_plan(alone) == read_plan(within) == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"profile": "x"}', "remainder: Field required"),
        (
            '{"profile": "x", "remainder": "fp32", "entries": [{"group": "a", "precision": "int4"}]}',
            "entries.0.precision",
        ),
        ("[]", "the whole"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=message):
        read_plan(path)


def test_a_model_that_was_never_quantized_has_no_plan(tmp_path: Path) -> None:
    path = write_small_vit(tmp_path / "x.onnx").path
    with pytest.raises(ArtifactError, match="no precision plan"):
        read_plan(path)


def test_a_missing_plan_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no file"):
        read_plan(tmp_path / "absent.json")


@pytest.mark.parametrize("value", [5, object(), ["a", "b"]])
def test_validation_images_that_are_no_data_are_refused(value: object) -> None:
    from pydantic import TypeAdapter, ValidationError

    from vitdeploy.quantization.request import QuantizeOptions

    adapter = TypeAdapter(QuantizeOptions)
    assert adapter.validate_python({"validation": "digits:validation"}).validation == "digits:validation"
    with pytest.raises(ValidationError, match="expected a folder, a text such as"):
        adapter.validate_python({"validation": value})
