"""Hugging Face folders: the configuration says the whole architecture, and often the preprocessing and the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitdeploy.checkpoints.converted import Converted
from vitdeploy.checkpoints.files import WeightFile
from vitdeploy.checkpoints.layouts import pvt, swin, vit
from vitdeploy.datasets.class_names import class_names_of
from vitdeploy.errors import CheckpointError
from vitdeploy.preprocess import preprocess_from_hf
from vitdeploy.records import Preprocess


def vit_or_deit(file: WeightFile) -> Converted:
    """Convert ``ViTForImageClassification``, ``DeiTForImageClassification`` and the latter with teacher."""
    tensors = {name: value for name, value in vit.from_huggingface(file.tensors).items() if ".pooler." not in name}
    dropped = {name: "a pooler that the classifier does not use" for name in file.tensors if ".pooler." in name}
    config = file.config
    arguments = vit.describe(tensors)
    overrides: dict[str, Any] = {}
    if config:
        _check_activation(config, ("gelu",))
        overrides = {
            "image_size": config.get("image_size", 224),
            "patch": config.get("patch_size", 16),
            "channels": config.get("num_channels", 3),
            "width": config.get("hidden_size", 768),
            "depth": config.get("num_hidden_layers", 12),
            "heads": config.get("num_attention_heads", 12),
            "mlp_ratio": config.get("intermediate_size", 3072) / config.get("hidden_size", 768),
            "eps": config.get("layer_norm_eps", 1e-12),
        }
    if "dist_token" in tensors:
        overrides["distillation_head"] = "head_dist.weight" in tensors
    return Converted(
        tensors,
        arguments,
        overrides={**overrides, **_classes(arguments)} if config else {"eps": 1e-12, **overrides},
        complete=bool(config),
        classes=class_names_of(config, "config.json"),
        position_tokens={"pos_embed": 2 if "dist_token" in tensors else 1},
        dropped=dropped,
        preprocess=preprocess_of(file),
    )


def pvt_any(file: WeightFile) -> Converted:
    """Convert ``PvtForImageClassification`` and ``PvtV2ForImageClassification``."""
    tensors = pvt.from_huggingface(file.tensors)
    config, overrides = file.config, {}
    eps = float(config.get("layer_norm_eps", 1e-6))
    if config:
        _check_activation(config, ("gelu",))
        second = str(config.get("model_type", "")).replace("_", "-") == "pvt-v2" or any(
            ".dwconv." in name for name in tensors
        )
        overrides = {
            "image_size": _size(config.get("image_size", 224)),
            "channels": config.get("num_channels", 3),
            "widths": config["hidden_sizes"],
            "depths": config["depths"],
            "heads": config["num_attention_heads"],
            "mlp_ratios": config["mlp_ratios"],
            "sr_ratios": config["sr_ratios"] if second else config["sequence_reduction_ratios"],
            "patches": config["patch_sizes"],
        }
        if second:
            overrides |= {"strides": config["strides"], "linear": bool(config.get("linear_attention", False))}
    positions = {name: 0 for name in tensors if name.startswith("pos_embed")}
    if positions:
        positions[max(positions)] = 1
    return Converted(
        tensors,
        {"num_classes": int(tensors["head.weight"].shape[0])} if "head.weight" in tensors else {},
        # The port gives every norm the configuration's eps; the original has 1e-5 after projections and reductions.
        overrides={**overrides, "eps": eps, "inner_eps": eps},
        complete=bool(config),
        classes=class_names_of(config, "config.json"),
        position_tokens=positions,
        resize_rule="bilinear",
        preprocess=preprocess_of(file),
    )


def swin_any(file: WeightFile) -> Converted:
    """Convert ``SwinForImageClassification`` and ``Swinv2ForImageClassification``."""
    tensors = swin.from_huggingface(file.tensors)
    config, overrides = file.config, {}
    if config:
        _check_activation(config, ("gelu",))
        overrides = {
            "image_size": _size(config.get("image_size", 224)),
            "patch": config.get("patch_size", 4),
            "channels": config.get("num_channels", 3),
            "width": config.get("embed_dim", 96),
            "depths": config["depths"],
            "heads": config["num_heads"],
            "window": config.get("window_size", 7),
            "mlp_ratio": config.get("mlp_ratio", 4.0),
            "eps": config.get("layer_norm_eps", 1e-5),
        }
        if config.get("model_type") == "swinv2":
            stages = len(config["depths"])
            overrides["pretrained_windows"] = list(config.get("pretrained_window_sizes") or [0] * stages)[:stages]
    return Converted(
        tensors,
        {"num_classes": int(tensors["head.weight"].shape[0])} if "head.weight" in tensors else {},
        overrides=overrides,
        complete=bool(config),
        classes=class_names_of(config, "config.json"),
        dropped={name: "rebuilt from the architecture" for name in file.tensors if name.endswith("position_index")},
        preprocess=preprocess_of(file),
    )


def preprocess_of(file: WeightFile) -> Preprocess | None:
    """Return the folder's own preprocessing, None where it has no preprocessor_config.json."""
    if not file.preprocessor:
        return None
    source = f"preprocessor_config.json of {file.path.name!r}"
    return preprocess_from_hf(file.preprocessor, source, str(file.config.get("model_type") or ""))


def _check_activation(config: Mapping[str, Any], known: tuple[str, ...]) -> None:
    activation = config.get("hidden_act", "gelu")
    if activation not in known:
        raise CheckpointError(f"hidden_act is {activation!r} in config.json, expected {' or '.join(known)}")


def _size(value: Any) -> Any:
    return value if isinstance(value, int) else list(value)


def _classes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: arguments[name] for name in ("num_classes", "qkv_bias") if name in arguments}
