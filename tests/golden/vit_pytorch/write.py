"""Write what a published version of vit-pytorch computes: its weights, images, its logits.

    pip download vit-pytorch==0.10.1 --no-deps && unzip vit_pytorch-0.10.1-*.whl -d old
    python tests/golden/vit_pytorch/write.py old/vit_pytorch/vit.py 0.10.1 mean

The model file alone is loaded, because the packages of old ask for libraries that need not be installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

SIZES = {"image_size": 10, "patch_size": 2, "num_classes": 5, "dim": 12, "depth": 2, "mlp_dim": 14}


def redraw(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter so that each moves the logits."""
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.numel():
                continue
            if name in norms:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
            elif name in {"cls_token", "pos_embedding"}:
                parameter.normal_(0, 0.5, generator=generator)
            else:
                parameter.normal_(0, (2 if "qkv" in name else 1) * parameter[0].numel() ** -0.5, generator=generator)


def main() -> None:
    """Write ``VERSION-POOL.safetensors`` beside this script, ``VERSION-single.safetensors`` for one head."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("version")
    parser.add_argument("kind", choices=("cls", "mean", "single"))
    given = parser.parse_args()
    spec = importlib.util.spec_from_file_location("old_vit", given.file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = inspect.signature(module.ViT).parameters
    heads, head_width = (1, SIZES["dim"]) if given.kind == "single" else (2, 8)
    pool = "mean" if given.kind == "mean" else "cls"
    arguments: dict[str, Any] = {**SIZES, "heads": heads}
    if "dim_head" in known:
        arguments["dim_head"] = head_width
    if "pool" in known:
        arguments["pool"] = pool
    model = module.ViT(**arguments).eval()
    generator = torch.Generator().manual_seed(0)
    redraw(model, generator)
    x = torch.randn(2, 3, 10, 10, generator=generator)
    with torch.no_grad():
        logits = model(x)
    weights = {f"weights.{name}": value.contiguous() for name, value in model.state_dict().items()}
    facts = {"version": given.version, "pool": pool, "heads": str(heads)}
    save_file(
        {**weights, "x": x, "logits": logits},
        Path(__file__).with_name(f"{given.version}-{given.kind}.safetensors"),
        facts,
    )


if __name__ == "__main__":
    main()
