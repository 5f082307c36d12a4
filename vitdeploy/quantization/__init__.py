"""Quantization: ranges of activations, integers of weights, and the plan of what runs in which precision."""
