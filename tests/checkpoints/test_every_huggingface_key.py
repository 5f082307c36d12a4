"""Every key of Hugging Face's configurations of our families is carried out, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from vitdeploy.errors import CheckpointError
from vitdeploy.sources.load import load_source

pytestmark = pytest.mark.slow

NO_LOGITS = re.compile(
    r".*drop.*|initializer_range|output_.*|return_dict|is_encoder_decoder|chunk_size_feed_forward|_name_or_path"
    r"|transformers_version|dtype|architectures|model_type|id2label|label2id|problem_type|num_labels|encoder_stride"
    r"|pooler_.*|out_features|out_indices|stage_names|hidden_size|num_layers"
)
"""Without effect on the logits of a classifier in evaluation; what names classes and tasks is tested elsewhere.

``hidden_size`` and ``num_layers`` are so in a Swin, which computes both; a ViT has the former among its sizes.
"""

VIT: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
SWIN: dict[str, Any] = {
    "image_size": 64, "embed_dim": 12, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4,
}  # fmt: skip
PVT: dict[str, Any] = {
    "image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4],
    "mlp_ratios": [2, 2, 2, 2],
}  # fmt: skip
OF_VIT: dict[str, Any] = {
    "hidden_size": 36, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 60,
    "image_size": [32, 48], "patch_size": [4, 4], "num_channels": 1, "layer_norm_eps": 0.1, "hidden_act": "gelu_python",
}  # fmt: skip
OF_SWIN: dict[str, Any] = {
    "image_size": [64, 128], "patch_size": [2, 2], "num_channels": 1, "embed_dim": 24, "depths": [1, 1],
    "num_heads": [2, 4], "window_size": 8, "mlp_ratio": 2.5, "qkv_bias": False,
}  # fmt: skip
OF_PVT: dict[str, Any] = {
    "hidden_sizes": [16, 16, 24, 32], "depths": [1, 1, 2, 1], "num_attention_heads": [2, 2, 3, 4],
    "mlp_ratios": [4, 2, 2, 2], "num_channels": 1, "layer_norm_eps": 0.1, "qkv_bias": False, "image_size": 128,
}  # fmt: skip

# Kind → a small one, key → a value that is carried out, key → a value that is refused by the key's name.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "ViT": (VIT, {**OF_VIT, "qkv_bias": False, "head_dim": 16}, {"hidden_act": "relu", "patch_size": [8, 4]}),
    "DeiT": (VIT, OF_VIT, {"hidden_act": "quick_gelu", "qkv_bias": False, "head_dim": 16, "patch_size": [4, 8]}),
    "Swin": (
        SWIN,
        {**OF_SWIN, "use_absolute_embeddings": True},
        {"hidden_act": "gelu_new", "layer_norm_eps": 0.1, "patch_size": [4, 2]},
    ),
    "Swinv2": (
        SWIN,
        {**OF_SWIN, "pretrained_window_sizes": [8, 4]},
        {"hidden_act": "silu", "layer_norm_eps": 0.1, "patch_size": [4, 2]},
    ),
    "Pvt": (
        PVT,
        {**OF_PVT, "sequence_reduction_ratios": [4, 4, 2, 1]},
        {"hidden_act": "relu", "strides": [4, 2, 2, 1], "patch_sizes": [4, 2, 2, 4]},
    ),
    "PvtV2": (
        PVT,
        {**OF_PVT, "sr_ratios": [4, 4, 2, 1], "strides": [4, 2, 2, 1], "patch_sizes": [7, 3, 3, 5],
         "linear_attention": True},
        {"hidden_act": "gelu_pytorch_tanh", "num_encoder_blocks": 3},
    ),
}  # fmt: skip
UNBUILT = {"Swinv2": {"use_absolute_embeddings"}, "Pvt": {"num_encoder_blocks"}}
"""What transformers itself cannot run with another value."""


def written(path: Path, kind: str, changes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**KINDS[kind][0], "num_labels": 5, **changes})
    module = getattr(transformers, f"{kind}ForImageClassification")(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    module.eval().save_pretrained(path)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_this_transformers_is_sorted(kind: str) -> None:
    small, carried, refused = KINDS[kind]
    keys = set(getattr(transformers, f"{kind}Config")().to_dict())
    known = {*small, *carried, *refused, *UNBUILT.get(kind, ())}
    assert {key for key in keys - known if NO_LOGITS.fullmatch(key) is None} == set()
    assert small.keys() <= carried.keys()


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, (_, carried, _) in KINDS.items() for key in carried])
def test_a_key_is_carried_out(tmp_path: Path, kind: str, key: str) -> None:
    value = KINDS[kind][1][key]
    module = written(tmp_path, kind, {key: value})
    size = value if key == "image_size" else KINDS[kind][0]["image_size"]
    channels = value if key == "num_channels" else 3
    x = torch.randn(2, channels, *(size if isinstance(size, list) else (size, size)))
    with torch.no_grad():
        theirs = module(x).logits
        ours = load_source(tmp_path).module(x)
    torch.testing.assert_close(ours, theirs, atol=1e-3 * float(theirs.std()), rtol=1e-3)


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, (_, _, refused) in KINDS.items() for key in refused])
def test_a_key_is_refused_by_its_name(tmp_path: Path, kind: str, key: str) -> None:
    written(tmp_path, kind, {key: KINDS[kind][2][key]})
    with pytest.raises(CheckpointError, match=rf"{key} is .*adopted\.onnx|{key} is .* in config\.json"):
        load_source(tmp_path)
