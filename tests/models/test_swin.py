from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.models import group_parameters
from torch import nn

from vitdeploy.errors import ModelError
from vitdeploy.models import create_model
from vitdeploy.models.derived import DerivedConstants
from vitdeploy.models.swin import Reorder, Windows, merge_order, raster_order

FAMILIES = ("swin", "swin_v2")
DIGITS = {"image_size": 8, "patch": 1, "channels": 1, "num_classes": 10, "width": 16, "depths": [2, 2], "heads": [2, 4]}
DIGITS |= {"window": 4}
EXPECTED_BAD = [
    ({"image_size": 9}, "windows of 4×4 do not fill a stage of 9×9 tokens"),
    ({"image_size": 24, "window": 7}, "windows of 7×7 do not fill a stage of 24×24 tokens"),
    ({"image_size": 4, "depths": [1, 1, 1, 1], "heads": [1, 1, 1, 1]}, "stage 3 has 1×1 tokens, which do not pair up"),
    ({"image_size": 10, "patch": 4}, "image_size 10×10 does not divide by patch 4"),
    ({"heads": [3, 4]}, "width 16 does not divide by 3 heads"),
    ({"heads": [2]}, r"depths \[2, 2\] and heads \[2\] need one entry per stage each"),
    ({"depths": [], "heads": []}, r"depths \[\] and heads \[\]"),
    ({"depths": [2, 0]}, "depth is 0, expected a number above 0"),
    ({"window": 0}, "window is 0, expected a number above 0"),
    ({"drop_path": 1.0}, "drop_path is 1.0"),
    ({"init": "zeros"}, "init is 'zeros', expected one of trunc_normal, xavier"),
    ({"num_classes": -1}, "num_classes is -1"),
    ({"windows": 7}, "has no argument 'windows'"),
]


