"""Checkpoints: foreign weights, one file per dialect: detect, map, check every shape."""
