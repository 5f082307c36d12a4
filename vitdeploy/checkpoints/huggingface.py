"""Hugging Face folders: the configuration says the whole architecture, and often the preprocessing and the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitdeploy.checkpoints.converted import Converted
from vitdeploy.checkpoints.files import Tensors, WeightFile
from vitdeploy.checkpoints.layouts import pvt, swin, vit
from vitdeploy.errors import CheckpointError
from vitdeploy.preprocess import preprocess_from_hf
from vitdeploy.records import Preprocess
from vitdeploy.wording import adoption

FIRST_QUERY = r"(vit\.|deit\.)?(encoder\.layer|layers)\.0\.attention\.(attention\.query|q_proj)\.weight"
NOT_VIT = (r".*layer_scale1\.", r".*lambda_1$", r".*relative_position_bias", r"(.*\.)?embeddings\.detection_tokens")
"""Keys of DINOv2, BEiT and YOLOS, whose blocks have names of ViT's."""

HEADS = ("classifier.", "cls_classifier.", "distillation_classifier.")
SWIN_EPS = 1e-5
EXACT_GELU = ("gelu", "gelu_python")
ONNX_ROUTE = f"torch.onnx.export writes the model of transformers as it is, and {adoption('MODEL.onnx')} adopts that"
MODEL_TYPES = ("vit", "vit_mae", "deit", "pvt", "pvt_v2", "swin", "swinv2")
"""``model_type`` of config.json that the conversions here are for; others share names of tensors with them."""


def vit_or_deit(file: WeightFile, state: Tensors, _arguments: Mapping[str, Any]) -> Converted:
    """Convert ``ViTForImageClassification``, ``DeiTForImageClassification`` and the latter with teacher."""
    bare = any(name.startswith("embeddings.") for name in state)  # of a ViTModel, without its name in front
    named = {f"vit.{name}" if bare and not name.startswith(HEADS) else name: value for name, value in state.items()}
    dropped = {name: "a pooler that the classifier does not use" for name in named if ".pooler." in name}
    kept = {name: value for name, value in named.items() if name not in dropped}
    tensors = vit.from_huggingface(kept)
    config = file.config
    arguments = vit.describe(tensors)
    size = arguments.pop("image_size", None)
    arguments.pop("class_token_position", None)  # it always has one here; what looks like none is no square image
    overrides: dict[str, Any] = {}
    if config:
        _check_code(config)
        _check_activation(config, EXACT_GELU)
        overrides = {
            "image_size": _size(config.get("image_size", 224)),
            "patch": _side(config.get("patch_size", 16), "patch_size"),
            "channels": config.get("num_channels", 3),
            "width": config.get("hidden_size", 768),
            "depth": config.get("num_hidden_layers", 12),
            "heads": config.get("num_attention_heads", 12),
            "mlp_ratio": config.get("intermediate_size", 3072) / config.get("hidden_size", 768),
            "eps": config.get("layer_norm_eps", 1e-12),
        }
        overrides |= _head_width(config, tensors)
    if "dist_token" in tensors:
        overrides["distillation_head"] = "head_dist.weight" in tensors
    return Converted(
        tensors,
        arguments,
        overrides={**overrides, **_classes(arguments)} if config else {"eps": 1e-12, **overrides},
        complete=bool(config),
        proven={} if config or size is None else {"image_size": (size, "pos_embed")},
        unknown=() if config else ("heads",),
        position_tokens={"pos_embed": 2 if "dist_token" in tensors else 1},
        dropped=dropped,
        preprocess=preprocess_of(file),
        head_problem=_pooler_problem(dropped, named, config),
    )


