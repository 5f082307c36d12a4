"""Tensors that follow from the parameters alone, kept as constants for an export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class DerivedConstants(nn.Module):
    """A module part of whose forward depends on its parameters only, not on the input.

    Subclasses compute those tensors in ``derive`` and read them through ``derived``. In PyTorch each call computes
    them, so that training learns the parameters and a changed weight is never overlooked. While ``torch.export``
    traces, the values of the last ``eval()`` or ``load_state_dict`` are taken instead and become initializers: the
    graph then holds no gather, MLP or exponential that would compute them again for each image. Weights changed by
    other means since then need another ``eval()``; the check of an export against PyTorch would find them out of date.

    The values are plain attributes and not buffers, which DDP would broadcast and weight averaging would pair up.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constants: tuple[Tensor, ...] | None = None
        self.register_load_state_dict_post_hook(_derive_again)  # type: ignore[no-untyped-call]

    def derive(self) -> tuple[Tensor, ...]:
        """Compute the tensors from the parameters, with gradients."""
        raise NotImplementedError

    def derived(self) -> tuple[Tensor, ...]:
        """Return the tensors: constants while an export traces the module in eval mode, else fresh ones."""
        if torch.compiler.is_exporting() and self._constants is not None:
            return self._constants
        return self.derive()

    def train(self, mode: bool = True) -> DerivedConstants:
        """Switch between training and evaluation; the latter keeps the constants."""
        super().train(mode)
        self.refresh()
        return self

    def refresh(self) -> None:
        """Compute the constants again; drop them in training mode and on the meta device, where nothing has a value."""
        absent = self.training or any(parameter.is_meta for parameter in self.parameters())
        with torch.no_grad():
            self._constants = None if absent else self.derive()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DerivedConstants:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.refresh()
        return self


def _derive_again(module: nn.Module, _: Any) -> None:
    assert isinstance(module, DerivedConstants)
    module.refresh()
