"""Which code wrote a checkpoint, told from its keys, and how its tensors become ours.

A dialect is a row of ``DIALECTS``: the keys that give it away, where it has its head, and a conversion. Rows are tried
in order; the first that fits is taken, and the keys that decided are kept as the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vitdeploy.checkpoints import huggingface
from vitdeploy.checkpoints.converted import Converted
from vitdeploy.checkpoints.files import Tensors, WeightFile
from vitdeploy.checkpoints.heads import settle_head
from vitdeploy.checkpoints.layouts import google, hybrid, pvt, swin, t2t, tnt, vit, vit_pytorch

Convert = Callable[[WeightFile, Tensors, Mapping[str, Any]], Converted]
Rename = Callable[[Mapping[str, Any]], Tensors]


@dataclass(frozen=True)
class Dialect:
    """How one code base names one family's tensors.

    ``keys`` are regular expressions that must each match a key, ``absent`` ones that must match none. ``convert`` is
    given the file, its tensors with the head in its place, and the constructor arguments that the user names, for what
    keys do not tell. ``heads`` maps the attributes that people replace to where the dialect has their linear;
    ``spared`` are parts below them that are no head. ``convention`` is the preprocessing of the code base, by its name
    in ``conventions``.
    """

    name: str
    family: str
    keys: tuple[str, ...]
    convert: Convert
    absent: tuple[str, ...] = field(default=())
    heads: Mapping[str, str] = field(default_factory=lambda: {"head": "head"})
    spared: tuple[str, ...] = ()
    convention: str = ""

    @property
    def head_root(self) -> str:
        """The attribute that is the classifier, "" where none can be put beside the model."""
        return next(iter(self.heads), "")

    def reason(self, names: Sequence[str]) -> str | None:
        """Return which keys give the dialect away, None where they do not."""
        found = [next((name for name in names if re.match(pattern, name)), None) for pattern in self.keys]
        if None in found or any(re.match(pattern, name) for pattern in self.absent for name in names):
            return None
        return f"it has {', '.join(map(str, found))}"

    def converted(self, file: WeightFile, arguments: Mapping[str, Any]) -> Converted:
        """Return what the dialect makes of weights and of the constructor arguments that the user names.

        Raises:
            CheckpointError: Something that the keys do not tell is not named either.
        """
        state, notes, problems = dict(file.tensors), [], []
        for root, target in self.heads.items():
            head = settle_head(state, root, target, self.spared)
            state = head.tensors
            notes += [head.note] * bool(head.note)
            problems += [head.problem] * bool(head.problem)
        found = self.convert(file, state, arguments)
        return replace(
            found,
            notes=(*notes, *found.notes),
            head_problem="; ".join(problems) or found.head_problem,
            convention=found.convention or self.convention,
        )


def _vit(tensors: Tensors, *, token_position: bool | None = None, **changes: Any) -> Converted:
    arguments = vit.describe(tensors, token_position=token_position)
    extra = int("cls_token" in tensors and arguments.get("class_token_position", True)) + int("dist_token" in tensors)
    size = arguments.pop("image_size", None)
    return Converted(
        tensors,
        arguments,
        **{
            "position_tokens": {"pos_embed": extra},
            "proven": {} if size is None else {"image_size": (size, "pos_embed")},
            "unknown": ("heads",),
            **changes,
        },
    )


FC_NORM = (
    "took the mean before fc_norm, as in all published models: timm:NAME with arguments={'global_pool': 'token'} "
    "builds another"
)


TANH = (
    "took the exact GELU; SigLIP's models have its tanh approximation under the same keys: 'timm:NAME' with weights= "
    "builds them"
)


def _from_timm_vit(file: WeightFile, state: Tensors, arguments: Mapping[str, Any]) -> Converted:
    state, pretraining = vit.without_pretraining(state)
    vit.refuse_other_parts(state, repr(str(file.path)))
    vit.refuse_oblong_patches(state, repr(str(file.path)))
    overrides: dict[str, Any] = {"eps": 1e-6}
    changes: dict[str, Any] = {"overrides": overrides, "resize_rule": "bicubic_antialias"}
    token, pool = "cls_token" in state, arguments.get("pool")
    if "fc_norm.weight" in state:
        overrides |= {"pool": "mean", "norm_after_pool": True, "class_token": token}
        changes["notes"] = (FC_NORM,)
    elif pool == "mean":
        overrides |= {"class_token": token}
    elif not token:
        changes["notes"] = (TANH,)
    if token and "dist_token" not in state and "fc_norm.weight" not in state:
        changes["usual"] = {"pool": "cls"}
    changes["dropped"] = dict.fromkeys(pretraining, "a part of pre-training, which no image passes")
    if token and vit.is_grid_with_token(state, arguments.get("image_size")):  # 4×6 patches and a token are 5×5 rows
        overrides |= {"class_token_position": True, "image_size": list(arguments["image_size"])}
        changes |= {"position_tokens": {"pos_embed": 1}, "proven": {}}
    return _vit(vit.from_timm(state), **changes)


def _from_deit3(_file: WeightFile, state: Tensors, _arguments: Mapping[str, Any]) -> Converted:
    return _vit(vit.from_deit3(state), token_position=False, overrides={"eps": 1e-6})


def _from_mmpretrain(_file: WeightFile, state: Tensors, _arguments: Mapping[str, Any]) -> Converted:
    return _vit(vit.from_mmpretrain(state), token_position=True, overrides={"eps": 1e-6})


def _from_torchvision_vit(_file: WeightFile, state: Tensors, _arguments: Mapping[str, Any]) -> Converted:
    changes: dict[str, Any] = {"overrides": {"eps": 1e-6}, "resize_rule": "bicubic_align_corners"}
    return _vit(vit.from_torchvision(state), token_position=True, **changes)


def _from_google(file: WeightFile, state: Tensors, _arguments: Mapping[str, Any]) -> Converted:
    inside, changes = _of_google(state)
    tensors = google.to_timm(inside)
    vit.refuse_other_parts(tensors, repr(str(file.path)))
    return _vit(tensors, token_position=google.has_token_position(inside), unknown=(), **changes)


def _of_google(state: Tensors) -> tuple[Tensors, dict[str, Any]]:
    """Return the weights below their place, and what all of Google's have in common."""
    inside, beside = google.below(state, google.root_of(state) or "")
    changes: dict[str, Any] = {
        "overrides": {"heads": google.heads_of(inside), "eps": 1e-6},
        "resize_rule": "bilinear_align_corners",
    }
    if beside:
        changes["dropped"] = {beside: "no part of the model"}
    return inside, changes


