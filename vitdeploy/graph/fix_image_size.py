"""Fix the image size of a graph that was exported for any."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.errors import GraphError


class FixImageSize(ir.passes.InPlacePass):
    """Set channels, height and width of the one image input [N, C, H, W] where they are symbolic.

    Hugging Face's exporters leave all four dimensions open. With the size of the preprocessing, everything that the
    graph computes from it becomes a constant (``ResolveShapes``).

    Raises:
        GraphError: The graph has another size already.
    """

    def __init__(self, image: tuple[int, int, int] | None) -> None:
        super().__init__()
        self.image = image

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        inputs = [value for value in model.graph.inputs if not value.is_initializer()]
        if self.image is None or len(inputs) != 1 or inputs[0].shape is None or len(inputs[0].shape) != 4:
            return ir.passes.PassResult(model, modified=False)
        batch, *sizes = inputs[0].shape
        if any(isinstance(size, int) and size != right for size, right in zip(sizes, self.image, strict=True)):
            raise GraphError(f"the image input is {inputs[0].shape}, expected [N, {', '.join(map(str, self.image))}]")
        inputs[0].shape = ir.Shape([batch, *self.image])
        return ir.passes.PassResult(model, modified=sizes != list(self.image))
