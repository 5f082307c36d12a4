"""Which parameters are trained, how fast, and which of them decay."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import nn

from vitdeploy.errors import UsageError


def freeze(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Exclude the parameters that match a shell pattern from training, and return their names.

    Raises:
        UsageError: A pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in module.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise UsageError(f"freeze {pattern!r} matches no parameter: the model has names such as {names[0]!r}")
        frozen.update(matches)
    if len(frozen) == len(names):
        raise UsageError(f"freeze {', '.join(patterns)!r} matches every parameter: nothing is left to train")
    for name, parameter in module.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return sorted(frozen)


def parameter_groups(
    module: nn.Module, *, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Return groups for an optimizer; ``lr_scale`` is the factor on the learning rate of each.

    Biases, norms and whatever the model names in ``no_weight_decay()`` do not decay; names of timm's models may be
    shell patterns. With ``layer_decay`` d the layer n
    steps below the head has the factor dⁿ (Clark et al. 2020, arXiv:2003.10555, section 3.2), by the order that
    ``group_matcher`` gives.

    Raises:
        UsageError: ``layer_decay`` is set for a model without ``group_matcher``.
    """
    kept: set[str] = getattr(module, "no_weight_decay", set)()
    scales = _layer_scales(module, layer_decay) if layer_decay is not None else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.dim() > 1 and not any(fnmatch.fnmatch(name, pattern) for pattern in kept)
        groups[(weight_decay if decays else 0.0, scales.get(name, 1.0))].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in groups.items()
    ]


def _layer_scales(module: nn.Module, layer_decay: float) -> dict[str, float]:
    from timm.models import group_parameters

    if not hasattr(module, "group_matcher"):
        raise UsageError(f"layer_decay needs a model with layers in order, and {type(module).__name__} has none")
    layers: dict[str, int] = group_parameters(module, module.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    top = max(layers.values())
    return {name: layer_decay ** (top - layer) for name, layer in layers.items()}