def _hybrid(tensors: Tensors, **changes: Any) -> Converted:
    arguments = hybrid.describe(tensors)
    size = arguments.pop("image_size", None)
    proven = {} if size is None else {"image_size": (size, "pos_embed")}
    return Converted(tensors, arguments, position_tokens={"pos_embed": _class_token(tensors)}, proven=proven, **changes)


def _hybrid_from_timm(_file: WeightFile, state: Tensors, _arguments: Mapping[str, Any]) -> Converted:
    return _hybrid(state, overrides={"eps": 1e-6}, resize_rule="bicubic_antialias", unknown=("heads",))


def _hybrid_from_google(_file: WeightFile, state: Tensors, _arguments: Mapping[str, Any]) -> Converted:
    inside, changes = _of_google(state)
    return _hybrid(hybrid.from_google(inside), **changes)


def _class_token(tensors: Tensors) -> int:
    return int("cls_token" in tensors)


def _from_vit_pytorch(_file: WeightFile, state: Tensors, arguments: Mapping[str, Any]) -> Converted:
    layout, problem = vit_pytorch.layout_of(state), ""
    if "transformer.norm.weight" in state:  # else the norm stands in the head
        head = settle_head(state, "mlp_head", "mlp_head")
        state, problem = head.tensors, head.problem
    renamed = vit_pytorch.from_package(state)
    tensors, found, notes = vit_pytorch.settled(renamed, layout, arguments)
    left_out = "cls_token" in state and "cls_token" not in tensors
    return Converted(
        tensors,
        found,
        complete=True,
        position_tokens={"pos_embed": _class_token(tensors)},
        dropped={"cls_token": "it is empty, the mean is that of patches alone"} if left_out else {},
        head_problem=problem,
        notes=notes,
    )


