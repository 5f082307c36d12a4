"""Where inside a quantized graph the error arises: by depth, and by tensor."""

from __future__ import annotations

from vitdeploy.records.base import Record


class DepthPoint(Record):
    """A sum of the residual stream, and its SQNR against the same sum of the FP32 graph; None: equal bit for bit."""

    tensor: str
    sqnr_db: float | None


class RoundedTensor(Record):
    """An activation in 8 bits.

    ``low`` and ``high`` were seen, ``least`` and ``most`` are the ends of what 8 bits represent, ``clipped`` is the
    fraction of values beyond them. ``sqnr_db`` is of its own rounding alone; None: exact.
    """

    group: str
    tensor: str
    low: float
    high: float
    least: float
    most: float
    clipped: float
    sqnr_db: float | None


class ErrorProfile(Record):
    """What a few images of the check showed: ``depth`` in the order of the graph, ``tensors`` with the worst first."""

    images: int
    depth: tuple[DepthPoint, ...] = ()
    tensors: tuple[RoundedTensor, ...] = ()
