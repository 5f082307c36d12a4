"""Passes over onnx_ir, one rewrite per file, and what a legal graph is. They know no framework and no runtime."""