def _head_width(config: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Return the width of a head where it is not that of the model shared out; a DeiT here has no such."""
    shared = int(config.get("hidden_size", 768)) // int(config.get("num_attention_heads", 12))
    rows = next((value.shape[0] for name, value in tensors.items() if name.endswith("attn.qkv.weight")), 0)
    width = rows // (3 * int(config.get("num_attention_heads", 12)))
    if "dist_token" not in tensors:
        return {"head_width": width} if width not in (0, shared) else {}
    for key, value, ours in (("head_dim", width, shared), ("qkv_bias", config.get("qkv_bias", True), True)):
        if value != ours:
            raise CheckpointError(f"{key} is {value!r} in config.json, and {ours!r} in every DeiT here: {ONNX_ROUTE}")
    return {}


def _pooler_problem(poolers: Mapping[str, str], names: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return why a head beside a pooler cannot be taken: transformers' classifiers have none, people's own may."""
    classifiers = any("ForImageClassification" in str(name) for name in config.get("architectures") or ())
    if not poolers or classifiers or not any(name.startswith(HEADS) for name in names):
        return ""
    return (
        f"a pooler ({next(iter(poolers))}) stands before its head, and keys do not tell whether the head reads it (a "
        "file without the pooler is taken)"
    )


def pvt_any(file: WeightFile, state: Tensors, _arguments: Mapping[str, Any]) -> Converted:
    """Convert ``PvtForImageClassification`` and ``PvtV2ForImageClassification``."""
    tensors = pvt.from_huggingface(state)
    config, overrides = file.config, {}
    second = any(".dwconv." in name for name in tensors)
    eps = float(config.get("layer_norm_eps", 1e-6))
    if config:
        _check_code(config)
        _check_activation(config, EXACT_GELU)
        _check_pvt(config, second=second)
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
    arguments = pvt.describe(tensors, second=second)
    size = None if second or config else pvt.image_size(tensors["pos_embed1"].shape[1], arguments["patches"][0])
    return Converted(
        tensors,
        {**_head_classes(tensors), **arguments},
        # The port gives every norm the configuration's eps; the original has 1e-5 after projections and reductions.
        overrides={**overrides, "eps": eps, "inner_eps": eps},
        complete=bool(config),
        proven={} if size is None else {"image_size": (size, "pos_embed1")},
        unknown=() if config else ("heads",),
        position_tokens=positions,
        resize_rule="bilinear",
        preprocess=preprocess_of(file),
    )


def swin_any(file: WeightFile, state: Tensors, _arguments: Mapping[str, Any]) -> Converted:
    """Convert ``SwinForImageClassification`` and ``Swinv2ForImageClassification``."""
    tensors, tables = swin.split_tables(swin.from_huggingface(state))
    config, overrides = file.config, {}
    if config:
        _check_code(config)
        _check_activation(config, EXACT_GELU)
        _check_swin(config)
        overrides = {
            "image_size": _size(config.get("image_size", 224)),
            "patch": _side(config.get("patch_size", 4), "patch_size"),
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
    second = any(name.endswith(".attn.logit_scale") for name in tensors)
    proven = swin.proofs(tensors, tables)
    if config:  # an image of another size is another grid of the same windows
        proven.pop("image_size", None)
    return Converted(
        tensors,
        {**_head_classes(tensors), **swin.describe(tensors)},
        overrides=overrides,
        complete=bool(config),
        proven=proven,
        tables=tables,
        unknown=("window", "pretrained_windows") if second and not config else (),
        dropped=swin.dropped(tables),
        preprocess=preprocess_of(file),
    )


def preprocess_of(file: WeightFile) -> Preprocess | None:
    """Return the folder's own preprocessing, else that of the processor which transformers takes for its model.

    None for weights without a configuration.
    """
    name, kind = file.path.name, str(file.config.get("model_type") or "")
    if file.preprocessor:
        return preprocess_from_hf(file.preprocessor, f"preprocessor_config.json of {name!r}", kind)
    if kind:
        return preprocess_from_hf({}, f"transformers' default for {kind!r}, as {name!r} has none", kind)
    return None


def _head_classes(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_classes": int(tensors["head.weight"].shape[0])} if "head.weight" in tensors else {}


def _check_code(config: Mapping[str, Any]) -> None:
    kind = config.get("model_type")
    if kind is not None and kind not in MODEL_TYPES:
        raise CheckpointError(f"model_type is {kind!r} in config.json, which is none of those built here: {ONNX_ROUTE}")
    if "auto_map" in config:
        raise CheckpointError(
            f"auto_map is {config['auto_map']!r} in config.json: the model has code of its own, which is not run here; "
            f"{ONNX_ROUTE}"
        )


def _check_swin(config: Mapping[str, Any]) -> None:
    """Refuse what transformers builds otherwise than the authors and no argument here says."""
    eps = config.get("layer_norm_eps", SWIN_EPS)
    if eps != SWIN_EPS:  # the norms of the patch embedding and of patch merging have 1e-5 whatever it is
        raise CheckpointError(
            f"layer_norm_eps is {eps!r} in config.json, expected {SWIN_EPS}: transformers gives it to some norms of a "
            f"Swin only; {ONNX_ROUTE}"
        )
    size = config.get("image_size", 224)
    if config.get("model_type") == "swinv2" and isinstance(size, list | tuple) and size[0] > size[-1]:
        raise CheckpointError(
            f"image_size is {list(size)!r} in config.json, expected a height no larger than the width: transformers "
            f"shifts the windows of a Swin v2 by the height alone; {ONNX_ROUTE}"
        )


def _check_pvt(config: Mapping[str, Any], *, second: bool) -> None:
    """Refuse patches of a v1 that are not their stride, and stages that are not built."""
    if not second and config.get("strides", config["patch_sizes"]) != config["patch_sizes"]:
        raise CheckpointError(
            f"strides is {config['strides']!r} in config.json, and patch_sizes is {config['patch_sizes']!r}: patches "
            f"that are not their stride are not built; {ONNX_ROUTE}"
        )
    stages = config.get("num_encoder_blocks", len(config["depths"]))
    if stages != len(config["depths"]):
        raise CheckpointError(
            f"num_encoder_blocks is {stages!r} in config.json, and depths has {len(config['depths'])}: stages that are "
            f"not built cannot be left out; {ONNX_ROUTE}"
        )


def _check_activation(config: Mapping[str, Any], known: tuple[str, ...]) -> None:
    activation = config.get("hidden_act", "gelu")
    if activation not in known:
        raise CheckpointError(f"hidden_act is {activation!r} in config.json, expected {known[0]}: {ONNX_ROUTE}")


def _size(value: Any) -> Any:
    """Return a number, or [height, width], as transformers takes both."""
    return list(value) if isinstance(value, list | tuple) else value


def _side(value: Any, key: str) -> Any:
    """Return the one side of a square."""
    if isinstance(value, list | tuple) and value:
        if len(set(value)) > 1:
            raise CheckpointError(f"{key} is {value!r} in config.json: patches that are no squares are not built")
        return value[0]
    return value


def _classes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: arguments[name] for name in ("num_classes", "qkv_bias") if name in arguments}
