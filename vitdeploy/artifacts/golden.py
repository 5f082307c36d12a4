"""Golden samples: a few inputs and their outputs that travel with a graph, so that any build of it can be checked."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import ArtifactError


@dataclass(frozen=True)
class Golden:
    """Inputs as the pixels that enter normalisation, and logits.

    pixels: [n, H, W, C] uint8, after resize and crop; ``Preprocess`` turns them into the network's input.
    reference: [n, classes] float32, logits of the PyTorch model.
    outputs: [n, classes] float32, logits of this graph under ONNX Runtime on the CPU.
    """

    pixels: NDArray[np.uint8]
    reference: NDArray[np.float32]
    outputs: NDArray[np.float32]

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
            raw = json.loads(text)
            return cls(_unpack(raw["pixels"]), _unpack(raw["reference"]), _unpack(raw["outputs"]))
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise ArtifactError("the golden samples are damaged") from error


def _pack(array: NDArray[Any]) -> dict[str, Any]:
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def _unpack(raw: dict[str, Any]) -> NDArray[Any]:
    data = zlib.decompress(base64.b64decode(raw["data"]))
    array: NDArray[Any] = np.frombuffer(data, np.dtype(raw["dtype"]))
    return array.reshape(raw["shape"])
