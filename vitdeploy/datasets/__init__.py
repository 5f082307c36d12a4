"""Datasets: digits, image folders, calibration sets and timm's datasets, behind one ``open_dataset(uri)``."""

from vitdeploy.datasets.base import SPLITS, Dataset, Split, content_digest, pixels_id
from vitdeploy.datasets.loading import batches, load_pixels
from vitdeploy.datasets.opening import open_dataset, splits_of

__all__ = [
    "SPLITS",
    "Dataset",
    "Split",
    "batches",
    "content_digest",
    "load_pixels",
    "open_dataset",
    "pixels_id",
    "splits_of",
]
