"""Files out of public reports: DINOv2's and MAE's trainings, transformers' wrapper of timm, integers for weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from timm_vit import SIZE, vit, with_prefix
from torch import nn

from vitdeploy.checkpoints import LoadRequest, load_foreign
from vitdeploy.errors import CheckpointError
from vitdeploy.sources.load import load_source

State = dict[str, torch.Tensor]
FEATURES = LoadRequest(arguments={"heads": 3}, headless=True)


def in_chunks(state: State) -> State:
    """Name blocks as DINOv2's training does: two chunks, in which blocks keep their number."""
    return {
        re.sub(r"^blocks\.(\d+)\.", lambda found: f"blocks.{int(found[1]) // 2}.{found[1]}.", name): value
        for name, value in state.items()
    }


MASKED: State = {"mask_token": torch.zeros(1, 24)}
DECODER: State = {
    "mask_token": torch.zeros(1, 1, 16),
    "decoder_embed.weight": torch.zeros(16, 24),
    "decoder_blocks.0.attn.qkv.weight": torch.zeros(48, 16),
}
PRETRAINED: dict[str, Callable[[State], Any]] = {
    "published": lambda state: {**state, **MASKED},
    "in chunks": lambda state: {"model": in_chunks({**state, **MASKED})},
    "teacher": lambda state: {
        "teacher": {
            **with_prefix(in_chunks({**state, **MASKED}), "backbone."), "dino_head.mlp.0.weight": torch.zeros(8, 24)
        }
    },
    "MAE": lambda state: {"model": {**state, **DECODER}, "epoch": 3},
}  # fmt: skip


@pytest.mark.parametrize("case", PRETRAINED)
def test_encoders_out_of_their_pre_training(tmp_path: Path, case: str) -> None:
    model: Any = vit(depth=4, num_classes=0, init_values=None if case == "MAE" else 0.1)
    torch.save(PRETRAINED[case](model.state_dict()), tmp_path / "w.pth")
    loaded = load_foreign(tmp_path / "w.pth", "vit", FEATURES)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), model(x), atol=1e-4, rtol=1e-4)
    assert any(note.startswith("left out mask_token") for note in loaded.notes)


def test_blocks_of_stages_are_no_chunks(tmp_path: Path) -> None:
    """Twins has names of the same form, whose second number begins anew in every stage."""
    size: dict[str, Any] = {"embed_dims": (8, 16, 16, 16), "num_heads": (1, 1, 1, 1), "num_classes": 3}
    model = timm.create_model("twins_pcpvt_small", **size)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    loaded = load_source("timm:twins_pcpvt_small", weights=tmp_path / "w.pth", arguments=size)
    assert loaded.module.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("pool", ["token", "avg", "max"])
def test_transformers_wrapper_of_a_timm_model(tmp_path: Path, pool: str, stated: bool) -> None:
    torch.manual_seed(0)
    arguments = {"global_pool": pool}
    config = transformers.TimmWrapperConfig(architecture="test_vit", model_args=arguments)
    config.num_labels = 3
    module: nn.Module = transformers.TimmWrapperForImageClassification(config).eval()
    module.save_pretrained(tmp_path / "folder")
    if stated:
        file = tmp_path / "folder" / "config.json"
        preprocessing = {"input_size": [3, 160, 160], "mean": [0.1] * 3, "std": [0.2] * 3, "crop_pct": 0.8}
        file.write_text(json.dumps({**json.loads(file.read_text()), "pretrained_cfg": preprocessing}))
    loaded = load_source(tmp_path / "folder")
    assert loaded.preprocess.size == (160, 160)
    assert (loaded.preprocess.mean == (0.1,) * 3) is stated
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        theirs: Any = module(x)
        torch.testing.assert_close(loaded.module(x), theirs.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["vit_msn", "vivit", "ijepa"])
def test_other_models_whose_tensors_have_names_of_a_vit_s(tmp_path: Path, kind: str) -> None:
    size = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 48}
    module: Any = transformers.ViTForImageClassification(transformers.ViTConfig(**size, image_size=32, patch_size=8))
    module.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    with pytest.raises(CheckpointError, match=rf"model_type is '{kind}' in config\.json.*adopted\.onnx"):
        load_source(tmp_path)


@pytest.mark.parametrize("source", ["vit", "timm:vit_tiny_patch16_224"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.complex64])
def test_numbers_that_are_no_weights(tmp_path: Path, source: str, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) if value.dim() == 2 else value for name, value in vit().state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    arguments: dict[str, Any] = {"heads": 3} if source == "vit" else SIZE
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=rf"has {kind} numbers in \d+ of its weights \(blocks\.0\.attn\.qkv\.wei"):
        load_source(source, weights=tmp_path / "w.pth", arguments=arguments)