def _t2t(_file: WeightFile, state: Tensors, _arguments: Mapping[str, Any]) -> Converted:
    size = t2t.image_size(state["pos_embed"].shape[1]) if "pos_embed" in state else None
    return Converted(
        dict(state),
        {**_classes(state), **t2t.describe(state)},
        position_tokens={"pos_embed": 1},
        proven={} if size is None else {"image_size": (size, "pos_embed")},
        unknown=("heads",),
        usual={"qk_scale": None},
    )


def _tnt(tensors: Tensors, arguments: Mapping[str, Any], **changes: Any) -> Converted:
    found = tnt.describe(tensors, int(arguments.get("inner_stride", tnt.INNER_STRIDE)))
    size = tnt.image_size(tensors["outer_pos"].shape[1], int(arguments.get("patch", found["patch"])))
    return Converted(
        tensors,
        {**_classes(tensors), **found},
        position_tokens={"outer_pos": 1},
        proven={} if size is None else {"image_size": (size, "outer_pos")},
        unknown=("heads", "inner_heads"),
        usual={"inner_stride": tnt.INNER_STRIDE},
        **changes,
    )


def _tnt_original(_file: WeightFile, state: Tensors, arguments: Mapping[str, Any]) -> Converted:
    tensors = {name: value for name, value in state.items() if name != "outer_tokens"}
    dropped = {"outer_tokens": "zeros that the original never uses"} if len(tensors) < len(state) else {}
    return _tnt(tensors, arguments, dropped=dropped)


def _tnt_timm(_file: WeightFile, state: Tensors, arguments: Mapping[str, Any]) -> Converted:
    return _tnt(tnt.from_timm(state), arguments, resize_rule="bicubic_antialias")


def _pvt(rename: Rename, *, second: bool) -> Convert:
    def converted(_file: WeightFile, state: Tensors, _arguments: Mapping[str, Any]) -> Converted:
        tensors = rename(state)
        positions = [name for name in tensors if re.match(r"pos_embed\d+$", name)]
        tokens = {name: int(name == max(positions)) for name in positions}
        arguments = pvt.describe(tensors, second=second)
        size = None if second else pvt.image_size(tensors["pos_embed1"].shape[1], arguments["patches"][0])
        return Converted(
            tensors,
            {**_classes(tensors), **arguments},
            position_tokens=tokens,
            resize_rule="bilinear",
            proven={} if size is None else {"image_size": (size, "pos_embed1")},
            unknown=("heads",),
            usual={"pool": 7} if "linear" in arguments else {},
        )

    return converted


def _swin(rename: Rename, *, second: bool, **changes: Any) -> Convert:
    def converted(_file: WeightFile, state: Tensors, _arguments: Mapping[str, Any]) -> Converted:
        tensors, tables = swin.split_tables(rename(state))
        return Converted(
            tensors,
            {**_classes(tensors), **swin.describe(tensors)},
            proven=swin.proofs(tensors, tables),
            tables=tables,
            unknown=("window", "pretrained_windows") if second else (),
            dropped=swin.dropped(tables),
            **changes,
        )

    return converted


