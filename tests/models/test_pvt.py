from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import group_parameters
from torch import nn

from vitdeploy.errors import ModelError
from vitdeploy.models import create_model
from vitdeploy.models.pvt import ReducedAttention, as_map, as_tokens
from vitdeploy.models.pvt_v2 import AdaptivePool, PooledAttention, overlapping_grid

FAMILIES = ("pvt", "pvt_v2")
DIGITS = {"image_size": 8, "channels": 1, "num_classes": 10, "widths": [16, 32], "depths": [2, 1], "heads": [2, 4]}
DIGITS |= {"mlp_ratios": [2, 2], "sr_ratios": [2, 1]}
PATCHES = {"pvt": {"patches": [2, 2]}, "pvt_v2": {"patches": [3, 3], "strides": [1, 2]}}
BAD = [
    ("pvt", {"image_size": 9}, "image_size 9×9 does not divide by patch 2"),
    ("pvt", {"patches": [2, 3]}, "image_size 4×4 does not divide by patch 3"),
    ("pvt", {"sr_ratios": [2, 2]}, r"sr_ratios is \[2, 2\], expected 1 in the last stage"),
    ("pvt", {"sr_ratios": [8, 1]}, "sr_ratio 8 of stage 1 leaves nothing of its 4×4 tokens"),
    ("pvt_v2", {"sr_ratios": [2, 8]}, "sr_ratio 8 of stage 2 leaves nothing of its 4×4 tokens"),
    ("pvt_v2", {"strides": [1]}, r"strides is \[1\], expected one entry for each of the 2 stages in depths"),
    ("pvt_v2", {"pool": 0}, "pool is 0, expected a number above 0"),
    *(
        (family, changes, message)
        for family in FAMILIES
        for changes, message in [
            ({"heads": [3, 4]}, "width 16 does not divide by 3 heads"),
            ({"heads": [2]}, r"heads is \[2\], expected one entry for each of the 2 stages in depths"),
            ({"depths": [2, 0]}, "depths is 0, expected a number above 0"),
            ({"depths": []}, "expected one entry for each of the 0 stages"),
            ({"mlp_ratios": [2, -1]}, "mlp_ratios is -1, expected a number above 0"),
            ({"drop_path": -0.1}, "drop_path is -0.1"),
            ({"init": "ones"}, "init is 'ones'"),
            ({"eps": 0}, "eps is 0"),
            ({"width": 16}, "has no argument 'width'"),
        ]
    ),
]


