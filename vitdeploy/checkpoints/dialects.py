"""Which code wrote a checkpoint, told from its keys, and how its tensors become ours.

A dialect is a row of ``DIALECTS``: the keys that give it away and a conversion. Rows are tried in order; the first that
fits is taken, and the keys that decided are kept as the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitdeploy.checkpoints import huggingface
from vitdeploy.checkpoints.converted import Converted
from vitdeploy.checkpoints.files import Tensors, WeightFile
from vitdeploy.checkpoints.layouts import hybrid, pvt, swin, tnt, vit, vit_pytorch
from vitdeploy.errors import CheckpointError


@dataclass(frozen=True)
class Dialect:
    """How one code base names one family's tensors.

    ``keys`` are regular expressions that must each match a key, ``absent`` ones that must match none. ``settle``
    takes the place of ``convert`` where keys do not tell all: it is given the constructor arguments that the user says.
    """

    name: str
    family: str
    keys: tuple[str, ...]
    convert: Callable[[WeightFile], Converted] | None
    absent: tuple[str, ...] = field(default=())
    settle: Callable[[WeightFile, Mapping[str, Any]], Converted] | None = None

    def reason(self, names: list[str]) -> str | None:
        """Return which keys give the dialect away, None where they do not."""
        found = [next((name for name in names if re.match(pattern, name)), None) for pattern in self.keys]
        if None in found or any(re.match(pattern, name) for pattern in self.absent for name in names):
            return None
        lacks = f", and none like {', '.join(self.absent)}" if self.absent else ""
        return f"it has {', '.join(str(name) for name in found)}{lacks}"

    def converted(self, file: WeightFile, given: Mapping[str, Any]) -> Converted:
        """Return what the dialect makes of a file and of the constructor arguments that the user says.

        Raises:
            CheckpointError: Something that the keys do not tell is not said either.
        """
        if self.settle is not None:
            return self.settle(file, given)
        assert self.convert is not None
        return self.convert(file)


def detect(file: WeightFile) -> tuple[Dialect, str]:
    """Return the dialect of a file and why it is that one.

    Raises:
        CheckpointError: No dialect fits; the message shows the first keys.
    """
    names = list(file.tensors)
    for dialect in DIALECTS:
        reason = dialect.reason(names)
        if reason is not None:
            return dialect, reason
    raise CheckpointError(
        f"the weights in {str(file.path)!r} are of no dialect that is known: {len(names)} tensors, such as "
        f"{', '.join(names[:4])}; convert their names to timm's"
    )


def _vit(tensors: Tensors, **changes: Any) -> Converted:
    arguments = vit.describe(tensors)
    extra = int("cls_token" in tensors and arguments.get("class_token_position", True)) + int("dist_token" in tensors)
    return Converted(tensors, arguments, position_tokens={"pos_embed": extra}, **changes)


def _from_timm_vit(file: WeightFile) -> Converted:
    overrides: dict[str, Any] = {"eps": 1e-6}
    if "fc_norm.weight" in file.tensors:
        overrides |= {"pool": "mean", "norm_after_pool": True, "class_token": "cls_token" in file.tensors}
    return _vit(vit.from_timm(file.tensors), overrides=overrides, resize_rule="bicubic_antialias")


def _from_deit3(file: WeightFile) -> Converted:
    return _vit(vit.from_deit3(file.tensors), overrides={"eps": 1e-6})


def _from_torchvision_vit(file: WeightFile) -> Converted:
    tensors = vit.from_torchvision(file.tensors)
    return _vit(tensors, overrides={"eps": 1e-6}, resize_rule="bicubic_align_corners", preprocessing="torchvision")


def _from_google(file: WeightFile) -> Converted:
    tensors = vit.from_google(file.tensors)
    heads = {"heads": vit.heads_of_google(file.tensors), "eps": 1e-6}
    return _vit(tensors, overrides=heads, resize_rule="bilinear_align_corners", preprocessing="google")


def _hybrid(convert: Callable[[Mapping[str, Any]], Tensors], **changes: Any) -> Callable[[WeightFile], Converted]:
    def converted(file: WeightFile) -> Converted:
        tensors = convert(file.tensors)
        return Converted(
            tensors, hybrid.describe(tensors), position_tokens={"pos_embed": _class_token(tensors)}, **changes
        )

    return converted


def _hybrid_from_google(file: WeightFile) -> Converted:
    overrides = {"heads": vit.heads_of_google(file.tensors), "eps": 1e-6}
    return _hybrid(
        hybrid.from_google, overrides=overrides, resize_rule="bilinear_align_corners", preprocessing="google"
    )(file)


def _class_token(tensors: Tensors) -> int:
    return int("cls_token" in tensors)


def _settle_vit_pytorch(file: WeightFile, given: Mapping[str, Any]) -> Converted:
    layout = vit_pytorch.layout_of(file.tensors)
    renamed = vit_pytorch.from_package(file.tensors)
    tensors, arguments, notes = vit_pytorch.settled(renamed, layout, given)
    left_out = "cls_token" in file.tensors and "cls_token" not in tensors
    return Converted(
        tensors,
        arguments,
        complete=True,
        position_tokens={"pos_embed": _class_token(tensors)},
        dropped={"cls_token": "it is empty, the mean is that of patches alone"} if left_out else {},
        preprocessing="unstated",
        notes=notes,
    )


def _t2t(file: WeightFile) -> Converted:
    head = _classes(file.tensors, "head.weight")
    kind = "performer" if "tokens_to_token.attention1.kqv.weight" in file.tensors else "transformer"
    return Converted(dict(file.tensors), {**head, "token_module": kind}, position_tokens={"pos_embed": 1})


def _tnt_original(file: WeightFile) -> Converted:
    tensors = {name: value for name, value in file.tensors.items() if name != "outer_tokens"}
    dropped = {"outer_tokens": "zeros that the original never uses"} if len(tensors) < len(file.tensors) else {}
    return Converted(tensors, _classes(tensors, "head.weight"), position_tokens={"outer_pos": 1}, dropped=dropped)


def _tnt_timm(file: WeightFile) -> Converted:
    tensors = tnt.from_timm(file.tensors)
    return Converted(
        tensors,
        _classes(tensors, "head.weight"),
        position_tokens={"outer_pos": 1},
        resize_rule="bicubic_antialias",
    )


def _pvt(convert: Callable[[Mapping[str, Any]], Tensors]) -> Callable[[WeightFile], Converted]:
    def converted(file: WeightFile) -> Converted:
        tensors = convert(file.tensors)
        last = max((name for name in tensors if re.match(r"pos_embed\d+$", name)), default="")
        tokens = {name: int(name == last) for name in tensors if re.match(r"pos_embed\d+$", name)}
        return Converted(tensors, _classes(tensors, "head.weight"), position_tokens=tokens, resize_rule="bilinear")

    return converted


def _swin(convert: Callable[[Mapping[str, Any]], Tensors], **changes: Any) -> Callable[[WeightFile], Converted]:
    def converted(file: WeightFile) -> Converted:
        tensors = convert(file.tensors)
        dropped = {name: "rebuilt from the architecture" for name in file.tensors if re.search(swin.REBUILT, name)}
        return Converted(tensors, _classes(tensors, "head.weight"), dropped=dropped, **changes)

    return converted


def _patchconvnet(file: WeightFile) -> Converted:
    tensors = dict(file.tensors)
    heads = sorted(
        (name for name in tensors if re.fullmatch(r"head\.\d+\.weight", name)), key=lambda name: int(name.split(".")[1])
    )
    if not heads:
        return Converted(tensors, _classes(tensors, "head.weight"), overrides={"heads": 1})
    # One linear per class, stacked: row k of our head is the original's head k.
    tensors["head.weight"] = np.concatenate([tensors.pop(name) for name in heads])
    tensors["head.bias"] = np.concatenate([tensors.pop(name.replace("weight", "bias")) for name in heads])
    return Converted(tensors, {**_classes(tensors, "head.weight"), "multi_token": True}, overrides={"heads": 1})


def _same(state: Mapping[str, Any]) -> Tensors:
    return dict(state)


def _classes(tensors: Tensors, name: str) -> dict[str, Any]:
    return {"num_classes": int(tensors[name].shape[0])} if name in tensors else {}


DIALECTS: tuple[Dialect, ...] = (
    Dialect("Hugging Face", "vit", (r"vit\.embeddings\.cls_token",), huggingface.vit_or_deit),
    Dialect("Hugging Face", "deit", (r"deit\.embeddings\.distillation_token",), huggingface.vit_or_deit),
    Dialect("Hugging Face", "pvt_v2", (r"pvt_v2\.encoder\.layers\.0\.patch_embedding",), huggingface.pvt_any),
    Dialect("Hugging Face", "pvt", (r"pvt\.encoder\.patch_embeddings\.0",), huggingface.pvt_any),
    Dialect("Hugging Face", "swin_v2", (r"swinv2\.embeddings",), huggingface.swin_any),
    Dialect("Hugging Face", "swin", (r"swin\.embeddings",), huggingface.swin_any),
    Dialect("Google JAX", "hybrid", (r"(opt/target/|params/)?conv_root/kernel",), _hybrid_from_google),
    Dialect("Google JAX", "vit", (r"(opt/target/|params/)?embedding/kernel", r".*encoderblock_0/"), _from_google),
    Dialect("torchvision", "vit", (r"class_token$", r"conv_proj\.weight"), _from_torchvision_vit),
    Dialect(
        "torchvision",
        "swin_v2",
        (r"features\.1\.0\.attn\.logit_scale", r"features\.0\.0\.weight"),
        _swin(swin.from_torchvision, preprocessing="torchvision"),
    ),
    Dialect(
        "torchvision",
        "swin",
        (r"features\.1\.0\.attn\.relative_position_bias_table", r"features\.0\.0\.weight"),
        _swin(swin.from_torchvision, preprocessing="torchvision"),
    ),
    Dialect(
        "vit-pytorch",
        "vit_pytorch",
        (r"pos_embedding$", r"(to_patch_embedding\.1|patch_to_embedding)\.weight", r"transformer\.(layers|net)\.0\."),
        None,
        settle=_settle_vit_pytorch,
    ),
    Dialect("T2T-ViT repository", "t2t", (r"tokens_to_token\.attention1\.", r"blocks\.0\.attn\.qkv\.weight"), _t2t),
    Dialect("timm", "tnt", (r"pixel_pos$", r"patch_pos$"), _tnt_timm),
    Dialect("TNT repository", "tnt", (r"inner_pos$", r"outer_pos$"), _tnt_original),
    Dialect("PVT repository", "pvt", (r"pos_embed1$", r"block1\.0\.attn\.q\.weight"), _pvt(_same)),
    Dialect("PVT repository", "pvt_v2", (r"block1\.0\.mlp\.dwconv\.dwconv\.weight",), _pvt(_same)),
    Dialect("timm", "pvt_v2", (r"stages\.0\.blocks\.0\.mlp\.dwconv\.weight",), _pvt(pvt.from_timm)),
    Dialect(
        "timm",
        "swin_v2",
        (r"layers\.0\.blocks\.0\.attn\.logit_scale", r"head\.fc\.weight"),
        _swin(swin.from_timm, table_rule="geometric"),
    ),
    Dialect(
        "timm",
        "swin",
        (r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table", r"head\.fc\.weight"),
        _swin(swin.from_timm, table_rule="geometric"),
    ),
    Dialect("Swin repository", "swin_v2", (r"layers\.0\.blocks\.0\.attn\.logit_scale",), _swin(swin.from_original)),
    Dialect(
        "Swin repository",
        "swin",
        (r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table",),
        _swin(swin.from_original),
    ),
    Dialect("DeiT repository", "patchconvnet", (r"blocks\.0\.attn\.qkv_pos\.0\.weight",), _patchconvnet),
    Dialect("DeiT repository", "vit", (r"blocks\.0\.gamma_1$", r"blocks\.0\.attn\.qkv\.weight"), _from_deit3),
    Dialect(
        "timm",
        "hybrid",
        (r"patch_embed\.backbone\.(stem\.)?conv\.weight", r"patch_embed\.backbone\.(stem\.)?norm\.weight"),
        _hybrid(_same, overrides={"eps": 1e-6}, resize_rule="bicubic_antialias"),
    ),
    Dialect("timm or DeiT repository", "deit", (r"dist_token$", r"head_dist\.weight"), _from_timm_vit),
    Dialect(
        "timm or DeiT repository",
        "vit",
        (r"pos_embed$", r"patch_embed\.proj\.weight", r"blocks\.0\.(attn|attns\.0\.attn)\.qkv\.weight"),
        _from_timm_vit,
        absent=(r"dist_token$", r"patch_embed\.backbone\."),
    ),
)
