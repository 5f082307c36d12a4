"""What a conformance test needs so that it proves something.

With the references' own initialisation a wrong tensor often moves no logit, so every parameter is redrawn first; and a
wrong LayerNorm eps is invisible at normal scale, so the probe shrinks what enters each norm to a variance near eps.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

BANNED = {
    *{"Shape", "Expand", "Squeeze", "Unsqueeze", "If", "Loop", "Resize"},
    *{"Einsum", "ScatterND", "GatherND", "Where", "Range", "EyeLike"},
}


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        out = model(x)
    return out.logits if hasattr(out, "logits") else out


def relative_difference(ours: Tensor, reference: Tensor) -> float:
    """max |Δ| as a fraction of the reference's range."""
    return float((ours - reference).abs().max() / (reference.max() - reference.min()))


def shrink_norm_inputs(model: nn.Module, factor: float = 1e-3) -> None:
    """Multiply what enters every LayerNorm, so that its eps matters."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * factor, *inputs[1:]))


CLOSE = 1e-5


def assert_equal(ours: nn.Module, reference: nn.Module, x: Tensor) -> None:
    assert relative_difference(logits_of(ours, x), logits_of(reference, x)) <= CLOSE


def assert_equal_eps(ours: nn.Module, reference: nn.Module, x: Tensor, wrong: float) -> None:
    """Compare where the eps of each LayerNorm matters; with the ``wrong`` one the comparison must fail."""
    shrink_norm_inputs(ours)
    shrink_norm_inputs(reference)
    assert_equal(ours, reference, x)
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = wrong
    assert relative_difference(logits_of(ours, x), logits_of(reference, x)) > 100 * CLOSE


def unnoticed(model: nn.Module, x: Tensor, tolerance: float = 1e-5, seed: int = 1) -> set[str]:
    """Return the parameters whose perturbation moves no logit by more than the conformance tolerance."""
    generator = torch.Generator().manual_seed(seed)
    before = logits_of(model, x)
    inert = set()
    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * kept.std(correction=0).clamp_min(0.1))
        if relative_difference(logits_of(model, x), before) <= tolerance:
            inert.add(name)
        with torch.no_grad():
            parameter.copy_(kept)
    return inert


def gmacs(model: nn.Module, channels: int, size: tuple[int, int]) -> float:
    """Count 10⁹ multiply-accumulates of convolutions, linears and matrix products at batch 1, on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, channels, *size, device="meta"))
    return counter.get_total_flops() / 2e9


def exported(
    model: nn.Module, x: Tensor, path: Path, tolerance: float = 1e-4, allowed: Collection[str] = ()
) -> list[str]:
    """Export with a dynamic batch, compare at batch 1, 2 and 5, refuse banned operators, and return the operators."""
    model.eval()
    program = torch.onnx.export(
        model, (x[:2],), dynamo=True, opset_version=20, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
    )
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for batch in (1, 2, 5):
        feed = x[:1].repeat(batch, 1, 1, 1) + torch.randn(batch, *x.shape[1:]) * 0.1
        (ours,) = session.run(None, {name: feed.numpy()})
        difference = relative_difference(torch.from_numpy(np.asarray(ours)), logits_of(model, feed))
        assert difference <= tolerance, f"batch {batch}: {difference}"
    operators = [node.op_type for node in program.model.graph]
    assert not (set(operators) & BANNED) - set(allowed), sorted(set(operators) & BANNED)
    return operators
