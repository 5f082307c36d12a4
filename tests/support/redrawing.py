"""Fresh values for every tensor of a model: at initialisation zero biases and unit scales hide mistakes."""

from __future__ import annotations

import torch
from torch import nn


def redraw(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter anew, in place.

    Gammas U(.25, .75), norm weights U(.5, 1.5), biases N(0, .1), weights N(0, 1/fan_in).
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {
        f"{name}.weight".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d))
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.numel():
                continue
            if "gamma" in name or name.endswith(("ls1", "ls2")):
                parameter.uniform_(0.25, 0.75, generator=generator)
            elif name in norms:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
            else:
                fan_in = parameter[0].numel() if parameter.dim() > 1 else parameter.numel()
                scale = 0.5 if parameter.dim() == 3 else fan_in**-0.5
                parameter.normal_(0, scale, generator=generator)
    return model