def _patchconvnet(_file: WeightFile, state: Tensors, _arguments: Mapping[str, Any]) -> Converted:
    tensors = dict(state)
    heads = sorted(
        (name for name in tensors if re.fullmatch(r"head\.\d+\.weight", name)), key=lambda name: int(name.split(".")[1])
    )
    width = tensors["cls_token"].shape[-1]
    arguments: dict[str, Any] = {
        "width": int(width),
        "channels": int(tensors["patch_embed.proj.0.0.weight"].shape[1]),
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "token_mlp_ratio": tensors["blocks_token_only.0.mlp.fc1.weight"].shape[0] / width,
        "multi_token": bool(heads),
    }
    if heads:  # one linear per class, stacked: row k of our head is the original's head k
        tensors["head.weight"] = np.concatenate([tensors.pop(name) for name in heads])
        tensors["head.bias"] = np.concatenate([tensors.pop(name.replace("weight", "bias")) for name in heads])
    return Converted(tensors, {**_classes(tensors), **arguments}, overrides={"heads": 1})


def _same(state: Mapping[str, Any]) -> Tensors:
    return dict(state)


def _classes(tensors: Tensors) -> dict[str, Any]:
    return {"num_classes": int(tensors["head.weight"].shape[0])} if "head.weight" in tensors else {}


CLASSIFIER = {"classifier": "classifier"}
TWO_CLASSIFIERS = {"cls_classifier": "cls_classifier", "distillation_classifier": "distillation_classifier"}
DISTILLED = {"head": "head", "head_dist": "head_dist"}

