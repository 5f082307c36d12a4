"""Golden samples: a few inputs and their outputs that travel with a graph, so that any build of it can be checked."""

from __future__ import annotations

import base64
import json
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifacts.base import ArrayValue
from vitdeploy.errors import ArtifactError
from vitdeploy.reading import parse_json
from vitdeploy.text import size_text

LARGEST = 64 << 20
"""Bytes that one array may have: eight images of 1000×1000 pixels are 24 MB."""


@dataclass(frozen=True, eq=False, repr=False)
class Golden(ArrayValue):
    """Inputs as the pixels that enter normalisation, and logits.

    pixels: [n, H, W, C] uint8, after resize and crop; ``Preprocess`` turns them into the network's input.
    reference: [n, classes] float32, logits of the PyTorch model.
    outputs: [n, classes] float32, logits of this graph under ONNX Runtime on the CPU.
    """

    pixels: NDArray[np.uint8]
    reference: NDArray[np.float32]
    outputs: NDArray[np.float32]

    def __repr__(self) -> str:
        size = "×".join(map(str, self.pixels.shape[1:]))
        return f"<Golden: {len(self.pixels)} samples of {size}, {self.outputs.shape[-1]} classes>"

    def to_text(self) -> str:
        """Return the samples as one line of JSON with compressed, base64-coded arrays."""
        return json.dumps({name: _pack(getattr(self, name)) for name in ("pixels", "reference", "outputs")})

    @classmethod
    def from_text(cls, text: str) -> Golden:
        """Read what ``to_text`` wrote.

        Raises:
            ArtifactError: The text is damaged.
        """
        try:
            raw = parse_json(text)
            return cls(_unpack(raw["pixels"]), _unpack(raw["reference"]), _unpack(raw["outputs"]))
        except (ValueError, KeyError, TypeError, zlib.error, OverflowError) as error:
            raise ArtifactError("the golden samples are damaged") from error


def _pack(array: NDArray[Any]) -> dict[str, Any]:
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def _unpack(raw: dict[str, Any]) -> NDArray[Any]:
    """Return an array, unpacked to no more than its shape says.

    Raises:
        ValueError: The shape claims more than a graph's samples ever take, or another size than the data has.
    """
    dtype, shape = np.dtype(raw["dtype"]), tuple(raw["shape"])
    if dtype.hasobject or not all(isinstance(side, int) and 0 <= side < LARGEST for side in shape):
        raise ValueError("no array of numbers")
    size = math.prod(shape) * dtype.itemsize
    if size > LARGEST:
        raise ValueError(f"{size_text(size)} of samples")
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(raw["data"], validate=True), size + 1)
    if len(data) != size:
        raise ValueError(f"{size_text(size)} claimed")
    array: NDArray[Any] = np.frombuffer(data, dtype)
    return array.reshape(shape)
