"""Small models of other packages, the ways in which people export them, and the native graph of the same weights."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir
import torch
from PIL import Image
from redrawing import redraw
from safetensors.numpy import load_file
from torch import nn

from vitdeploy.artifacts import OnnxModel, write_checkpoint
from vitdeploy.checkpoints.layouts import swin as swin_layouts
from vitdeploy.checkpoints.layouts import vit as vit_layouts
from vitdeploy.datasets.check_images import smooth_random_pixels
from vitdeploy.models import create_model
from vitdeploy.records import Manifest, ModelSpec, Preprocess
from vitdeploy.stages.export import ExportOptions, export

SIZE, CLASSES = 32, 10
PREPROCESS = Preprocess(
    size=(SIZE, SIZE), channels=3, resize="none", crop="none", mean=(0.5,) * 3, std=(0.25,) * 3, source="made"
)
VIT = {"image_size": SIZE, "patch": 8, "width": 48, "depth": 2, "heads": 3, "num_classes": CLASSES}
SWIN = {
    "image_size": SIZE, "patch": 2, "width": 16, "depths": [2, 2], "heads": [1, 2], "window": 4,
    "num_classes": CLASSES,
}  # fmt: skip
Tensors = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Foreign:
    """A model of another package, the family and arguments that it has here, and how its tensors are renamed."""

    make: Callable[[], nn.Module]
    family: str
    arguments: Mapping[str, Any]
    convert: Callable[[Any], Tensors]


def _timm_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=SIZE, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=CLASSES)


def _timm_deit() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(
        img_size=SIZE, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=CLASSES
    )


def _timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=SIZE, patch_size=2, num_classes=CLASSES, embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=4
    )


def _hf(kind: str, **arguments: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(image_size=SIZE, num_labels=CLASSES, **arguments)
    name = "DeiTForImageClassificationWithTeacher" if kind == "DeiT" else f"{kind}ForImageClassification"
    return getattr(transformers, name)(config)


_HF_VIT = {
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 192,
}
_HF_SWIN = {"patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}


def _torchvision_vit() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        image_size=SIZE, patch_size=8, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=192, num_classes=CLASSES
    )


def _torchvision_swin() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        patch_size=[2, 2], embed_dim=16, depths=[2, 2], num_heads=[1, 2], window_size=[4, 4], num_classes=CLASSES
    )


MODELS: dict[str, Foreign] = {
    "timm ViT": Foreign(_timm_vit, "vit", VIT, vit_layouts.from_timm),
    "timm DeiT": Foreign(_timm_deit, "deit", VIT, dict),
    "timm Swin": Foreign(_timm_swin, "swin", SWIN, swin_layouts.from_timm),
    "transformers ViT": Foreign(
        lambda: _hf("ViT", **_HF_VIT), "vit", {**VIT, "eps": 1e-12}, vit_layouts.from_huggingface
    ),
    "transformers DeiT": Foreign(
        lambda: _hf("DeiT", **_HF_VIT), "deit", {**VIT, "eps": 1e-12}, vit_layouts.from_huggingface
    ),
    "transformers Swin": Foreign(lambda: _hf("Swin", **_HF_SWIN), "swin", SWIN, swin_layouts.from_huggingface),
    "torchvision ViT": Foreign(_torchvision_vit, "vit", VIT, vit_layouts.from_torchvision),
    "torchvision Swin": Foreign(_torchvision_swin, "swin", SWIN, swin_layouts.from_torchvision),
}


class _Logits(nn.Module):
    """A model of transformers as its exporters wrap it: pixels in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return self.model(pixel_values=pixel_values).logits


def made(name: str) -> nn.Module:
    """Return a model with every tensor redrawn."""
    torch.manual_seed(0)
    return redraw(MODELS[name].make()).eval()


