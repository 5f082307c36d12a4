"""Classification heads as people change them: another linear in its place, or a Sequential that ends in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.checkpoints.files import Tensors

State = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class FoundHead:
    """A head under the name that the dialect expects, what was done in words, and why it cannot be taken, if so."""

    tensors: Tensors
    note: str = ""
    problem: str = ""


def settle_head(state: State, root: str, target: str, spared: tuple[str, ...] = ()) -> FoundHead:
    """Bring the one linear below ``root`` to ``target``.

    Dropout and activations behind the linear have no tensors. Two linears, or a norm in front of one, are a head that
    the model does not have: what stands between them cannot be told from keys.

    Args:
        state: The weights under the dialect's own names.
        root: The attribute that people replace (``heads``).
        target: Where the dialect has the linear (``heads.head``).
        spared: Parts below ``root`` that are no head (``heads.pre_logits``).
    """
    names = [
        name
        for name in state
        if name.startswith(f"{root}.") and not any(name.startswith(f"{part}.") for part in spared)
    ]
    matrices = [name for name in names if state[name].ndim == 2 and name.endswith(".weight")]
    kept = {name: value for name, value in state.items() if name not in names}
    if not names:
        return FoundHead(dict(state))
    if len(matrices) == 1:
        place = matrices[0].removesuffix(".weight")
        others = [name for name in names if name not in (f"{place}.weight", f"{place}.bias")]
        if not others:
            return _as_linear(state, kept, place, target)
        return FoundHead(kept, problem=f"its head has {_listed(others)} beside the linear {place!r}")
    if matrices and all(state[name].shape[0] == 1 for name in matrices):
        return FoundHead(dict(state))  # one linear for each class, as PatchConvNet's many tokens have them
    if matrices:
        places = [name.removesuffix(".weight") for name in matrices]
        return FoundHead(
            kept, problem=f"its head has {len(places)} linears ({', '.join(places[:3])}), and keys do not tell what is "
            "between them"
        )  # fmt: skip
    return FoundHead(kept, problem=f"its head has {_listed(names)} and no linear")


def _as_linear(state: State, kept: Tensors, place: str, target: str) -> FoundHead:
    weight = state[f"{place}.weight"]
    bias = state.get(f"{place}.bias")
    notes = [] if place == target else [f"took {place!r} for the head {target!r}"]
    if bias is None:
        bias = np.zeros(weight.shape[0], np.float32)
        notes.append(f"the head {place!r} has no bias: took zeros, which change nothing")
    return FoundHead({**kept, f"{target}.weight": weight, f"{target}.bias": bias}, "; ".join(notes))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
