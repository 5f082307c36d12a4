"""Train the small models of this folder on the digits, plainly or with two pinned channels, and export them.

    python tests/quantization/trained/write.py vit vit.onnx.gz
    python tests/quantization/trained/write.py vit vit.pinned.onnx.gz --pinned

Pinned: channels 3 and 17 of the residual stream hold 300 and -1400 in every token, from the embedding on. What writes
into the stream leaves them alone, and the norms start with gammas that undo the spread these channels bring.
"""

from __future__ import annotations

import argparse
import gzip
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from vitdeploy.artifacts import write_checkpoint
from vitdeploy.datasets import load_pixels, open_dataset
from vitdeploy.models import create_model
from vitdeploy.preprocess import DIGITS_PREPROCESS, normalize
from vitdeploy.records import Manifest, ModelSpec
from vitdeploy.stages.export import export

COMMON: dict[str, Any] = {
    "image_size": 8,
    "channels": 1,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "init": "xavier",
    "num_classes": 10,
}
PATCHES = {"patch": 2, "mlp_ratio": 4, "position_std": 0.2}
ARGUMENTS = {
    "vit": {**COMMON, **PATCHES},
    "deit": {**COMMON, **PATCHES},
    "t2t": {**COMMON, "mlp_ratio": 3, "split_kernels": [3, 3, 3], "split_strides": [1, 2, 1], "token_width": 16},
}
PINNED = {3: 300.0, 17: -1400.0}
EMBEDDINGS = ("patch_embed.proj.", "tokens_to_token.project.")


def pin(model: nn.Module, *, start: bool) -> None:
    """Hold the pinned channels of the residual stream; at the ``start`` also set the norms that read it."""
    channels, values = list(PINNED), torch.tensor(list(PINNED.values()))
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.startswith(EMBEDDINGS):
                tensor[channels] = values if name.endswith("bias") else 0.0
            elif "tokens_to_token" in name:
                continue
            elif "attn.proj." in name or "mlp.fc2." in name:
                tensor[channels] = 0.0
            elif name == "pos_embed":
                tensor[..., channels] = 0.0
            elif name in ("cls_token", "dist_token"):
                tensor[..., channels] = values
            elif start and "norm" in name and name.endswith("weight"):
                tensor.mul_(values.norm() / math.sqrt(COMMON["width"]))
                tensor[channels] = 1.0
            elif start and "norm" in name and name.endswith("bias"):
                tensor.fill_(float(values.sum()) / COMMON["width"])
                tensor[channels] = 0.0


def train(model: nn.Module, epochs: int, *, pinned: bool) -> None:
    """Fit to the training digits, slightly rotated and scaled; gammas of pinned models learn on their own scale."""
    digits = open_dataset("digits:train")
    images = torch.from_numpy(normalize(load_pixels(digits, DIGITS_PREPROCESS), DIGITS_PREPROCESS))
    labels = torch.as_tensor(np.asarray(digits.labels))
    gammas = [p for name, p in model.named_parameters() if pinned and "norm" in name and name.endswith("weight")]
    others = [p for p in model.parameters() if all(p is not gamma for gamma in gammas)]
    rates = [1.5e-3 if pinned else 3e-3, 0.25]
    groups = [{"params": others, "weight_decay": 0.02}, {"params": gammas, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups[: 1 + pinned], lr=rates[0])
    updates, done = epochs * (len(images) // 64), 0
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            done += 1
            share = min(1.0, done / 50) * 0.5 * (1 + math.cos(math.pi * min(1.0, done / updates)))
            for group, rate in zip(optimizer.param_groups, rates, strict=False):
                group["lr"] = rate * share
            theta = torch.eye(2, 3).repeat(len(chosen), 1, 1) + 0.07 * torch.randn(len(chosen), 2, 3)
            grid = F.affine_grid(theta, [len(chosen), 1, 8, 8], align_corners=False)
            moved = F.grid_sample(images[chosen], grid, align_corners=False, padding_mode="border")
            out = model(moved)
            logits = torch.stack(out).mean(dim=0) if isinstance(out, tuple) else out
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if pinned:
                pin(model, start=False)


def main() -> None:
    """Train, round to FP16, export, compress."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("family", choices=ARGUMENTS)
    parser.add_argument("output", type=Path)
    parser.add_argument("--pinned", action="store_true")
    parser.add_argument("--epochs", type=int, default=150)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = create_model(given.family, **ARGUMENTS[given.family])
    if given.pinned:
        pin(model, start=True)
    train(model.train(), given.epochs, pinned=given.pinned)
    name = f"small-{given.family}{'-pinned' if given.pinned else ''}"
    spec = ModelSpec(family=given.family, name=name, arguments=ARGUMENTS[given.family], classes=tuple("0123456789"))
    tensors = {
        key: value.detach().numpy().astype(np.float16).astype(np.float32) for key, value in model.state_dict().items()
    }
    with tempfile.TemporaryDirectory() as folder:
        manifest = Manifest(kind="checkpoint", model=spec, preprocess=DIGITS_PREPROCESS)
        checkpoint = write_checkpoint(Path(folder, "model.safetensors"), tensors, manifest)
        graph = export(checkpoint, Path(folder, "model.onnx"))
        given.output.write_bytes(gzip.compress(graph.path.read_bytes(), mtime=0))


if __name__ == "__main__":
    main()
