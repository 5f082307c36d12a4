"""Datasets: digits, image folders, calibration sets and timm's datasets, behind one ``open_dataset(uri)``."""

from vitdeploy.datasets.base import SPLITS, Dataset, DataSource, Split, content_digest, pixels_id
from vitdeploy.datasets.calibration_set import CalibrationSet, is_calibration_set
from vitdeploy.datasets.folder import images_below
from vitdeploy.datasets.imagenet import imagenet_classes, imagenet_labels
from vitdeploy.datasets.labels import match_labels, read_label_map, rename_classes, require_labels
from vitdeploy.datasets.loading import batches, load_pixels
from vitdeploy.datasets.opening import open_dataset, splits_of

__all__ = [
    "SPLITS",
    "CalibrationSet",
    "DataSource",
    "Dataset",
    "Split",
    "batches",
    "content_digest",
    "imagenet_classes",
    "imagenet_labels",
    "images_below",
    "is_calibration_set",
    "load_pixels",
    "match_labels",
    "open_dataset",
    "pixels_id",
    "read_label_map",
    "rename_classes",
    "require_labels",
    "splits_of",
]
