"""An ONNX file as another exporter writes it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

# What a TorchScript exporter of some years ago writes: LayerNorm and GELU in pieces, its own names, opset 14.
FOREIGN = """<ir_version: 7, opset_import: ["" : 14], doc_string: "from /home/someone">
net (float[N, 1, 8, 8] pixel_values) => (float[N, 10] scores) <
    float two = {2.0}, float eps = {0.000001}, float c = {1.4142135}, float one = {1.0}, float half = {0.5},
    int64[2] flat = {-1, 64}
> {
    f = Reshape(pixel_values, flat)
    m = ReduceMean <axes = [-1]> (f) d = Sub(f, m) p = Pow(d, two) v = ReduceMean <axes = [-1]> (p)
    e = Add(v, eps) s = Sqrt(e) n = Div(d, s) g = Mul(n, gamma) h = Add(g, beta)
    a = Div(h, c) r = Erf(a) o = Add(r, one) k = Mul(h, o) q = Mul(k, half)
    t = Transpose <perm = [1, 0]> (w) y = MatMul(q, t) scores = Add(b, y)
}"""


def write_foreign(path: Path, text: str = FOREIGN, drop: Sequence[str] = ()) -> Path:
    model = ir.from_onnx_text(text)
    rng = np.random.default_rng(0)
    for name, shape in (("gamma", (64,)), ("beta", (64,)), ("w", (10, 64)), ("b", (10,))):
        value = next((v for node in model.graph for v in node.inputs if v is not None and v.name == name), None)
        if value is None or name in drop:
            continue
        tensor = ir.tensor(rng.standard_normal(shape).astype(np.float32), name=name)
        value.const_value, value.shape, value.dtype = tensor, ir.Shape(shape), tensor.dtype
        model.graph.register_initializer(value)
    path.parent.mkdir(exist_ok=True)
    ir.save(model, path)
    return path
