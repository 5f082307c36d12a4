"""Checkpoints: foreign weights, told apart by their keys, renamed, resized and checked tensor by tensor."""

from vitdeploy.checkpoints.candidates import detect, read_weights
from vitdeploy.checkpoints.files import WeightFile
from vitdeploy.checkpoints.loading import LoadedWeights, LoadRequest, load_foreign

__all__ = ["LoadRequest", "LoadedWeights", "WeightFile", "detect", "load_foreign", "read_weights"]
