"""From a PyTorch module or a foreign ONNX file to a checked graph."""
