"""Tables that Swin v2 stores prove the window that no shape of a weight shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vitdeploy.checkpoints import LoadRequest, load_foreign
from vitdeploy.errors import CheckpointError


@pytest.mark.parametrize(("window", "other"), [(4, 8), (8, 4)])
def test_stored_tables_of_swin_v2_prove_the_window(window: int, other: int, tmp_path: Path) -> None:
    """torchvision and Microsoft store the coordinates; a variant with another window would load silently."""
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    torch.manual_seed(0)
    reference = SwinTransformer(
        patch_size=[2, 2], embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=[window] * 2, num_classes=7,
        block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2,
    ).eval()  # fmt: skip
    torch.save(reference.state_dict(), tmp_path / "m.pth")
    loaded = load_foreign(tmp_path / "m.pth", "swin_v2", LoadRequest(image_size=32))
    assert loaded.spec.arguments["window"] == window
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), reference(x), atol=1e-4, rtol=1e-4)


def test_a_variant_with_another_window_than_the_tables_prove_is_refused_by_name(tmp_path: Path) -> None:
    """The weights of both variants have the same shapes: without the tables one loads as the other."""
    from vitdeploy.checkpoints.layouts.swin import computed_tables
    from vitdeploy.models import create_model

    model = create_model("swinv2_tiny_patch4_window8_256", depths=[1, 1, 1, 1], num_classes=5)
    tables = {name: torch.from_numpy(np.array(table)) for name, table in computed_tables(model).items()}
    torch.save({"model": {**model.state_dict(), **tables}}, tmp_path / "swin.pth")
    request = LoadRequest(arguments={"depths": [1, 1, 1, 1]})
    with pytest.raises(CheckpointError, match=r"made with window=8, as its table .*relative_coords_table proves"):
        load_foreign(tmp_path / "swin.pth", "swinv2_tiny_patch4_window16_256", request)
    loaded = load_foreign(tmp_path / "swin.pth", "swinv2_tiny_patch4_window8_256", request)
    assert loaded.preprocess.mean == (0.485, 0.456, 0.406)