def swin(family: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    return create_model(family, **{**DIGITS, **changes})


def scattered(model: nn.Module) -> nn.Module:
    """Move every parameter; fresh v2 blocks are the identity."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def reference_windows(height: int, width: int, side: int, shift: int) -> torch.Tensor:
    """Token numbers of each window after the roll, by loops."""
    windows = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            for y in range(top, top + side):
                for x in range(left, left + side):
                    windows.append((y + shift) % height * width + (x + shift) % width)
    return torch.tensor(windows)


@pytest.mark.parametrize(("height", "width", "side", "shift"), [(8, 8, 4, 0), (8, 12, 4, 2), (6, 9, 3, 1)])
def test_window_order_lists_windows_row_by_row_after_the_roll(height: int, width: int, side: int, shift: int) -> None:
    assert torch.equal(Windows(height, width, side, shift).order(), reference_windows(height, width, side, shift))


@pytest.mark.parametrize(("height", "width", "side", "shift"), [(8, 8, 4, 2), (6, 9, 3, 1)])
def test_mask_forbids_pairs_that_the_roll_brought_together_and_no_others(
    height: int, width: int, side: int, shift: int
) -> None:
    windows = Windows(height, width, side, shift)
    places = windows.order().reshape(-1, side**2)
    y, x = places // width, places % width
    # Tokens of one window lie closer than its side unless the roll wrapped one of them around the edge.
    near = ((y[:, :, None] - y[:, None, :]).abs() < side) & ((x[:, :, None] - x[:, None, :]).abs() < side)
    assert torch.equal(windows.mask().squeeze(1) == 0, near)
    assert windows.mask().min() == -100


def test_plain_windows_have_no_mask() -> None:
    assert Windows(8, 8, 4, 0).mask() is None


def test_relative_positions_number_offsets_row_by_row() -> None:
    numbers = Windows(4, 4, 2, 0).relative_positions().reshape(4, 4)
    assert numbers.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_merging_groups_down_then_across() -> None:
    order = merge_order((4, 4), raster_order((2, 2)))
    assert order.reshape(-1, 4).tolist() == [[0, 4, 1, 5], [2, 6, 3, 7], [8, 12, 9, 13], [10, 14, 11, 15]]


def test_reorder_goes_from_any_order_to_any_other_and_back() -> None:
    orders = [Windows(6, 9, 3, shift).order() for shift in (0, 1)]
    x = torch.randn(2, 54, 3)
    there = Reorder(*orders)(x[:, orders[0]])
    assert torch.equal(there, x[:, orders[1]])
    assert torch.equal(Reorder(orders[1], raster_order((6, 9)))(there), x)
    assert Reorder(orders[0], orders[0]).index is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("changes", "message"), EXPECTED_BAD)
def test_impossible_values_are_refused_by_name(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        swin(family, **changes)


def test_pretrained_windows_need_one_entry_per_stage() -> None:
    with pytest.raises(
        ModelError, match=r"pretrained_windows is \[3\], expected a number of tokens for each of 2 stages"
    ):
        swin("swin_v2", pretrained_windows=[3])


@pytest.mark.parametrize("family", FAMILIES)
def test_image_of_another_size_is_refused(family: str) -> None:
    with pytest.raises(ModelError, match="takes images of 8×8, got 16×16"):
        swin(family)(torch.randn(1, 1, 16, 16))


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_follow_the_arguments(family: str) -> None:
    model = swin(family, image_size=[8, 16], channels=3, qkv_bias=False, absolute_position=True, init="xavier")
    assert model(torch.randn(3, 3, 8, 16)).shape == (3, 10)


def test_one_token_in_the_last_stage_is_a_window() -> None:
    model = swin("swin_v2", image_size=4, depths=[1, 1, 1], heads=[1, 1, 1])
    assert torch.isfinite(model(torch.randn(2, 1, 4, 4))).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_learns(family: str) -> None:
    model = scattered(swin(family, absolute_position=True)).train()
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_sees_weights_however_they_were_changed(family: str) -> None:
    model = scattered(swin(family)).eval()
    other = scattered(swin(family)).eval()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        mine.data = theirs.data + 0
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(x), other(x))


def stale(model: nn.Module) -> list[str]:
    """Modules whose constants are not those of their parameters."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, DerivedConstants)
        and (
            module._constants is None
            or not all(torch.equal(a, b) for a, b in zip(module._constants, module.derive(), strict=True))
        )
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_constants_follow_eval_load_and_cast_and_are_gone_in_training(family: str) -> None:
    model = scattered(swin(family))
    assert model.eval() is model
    assert stale(model) == []
    model.load_state_dict(scattered(swin(family)).state_dict())
    assert stale(model) == []
    assert stale(model.double()) == []
    twin = copy.deepcopy(model)
    twin.load_state_dict(scattered(swin(family)).double().state_dict())
    assert stale(twin) == []
    assert stale(model) == []
    assert all(module._constants is None for module in model.train().modules() if isinstance(module, DerivedConstants))


@pytest.mark.parametrize("family", FAMILIES)
def test_export_takes_constants_and_not_parameters(family: str) -> None:
    model = scattered(swin(family)).eval()
    program = torch.export.export(model, (torch.randn(2, 1, 8, 8),))
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    learned = ("bias_table", "cpb_mlp", "logit_scale", "attn_q_bias", "attn_v_bias")
    assert [name for name in used if any(part in name for part in learned)] == []
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_model_built_without_memory_takes_weights_by_assignment(family: str) -> None:
    expected = scattered(swin(family)).eval()
    with torch.device("meta"):
        model = create_model(family, **DIGITS).eval()
    model.load_state_dict(expected.state_dict(), assign=True)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(x), expected(x))
    assert stale(model) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_state_holds_parameters_only(family: str) -> None:
    model = swin(family, absolute_position=True)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_v2_starts_as_the_identity_between_mergings() -> None:
    model = swin("swin_v2")
    x = torch.randn(2, 64, 16)
    assert torch.equal(model.layers[0].blocks[1](x), x)


@pytest.mark.parametrize("family", FAMILIES)
def test_drop_path_grows_from_nothing_to_its_rate(family: str) -> None:
    rates = [block.drop_path.rate for stage in swin(family, drop_path=0.3).layers for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_ordered_for_fine_tuning(family: str) -> None:
    model = swin(family, absolute_position=True)
    layer = group_parameters(model, model.group_matcher(), reverse=True)
    assert {layer["patch_embed.proj.weight"], layer["absolute_pos_embed"]} == {0}
    assert [layer[f"layers.{s}.blocks.{b}.norm1.weight"] for s in (0, 1) for b in (0, 1)] == [1, 2, 3, 4]
    assert layer["layers.0.downsample.reduction.weight"] == 3
    assert layer["norm.weight"] == 4
    assert layer["head.weight"] == 5
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert sorted(set(coarse.values())) == [0, 1, 2, 3]


def test_position_tables_are_not_decayed() -> None:
    names = swin("swin", absolute_position=True).no_weight_decay()
    assert names == {"absolute_pos_embed"} | {
        f"layers.{stage}.blocks.{block}.attn.relative_position_bias_table" for stage in (0, 1) for block in (0, 1)
    }
    assert {name.split(".attn.")[-1] for name in swin("swin_v2").no_weight_decay()} == {
        *("logit_scale", "cpb_mlp.0.weight", "cpb_mlp.0.bias", "cpb_mlp.2.weight"),
    }


def test_zero_query_has_no_direction_and_no_nan_in_half_precision() -> None:
    from vitdeploy.models.swin_v2 import directions

    assert torch.equal(directions(torch.zeros(2, 3, dtype=torch.float16), -1), torch.zeros(2, 3, dtype=torch.float16))