DIALECTS: tuple[Dialect, ...] = (
    Dialect(
        "Hugging Face",
        "vit",
        (r"(vit\.)?embeddings\.cls_token", huggingface.FIRST_QUERY),
        huggingface.vit_or_deit,
        absent=(*huggingface.NOT_VIT, r"(.*\.)?embeddings\.distillation_token"),
        heads=CLASSIFIER,
    ),
    Dialect(
        "Hugging Face",
        "deit",
        (r"(deit\.)?embeddings\.distillation_token", huggingface.FIRST_QUERY),
        huggingface.vit_or_deit,
        heads={**CLASSIFIER, **TWO_CLASSIFIERS},
    ),
    Dialect(
        "Hugging Face",
        "pvt_v2",
        (r"pvt_v2\.encoder\.layers\.0\.patch_embedding",),
        huggingface.pvt_any,
        heads=CLASSIFIER,
    ),
    Dialect("Hugging Face", "pvt", (r"pvt\.encoder\.patch_embeddings\.0",), huggingface.pvt_any, heads=CLASSIFIER),
    Dialect("Hugging Face", "swin_v2", (r"swinv2\.embeddings",), huggingface.swin_any, heads=CLASSIFIER),
    Dialect("Hugging Face", "swin", (r"swin\.embeddings",), huggingface.swin_any, heads=CLASSIFIER),
    Dialect(
        "Google JAX",
        "hybrid",
        (r"(.*/)?conv_root/kernel", r"(.*/)?embedding/kernel"),
        _hybrid_from_google,
        heads={},
        convention="google",
    ),
    Dialect(
        "Google JAX",
        "vit",
        (r"(.*/)?embedding/kernel", r"(.*/)?Transformer/encoderblock(_0)?/"),
        _from_google,
        heads={},
        convention="google",
    ),
    Dialect(
        "torchvision",
        "vit",
        (r"class_token$", r"conv_proj\.weight"),
        _from_torchvision_vit,
        heads={"heads": "heads.head"},
        spared=("heads.pre_logits",),
        convention="torchvision",
    ),
    Dialect(
        "torchvision",
        "swin_v2",
        (r"features\.1\.0\.attn\.logit_scale", r"features\.0\.0\.weight"),
        _swin(swin.from_torchvision, second=True),
        convention="torchvision",
    ),
    Dialect(
        "torchvision",
        "swin",
        (r"features\.1\.0\.attn\.relative_position_bias_table", r"features\.0\.0\.weight"),
        _swin(swin.from_torchvision, second=False),
        convention="torchvision",
    ),
    Dialect(
        "mmpretrain",
        "vit",
        (r"patch_embed\.projection\.weight", r"layers\.0\.ffn\.layers\.0\.0\.weight", r"layers\.0\.attn\.qkv\.weight"),
        _from_mmpretrain,
        absent=(r"dist_token$", r"layers\.0\.attn\.relative_position", r"layers\.0\.attn\.gamma1"),
        convention="mmpretrain",
    ),
    Dialect(
        "vit-pytorch",
        "vit_pytorch",
        (r"pos_embedding$", r"(to_patch_embedding\.1|patch_to_embedding)\.weight", r"transformer\.(layers|net)\.0\."),
        _from_vit_pytorch,
        heads={},
        convention="unstated",
    ),
    Dialect(
        "T2T-ViT repository",
        "t2t",
        (r"tokens_to_token\.attention1\.", r"blocks\.0\.attn\.qkv\.weight"),
        _t2t,
        convention="t2t",
    ),
    Dialect("timm", "tnt", (r"pixel_pos$", r"patch_pos$"), _tnt_timm, convention="tnt"),
    Dialect("TNT repository", "tnt", (r"inner_pos$", r"outer_pos$"), _tnt_original, convention="tnt"),
    Dialect(
        "PVT repository",
        "pvt",
        (r"pos_embed1$", r"block1\.0\.attn\.q\.weight"),
        _pvt(_same, second=False),
        convention="pvt",
    ),
    Dialect(
        "PVT repository",
        "pvt_v2",
        (r"block1\.0\.mlp\.dwconv\.dwconv\.weight",),
        _pvt(_same, second=True),
        convention="pvt",
    ),
    Dialect(
        "timm",
        "pvt_v2",
        (r"stages\.0\.blocks\.0\.mlp\.dwconv\.weight",),
        _pvt(pvt.from_timm, second=True),
        convention="timm, ImageNet",
    ),
    # timm has the first merging of patches in the second stage, Microsoft in the first.
    *(
        Dialect(
            name,
            family,
            (rf"layers\.0\.blocks\.0\.attn\.{key}",),
            _swin(rename, second=family == "swin_v2", **changes),
            absent=absent,
            heads=heads,
            convention=convention,
        )
        for family, key in (("swin_v2", "logit_scale"), ("swin", "relative_position_bias_table"))
        for name, rename, changes, absent, heads, convention in (
            (
                "timm",
                swin.from_timm,
                {"table_rule": "geometric"},
                (r"layers\.0\.downsample\.", r"head\.(weight|bias)$"),
                {"head": "head.fc"},
                "timm, ImageNet",
            ),
            ("Swin repository", swin.from_original, {}, (), {"head": "head"}, "swin"),
        )
    ),
    Dialect(
        "DeiT repository",
        "patchconvnet",
        (r"blocks\.0\.attn\.qkv_pos\.0\.weight",),
        _patchconvnet,
        convention="deit",
    ),
    Dialect(
        "DeiT repository",
        "vit",
        (r"blocks\.0\.gamma_1$", r"blocks\.0\.attn\.qkv\.weight", r"pos_embed$"),
        _from_deit3,
        convention="deit3",
    ),
    Dialect(
        "timm",
        "hybrid",
        (r"patch_embed\.backbone\.(stem\.)?conv\.weight", r"patch_embed\.backbone\.(stem\.)?norm\.weight"),
        _hybrid_from_timm,
        convention="timm, half",
    ),
    Dialect(
        "timm or DeiT repository",
        "deit",
        (r"dist_token$", r"blocks\.0\.attn\.qkv\.weight"),
        _from_timm_vit,
        heads=DISTILLED,
        convention="deit",
    ),
    Dialect(
        "timm or DeiT repository",
        "vit",
        (r"pos_embed$", r"patch_embed\.proj\.weight", r"blocks\.0\.(attn|attns\.0\.attn)\.qkv\.weight"),
        _from_timm_vit,
        absent=(r"dist_token$", r"patch_embed\.backbone\."),
        convention="timm or deit",
    ),
)