def pvt(family: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    return create_model(family, **{**DIGITS, **PATCHES[family], **changes})


@pytest.mark.parametrize(("family", "changes", "message"), BAD)
def test_impossible_values_are_refused_by_name(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        pvt(family, **changes)


def test_overlapping_patches_leave_a_token_of_any_image() -> None:
    assert overlapping_grid((1, 2), 7, 4) == (1, 1)
    assert overlapping_grid((224, 225), 7, 4) == (56, 57)
    assert overlapping_grid((5, 6), 2, 2) == (3, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_image_of_another_size_is_refused(family: str) -> None:
    with pytest.raises(ModelError, match="takes images of 8×8, got 16×16"):
        pvt(family)(torch.randn(1, 1, 16, 16))


@pytest.mark.parametrize("changes", [{}, {"linear": True}, {"linear": True, "pool": 3}])
def test_v2_takes_any_image_size(changes: dict[str, Any]) -> None:
    model = pvt("pvt_v2", image_size=[11, 7], **changes)
    assert model.grids == [(11, 7), (6, 4)]
    assert model(torch.randn(3, 1, 11, 7)).shape == (3, 10)


def test_v1_takes_oblong_images() -> None:
    assert pvt("pvt", image_size=[8, 16], qkv_bias=False, init="xavier")(torch.randn(3, 1, 8, 16)).shape == (3, 10)


def test_tokens_and_map_are_row_by_row_inverses() -> None:
    x = torch.randn(2, 6, 5)
    assert torch.equal(as_tokens(as_map(x, (2, 3))), x)
    assert torch.equal(as_map(x, (2, 3))[:, :, 1, 0], x[:, 3])


def test_reduction_without_a_partner_is_left_out() -> None:
    """As a strided convolution does: of 5×5 tokens a reduction by 2 reads the first 4×4."""
    attention = ReducedAttention(8, 2, (5, 5), reduction=2)
    x = torch.randn(1, 25, 8)
    edge = x.clone()
    edge.view(1, 5, 5, 8)[:, 4] += 1
    assert attention.reduce(x).shape == (1, 4, 8)
    assert torch.equal(attention.reduce(x), attention.reduce(edge))


@pytest.mark.parametrize("grid", [(14, 14), (14, 21), (7, 7), (10, 16), (3, 5), (1, 1)])
def test_pool_is_the_adaptive_average(grid: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *grid)
    pool = AdaptivePool(grid, 7)
    torch.testing.assert_close(pool(as_tokens(x)), nn.functional.adaptive_avg_pool2d(x, 7), atol=1e-6, rtol=1e-5)
    assert (pool.matrix is None) == (grid[0] % 7 == grid[1] % 7 == 0)
    assert pool.state_dict() == {}


def test_linear_attention_reads_every_token() -> None:
    attention = PooledAttention(8, 2, (5, 5), pool=2)
    x = torch.randn(1, 25, 8, requires_grad=True)
    attention.reduce(x).square().sum().backward()  # type: ignore[no-untyped-call]
    assert (x.grad.abs().sum(dim=2) > 0).all()


@pytest.mark.parametrize(("family", "changes"), [("pvt", {}), ("pvt_v2", {}), ("pvt_v2", {"linear": True})])
def test_every_parameter_learns(family: str, changes: dict[str, Any]) -> None:
    model = pvt(family, **changes, init="xavier").train()
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(("family", "changes"), [("pvt", {}), ("pvt_v2", {"linear": True, "pool": 3})])
def test_model_built_without_memory_takes_weights_by_assignment(family: str, changes: dict[str, Any]) -> None:
    expected = pvt(family, **changes).eval()
    with torch.device("meta"):
        model = pvt(family, **changes).eval()
    model.load_state_dict(expected.state_dict(), assign=True)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(x), expected(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_state_holds_parameters_only(family: str) -> None:
    model = pvt(family)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_drop_path_grows_from_nothing_to_its_rate(family: str) -> None:
    model = pvt(family, drop_path=0.2)
    rates = [block.drop_path.rate for stage in (model.block1, model.block2) for block in stage]
    assert rates == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_ordered_for_fine_tuning(family: str) -> None:
    model = pvt(family)
    layer = group_parameters(model, model.group_matcher(), reverse=True)
    assert layer["patch_embed1.proj.weight"] == 0
    assert [layer[f"block1.{block}.norm1.weight"] for block in (0, 1)] == [1, 2]
    assert (layer["patch_embed2.proj.weight"], layer["block2.0.norm1.weight"]) == (3, 4)
    assert layer["head.weight"] == 5
    if family == "pvt":
        assert (layer["pos_embed1"], layer["pos_embed2"], layer["cls_token"], layer["norm.weight"]) == (0, 3, 3, 4)
    else:
        assert (layer["norm1.weight"], layer["norm2.weight"]) == (2, 4)
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert sorted(set(coarse.values())) == [0, 1, 2, 3]
    assert [name for name, index in coarse.items() if index == 3] == ["head.weight", "head.bias"]


def test_positions_and_class_token_are_not_decayed() -> None:
    assert pvt("pvt").no_weight_decay() == {"cls_token", "pos_embed1", "pos_embed2"}
    assert pvt("pvt_v2").no_weight_decay() == set()


def test_positions_start_with_the_spread_asked_for() -> None:
    model = pvt("pvt", position_std=0.2)
    values = torch.cat([model.pos_embed1.flatten(), model.pos_embed2.flatten()])
    assert 0.1 < values.std() < 0.25
    assert values.abs().max() <= 0.4
