"""Checkpoints: foreign weights, told apart by their keys, renamed, resized and checked tensor by tensor."""

from vitdeploy.checkpoints.dialects import detect
from vitdeploy.checkpoints.files import WeightFile, read_weights
from vitdeploy.checkpoints.loading import LoadedWeights, LoadRequest, load_foreign

__all__ = ["LoadRequest", "LoadedWeights", "WeightFile", "detect", "load_foreign", "read_weights"]
