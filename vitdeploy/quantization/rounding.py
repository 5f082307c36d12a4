"""Round the weights of a linear so that its outputs keep their values, not each weight its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 128
_LEAST_DAMPING, _MOST_DAMPING = 0.01, 1.0
_DAMPING_BY_SAMPLE = 0.05
_LARGEST, _LARGEST_PAIR = 127.0, 128.0


def round_for_outputs(
    weight: NDArray[np.float32],
    scale: NDArray[np.float32],
    rows: NDArray[np.float32],
    *,
    pairwise: bool = False,
) -> NDArray[np.int8]:
    """Return integers [K, N], for which X·(scale · q) is close to X·W, X [n, K] a sample of the inputs.

    GPTQ (Frantar et al. 2023, arXiv:2210.17323, algorithm 1): the rows of W are rounded one after the other, those with
    the largest inputs first, and the error of each goes into the rows that are still to come, by the inverse of
    XᵀX. As there, a hundredth of its mean diagonal is added to it, and more where n is not much larger than K: what a
    small sample says of directions that it does not have would do harm on other images.

    Args:
        weight: [K, N].
        scale: [N], the step of each column, which stays as it is.
        rows: [n, K], as the linear reads them, so after their own rounding.
        pairwise: Two integers of one sign in rows 2k and 2k + 1 sum up to at most 128 (``pairwise_scale``).
    """
    exact = rows.astype(np.float64)
    moments = exact.T @ exact  # NumPy computes a product with its own transpose by half
    del exact
    used = np.diag(moments) > 0
    moments[~used, ~used] = 1.0
    order = np.argsort(-np.diag(moments), kind="stable")
    mean = float(np.diag(moments)[used].mean()) if used.any() else 1.0
    damping = np.clip(_DAMPING_BY_SAMPLE * len(order) / max(len(rows), 1), _LEAST_DAMPING, _MOST_DAMPING)
    moments = moments[np.ix_(order, order)] + damping * mean * np.eye(len(order))
    spread = _spreading(moments)
    left = weight[order].astype(np.float64)
    found = np.zeros_like(left)
    place = np.argsort(order)
    for start in range(0, len(order), _BLOCK):
        end = min(start + _BLOCK, len(order))
        errors = np.zeros((end - start, left.shape[1]))
        for index in range(start, end):
            low, high = _limits(found, order, place, index, pairwise)
            found[index] = np.clip(np.rint(left[index] / scale), low, high)
            errors[index - start] = (left[index] - found[index] * scale) / spread[index, index]
            left[index + 1 : end] -= np.outer(spread[index, index + 1 : end], errors[index - start])
        left[end:] -= spread[start:end, end:].T @ errors
    integers: NDArray[np.int8] = found[place].astype(np.int8)
    return integers


def _spreading(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the upper Cholesky factor U of the inverse, UᵀU = moments⁻¹, which needs no inverse itself."""
    # with the rows in reverse, moments = LLᵀ gives moments⁻¹ = L⁻ᵀL⁻¹; in their own order L⁻¹ becomes upper
    lower: NDArray[np.float64] = np.linalg.cholesky(moments[::-1, ::-1]).astype(np.float64)
    return _inverse_of_lower(lower)[::-1, ::-1]


def _inverse_of_lower(lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse of a lower triangular matrix, by halves, at a sixth of a full one's work."""
    size = len(lower)
    if size <= _BLOCK:
        return np.asarray(np.linalg.inv(lower), np.float64)
    half = size // 2
    found = np.zeros_like(lower)
    found[:half, :half] = _inverse_of_lower(lower[:half, :half])
    found[half:, half:] = _inverse_of_lower(lower[half:, half:])
    found[half:, :half] = -found[half:, half:] @ (lower[half:, :half] @ found[:half, :half])
    return found


def _limits(
    found: NDArray[np.float64], order: NDArray[np.intp], place: NDArray[np.intp], index: int, pairwise: bool
) -> tuple[NDArray[np.float64] | float, NDArray[np.float64] | float]:
    """Return between what a row's integers may lie; a neighbour that is not rounded yet counts as 0."""
    neighbour = order[index] ^ 1
    if not pairwise or neighbour >= len(order):
        return -_LARGEST, _LARGEST
    other = found[place[neighbour]]
    return (
        np.maximum(-_LARGEST, -_LARGEST_PAIR - np.minimum(other, 0)),
        np.minimum(_LARGEST, _LARGEST_PAIR - np.maximum(other, 0)),
    )