def _tensors(name: str) -> Tensors:
    """Return a model's tensors by the names of its files, which in transformers are others than in memory."""
    model = made(name)
    if not name.startswith("transformers"):
        return {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # type: ignore[operator]
        return load_file(Path(folder) / "model.safetensors")


def native(name: str, folder: Path) -> OnnxModel:
    """Export the same weights through our own model."""
    foreign = MODELS[name]
    tensors = foreign.convert(_tensors(name))
    own = create_model(foreign.family, **foreign.arguments).state_dict()
    kept = {key: np.asarray(tensors[key]) for key in own}
    spec = ModelSpec(family=foreign.family, name=foreign.family, arguments=dict(foreign.arguments))
    manifest = Manifest(kind="checkpoint", model=spec, preprocess=PREPROCESS)
    checkpoint = write_checkpoint(folder / "native.safetensors", kept, manifest)
    return export(checkpoint, folder / "native.onnx")


def _dynamo(model: nn.Module, path: Path, opset: int = 20, *, batch: int | None = None) -> None:
    shapes = None if batch else ({0: torch.export.Dim("batch")},)
    pixels = torch.randn(batch or 2, 3, SIZE, SIZE)
    program = torch.onnx.export(
        model, (pixels,), dynamo=True, opset_version=opset, dynamic_shapes=shapes, verbose=False
    )
    assert program is not None
    program.save(path)


def _torchscript(model: nn.Module, path: Path, opset: int, *, batch: int | None = None) -> None:
    axes: dict[str, Any] = {} if batch else {"dynamic_axes": {"pixels": {0: "batch"}}}
    pixels = torch.randn(batch or 2, 3, SIZE, SIZE)
    torch.onnx.export(model, (pixels,), path, dynamo=False, opset_version=opset, input_names=["pixels"], **axes)


def _plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: Any = None, *_: Any, **options: Any
) -> Any:
    """Attention as models wrote it before there was a fused one, which exporters know from opset 14 on."""
    scale = options.get("scale") or q.shape[-1] ** -0.5
    scores = q @ k.transpose(-2, -1) * scale
    return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v


def _opset_13(model: nn.Module, path: Path) -> None:
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", _plain_attention):
        _torchscript(model, path, 13)


EXPORTERS: dict[str, Callable[[nn.Module, Path], None]] = {
    "dynamo, opset 20": lambda model, path: _dynamo(model, path, 20),
    "dynamo, batch 1": lambda model, path: _dynamo(model, path, 20, batch=1),
    "TorchScript, opset 13": _opset_13,
    "TorchScript, opset 17": lambda model, path: _torchscript(model, path, 17),
    "TorchScript, opset 20": lambda model, path: _torchscript(model, path, 20),
    "TorchScript, opset 17, batch 8": lambda model, path: _torchscript(model, path, 17, batch=8),
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def export_foreign(name: str, exporter: str, path: Path) -> Path:
    """Write a model of another package with one of its exporters."""
    model = made(name)
    with _quiet(), torch.no_grad():
        EXPORTERS[exporter](_Logits(model) if name.startswith("transformers") else model, path)
    return path


def optimised(path: Path, output: Path, model_type: str = "vit", heads: int = 0, width: int = 0) -> Path:
    """Write what onnxruntime.transformers makes of a graph, with its fused operators of com.microsoft."""
    from onnxruntime.transformers import optimizer

    with _quiet():
        optimizer.optimize_model(
            str(path), model_type=model_type, num_heads=heads, hidden_size=width, opt_level=0
        ).save_model_to_file(str(output))
    return output


def adopt(path: Path, output: Path) -> OnnxModel:
    return export(path, output, options=ExportOptions(preprocess=PREPROCESS))


def images(folder: Path, count: int = 48) -> str:
    """Write seeded images at the models' size, and return the folder."""
    folder.mkdir()
    for index, pixels in enumerate(smooth_random_pixels(PREPROCESS, count, 1)):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return str(folder)


def operators(model: OnnxModel) -> dict[str, int]:
    graph: ir.Graph = model.load().graph
    names = [f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in graph]
    return {name: names.count(name) for name in sorted(set(names))}
